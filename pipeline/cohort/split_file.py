"""A split that somebody else made: a CSV with the split of cases or patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.cohort.cases import EXCLUSION_COLUMNS, Cases
from pipeline.cohort.sheet import join_values, key_values
from pipeline.cohort.split import SPLITS, Integers, Split, divide, noun_of, numbered, renamed, require_classes
from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey
from pipeline.indexing.sources import OpenedSource
from pipeline.manifest import JoinKey, Manifest
from pipeline.wording import counted

NOT_IN_FILE = "not in the split file"
SPLIT_WORDS = {**{name: name for name in SPLITS}, "val": "validation", "valid": "validation", "dev": "validation"}
"""What a given file may call them, whatever the case."""
FILE_KEYS = (
    "patient_key", "case_id", JoinKey.PATIENT, JoinKey.ACCESSION, JoinKey.STUDY, JoinKey.SERIES, JoinKey.IMAGE, JoinKey.PATH,
    JoinKey.FILE_NAME,
)  # fmt: skip
"""Key columns of a given file, the one taken first: as a patient's split is wanted, what says most about patients."""


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
        rows = rows.assign(value=renamed(rows["value"], cases.joined))
    named, unmatched = _named(rows, join, cases, path)
    rest = ~cases.cases["patient_key"].isin(named["patient_key"])
    several = manifest.labels.several
    findings = manifest.classes if several else ()
    if rule.others == "leave_out":
        table = divide(cases.cases[~rest], rule, named, findings)
    else:
        before = [] if earlier is None else [earlier[~earlier["patient_key"].isin(named["patient_key"])]]
        table = divide(cases.cases, rule, pd.concat([named, *before], ignore_index=True), findings)
    require_classes(table, rule, manifest.classes, f"{path}: ", "add patients to it", several=several)
    warnings = (f"{unmatched} of {counted(len(rows), 'row')} of {path.name} match no case",) if unmatched else ()
    others = cases.cases.loc[rest, "patient_key"].nunique()
    done = "left out" if rule.others == "leave_out" else "assigned"
    also = f", {counted(others, 'other')} {done}" if others else ""
    return Split(table, (f"split: {counted(len(named), noun_of(manifest))} as {path.name} says{also}",), warnings)


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
        codes, cells = numbered(values)
        values = key_values(cells, JoinKey(joins[0]), issuer, key).take(codes).reset_index(drop=True)
    return joins[0], pd.DataFrame({"value": values, "split": words.map(SPLIT_WORDS)})


def _join_values(cases: Cases, join: str) -> tuple[Integers, pd.Series, pd.Series]:
    """Of what the cases or their images have of a file's key: (n,) numbers of the distinct values, those, and (n,) the patients."""
    if join not in list(JoinKey):
        return *numbered(cases.cases[join]), cases.cases["patient_key"]
    return *numbered(join_values(cases.images, JoinKey(join))), cases.images["patient_key"]


def _named(rows: pd.DataFrame, join: str, cases: Cases, path: Path) -> tuple[pd.DataFrame, int]:
    """`patient_key`, `split` of the patients that a file names, and how many of its rows match nothing. ConfigError where it puts
    one into two splits."""
    codes, values, patients = _join_values(cases, join)
    of_row, keys = numbered(patients)
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
