"""Cases to train, validation and test, by patient and stratified by class: by fractions, in folds, or as a file says.

Patients are placed in the order of a hash of each, so the order of files does not matter, and the same key and seed give the same
split. A project remembers its splits in ledgers beside its key: who was placed once stays there when others arrive, also with
another label. `split_cases` is pure; `dataset_split` is what training does. `check_split` is called by training and evaluation: a
patient in two splits is an error, however the split came about.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.cases import EXCLUSION_COLUMNS, Cases
from pipeline.columns import text
from pipeline.errors import ConfigError, RunError
from pipeline.files import whole_file
from pipeline.identity import IdentityKey
from pipeline.manifest import JoinKey, Manifest, SplitRule
from pipeline.progress import say
from pipeline.sheet import join_values, key_values
from pipeline.sources import OpenedSource

SPLITS = ("train", "validation", "test")
SPLIT_COLUMNS = ["case_id", "patient_key", "label", "split"]
FOLD = "fold"
"""A further column where there are folds: '0', '1', ..., and '' for the test split."""
NOT_IN_FILE = "not in the split file"

LEDGER_COLUMNS = ["patient_key", "stratum", "split"]
FOLDED = "folds"
"""In a ledger with folds, in place of train and validation: which of them it is depends on the fold that validates."""
DIGEST_CHARACTERS = 8

SPLIT_WORDS = {**{name: name for name in SPLITS}, "val": "validation", "valid": "validation", "dev": "validation"}
"""What a given file may call them, whatever the case."""
FILE_KEYS = (
    "patient_key", "case_id", JoinKey.PATIENT, JoinKey.ACCESSION, JoinKey.STUDY, JoinKey.SERIES, JoinKey.IMAGE, JoinKey.PATH,
    JoinKey.FILE_NAME,
)  # fmt: skip
"""Key columns of a given file, the one taken first: as a patient's split is wanted, what says most about patients."""

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


def dataset_split(
    cases: Cases, opened: OpenedSource, manifest: Manifest, key: IdentityKey, *, keep: bool = True
) -> Split:
    """The split of a dataset's cases after the manifest's rule, around what its ledger remembers.

    `keep`: remembers the split before it is returned; where the project's folder cannot be written, a warning says so.
    Raises ConfigError or RunError, and then nothing was remembered.
    """
    if manifest.split.file and manifest.split.others == "leave_out":
        return _around(cases, opened, manifest, key, pd.DataFrame(columns=LEDGER_COLUMNS, dtype="str"))
    path = ledger_path(opened, manifest, key)
    if not keep:
        return _around(cases, opened, manifest, key, read_ledger(opened, manifest, key))
    try:
        with _alone(path):
            earlier = read_ledger(opened, manifest, key)
            split = _around(cases, opened, manifest, key, earlier)
            _write_ledger(path, split.table, cases.joined, earlier)
    except OSError as error:
        split = _around(cases, opened, manifest, key, read_ledger(opened, manifest, key))
        unkept = f"the split is not remembered, as {path} cannot be written ({error.strerror}): new patients may move old ones"
        split = replace(split, warnings=(*split.warnings, unkept))
    return split


def _around(cases: Cases, opened: OpenedSource, manifest: Manifest, key: IdentityKey, earlier: pd.DataFrame) -> Split:
    """The split around what a ledger remembers."""
    earlier = _joined(earlier, cases.joined, manifest.split)
    if manifest.split.file:
        split = split_from_file(cases, opened, manifest, key, earlier=earlier)
    else:
        table = split_cases(cases.cases, manifest.split, manifest.classes, earlier=earlier)
        split = Split(table, _said(table, earlier, manifest))
    check_split(split.table)
    return split


def _joined(earlier: pd.DataFrame, joined: Mapping[str, str], rule: SplitRule) -> pd.DataFrame:
    """A ledger in terms of the patients as they are joined now; ConfigError where that would join two splits."""
    if not joined:
        return earlier
    places = ["patient_key", FOLD if rule.folds else "split"]
    rows = earlier.assign(patient_key=_renamed(earlier["patient_key"], joined)).drop_duplicates(places)
    several = rows.loc[rows["patient_key"].duplicated(), "patient_key"].nunique()
    if several:
        raise ConfigError(
            f"near-duplicates join patients into {counted(several, 'group')} of which some stand in one split and some in another since "
            "an earlier training; take another split.seed, which divides all patients anew, or a smaller "
            "patients.near_duplicates.distance"
        )
    return rows


