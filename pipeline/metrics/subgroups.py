"""Figures of parts of the cases: by sex, age, device, site, view or any column of the index, and where one falls behind.

In: the `Scored` of all cases, and their values in each column. Out: rows for metrics.json. Numbers of all groups carry ordinary 95 %
intervals; whether one falls behind is judged by wider ones, corrected for how many comparisons are made (Bonferroni), because of
twenty groups one falls behind by chance. Groups that are too small are said to be, and not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from pipeline.auditing.features import ages, printable, sexes
from pipeline.columns import COLUMNS, text
from pipeline.metrics.measures import Scored
from pipeline.metrics.metrics import Interval, affordable, intervals, values_of
from pipeline.metrics.names import metric_words
from pipeline.metrics.roc import Floats

JUDGED = ("auroc", "sensitivity", "specificity")
FEWEST_PATIENTS = 20
"""In a group that is judged: below, bootstrap intervals are too narrow to accuse anybody by (pipeline.metrics.metrics, FEW_PATIENTS)."""
FEWEST_EACH = 10
"""Patients with and without the finding (of each class) that a judged metric needs: their share is what it is about."""
MARGIN = 0.02
"""By which a group must at least fall behind: with thousands of patients, less is certain and matters to nobody."""
LEVEL = 0.025
"""Of each side of a 95 % interval."""
MOST_VALUES = 20
"""Of a column, the most frequent; more are counted and left out."""
AGE_BANDS = ((0, "0-17"), (18, "18-39"), (40, "40-59"), (60, "60-79"), (80, "80+"))
NOT_KNOWN, SEVERAL_VALUES = "not known", "several values"
NOT_SHOWN = frozenset({"path", "patient_key", "accession_key", "sop_instance_uid", "sha256"})
"""Columns with a value a case or a patient: no groups, and a path may hold a name."""


@dataclass(frozen=True)
class _Group:
    column: str
    value: str
    cases: Scored


def unusable_columns(columns: Sequence[str]) -> list[str]:
    """Those that are no column of the index, or one whose values make no groups."""
    return [name for name in columns if name not in COLUMNS or name in NOT_SHOWN]


def column_words(column: str) -> str:
    """A column as a title: Age, Body part examined."""
    words = column.removeprefix("patient_").replace("_", " ")
    return words[:1].upper() + words[1:]


def group_values(images: pd.DataFrame, case_ids: pd.Series, columns: Sequence[str]) -> dict[str, NDArray[np.str_]]:
    """For each of `columns` that the images have and that makes two groups or more, the value of each case (n,).

    A case whose images differ has `SEVERAL_VALUES`. Ages are in bands.
    """
    found = {}
    cases = pd.Index(text(case_ids))
    place = cases.get_indexer(pd.Index(text(images["case_id"])))
    used = images[place >= 0]
    for name in dict.fromkeys(columns):
        if name not in images.columns or name in NOT_SHOWN:
            continue
        shown = _READ.get(name, _printed)(used, name).to_numpy()
        pairs = pd.DataFrame({"case": place[place >= 0], "value": shown}).drop_duplicates()
        values = np.full(len(cases), NOT_KNOWN, dtype=object)
        values[pairs["case"]] = pairs["value"].replace("", NOT_KNOWN)
        values[pairs.loc[pairs["case"].duplicated(), "case"]] = SEVERAL_VALUES
        if len(set(values)) > 1:
            found[name] = values.astype(str)
    return found


def _age_band(images: pd.DataFrame, name: str) -> pd.Series:
    age = ages(images)
    starts = np.array([start for start, _ in AGE_BANDS])
    band = np.searchsorted(starts, age.to_numpy(dtype=float), side="right") - 1
    names = np.array([*(words for _, words in AGE_BANDS), ""])
    return pd.Series(names[np.where(age.isna() | (band < 0), len(AGE_BANDS), band)], index=images.index)


def _printed(images: pd.DataFrame, name: str) -> pd.Series:
    codes, values = pd.factorize(text(images[name]))
    return pd.Series([printable(value) for value in values], dtype="str").take(codes)


_READ: Mapping[str, Callable[[pd.DataFrame, str], pd.Series]] = {
    "patient_age": _age_band,
    "patient_sex": lambda images, _: sexes(images),
}


def subgroups(
    cases: Scored, values: Mapping[str, NDArray[np.str_]], *, resamples: int, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row a group: column, value, cases, patients, metrics, warning; and a sentence for each group that falls behind, and for each
    column of which not all values are shown."""
    groups, sentences = [], []
    for column, each in values.items():
        ordered = _in_order(column, each)
        groups += [_Group(column, value, cases.take(each == value)) for value in ordered[:MOST_VALUES]]
        if len(ordered) > MOST_VALUES:
            more = len(ordered) - MOST_VALUES
            sentences.append(
                f"{column_words(column)}: {more} values that are rarer than the others are not shown by themselves."
            )
    whole = values_of(cases)
    judged = [_judged(group.cases, cases) for group in groups]
    level = LEVEL / max(1, sum(map(len, judged)))
    rows = []
    for group, names in zip(groups, judged, strict=True):
        metrics, draws = intervals(group.cases, affordable(resamples, len(group.cases)), seed)
        behind = [
            f"{metric_words(name)} {metrics[name].value:.3f}, {whole[name]:.3f} in all"
            for name in names
            if upper_end(metrics[name].value, draws[name], _patients_of(group.cases, name), level)
            < whole[name] - MARGIN
        ]
        warning = _warning(group.cases, names, behind)
        rows.append(_row(group, metrics, warning))
        if behind:
            sentences.append(f"{column_words(group.column)} {group.value!r} falls behind: {'; '.join(behind)}.")
    return rows, sentences


