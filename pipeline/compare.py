"""Two runs on the same cases: the difference of every metric, paired, with its interval.

In: two runs, or several pairs of them, which are then pooled: folds that were trained one by one, each with other test cases, or the same
ones trained again with another seed, where a case counts once a training. Out: one record, `compare.json`. A case must be in both runs of
a pair, with the same label. Intervals are of a bootstrap over patients that draws the same ones for both; AUROCs are besides tested by
DeLong's test with patients as clusters (pipeline.metrics.delong).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import RESEARCH_ONLY
from pipeline.cohort.labels import NOT_PROVEN
from pipeline.cohort.split import SPLIT_COLUMNS
from pipeline.config import Config
from pipeline.errors import ConfigError, RunError
from pipeline.evaluate import METRICS_FILE, PREDICTIONS_FILE, evaluate
from pipeline.evaluation.out_of_fold import predictions_path, selection_warnings
from pipeline.evaluation.scoring import scored
from pipeline.files import write_whole
from pipeline.metrics.delong import auroc_difference_p
from pipeline.metrics.measures import Scored
from pipeline.metrics.metrics import FEW_PATIENTS, Paired, paired, percentile_interval, within
from pipeline.prediction.predict import STATUS_OK
from pipeline.run import EVALUATION_FOLDER, SPLIT_FILE, ModelFacts, read_config, read_model, read_table
from pipeline.wording import counted

COMPARE_FILE = "compare.json"
CROSS_VALIDATION = "cross-validation"
"""In place of a split: the folds of two ensembles, each case by the network that was not trained on it."""
METHOD = (
    "Paired: the same patients are drawn for both runs ({resamples} times), intervals are the middle 95 % of the differences. "
    "auroc_p: DeLong's test of equal AUROCs (two-sided), with patients as clusters (Obuchowski 1997)."
)
MAIN_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "f1",
    "auroc",
    "average_precision",
    "brier",
    "ece",
)


@dataclass(frozen=True)
class _Told:
    """What one run says of its cases: predictions.csv by case_id with `patient_key`, and what its figures are warned about."""

    run: Path
    facts: ModelFacts
    config: Config
    cases: pd.DataFrame
    warnings: tuple[str, ...]


def compare(
    first: Path,
    second: Path,
    *,
    also: Sequence[tuple[Path, Path]] = (),
    split: str = "",
    out: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Differences of `second` minus `first`, with intervals; what compare.json holds, written into `out` where it is given.

    `also`: further pairs, whose cases are pooled with these; a case again only by other models. `split`: train, validation, test or
    CROSS_VALIDATION; where empty, CROSS_VALIDATION if all are ensembles of folds, else test. A run that has not been evaluated on it is.
    RunError where the two of a pair do not have the same cases and labels.
    """
    pairs = [(first, second), *also]
    split = split or _usual_split([run for pair in pairs for run in pair])
    told = [(_told(one, split, progress), _told(other, split, progress)) for one, other in pairs]
    _same_task([one for pair in told for one in pair])
    one, other = _pooled(told)
    facts, config = told[0][0].facts, told[0][0].config
    usable = ((one["status"] == STATUS_OK) & (other["status"] == STATUS_OK)).to_numpy()
    if not usable.any():
        raise RunError("not one case was predicted by both runs: there is nothing to compare")
    a, b = (scored(table[usable], one["patient_key"][usable], facts) for table in (one, other))
    distinct = one.loc[usable, "case_id"].nunique()
    record = _record(
        split, pairs, told, (a, b), distinct, paired(a, b, config.evaluation.resamples, config.seed), config
    )
    record["left_out"] = int((~usable).sum())
    groups = _groups(one, other, len(pairs))
    if groups is not None:
        record["within_networks"] = _within(a, b, groups[usable], config)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / COMPARE_FILE, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


def _usual_split(runs: Sequence[Path]) -> str:
    return CROSS_VALIDATION if all(read_model(run).members for run in runs) else "test"