def _renamed(keys: pd.Series, names: Mapping[str, str]) -> pd.Series:
    return keys.map(names).astype("str").fillna(keys) if names else keys


def _said(table: pd.DataFrame, earlier: pd.DataFrame, manifest: Manifest) -> tuple[str, ...]:
    patients = table["patient_key"].drop_duplicates()
    before = int(patients.isin(earlier["patient_key"]).sum())
    new = f", {len(patients) - before} new" if len(patients) > before else ""
    return (f"split: {counted(before, _noun(manifest))} as before{new}",) if before else ()


def _noun(manifest: Manifest) -> str:
    return "block" if manifest.patients.source == "blocks" else "patient"


# Dividing


def split_cases(
    cases: pd.DataFrame, rule: SplitRule, classes: Sequence[str], *, earlier: pd.DataFrame | None = None
) -> pd.DataFrame:
    """`SPLIT_COLUMNS` for all cases, in the order of case_id, and `FOLD` where the rule has folds.

    `cases`: case_id, patient_key, label. `earlier`: a ledger; its patients stay where they are. Patients with the same set of labels
    are one stratum, each divided by the fractions; new ones go where most are missing. ConfigError names a class that a split lacks.
    """
    table = _divided(cases, rule, earlier)
    hint = "add patients, " + ("or take fewer folds" if rule.folds else "or make the split's fractions larger")
    if earlier is not None and len(earlier):
        hint += "; patients of an earlier split stay where they are, another split.seed divides all anew"
    _require_classes(table, rule, classes, "", hint)
    return table


def _divided(cases: pd.DataFrame, rule: SplitRule, earlier: pd.DataFrame | None) -> pd.DataFrame:
    of_case, keys = _codes(cases["patient_key"])
    label, labels = _codes(cases["label"])
    strata, _ = _strata(of_case, label, labels)
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


def _require_classes(table: pd.DataFrame, rule: SplitRule, classes: Sequence[str], where: str, hint: str) -> None:
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
    codes, patients = _codes(who)
    places, names = _codes(place)
    pairs = np.unique(codes * len(names) + places)
    shared = int((np.bincount(pairs // max(len(names), 1), minlength=len(patients)) > 1).sum())
    if shared:
        raise RunError(
            f"split.csv: {counted(shared, 'patient')} {'stands' if shared == 1 else 'stand'} in more than one split; "
            "the figures would be wrong, so nothing is done"
        )


def counted(number: int, noun: str) -> str:
    """1 patient, 2 patients."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# Places


def _codes(column: pd.Series) -> tuple[Integers, pd.Series]:
    """(n,) numbers of the distinct values, and those as text."""
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return codes.astype(np.int64, copy=False), text(pd.Series(values))


def _strata(of_case: Integers, label: Integers, labels: pd.Series) -> tuple[Integers, list[str]]:
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


# The project's memory


def ledger_path(opened: OpenedSource, manifest: Manifest, key: IdentityKey) -> Path:
    """Where a project remembers this rule's split. Another fold is the same split; another seed, fraction or key is another."""
    rule = manifest.split
    told = (rule.train, rule.validation, rule.test, rule.seed, rule.folds, rule.file, key.fingerprint)
    digest = hashlib.sha256("\x1f".join(map(str, told)).encode()).hexdigest()[:DIGEST_CHARACTERS]
    return opened.folder / f".radloop-split-{manifest.name}-{digest}.csv"


def read_ledger(opened: OpenedSource, manifest: Manifest, key: IdentityKey) -> pd.DataFrame:
    """What the project remembers: `LEDGER_COLUMNS`, one row a patient, and `FOLD` where the rule has folds. No rows where there is
    nothing yet. RunError where it is damaged."""
    import pyarrow.csv

    path = ledger_path(opened, manifest, key)
    columns = [*LEDGER_COLUMNS, *([FOLD] if manifest.split.folds else [])]
    if not path.is_file():
        return pd.DataFrame(columns=columns, dtype="str")
    options = pyarrow.csv.ConvertOptions(
        column_types={name: pyarrow.string() for name in columns}, include_columns=columns
    )
    try:
        read = pyarrow.csv.read_csv(
            path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=options
        )
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path, f"expected a CSV with the columns {', '.join(columns)}") from error
    table = read.to_pandas().astype("str")
    if table["patient_key"].duplicated().any():
        raise _damaged(path, "a patient stands in it twice")
    rule = manifest.split
    allowed = {(split, "") for split in SPLITS}
    if rule.folds is not None:
        allowed = {("test", ""), *((FOLDED, str(fold)) for fold in range(rule.folds))}
    found = table[columns[2:]].drop_duplicates().itertuples(index=False, name=None)
    if not {(row[0], row[1] if len(row) > 1 else "") for row in found} <= allowed:
        raise _damaged(path, "it holds a split that is none")
    return table


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path}: damaged: {what}; restore it from a backup, or remove it to divide all patients anew")


def _ledger_rows(table: pd.DataFrame, joined: Mapping[str, str]) -> pd.DataFrame:
    """A split as a ledger has it: one row for each patient, those who are joined too, as they may be apart another time."""
    of_case, keys = _codes(table["patient_key"])
    strata, names = _strata(of_case, *_codes(table["label"]))
    first = np.unique(of_case, return_index=True)[1]
    split = table["split"].iloc[first].reset_index(drop=True)
    columns = {"patient_key": keys, "stratum": pd.Series(pd.array(names, dtype="str").take(strata)), "split": split}
    if FOLD in table:
        columns[FOLD] = table[FOLD].iloc[first].reset_index(drop=True)
        columns["split"] = split.where(split == "test", FOLDED)
    rows = pd.DataFrame(columns)
    members = pd.DataFrame({"member": joined.keys(), "patient_key": joined.values()}, dtype="str")
    theirs = members.merge(rows, on="patient_key").drop(columns="patient_key")
    return pd.concat([rows, theirs.rename(columns={"member": "patient_key"})], ignore_index=True)


def _write_ledger(path: Path, table: pd.DataFrame, joined: Mapping[str, str], earlier: pd.DataFrame) -> None:
    """The ledger with a split's patients, and those of before who are gone. Not touched where nothing changed."""
    import pyarrow.csv

    rows = _ledger_rows(table, joined)
    gone = earlier[~earlier["patient_key"].isin(rows["patient_key"])]
    merged = pd.concat([gone, rows], ignore_index=True).sort_values("patient_key", ignore_index=True)
    if merged.equals(earlier):
        return
    with whole_file(path) as file:
        pyarrow.csv.write_csv(pyarrow.Table.from_pandas(merged, preserve_index=False), file)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two trainings that begin together must not each place the same new patients: the second waits for the first."""
    with open(path.with_suffix(".lock"), "w") as file:
        _lock(file, path)
        yield


def _lock(file: TextIO, path: Path) -> None:
    """Until the file is closed; nothing where the system has no such locks (Windows, some network disks): the last to write wins."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another training that divides the patients ({path.name})")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return