def _in_order(column: str, values: NDArray[np.str_]) -> list[str]:
    """Bands by age, all else by frequency; unknown values last."""
    names, counts = np.unique(values, return_counts=True)
    order = {words: start for start, words in AGE_BANDS} if column == "patient_age" else {}
    last = (SEVERAL_VALUES, NOT_KNOWN)
    keys = {
        str(name): (last.index(name) + 1 if name in last else 0, order.get(str(name), -int(count)), str(name))
        for name, count in zip(names, counts, strict=True)
    }
    return sorted(keys, key=keys.__getitem__)


def _judged(group: Scored, whole: Scored) -> list[str]:
    """Of `JUDGED` the metrics that the group has patients enough for; means over classes only where it has all that the whole has."""
    if group.patients < FEWEST_PATIENTS:
        return []
    if group.positive is None:
        there = [number for number in range(len(whole.classes)) if whole.of_class(number).any()]
        enough = all(_count(group, group.of_class(number)) >= FEWEST_EACH for number in there)
        enough &= all(_count(group, ~group.of_class(number)) >= FEWEST_EACH for number in there)
        return list(JUDGED) if enough else []
    return [name for name in JUDGED if _patients_of(group, name) >= FEWEST_EACH]


def _patients_of(group: Scored, name: str) -> int:
    """Patients that a metric is about: with the finding, without it, or the fewer of both; of several classes all."""
    if group.positive is None:
        return group.patients
    with_it, without = (
        _count(group, rows) for rows in (group.of_class(group.positive), ~group.of_class(group.positive))
    )
    return {"sensitivity": with_it, "specificity": without}.get(name, min(with_it, without))


def _count(group: Scored, rows: NDArray[np.bool_]) -> int:
    return int(np.unique(group.patient[rows]).size)


def upper_end(value: float | None, draws: Floats, patients: int, level: float) -> float:
    """Above which the metric lies with probability `level`, infinite where it is undefined: the resamples' percentile, or, as far out
    they are few, by their standard deviation, whichever is higher. Where no resample differs: by how rare what none of `patients`
    shows may be (the rule of three is this at a level of 0.05)."""
    defined = draws[~np.isnan(draws)]
    if value is None or not len(defined):
        return math.inf
    spread = float(defined.std())
    if spread == 0:
        return value + min(1.0, -math.log(level) / max(1, patients))
    return max(float(np.quantile(defined, 1 - level)), value + float(norm.isf(level)) * spread)


def _warning(group: Scored, judged: Sequence[str], behind: Sequence[str]) -> str:
    if behind:
        return f"falls behind: {'; '.join(behind)}"
    return "" if judged else f"too few patients to judge ({group.patients})"


def _row(group: _Group, metrics: Mapping[str, Interval], warning: str) -> dict[str, Any]:
    return {
        "column": group.column,
        "value": group.value,
        "cases": len(group.cases),
        "patients": group.cases.patients,
        "metrics": {name: one.to_json() for name, one in metrics.items()},
        "warning": warning,
    }