def _told(run: Path, split: str, progress: bool) -> _Told:
    """A run's predictions, made now unless they are there and this very model's."""
    facts, config = read_model(run), read_config(run)
    folded = split == CROSS_VALIDATION
    if folded and not facts.members:
        raise ConfigError(f"--split {split}: {run} is no ensemble of folds")
    base = run / EVALUATION_FOLDER
    folder = base if folded or split == "test" else base / split
    table = predictions_path(run) if folded else folder / PREDICTIONS_FILE
    record = _record_of(folder)
    if not table.is_file() or record.get("model_digest") != facts.digest:
        record = evaluate(run, split="test" if folded else split, progress=progress)
    patients = read_table(run / SPLIT_FILE, SPLIT_COLUMNS).set_index("case_id")["patient_key"]
    cases = read_table(table, ["case_id", "label", "predicted", "status"])
    warnings = [one for one in record["warnings"] if one.startswith(NOT_PROVEN)]
    warnings += selection_warnings(config) if folded else []
    return _Told(run, facts, config, cases.assign(patient_key=cases["case_id"].map(patients)), tuple(warnings))


def _record_of(folder: Path) -> dict[str, Any]:
    """metrics.json, empty where there is none that can be read: then the run is evaluated anew."""
    try:
        content = json.loads((folder / METRICS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _same_task(all_told: Sequence[_Told]) -> None:
    """ConfigError where runs do not predict the same thing."""
    first = all_told[0]
    for told in all_told[1:]:
        for name in ("classes", "positive", "several", "unit"):
            own, others = getattr(first.facts, name), getattr(told.facts, name)
            if own != others:
                raise ConfigError(
                    f"{told.run}: its {name} is {others}, that of {first.run} is {own}; they cannot be compared"
                )


def _pooled(told: Sequence[tuple[_Told, _Told]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cases of all pairs, as the first and as the second of each has them, with the number of their `pair`."""
    tables = [_paired_tables(one, other) for one, other in told]
    one, other = (
        pd.concat([pair[side].assign(pair=str(number)) for number, pair in enumerate(tables)], ignore_index=True)
        for side in (0, 1)
    )
    twice = int(one["case_id"].duplicated().sum())
    for models in ([pair[0].facts.digest for pair in told], [pair[1].facts.digest for pair in told]):
        if twice and len(set(models)) < len(models):
            raise RunError(
                f"{counted(twice, 'case')} in more than one pair of runs by the same model: expected other cases, or another training"
            )
    return one, other


def _paired_tables(one: _Told, other: _Told) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both runs' predictions in the order of the first's cases; RunError where cases or labels differ."""
    ours, theirs = (told.cases.set_index("case_id", drop=False) for told in (one, other))
    only_ours, only_theirs = len(ours.index.difference(theirs.index)), len(theirs.index.difference(ours.index))
    if only_ours or only_theirs:
        raise RunError(
            f"{one.run} and {other.run}: expected the same cases, found {only_ours} only in the first, {only_theirs} only in the second "
            f"and {len(ours) - only_ours} in both; train one with the other's split (split.file: {one.run / SPLIT_FILE})"
        )
    theirs = theirs.loc[ours.index]
    changed = int((ours["label"].to_numpy() != theirs["label"].to_numpy()).sum())
    if changed:
        raise RunError(
            f"{one.run} and {other.run}: {counted(changed, 'case')} with another label in the second; expected the same"
        )
    return ours.reset_index(drop=True), theirs.reset_index(drop=True)


def _record(
    split: str,
    pairs: Sequence[tuple[Path, Path]],
    told: Sequence[tuple[_Told, _Told]],
    cases: tuple[Scored, Scored],
    distinct: int,
    found: Paired,
    config: Config,
) -> dict[str, Any]:
    facts = told[0][0].facts
    return {
        "split": split,
        "unit": facts.unit,
        "classes": facts.classes,
        "several": facts.several,
        "positive": cases[0].classes[cases[0].positive] if cases[0].positive is not None else None,
        "runs": [{"first": str(one), "second": str(other)} for one, other in pairs],
        "models": {"first": facts.name, "second": told[0][1].facts.name},
        "cases": distinct,
        "predictions": len(cases[0]),
        "patients": cases[0].patients,
        "metrics": {
            name: {
                "first": found.first[name].to_json(),
                "second": found.second[name].to_json(),
                "difference": found.difference[name].to_json(),
            }
            for name in found.difference
        },
        "auroc_p": _p_values(*cases),
        "method": METHOD.format(resamples=config.evaluation.resamples),
        "warnings": _warnings(
            told,
            cases[0].patients,
            pooled=len(pairs) > 1 or split == CROSS_VALIDATION,
            repeated=distinct < len(cases[0]),
        ),
        "intended_use": RESEARCH_ONLY,
    }


def _warnings(told: Sequence[tuple[_Told, _Told]], patients: int, *, pooled: bool, repeated: bool) -> list[str]:
    warnings = [warning for pair in told for one in pair for warning in one.warnings]
    if patients < FEW_PATIENTS:
        warnings.append(
            f"Only {counted(patients, 'patient')}: below {FEW_PATIENTS}, intervals are rough and too narrow."
        )
    if repeated:
        warnings.append(
            "Several trainings of the same cases: figures are means over them; intervals are of patients alone, not of trainings."
        )
    if pooled:
        warnings.append(
            "Pooled over several networks a run: AUROC also ranks cases of different networks against each other."
        )
    return list(dict.fromkeys(warnings))


def _groups(one: pd.DataFrame, other: pd.DataFrame, pairs: int) -> np.ndarray | None:
    """(n,) cases of one network in either run; None where it is one for all, or the runs' folds differ."""
    if "fold" in one and "fold" in other:
        same = (one["fold"] == other["fold"]).all()
        return (one["pair"] + one["fold"]).to_numpy() if same else None
    return one["pair"].to_numpy() if pairs > 1 else None


def _within(one: Scored, other: Scored, groups: np.ndarray, config: Config) -> dict[str, Any]:
    """The ranking metrics within each network's cases, averaged, and their difference, paired."""
    first, second = (within(cases, groups, config.evaluation.resamples, config.seed) for cases in (one, other))
    return {
        name: {
            "first": percentile_interval(value, first.draws[name]).to_json(),
            "second": percentile_interval(second.values[name], second.draws[name]).to_json(),
            "difference": percentile_interval(
                second.values[name] - value, second.draws[name] - first.draws[name]
            ).to_json(),
        }
        for name, value in first.values.items()
    }


def _p_values(one: Scored, other: Scored) -> dict[str, float | None]:
    """By class: of two the finding's, of others each."""
    numbers = range(len(one.classes)) if one.positive is None else (one.positive,)
    return {
        one.classes[number]: auroc_difference_p(
            one.of_class(number), one.ranking(number), other.ranking(number), one.patient
        )
        for number in numbers
    }


def compare_lines(record: dict[str, Any], names: Sequence[str] = MAIN_METRICS) -> list[str]:
    """The main figures as text: both runs', and the difference with its interval."""
    of_whom = f"{counted(record['cases'], 'case')} of {counted(record['patients'], 'patient')}"
    if record["predictions"] > record["cases"]:
        of_whom += f", {record['predictions']} predictions of either side by several trainings"
    left_out = f"; {record['left_out']} not predicted by both are left out" if record["left_out"] else ""
    lines = [f"{record['split']}: {of_whom}, paired{left_out}"]
    lines += [f"  {pair['first']} against {pair['second']}" for pair in record["runs"]]
    lines += _lines({name: record["metrics"][name] for name in names if name in record["metrics"]})
    if within_networks := record.get("within_networks"):
        lines += ["within the cases of each network, on average:", *_lines(within_networks)]
    lines += [f"  auroc of {name}: p {value:.3g}" for name, value in record["auroc_p"].items() if value is not None]
    return lines + [f"warning: {warning}" for warning in record["warnings"]]


def _lines(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, metric in metrics.items():
        change = metric["difference"]
        if change["value"] is None:
            continue
        values = f"{metric['first']['value']:.3f} → {metric['second']['value']:.3f}"
        interval = "" if change["low"] is None else f"  (95 % interval {change['low']:+.3f} to {change['high']:+.3f})"
        lines.append(f"  {name:<18} {values}  {change['value']:+.3f}{interval}")
    return lines
