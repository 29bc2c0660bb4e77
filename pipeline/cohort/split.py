"""Patients to train, validation and test, or to folds, stratified by class; with several findings at once, by each of them.

Patients are placed in the order of a hash of each, so the order of files does not matter, and the same key and seed give the same
split. Those that an earlier split placed stay there, also with another label. `check_split` is called by training and evaluation: a
patient in two splits is an error, however the split came about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.cohort.stratify import NOWHERE, Integers, Places, place_by_findings, sizes_of
from pipeline.columns import matches, text
from pipeline.errors import ConfigError, RunError
from pipeline.label_arrays import findings_of, presence
from pipeline.manifest import Manifest, SplitRule
from pipeline.wording import counted

SPLITS = ("train", "validation", "test")
SPLIT_COLUMNS = ["case_id", "patient_key", "label", "split"]
FOLD = "fold"
"""A further column where there are folds: '0', '1', ..., and '' for the test split."""
FOLDED = "folds"
"""In a ledger with folds, in place of train and validation: which of them it is depends on the fold that validates."""


@dataclass(frozen=True)
class Split:
    """A dataset's split: `SPLIT_COLUMNS`, and `FOLD` where there are folds; `lines` for whoever watches how it came about."""

    table: pd.DataFrame
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def split_cases(
    cases: pd.DataFrame,
    rule: SplitRule,
    classes: Sequence[str],
    *,
    earlier: pd.DataFrame | None = None,
    several: bool = False,
) -> pd.DataFrame:
    """`SPLIT_COLUMNS` for all cases, in the order of case_id, and `FOLD` where the rule has folds.

    `cases`: case_id, patient_key, label. `earlier`: a ledger; its patients stay where they are. Patients with the same set of labels
    are one stratum, each divided by the fractions; new ones go where most are missing. `several`: labels are of several findings, each of
    which is divided by the fractions, as is having none. ConfigError names a class that a split lacks.
    """
    table = divide(cases, rule, earlier, classes if several else ())
    hint = "add patients, " + ("or take fewer folds" if rule.folds else "or make the split's fractions larger")
    if earlier is not None and len(earlier):
        hint += "; patients of an earlier split stay where they are, another split.seed divides all anew"
    require_classes(table, rule, classes, "", hint, several=several)
    return table


def divide(
    cases: pd.DataFrame, rule: SplitRule, earlier: pd.DataFrame | None, findings: Sequence[str] = ()
) -> pd.DataFrame:
    """As `split_cases`, whatever a split lacks. `findings`: the classes, where labels are of several."""
    of_case, keys = numbered(cases["patient_key"])
    label, labels = numbered(cases["label"])
    place = _stay(keys, earlier, rule)
    new = np.flatnonzero(place == NOWHERE)
    if findings:
        sets = _findings_of_patients(of_case, label, labels, findings)
        order = new[_order(keys.take(new), np.zeros(len(new), dtype=np.int64), rule.seed)]
        _into_places(place, order, rule, _by_findings(sets))
    else:
        strata, _ = strata_of(of_case, label, labels)
        order = new[_order(keys.take(new), strata[new], rule.seed)]
        _into_places(place, order, rule, _by_strata(strata))
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


def require_classes(
    table: pd.DataFrame, rule: SplitRule, classes: Sequence[str], where: str, hint: str, *, several: bool = False
) -> None:
    """ConfigError where a split, or a fold, has no case of a class; with `several` findings also where it has none without."""
    columns = ["label", "split", *([FOLD] if rule.folds else [])]
    pairs = table[columns].drop_duplicates().itertuples(index=False, name=None)
    there = [
        (set(findings_of(label, classes)), f"fold {fold[0]}" if fold and fold[0] else f"the {split} split")
        for label, split, *fold in pairs
    ]
    names = [f"fold {fold}" for fold in range(rule.folds or 0)] or ["the train split", "the validation split"]
    needed = rule.folds + 1 if rule.folds else len(SPLITS)
    for name in [*names, "the test split"]:
        sets = [found for found, place in there if place == name]
        for label in classes:
            if not any(label in found for found in sets):
                raise _lacking(table, label, classes, True, f"{where}{name}", where, needed, hint)
            if several and all(label in found for found in sets):
                raise _lacking(table, label, classes, False, f"{where}{name}", where, needed, hint)


def _lacking(
    table: pd.DataFrame, label: str, classes: Sequence[str], having: bool, name: str, where: str, needed: int, hint: str
) -> ConfigError:
    """No case with (`having`) or without a class in a split."""
    wanted = matches(table["label"], lambda text: (label in findings_of(text, classes)) == having)
    patients = table.loc[wanted, "patient_key"].nunique()
    kind = f"of class {label}" if having else f"without {label}"
    if not patients and not having:
        return ConfigError(
            f"{where}every case has {label}: there is nothing to tell it from; leave it out of `classes`"
        )
    if not patients:
        return ConfigError(
            f"{where}no case has the class {label}: no label is mapped to it; check the spelling in `classes` and `labels.values`"
        )
    return ConfigError(
        f"{name} has no case {kind}: {counted(patients, 'patient')} {'has' if patients == 1 else 'have'} "
        f"{'it' if having else 'such'}, at least {needed} are needed; {hint}"
    )


