"""Patients to train, validation and test, or to folds, stratified by class.

Patients are placed in the order of a hash of each, so the order of files does not matter, and the same key and seed give the same
split. Those that an earlier split placed stay there, also with another label. `check_split` is called by training and evaluation: a
patient in two splits is an error, however the split came about.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.columns import text
from pipeline.errors import ConfigError, RunError
from pipeline.manifest import Manifest, SplitRule
from pipeline.wording import counted

SPLITS = ("train", "validation", "test")
SPLIT_COLUMNS = ["case_id", "patient_key", "label", "split"]
FOLD = "fold"
"""A further column where there are folds: '0', '1', ..., and '' for the test split."""
FOLDED = "folds"
"""In a ledger with folds, in place of train and validation: which of them it is depends on the fold that validates."""

Places = NDArray[np.int8]
"""(patients,): the number of a place, `NOWHERE` where there is none yet."""
Integers = NDArray[np.int64]
NOWHERE = -1


@dataclass(frozen=True)
class Split:
    """A dataset's split: `SPLIT_COLUMNS`, and `FOLD` where there are folds; `lines` for whoever watches how it came about."""

    table: pd.DataFrame
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def split_cases(
    cases: pd.DataFrame, rule: SplitRule, classes: Sequence[str], *, earlier: pd.DataFrame | None = None
) -> pd.DataFrame:
    """`SPLIT_COLUMNS` for all cases, in the order of case_id, and `FOLD` where the rule has folds.

    `cases`: case_id, patient_key, label. `earlier`: a ledger; its patients stay where they are. Patients with the same set of labels
    are one stratum, each divided by the fractions; new ones go where most are missing. ConfigError names a class that a split lacks.
    """
    table = divide(cases, rule, earlier)
    hint = "add patients, " + ("or take fewer folds" if rule.folds else "or make the split's fractions larger")
    if earlier is not None and len(earlier):
        hint += "; patients of an earlier split stay where they are, another split.seed divides all anew"
    require_classes(table, rule, classes, "", hint)
    return table


def divide(cases: pd.DataFrame, rule: SplitRule, earlier: pd.DataFrame | None) -> pd.DataFrame:
    of_case, keys = numbered(cases["patient_key"])
    label, labels = numbered(cases["label"])
    strata, _ = strata_of(of_case, label, labels)
    place = _stay(keys, earlier, rule)
    new = np.flatnonzero(place == NOWHERE)
    order = new[_order(keys.take(new), strata[new], rule.seed)]
    if rule.folds is None:
        _place(place, strata, order, [rule.train, rule.validation, rule.test])
    else:
        _place_in_folds(place, strata, order, rule)
    splits, folds = _names(rule)
    ids = text(cases["case_id"])
    rows = ids.argsort().to_numpy()  # column by column: a table of millions is never there twice
    patient = of_case[rows]
    columns = {
        "case_id": ids.array.take(rows),
        "patient_key": keys.array.take(patient),
        "label": labels.array.take(label[rows]),
        "split": splits.take(place[patient]),
    }
    return pd.DataFrame(columns | ({FOLD: folds.take(place[patient])} if rule.folds else {}))


def require_classes(table: pd.DataFrame, rule: SplitRule, classes: Sequence[str], where: str, hint: str) -> None:
    """ConfigError where a split, or a fold, has no case of a class."""
    columns = ["label", "split", *([FOLD] if rule.folds else [])]
    pairs = table[columns].drop_duplicates().itertuples(index=False, name=None)
    there = {(label, f"fold {fold[0]}" if fold and fold[0] else f"the {split} split") for label, split, *fold in pairs}
    names = [f"fold {fold}" for fold in range(rule.folds or 0)] or ["the train split", "the validation split"]
    for name in [*names, "the test split"]:
        for label in classes:
            if (label, name) in there:
                continue
            patients = table.loc[table["label"] == label, "patient_key"].nunique()
            if not patients:
                raise ConfigError(
                    f"{where}no case has the class {label}: no label is mapped to it; check the spelling in `classes` and `labels.values`"
                )
            raise ConfigError(
                f"{where}{name} has no case of class {label}: {counted(patients, 'patient')} "
                f"{'has' if patients == 1 else 'have'} it, at least {rule.folds + 1 if rule.folds else len(SPLITS)} are needed; {hint}"
            )


