"""A dataset in numbers: how files became cases, and the classes by split, sex, age, device, place and time; what headers leave out.

In: `facts` (auditing.features, `case_facts`), one row a case, with its `split` ('' for none). Out: plain values for `audit.json`. Where a
case may have several findings it is counted for each of them, and for `NO_FINDING` nowhere but in `without_finding`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.auditing.features import ages, case_features, printable, sexes, words, years
from pipeline.cohort.cases import Cases
from pipeline.cohort.labels import CASE_RULES
from pipeline.cohort.split import SPLITS
from pipeline.columns import text
from pipeline.indexing.index import Index
from pipeline.label_arrays import NO_FINDING, presence

OLDEST = 90
"""Ages from here on are one group: so old a patient may be known by the age alone."""
BREAKDOWNS = {
    "split": "Split",
    "sex": "Sex",
    "age": "Age in years",
    "manufacturer": "Manufacturer",
    "manufacturer_model_name": "Scanner model",
    "institution_name": "Institution",
    "station_name": "Station",
    "source": "Source",
    "year": "Year of study",
    "modality": "Modality",
    "body_part_examined": "Body part",
    "view_position": "View",
    "format": "File format",
    "color_mode": "Colour mode",
}
"""Attributes by which the classes are counted, with their titles."""
IN_ORDER = ("split", "age", "year")
"""Those that have an order of their own; others are shown by frequency."""


def flow(index: Index, cases: Cases) -> dict[str, Any]:
    """Files on their way to cases. found = rejected + indexed; indexed = excluded + unlabelled + files."""
    out = cases.exclusions.drop_duplicates(["source", "path"])
    rule = text(out["rule"])
    labelling = rule.isin(CASE_RULES)
    return {
        "found": int(index.summary["found"]),
        "rejected": int(index.summary["rejected"]),
        "rejected_by_reason": dict(index.summary["rejected_by_reason"]),
        "indexed": int(index.summary["indexed"]),
        "excluded": int((~labelling).sum()),
        "excluded_by_rule": _counts(rule[~labelling]),
        "unlabelled": int(labelling.sum()),
        "unlabelled_by_rule": _counts(rule[labelling]),
        "files": len(cases.images.drop_duplicates(["source", "path"])),
        "images": len(cases.images),
        "cases": len(cases.cases),
    }


def _counts(values: pd.Series) -> dict[str, int]:
    """Most frequent first."""
    counts = values.value_counts()
    return {printable(value): int(counts[value]) for value in sorted(counts.index, key=lambda one: (-counts[one], one))}


def patient_counts(facts: pd.DataFrame) -> dict[str, Any]:
    """Patients, their cases, and how many of them have cases with different labels."""
    each = facts.groupby("patient_key", observed=True)
    cases = each.size()
    return {
        "count": len(cases),
        "cases_each_median": float(cases.median()),
        "cases_each_max": int(cases.max()),
        "with_several_classes": int((each["label"].nunique() > 1).sum()),
    }


def class_counts(facts: pd.DataFrame, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Patients, cases, files and images of each class."""
    return [{"name": name, **_counted(facts[ours])} for name, ours in _members(facts, classes).items()]


def without_finding(facts: pd.DataFrame) -> dict[str, int]:
    """Patients, cases, files and images without any of several findings."""
    return _counted(facts[facts["label"] == NO_FINDING])


def _counted(ours: pd.DataFrame) -> dict[str, int]:
    counts = {"cases": len(ours), "files": int(ours["files"].sum()), "images": int(ours["images"].sum())}
    return {"patients": _who(ours), **counts}


def _members(facts: pd.DataFrame, classes: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """(cases,) for each class whether a case has it."""
    return dict(zip(classes, presence(facts["label"], classes).T, strict=True))


def split_counts(facts: pd.DataFrame, classes: Sequence[str]) -> list[dict[str, Any]] | None:
    """Cases and patients of each split, and of each class in it; None where there is no split."""
    rows = []
    members = _members(facts, classes)
    for name in [*SPLITS, ""]:
        inside = (facts["split"] == name).to_numpy(dtype=bool)
        of_class = {
            label: {"cases": int((inside & ours).sum()), "patients": _who(facts[inside & ours])}
            for label, ours in members.items()
        }
        rows.append({"name": name, "cases": int(inside.sum()), "patients": _who(facts[inside]), "classes": of_class})
    return None if rows[-1]["cases"] == len(facts) else [row for row in rows if row["name"] or row["cases"]]


def _who(facts: pd.DataFrame) -> int:
    return int(facts["patient_key"].nunique())


def breakdowns(facts: pd.DataFrame, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Cases of each class by each attribute of `BREAKDOWNS` that any case has; '' stands for unknown."""
    tables, members = [], _members(facts, classes)
    for name, title in BREAKDOWNS.items():
        values = _attribute(facts, name)
        if (values == "").all():
            continue
        codes, found = pd.factorize(values)
        cases = np.bincount(codes, minlength=len(found))
        of_class = {label: np.bincount(codes[ours], minlength=len(found)) for label, ours in members.items()}
        pairs = pd.DataFrame({"value": codes, "patient": facts["patient_key"].to_numpy()}).drop_duplicates()
        patients = np.bincount(pairs["value"], minlength=len(found))
        rows: list[dict[str, Any]] = [
            {
                "value": str(value),
                "cases": int(cases[place]),
                "patients": int(patients[place]),
                "classes": {label: int(counts[place]) for label, counts in of_class.items()},
            }
            for place, value in enumerate(found)
        ]
        tables.append({"name": name, "title": title, "values": sorted(rows, key=partial(_order, name))})
    return tables


def _attribute(facts: pd.DataFrame, name: str) -> pd.Series:
    if name == "sex":
        return sexes(facts)
    if name == "age":
        return _named(ages(facts), _decade)
    if name == "year":
        return _named(years(facts), "{:.0f}".format)
    return words(facts, name)


def _named(numbers: pd.Series, name: Callable[[float], str]) -> pd.Series:
    """Each number by its name, '' for NaN."""
    codes, values = pd.factorize(numbers)
    return pd.Series([*(name(value) for value in values), ""], dtype="str").take(codes).set_axis(numbers.index)


def _decade(age: float) -> str:
    if age >= OLDEST:
        return f"{OLDEST}+"
    start = int(age // 10) * 10
    return f"{start}-{start + 9}"


def _order(name: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Unknown last; splits, ages and years in their order, all else by frequency."""
    value = row["value"]
    if name == "split":
        return (value == "", SPLITS.index(value) if value in SPLITS else 0)
    if name in IN_ORDER:
        return (value == "", int(value.rstrip("+").split("-")[0]) if value else 0)
    return (value == "", -row["cases"], value)


def missing_values(facts: pd.DataFrame, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Of each attribute that the audit looks at, cases without it, in all and of each class."""
    features = case_features(facts)
    rows, members = [], _members(facts, classes)
    for name in features.columns:
        missing = (features[name].isna() | (features[name] == "")).to_numpy(dtype=bool)
        counts = {label: int((missing & ours).sum()) for label, ours in members.items()}
        rows.append({"column": name, "missing": int(missing.sum()), "classes": counts})
    return rows
