"""The tables of an evaluation's page, bounded in length: plain rows for its template, from `metrics.json`, `split.csv` and `model.json`.

What a record lacks gives an empty table, which the page leaves out. Values that are None are undefined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cohort.split import SPLITS
from pipeline.evaluation.stress import costs_much
from pipeline.metrics.names import METRICS
from pipeline.metrics.subgroups import column_words
from pipeline.pages.report_charts import between_text, cases_of_classes, number_text, with_interval

KEYS = ("auroc", "accuracy", "sensitivity", "specificity", "f1")
OF_A_CLASS = ("auroc", "sensitivity", "specificity", "f1", "average_precision")
UNITS = ("image", "series", "study", "patient")
BEHIND = "falls behind"
"""How the warning of a subgroup begins that falls behind; others only say that it is small."""
MOST_CLASSES = 40
"""Rows of the table of classes, of those with the most cases."""
MOST_SQUARE = 10
"""Classes of a confusion matrix that is shown whole; of more, the most frequent errors are listed."""
MOST_CONFUSIONS = 20
MOST_VALUES = 12
"""Of a subgroup's column."""
START_OF_AXIS = 0.5
"""Forest plots begin here, unless an interval reaches below."""

Row = dict[str, Any]
Interval = Mapping[str, float | None]


@dataclass(frozen=True)
class Forest:
    """Rows with one metric each, on an axis from `low` to `high`; `mark`: the figure of all cases, for comparison."""

    metric: str
    title: str
    low: float
    high: float
    mark: float | None
    groups: Sequence[Row]


def key_figures(record: Mapping[str, Any]) -> list[Row]:
    """The figures at the page's head."""
    metrics = record["metrics"]
    names = [name for name in (*KEYS, "exact_match") if name in metrics]
    return [
        {"name": METRICS[name], "value": _value(metrics[name]), "interval": _bounds(metrics[name])} for name in names
    ]


def _value(one: Interval) -> str:
    return "–" if one["value"] is None else number_text(one["value"])


def _bounds(one: Interval) -> str:
    return "" if one["low"] is None or one["high"] is None else between_text(one["low"], one["high"])


def metric_rows(record: Mapping[str, Any]) -> list[Row]:
    """Every metric over all classes, with its interval on a common axis."""
    return [_row(METRICS[name], record["metrics"][name]) for name in METRICS if name in record["metrics"]]


def _row(name: str, one: Interval) -> Row:
    return {"name": name, "one": one, "value": _value(one), "interval": _bounds(one)}


def class_rows(record: Mapping[str, Any]) -> list[Row]:
    """Metrics of each class against the rest; of two classes none, as they are the figures above."""
    if record.get("positive") is not None:
        return []
    counts = cases_of_classes(record)
    classes = sorted(record["classes"], key=lambda name: -counts.get(name, 0))[:MOST_CLASSES]
    thresholds = record.get("thresholds") or {}
    rows = []
    for name in (one for one in record["classes"] if one in classes):
        cells = [with_interval(record["metrics"].get(f"{metric}_{name}"), 2) for metric in OF_A_CLASS]
        rows.append({"name": name, "cases": counts.get(name, 0), "cells": cells, "threshold": thresholds.get(name)})
    return rows


def confusion_rows(record: Mapping[str, Any]) -> list[Row]:
    """Of few classes the matrix: a row an actual class, its cells with count, share of the row in percent and shade 0-1."""
    classes = record["classes"]
    if record.get("several") or len(classes) > MOST_SQUARE:
        return []
    rows = []
    for place, (name, counts) in enumerate(zip(classes, record.get("confusion") or [], strict=False)):
        total = sum(counts)
        cells = [
            {"count": count, "share": count / total if total else None, "right": column == place}
            for column, count in enumerate(counts)
        ]
        rows.append({"name": name, "total": total, "cells": cells})
    return rows


def finding_rows(record: Mapping[str, Any]) -> list[Row]:
    """Of several findings at once: cases that are rightly and wrongly called, and missed, of each."""
    if not record.get("several"):
        return []
    counts = cases_of_classes(record)
    most = set(sorted(record["classes"], key=lambda name: -counts.get(name, 0))[:MOST_CLASSES])
    rows = []
    for name, table in zip(record["classes"], record.get("confusion") or [], strict=False):
        if name in most:
            (rejected, wrongly), (missed, found) = table
            rows.append({"name": name, "found": found, "missed": missed, "wrongly": wrongly, "rejected": rejected})
    return rows


def frequent_confusions(record: Mapping[str, Any]) -> list[Row]:
    """Of many classes: the errors made most often."""
    classes = record["classes"]
    if record.get("several") or len(classes) <= MOST_SQUARE:
        return []
    counts = np.asarray(record.get("confusion") or [], dtype=int).reshape(-1, len(classes))
    totals = counts.sum(axis=1)
    pairs = [(int(counts[i, j]), i, j) for i, j in np.argwhere(counts) if i != j]
    pairs.sort(key=lambda one: (-one[0], one[1], one[2]))
    return [
        {"actual": classes[i], "predicted": classes[j], "count": count, "share": count / totals[i]}
        for count, i, j in pairs[:MOST_CONFUSIONS]
    ]


