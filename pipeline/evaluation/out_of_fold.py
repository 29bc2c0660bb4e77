"""Cross-validation of an ensemble's run: each case of its folds predicted by the one network that was not trained on it.

Out: predictions of all folds together, one row a case with its `fold`, each called by its own network's thresholds. Unlike the test split
these cases have chosen something: which epoch's weights were kept, the temperature, and thresholds unless they are given numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.config import Config
from pipeline.errors import RunError
from pipeline.evaluation.scoring import predict_subject, scored
from pipeline.evaluation.subject import own_folds
from pipeline.metrics.measures import Scored
from pipeline.metrics.metrics import evaluate_scored, percentile_interval, values_of, within
from pipeline.prediction.predict import STATUS_OK, load_model
from pipeline.run import EVALUATION_FOLDER, ModelFacts, write_table

PREDICTIONS_FILE = "cross_validation.csv"


@dataclass(frozen=True)
class OutOfFold:
    """`cases`: as predictions.csv, with `fold`; `patients`: the patient of each row."""

    cases: pd.DataFrame
    patients: pd.Series


def predict_folds(run: Path, facts: ModelFacts, *, root: Path | None = None, progress: bool = True) -> OutOfFold:
    """Every fold of the run `run` of an ensemble, by its own member; `root` as `own_split` has it."""
    tables, patients = [], []
    for member, subject in own_folds(run, facts, root).items():
        predictions = predict_subject(load_model(run / member), subject, progress=progress)
        tables.append(predictions.cases.assign(fold=member))
        patients.append(subject.cases["patient_key"])
    return OutOfFold(pd.concat(tables, ignore_index=True), pd.concat(patients, ignore_index=True))


def cross_validation(
    run: Path, facts: ModelFacts, config: Config, *, root: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Figures of the folds' cases, each by the network that was not trained on it: in all, of each fold, and `within_folds`, the means over
    folds of what ranks cases of one network; the table is written."""
    told = predict_folds(run, facts, root=root, progress=progress)
    write_table(predictions_path(run), told.cases)
    if not (told.cases["status"] == STATUS_OK).any():
        raise RunError(f"not one case of the folds could be predicted; reasons are in {predictions_path(run)}")
    cases = scored(told.cases, told.patients, facts)
    fold = told.cases["fold"][told.cases["status"] == STATUS_OK].to_numpy()
    resamples, seed = config.evaluation.resamples, config.seed
    whole = evaluate_scored(cases, threshold=facts.thresholds, resamples=resamples, seed=seed).to_json()
    ranked = within(cases, fold, resamples, seed)
    folds = [
        {"fold": name, "cases": int((fold == name).sum()), "metrics": _values(cases.take(fold == name))}
        for name in facts.members
    ]
    kept = {name: whole[name] for name in ("cases", "patients", "metrics", "confusion")}
    kept["within_folds"] = {
        name: percentile_interval(value, ranked.draws[name]).to_json() for name, value in ranked.values.items()
    }
    return kept | {"folds": folds, "warnings": [*selection_warnings(config), *whole["warnings"]]}


def _values(cases: Scored) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in values_of(cases).items()}


def predictions_path(run: Path) -> Path:
    return run / EVALUATION_FOLDER / PREDICTIONS_FILE


def selection_warnings(config: Config) -> list[str]:
    """What these cases have chosen, so that their figures are somewhat too good."""
    chosen = []
    if config.training.select != "last":
        chosen.append("which epoch's weights were kept")
    if config.evaluation.calibration != "none":
        chosen.append("the temperature")
    if not isinstance(config.evaluation.threshold, float | int):
        chosen.append("the thresholds")
    if config.training.plateau is not None:
        chosen.append("when the learning rate fell")
    if not chosen:
        return []
    return [f"Cross-validation: each fold also chose {' and '.join(chosen)}, so its figures are somewhat too good."]
