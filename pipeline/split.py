"""Cases to train, validation and test, by patient and stratified by class; the same key and seed give the same split.

Patients are placed in the order of a hash of each, so the order of files does not matter. `check_split` is called by
training and evaluation: a patient in two splits is an error, however the split came about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pandas as pd

from pipeline.errors import ConfigError, RunError
from pipeline.manifest import SplitRule

SPLITS = ("train", "validation", "test")
SPLIT_COLUMNS = ["case_id", "patient_key", "label", "split"]


def split_cases(cases: pd.DataFrame, rule: SplitRule, classes: Sequence[str]) -> pd.DataFrame:
    """`SPLIT_COLUMNS` for all cases. Patients with the same set of labels are one stratum, each divided by the fractions."""
    strata = cases.groupby("patient_key")["label"].agg(lambda labels: "|".join(sorted(set(labels))))
    place: dict[str, str] = {}
    for stratum in sorted(strata.unique()):
        patients = sorted(strata.index[strata == stratum], key=lambda patient: _rank(patient, rule.seed))
        for patient, split in zip(patients, _places(len(patients), rule), strict=True):
            place[patient] = split
    table = cases[["case_id", "patient_key", "label"]].assign(split=cases["patient_key"].map(place))
    table = table.sort_values("case_id", ignore_index=True)
    check_split(table)
    for split in SPLITS:
        for label in classes:
            if not ((table["split"] == split) & (table["label"] == label)).any():
                raise ConfigError(
                    f"the {split} split has no case of class {label}: "
                    f"{table.loc[table['label'] == label, 'patient_key'].nunique()} patients have it, at least 3 are needed; "
                    "add patients, or make the split's fractions larger"
                )
    return table


def check_split(table: pd.DataFrame) -> None:
    """RunError where one patient stands in two splits, or a split's name is unknown."""
    unknown = set(table["split"]) - set(SPLITS)
    if unknown:
        raise RunError(
            f"split.csv: {', '.join(map(str, sorted(unknown, key=str)))} is no split; expected {', '.join(SPLITS)}"
        )
    splits = table.groupby("patient_key")["split"].nunique()
    shared = int((splits > 1).sum())
    if shared:
        raise RunError(
            f"split.csv: {shared} patient(s) stand in more than one split; the figures would be wrong, so nothing is done"
        )


def _rank(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\x1f{patient}".encode()).hexdigest()


def _places(count: int, rule: SplitRule) -> list[str]:
    """`count` places in the rule's fractions, largest remainder first, with one of each split where `count` allows."""
    fractions = {"train": rule.train, "validation": rule.validation, "test": rule.test}
    sizes = {split: int(count * fraction) for split, fraction in fractions.items()}
    by_remainder = sorted(fractions, key=lambda split: count * fractions[split] - sizes[split], reverse=True)
    for split in by_remainder[: count - sum(sizes.values())]:
        sizes[split] += 1
    for split in SPLITS:
        if count >= len(SPLITS) and sizes[split] == 0:
            sizes[max(sizes, key=lambda name: sizes[name])] -= 1
            sizes[split] = 1
    return [split for split in ("test", "validation", "train") for _ in range(sizes[split])]