# A given file


def split_from_file(
    cases: Cases, opened: OpenedSource, manifest: Manifest, key: IdentityKey, *, earlier: pd.DataFrame | None = None
) -> Split:
    """The split that `manifest.split.file` gives; patients it does not name are left out, or assigned around the others.

    Naming any image or case of a patient names the patient. `earlier`: a ledger, for those that the file does not name.
    Raises ConfigError for a file that is not there, has no such columns, puts a patient into two splits, or lacks a class.
    """
    rule = manifest.split
    path = _find_file(rule.file, opened)
    join, rows = _read_file(path, manifest, key)
    if join in ("patient_key", JoinKey.PATIENT):
        rows = rows.assign(value=_renamed(rows["value"], cases.joined))
    named, unmatched = _named(rows, join, cases, path)
    rest = ~cases.cases["patient_key"].isin(named["patient_key"])
    if rule.others == "leave_out":
        table = _divided(cases.cases[~rest], rule, named)
    else:
        before = [] if earlier is None else [earlier[~earlier["patient_key"].isin(named["patient_key"])]]
        table = _divided(cases.cases, rule, pd.concat([named, *before], ignore_index=True))
    _require_classes(table, rule, manifest.classes, f"{path}: ", "add patients to it")
    warnings = (f"{unmatched} of {counted(len(rows), 'row')} of {path.name} match no case",) if unmatched else ()
    others = cases.cases.loc[rest, "patient_key"].nunique()
    done = "left out" if rule.others == "leave_out" else "assigned"
    also = f", {counted(others, 'other')} {done}" if others else ""
    return Split(table, (f"split: {counted(len(named), _noun(manifest))} as {path.name} says{also}",), warnings)


def left_out(cases: Cases, table: pd.DataFrame) -> pd.DataFrame:
    """Rows for exclusions.csv: files of cases that the split's table does not have."""
    if len(table) == len(cases.cases):
        return pd.DataFrame(columns=EXCLUSION_COLUMNS, dtype="str")
    rows = cases.images.loc[~cases.images["case_id"].isin(table["case_id"]), ["source", "path"]]
    return rows.drop_duplicates().assign(rule=NOT_IN_FILE).reset_index(drop=True)