def level_rows(record: Mapping[str, Any]) -> Row:
    """The same metrics by the model's own unit, and by image, series and patient: titles, a row a metric, and why a unit is missing."""
    by = {record.get("unit", "case"): record["metrics"], **(record.get("by") or {})}
    units = [unit for unit in (*UNITS, *sorted(set(by) - set(UNITS))) if unit in by]
    metrics = [name for name in METRICS if any(name in by[unit] for unit in units)]
    rows = [{"name": METRICS[name], "cells": [with_interval(by[unit].get(name)) for unit in units]} for name in metrics]
    missing = [f"by {unit}: {reason}" for unit, reason in (record.get("by_left_out") or {}).items()]
    return {"units": [f"By {unit}" for unit in units], "rows": rows, "missing": missing}


def subgroup_forest(record: Mapping[str, Any]) -> Forest | None:
    """The subgroups' AUROC, or accuracy where none has an AUROC; those that fall behind carry their warning."""
    given = record.get("subgroups") or []
    metric = _common_metric([one["metrics"] for one in given])
    if metric is None:
        return None
    columns = dict.fromkeys(one["column"] for one in given)
    groups = []
    for column in columns:
        ours = [one for one in given if one["column"] == column]
        frequent = sorted(ours, key=lambda one: -one["cases"])[:MOST_VALUES]
        shown = [one for one in ours if one in frequent or one.get("warning")]
        rows = [
            {
                **_row(str(one["value"]) or "unknown", one["metrics"].get(metric) or _UNDEFINED),
                "cases": one["cases"],
                "patients": one.get("patients"),
                "warning": one.get("warning") or "",
                "warned": str(one.get("warning") or "").startswith(BEHIND),
                "others": [with_interval(one["metrics"].get(name), 2) for name in ("sensitivity", "specificity")],
            }
            for one in shown
        ]
        groups.append({"title": column_words(column), "rows": rows, "more": len(ours) - len(shown)})
    return _forest(metric, record, groups)


def stress_forest(record: Mapping[str, Any]) -> Forest | None:
    """The stresses' AUROC, or accuracy, and what each costs; warned where that is much, of this metric or another."""
    given = record.get("stress") or []
    metric = _common_metric([one["metrics"] for one in given])
    if metric is None:
        return None
    rows = []
    for one in given:
        drop = one["drop"].get(metric) or _UNDEFINED
        rows.append(
            {
                **_row(str(one.get("words") or one["name"]), one["metrics"].get(metric) or _UNDEFINED),
                "drop": _row("", drop),
                "warned": bool(costs_much(one)),
                "failed": one.get("failed") or 0,
            }
        )
    return _forest(metric, record, [{"title": "", "rows": rows, "more": 0}])


_UNDEFINED: Interval = {"value": None, "low": None, "high": None}


def _common_metric(given: Sequence[Mapping[str, Any]]) -> str | None:
    for metric in ("auroc", "accuracy"):
        if any((one.get(metric) or _UNDEFINED)["value"] is not None for one in given):
            return metric
    return None


def _forest(metric: str, record: Mapping[str, Any], groups: Sequence[Row]) -> Forest:
    whole = record["metrics"].get(metric) or _UNDEFINED
    ones = [row["one"] for group in groups for row in group["rows"]]
    values = [end for one in [*ones, whole] for end in (one["value"], one["low"]) if end is not None]
    low = min([START_OF_AXIS, *(float(np.floor(value * 10)) / 10 for value in values)])
    return Forest(metric, METRICS[metric], low, 1.0, whole["value"], groups)


def class_histogram(split: pd.DataFrame, classes: Sequence[str], several: bool) -> Row:
    """Cases of each class in each split; several findings: those with the finding, and those with none."""
    names = [*SPLITS, *sorted(set(split["split"].astype(str)) - set(SPLITS))]
    parts = {name: split[split["split"].astype(str) == name] for name in names}
    parts = {name: part for name, part in parts.items() if len(part)}
    labels = {name: part["label"].astype(str) for name, part in parts.items()}
    if several:
        labels = {name: column.str.split("|").explode() for name, column in labels.items()}
    counted = {name: column.value_counts() for name, column in labels.items()}
    known = [*classes, *sorted(set().union(*(set(counts.index) for counts in counted.values())) - set(classes))]
    total = {one: sum(int(counts.get(one, 0)) for counts in counted.values()) for one in known}
    shown = set(sorted(known, key=lambda one: -total[one])[:MOST_CLASSES])
    most = max([1, *(int(counts.max()) for counts in counted.values())])
    rows = []
    for one in (name for name in known if name in shown):
        cells = [
            {"count": int(counts.get(one, 0)), "share": int(counts.get(one, 0)) / len(parts[name])}
            for name, counts in counted.items()
        ]
        rows.append({"name": one, "cells": [cell | {"width": 100 * cell["count"] / most} for cell in cells]})
    heads = [
        {"name": name, "cases": len(part), "patients": part["patient_key"].nunique() if "patient_key" in part else None}
        for name, part in parts.items()
    ]
    return {"splits": heads, "rows": rows, "more": len(known) - len(shown)}


def fold_rows(record: Mapping[str, Any], members: Sequence[Any]) -> list[Row]:
    """Of an ensemble: each network's epochs, and its figures on the fold that it was not trained on."""
    if len(members) < 2:
        return []
    measured = {one["fold"]: one for one in (record.get("cross_validation") or {}).get("folds") or []}
    return [
        {
            "name": one.name,
            "epoch": one.facts.best_epoch,
            "epochs": None if one.history is None else len(one.history),
            "cases": (measured.get(one.name) or {}).get("cases"),
            "cells": [_figure((measured.get(one.name) or {}).get("metrics") or {}, name) for name in KEYS],
        }
        for one in members
    ]


def _figure(metrics: Mapping[str, float | None], name: str) -> str:
    value = metrics.get(name)
    return "–" if value is None else f"{value:.3f}"