# Checking


def check_split(table: pd.DataFrame) -> None:
    """RunError where one patient stands in two splits, one case twice, or a split's name is unknown."""
    unknown = set(table["split"].unique()) - set(SPLITS)
    if unknown:
        raise RunError(
            f"split.csv: {', '.join(map(str, sorted(unknown, key=str)))} is no split; expected {', '.join(SPLITS)}"
        )
    _refuse_several(table["patient_key"], table["split"])
    twice = int(table["case_id"].duplicated().sum())
    if twice:
        raise RunError(
            f"split.csv: {counted(twice, 'row')} with a case that stands in another row; each case may stand in it once"
        )


def check_patients(table: pd.DataFrame, images: pd.DataFrame) -> None:
    """RunError where the files' own patients (`case_id`, `patient_key` of the index) stand in two splits of `table`, whatever it says."""
    known = images.loc[(text(images["patient_key"]) != "").to_numpy(), ["case_id", "patient_key"]].drop_duplicates()
    placed = known.merge(table[["case_id", "split"]], on="case_id")
    _refuse_several(placed["patient_key"], placed["split"])


def _refuse_several(who: pd.Series, place: pd.Series) -> None:
    codes, patients = numbered(who)
    places, names = numbered(place)
    pairs = np.unique(codes * len(names) + places)
    shared = int((np.bincount(pairs // max(len(names), 1), minlength=len(patients)) > 1).sum())
    if shared:
        raise RunError(
            f"split.csv: {counted(shared, 'patient')} {'stands' if shared == 1 else 'stand'} in more than one split; "
            "the figures would be wrong, so nothing is done"
        )


# Places


def numbered(column: pd.Series) -> tuple[Integers, pd.Series]:
    """(n,) numbers of the distinct values, and those as text."""
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return codes.astype(np.int64, copy=False), text(pd.Series(values))


def strata_of(of_case: Integers, label: Integers, labels: pd.Series) -> tuple[Integers, list[str]]:
    """(patients,) the number of each patient's set of labels, and what the sets are called: sorted, joined by |."""
    by_name = labels.argsort().to_numpy()
    ordered, label = labels.iloc[by_name].tolist(), np.argsort(by_name)[label]
    patient, code = np.divmod(np.unique(of_case * len(labels) + label), len(labels))
    begins = np.searchsorted(patient, patient)
    nth = np.arange(len(patient)) - begins
    strata, names = np.zeros(len(np.unique(patient)), dtype=np.int64), [""]
    for n in range(int(nth.max(initial=-1)) + 1):  # as many rounds as a patient has labels, all patients at once
        rows = nth == n
        sets, found = np.unique(strata[patient[rows]] * len(labels) + code[rows], return_inverse=True)
        strata[patient[rows]] = len(names) + found
        names += ["|".join(filter(None, (names[one // len(labels)], ordered[one % len(labels)]))) for one in sets]
    return strata, names


def _stay(keys: pd.Series, earlier: pd.DataFrame | None, rule: SplitRule) -> Places:
    """Where each patient is already."""
    place = np.full(len(keys), NOWHERE, dtype=np.int8)
    if earlier is None or earlier.empty:
        return place
    column = FOLD if rule.folds else "split"
    rows = earlier if earlier["patient_key"].is_unique else earlier.drop_duplicates(["patient_key", column])
    _refuse_several(rows["patient_key"], rows[column])
    number = {name: place for place, name in enumerate(SPLITS)}
    if rule.folds:
        number = {"": rule.folds, **{str(fold): fold for fold in range(rule.folds)}}
    placed = rows[column].map(number).to_numpy(dtype=np.int8)
    row = pd.Index(rows["patient_key"]).get_indexer(pd.Index(keys))
    return np.where(row >= 0, placed[row], place)


def _order(keys: Iterable[str], strata: Integers, seed: int) -> Integers:
    """Patients by stratum, then by their hash, which no other order of files changes."""
    digests = (hashlib.sha256(f"{seed}\x1f{patient}".encode()).digest() for patient in keys)
    rank = np.fromiter(digests, dtype="S32", count=len(strata)).view(">u8").reshape(-1, 4)
    return np.lexsort((rank[:, 1], rank[:, 0], strata))


def _place(place: Places, strata: Integers, order: Integers, weights: Sequence[float], *, even: bool = False) -> None:
    """Puts those of `order` (sorted by stratum) into `place`, the last place first. `even`: of places that lack as many, the
    emptier one in all strata so far comes first; else the earlier one."""
    stay = place != NOWHERE
    size, count = len(weights), int(strata.max(initial=-1)) + 1
    kept = np.bincount(strata[stay] * size + place[stay], minlength=count * size).reshape(count, size)
    totals = kept.sum(axis=0)
    borders = np.searchsorted(strata[order], np.arange(count + 1))
    for stratum in range(count):
        new = order[borders[stratum] : borders[stratum + 1]]
        sizes = _sizes(len(new), kept[stratum].tolist(), weights, totals.tolist() if even else [0] * size)
        place[new] = np.repeat(np.arange(size)[::-1], sizes[::-1])
        totals = totals + sizes


def _place_in_folds(place: Places, strata: Integers, order: Integers, rule: SplitRule) -> None:
    """The test split by its fraction, the same for any number of folds; then the others evenly into the folds."""
    folds = rule.folds or 0
    tested = np.where(place == NOWHERE, NOWHERE, place == folds).astype(np.int8)
    _place(tested, strata, order, [1.0 - rule.test, rule.test])
    place[tested == 1] = folds
    rest = np.flatnonzero(tested == 0)
    within = np.full(len(place), NOWHERE, dtype=np.int64)
    within[rest] = np.arange(len(rest))
    folded = place[rest]
    _place(folded, strata[rest], within[order[tested[order] == 0]], [1.0 / folds] * folds, even=True)
    place[rest] = folded


def _sizes(new: int, kept: Sequence[int], weights: Sequence[float], ties: Sequence[int]) -> list[int]:
    """How many of `new` go to each place, each to where most are missing of its weight of all; and none is left empty
    where there are enough for every split. No other distribution of the new is nearer to the weights (least squares)."""
    total = new + sum(kept)
    heap = [
        (count - total * weight, tie, number)
        for number, (count, weight, tie) in enumerate(zip(kept, weights, ties, strict=True))
    ]
    heapq.heapify(heap)
    sizes = [0] * len(kept)
    for _ in range(new):
        surplus, tie, number = heap[0]
        sizes[number] += 1
        heapq.heapreplace(heap, (surplus + 1, tie, number))
    for number in range(len(kept)):
        if total >= len(SPLITS) and kept[number] + sizes[number] == 0:
            giver = max(range(len(kept)), key=lambda one: kept[one] + sizes[one] if sizes[one] else 0)
            if sizes[giver] and kept[giver] + sizes[giver] > 1:
                sizes[giver] -= 1
                sizes[number] = 1
    return sizes


def _names(rule: SplitRule) -> tuple[pd.api.extensions.ExtensionArray, pd.api.extensions.ExtensionArray]:
    """For each place its split and its fold."""
    if rule.folds is None:
        return pd.array(list(SPLITS), dtype="str"), pd.array([""] * len(SPLITS), dtype="str")
    folds = range(rule.folds)
    splits = ["validation" if fold == rule.fold else "train" for fold in folds]
    return pd.array([*splits, "test"], dtype="str"), pd.array([*map(str, folds), ""], dtype="str")


def renamed(keys: pd.Series, names: Mapping[str, str]) -> pd.Series:
    return keys.map(names).astype("str").fillna(keys) if names else keys


def noun_of(manifest: Manifest) -> str:
    return "block" if manifest.patients.source == "blocks" else "patient"