def for_fold(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    """A split with folds as it is where this one validates: `fold` is validation, the others train, the test split stays.

    ConfigError where the table has no such fold.
    """
    folds = set(table[FOLD].unique()) - {""} if FOLD in table else set()
    if str(fold) not in folds:
        raise ConfigError(f"fold {fold}: the split has {counted(len(folds), 'fold')}, numbered from 0")
    split = np.select([table[FOLD] == "", table[FOLD] == str(fold)], ["test", "validation"], "train")
    return table.assign(split=pd.array(split, dtype="str"))


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


def _findings_of_patients(
    of_case: Integers, label: Integers, labels: pd.Series, findings: Sequence[str]
) -> NDArray[np.bool_]:
    """(patients, k + 1) the findings that any case of each patient has, and whether any has none."""
    present = presence(labels, findings)
    present = np.column_stack([present, ~present.any(axis=1)])
    sets = np.zeros((int(of_case.max(initial=-1)) + 1, present.shape[1]), dtype=bool)
    for kind in range(present.shape[1]):
        sets[of_case[present[label, kind]], kind] = True
    return sets


Placing = Callable[[Places, Integers, Integers, Sequence[float], bool], None]
"""Puts some of the patients into places: (m,) places, (m,) numbers of these patients, the order of the new ones among them, the
places' weights, and whether the emptier of equal places comes first."""


def _by_findings(sets: NDArray[np.bool_]) -> Placing:
    def put(place: Places, who: Integers, order: Integers, weights: Sequence[float], even: bool) -> None:
        place_by_findings(place, sets[who], order, weights, even=even)

    return put


def _by_strata(strata: Integers) -> Placing:
    def put(place: Places, who: Integers, order: Integers, weights: Sequence[float], even: bool) -> None:
        _place(place, strata[who], order, weights, even=even)

    return put


def _place(place: Places, strata: Integers, order: Integers, weights: Sequence[float], *, even: bool) -> None:
    """Puts those of `order` (sorted by stratum) into `place`, the last place first. `even`: of places that lack as many, the
    emptier one in all strata so far comes first; else the earlier one."""
    stay = place != NOWHERE
    size, count = len(weights), int(strata.max(initial=-1)) + 1
    kept = np.bincount(strata[stay] * size + place[stay], minlength=count * size).reshape(count, size)
    totals = kept.sum(axis=0)
    borders = np.searchsorted(strata[order], np.arange(count + 1))
    for stratum in range(count):
        new = order[borders[stratum] : borders[stratum + 1]]
        sizes = sizes_of(len(new), kept[stratum].tolist(), weights, totals.tolist() if even else [0] * size)
        place[new] = np.repeat(np.arange(size)[::-1], sizes[::-1])
        totals = totals + sizes


def _into_places(place: Places, order: Integers, rule: SplitRule, put: Placing) -> None:
    """Fills `place` with splits; or with the test split by its fraction, the same for any number of folds, then the others evenly
    with folds."""
    everybody = np.arange(len(place))
    if rule.folds is None:
        put(place, everybody, order, [rule.train, rule.validation, rule.test], False)
        return
    folds = rule.folds
    tested = np.where(place == NOWHERE, NOWHERE, place == folds).astype(np.int8)
    put(tested, everybody, order, [1.0 - rule.test, rule.test], False)
    place[tested == 1] = folds
    rest = np.flatnonzero(tested == 0)
    within = np.full(len(place), NOWHERE, dtype=np.int64)
    within[rest] = np.arange(len(rest))
    folded = place[rest]
    put(folded, rest, within[order[tested[order] == 0]], [1.0 / folds] * folds, True)
    place[rest] = folded


def _names(rule: SplitRule) -> tuple[pd.api.extensions.ExtensionArray, pd.api.extensions.ExtensionArray]:
    """For each place its split and its fold; where each fold has its turn, all of them train until `for_fold` says which."""
    if rule.folds is None:
        return pd.array(list(SPLITS), dtype="str"), pd.array([""] * len(SPLITS), dtype="str")
    folds = range(rule.folds)
    splits = ["validation" if fold == rule.fold else "train" for fold in folds]
    return pd.array([*splits, "test"], dtype="str"), pd.array([*map(str, folds), ""], dtype="str")


def renamed(keys: pd.Series, names: Mapping[str, str]) -> pd.Series:
    return keys.map(names).astype("str").fillna(keys) if names else keys


def noun_of(manifest: Manifest) -> str:
    return "block" if manifest.patients.source == "blocks" else "patient"
