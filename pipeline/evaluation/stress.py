"""The stress test: the same cases again as other scanners, exports and crops would have made them, and what each costs.

In: a model, a subject, and its plain predictions. Out: one row a stress, for metrics.json and stress.csv. A drop is paired, case by case,
over the cases that could be predicted both ways. What a model leans on shows here before a hospital finds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline.evaluation.scoring import predict_subject, scored
from pipeline.evaluation.subject import Subject
from pipeline.metrics.metrics import affordable, paired
from pipeline.metrics.names import metric_words
from pipeline.prediction.predict import STATUS_OK, TrainedModel
from pipeline.wording import counted
from transforms.stress import STRESSES

LARGEST_DROP = 0.05
"""Of AUROC, that a stress may cost without a warning: what radloop's own default is held to."""
LARGEST_CALLED_DROP = 0.1
"""Of sensitivity or specificity: where all probabilities rise alike the ranking stays, and calls at the threshold may all be wrong."""
LIMITS = {"auroc": LARGEST_DROP, "sensitivity": LARGEST_CALLED_DROP, "specificity": LARGEST_CALLED_DROP}


def stress_test(
    model: TrainedModel, subject: Subject, plain: pd.DataFrame, *, resamples: int, seed: int, progress: bool = True
) -> list[dict[str, Any]]:
    """A row for each of `transforms.stress.STRESSES`: name, words, cases, failed, metrics, drop (plain minus stressed, with intervals).

    `plain`: predictions.csv of the subject. One stress after the other: memory does not grow with their number.
    """
    rows = []
    for stress in STRESSES.values():
        stressed = predict_subject(model, subject, stress=stress.name, progress=progress).cases
        rows.append(
            {"name": stress.name, "words": stress.words, **compared(plain, stressed, subject, model, resamples, seed)}
        )
    return rows


def compared(
    plain: pd.DataFrame, stressed: pd.DataFrame, subject: Subject, model: TrainedModel, resamples: int, seed: int
) -> dict[str, Any]:
    """What `stressed` loses against `plain`, both predictions of the subject's cases in their order."""
    both = ((plain["status"] == STATUS_OK) & (stressed["status"] == STATUS_OK)).to_numpy()
    failed = int(((stressed["status"] != STATUS_OK) & (plain["status"] == STATUS_OK)).sum())
    if not both.any():
        return {"cases": 0, "failed": failed, "metrics": {}, "drop": {}}
    patients = subject.cases["patient_key"][both]
    before, after = (scored(table[both], patients, model.facts) for table in (plain, stressed))
    told = paired(after, before, affordable(resamples, len(after)), seed)
    return {
        "cases": len(after),
        "failed": failed,
        "metrics": {name: one.to_json() for name, one in told.first.items()},
        "drop": {name: one.to_json() for name, one in told.difference.items()},
    }


def costs_much(row: Mapping[str, Any]) -> list[str]:
    """The metrics of `LIMITS` that a stress costs more of than it may."""
    drops = {name: row["drop"].get(name, {}).get("value") for name in LIMITS}
    return [name for name, drop in drops.items() if drop is not None and drop > LIMITS[name]]


def stress_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each stress that costs much, and for those under which images fail."""
    warnings = []
    for row in rows:
        falls = [
            f"{metric_words(name)} falls by {row['drop'][name]['value']:.3f} to {row['metrics'][name]['value']:.3f}"
            for name in costs_much(row)
        ]
        if falls:
            warnings.append(f"Stress ({row['words']}): {', '.join(falls)}.")
        if row["failed"]:
            warnings.append(
                f"Stress ({row['words']}): {counted(row['failed'], 'case')} could not be predicted under it."
            )
    return warnings


def stress_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """stress.csv: one row a stress and metric."""
    columns = ["stress", "metric", "value", "low", "high", "drop", "drop_low", "drop_high"]
    lines = []
    for row in rows:
        for name, metric in row["metrics"].items():
            drop = row["drop"][name]
            lines.append([row["name"], name, *metric.values(), *drop.values()])
    return pd.DataFrame(lines, columns=columns)