def _find_file(name: str, opened: OpenedSource) -> Path:
    candidates = (opened.root / name, opened.folder / name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(f"split.file {name}: looked for {' and '.join(map(str, candidates))}; neither is there")


def _read_file(path: Path, manifest: Manifest, key: IdentityKey) -> tuple[str, pd.DataFrame]:
    """What the key column holds, and the file's rows: `value` (hashed where it must be, '' where there is none) and `split`."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, sep=separator, encoding="utf-8-sig", index_col=False,
            usecols=lambda name: name == "split" or name in FILE_KEYS,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a CSV in UTF-8 with a header line: {type(error).__name__}") from error
    joins = [str(name) for name in FILE_KEYS if name in table.columns]
    if "split" not in table.columns or not joins:
        raise ConfigError(
            f"{path}: expected a column split, and one of {', '.join(FILE_KEYS)}; found no such header line"
        )
    words = table["split"].fillna("").str.strip().str.lower()
    unknown = ~words.isin(list(SPLIT_WORDS))
    if unknown.any():  # not quoted: who knows what stands there
        raise ConfigError(
            f"{path}: the column split of {counted(int(unknown.sum()), 'row')} is none of {', '.join(SPLIT_WORDS)} "
            f"(first: line {int(unknown.to_numpy().argmax()) + 2})"
        )
    values = table[joins[0]].fillna("").str.strip()
    if joins[0] in list(JoinKey):
        issuer = manifest.sheet.issuer if manifest.sheet and manifest.patients.source == "dicom" else ""
        codes, cells = _codes(values)
        values = key_values(cells, JoinKey(joins[0]), issuer, key).take(codes).reset_index(drop=True)
    return joins[0], pd.DataFrame({"value": values, "split": words.map(SPLIT_WORDS)})


def _join_values(cases: Cases, join: str) -> tuple[Integers, pd.Series, pd.Series]:
    """Of what the cases or their images have of a file's key: (n,) numbers of the distinct values, those, and (n,) the patients."""
    if join not in list(JoinKey):
        return *_codes(cases.cases[join]), cases.cases["patient_key"]
    return *_codes(join_values(cases.images, JoinKey(join))), cases.images["patient_key"]


def _named(rows: pd.DataFrame, join: str, cases: Cases, path: Path) -> tuple[pd.DataFrame, int]:
    """`patient_key`, `split` of the patients that a file names, and how many of its rows match nothing. ConfigError where it puts
    one into two splits."""
    codes, values, patients = _join_values(cases, join)
    of_row, keys = _codes(patients)
    if join in (JoinKey.PATH, JoinKey.FILE_NAME):
        _refuse_ambiguous(codes, of_row, values.isin(rows["value"]).to_numpy(), join, path)
    told = rows[rows["value"] != ""]
    named = np.zeros((len(keys), len(SPLITS)), dtype=bool)
    for number, split in enumerate(SPLITS):
        wanted = values.isin(told.loc[told["split"] == split, "value"]).to_numpy()
        named[of_row[wanted[codes]], number] = True
    several = int((named.sum(axis=1) > 1).sum())
    if several:
        raise ConfigError(
            f"{path}: {counted(several, 'patient')} would stand in more than one split; one split a patient is expected, "
            "so nothing is done: put all rows of a patient into one split"
        )
    if not named.any():
        hint = "; it joins only under the key that made it" if join == "patient_key" else ""
        raise ConfigError(f"{path}: none of its {counted(len(rows), 'row')} matches a case by {join}{hint}")
    which = pd.Series(pd.array(list(SPLITS), dtype="str").take(named.argmax(axis=1)))
    table = pd.DataFrame({"patient_key": keys, "split": which})
    unmatched = len(rows) - int(told["value"].isin(values).sum())
    return table.iloc[np.flatnonzero(named.any(axis=1))].reset_index(drop=True), unmatched


def _refuse_ambiguous(codes: Integers, patients: Integers, wanted: NDArray[np.bool_], join: str, path: Path) -> None:
    """A name that files of two patients have says nothing about either."""
    pairs = pd.DataFrame({"value": codes, "patient": patients})[wanted[codes]].drop_duplicates()
    several = int(pairs["value"].value_counts().gt(1).sum())
    if several:
        raise ConfigError(
            f"{path}: {several} of its values of {join} {'is' if several == 1 else 'are'} those of several patients' files; "
            "join by another column, path or case_id"
        )
