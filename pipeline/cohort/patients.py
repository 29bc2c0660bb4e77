"""Whose an image is: from the headers, a column of the sheet, its path, or blocks of numbers; and who stands in for the unknown.

Keys are hashes under the project's key, but for blocks, which are nobody. Codes are (n,) integers, as in pipeline.cohort.sheet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.cohort.sheet import NONE, Codes, LabelSheet, agreed, distinct, strings, taken, texts_of
from pipeline.columns import matches, text
from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey
from pipeline.manifest import Blocks, Patients

NOT_PROVEN = "patient independence is not proven"
UNKNOWN_PATIENT = "unknown-"
"""How the stand-in for a patient begins who is not known."""
PATH_HOLDS_IDENTITY = "path_holds_identity"
"""The index's column that says whether a file's path holds its header's name or ID."""
MOST_DIGITS = 18
"""Of a number in a path; more do not fit 64 bits."""


@dataclass(frozen=True)
class People:
    """`codes` (n,) are places in `names`, the patients' keys, each of which stands there once."""

    codes: Codes
    names: pa.Array


@dataclass(frozen=True)
class Groups:
    """What images belong to: `codes` (n,) are places in `names`; NONE for an image of no group."""

    codes: Codes
    names: pa.Array


def people_of_rows(sheet: LabelSheet, patients: Patients, key: IdentityKey) -> People | None:
    """Each row's patient; None where patients do not come from the sheet."""
    if patients.source != "column":
        return None
    column = sheet.columns[patients.column]
    return People(column.codes, _hashed(column.values.to_pylist(), key))


def people_of_images(images: pd.DataFrame, patients: Patients, key: IdentityKey) -> People:
    """Each image's patient by header or path; NONE where it is not known."""
    if patients.source == "path":
        return _by_pattern(images, patients.pattern, key)
    if patients.source == "blocks" and patients.blocks is not None:
        return _by_blocks(images, patients.blocks, key)
    return People(*distinct(images["patient_key"]))


def _by_pattern(images: pd.DataFrame, pattern: str, key: IdentityKey) -> People:
    search = re.compile(pattern).search
    places: dict[str, int] = {}
    codes = np.full(len(images), NONE, dtype=np.int64)
    for row, path in enumerate(text(images["path"])):
        match = search(path)
        patient = (match.group(1) or "").strip() if match else ""
        if patient:
            codes[row] = places.setdefault(patient, len(places))
    return People(codes, _hashed(places, key))


def _by_blocks(images: pd.DataFrame, blocks: Blocks, key: IdentityKey) -> People:
    """`folder#k`: the k-th block of consecutive numbers within a file's folder, whose name is hashed if it tells a patient's."""
    holds = _hold_identity(images)
    search = re.compile(blocks.pattern).search
    numbers = np.empty(len(images), dtype=np.int64)
    for row, path in enumerate(text(images["path"])):
        match = search(path)
        digits = match.group(1) if match else None
        if digits is None or not digits.isdecimal() or len(digits) > MOST_DIGITS:
            raise ConfigError(
                f"patients.blocks: the pattern {blocks.pattern!r} finds no number in the path of a file "
                f"({shown(path, bool(holds[row]))})"
            )
        numbers[row] = (int(digits) - 1) // blocks.size
    places, names = distinct(_countries(images))
    secret = set(places[holds].tolist())
    shown_names = [key.patient(name) or "" if place in secret else name for place, name in enumerate(names.to_pylist())]
    pairs, codes = np.unique(np.stack([places, numbers], axis=1), axis=0, return_inverse=True)
    return People(codes.reshape(-1), strings(f"{shown_names[place]}#{number:04d}" for place, number in pairs.tolist()))


def _hold_identity(images: pd.DataFrame) -> NDArray[np.bool_]:
    """(n,) as the index says; where it was not asked, of each file with a header."""
    if PATH_HOLDS_IDENTITY not in images:
        return matches(images["format"], "dicom".__eq__)
    return images[PATH_HOLDS_IDENTITY].eq(True).fillna(False).to_numpy(dtype=bool)


def _countries(images: pd.DataFrame) -> pd.Series:
    """Where numbers count: each file's folder, with its source where there are several."""
    folders = folders_of(images).replace("", ".")
    sources = text(images["source"])
    return folders if sources.nunique() < 2 else sources + "/" + folders


def folders_of(images: pd.DataFrame) -> pd.Series:
    """Each file's folder within its source, '' for the source itself."""
    return text(images["path"]).str.replace(r"/?[^/]*$", "", regex=True)


def shown(path: str, holds_identity: bool) -> str:
    """A path for a message: masked where the index says that it holds its header's name or ID."""
    if not holds_identity:
        return path
    return f"not shown, as it holds a patient's name or ID; {len(PurePosixPath(path).parts)} parts deep"


def known_by_company(people: People, *companies: Groups) -> People:
    """An image without patient takes the one of its group (study, case), if the group has one only."""
    codes = people.codes
    for groups in companies:
        if (codes == NONE).any():
            theirs = taken(agreed(groups.codes, codes, len(groups.names)), groups.codes)
            codes = np.where((codes == NONE) & (theirs >= 0), theirs, codes)
    return People(codes, people.names)


def with_stand_ins(people: People, studies: Groups, cases: Groups, key: IdentityKey) -> People:
    """Whoever is not known is another one in each study, or in each case without study."""
    unknown = people.codes == NONE
    if not unknown.any():
        return people
    codes, names = people.codes.copy(), [people.names]
    for groups, these in ((studies, unknown & (studies.codes != NONE)), (cases, unknown & (studies.codes == NONE))):
        needed, places = np.unique(groups.codes[these], return_inverse=True)
        codes[these] = sum(map(len, names)) + places
        hashes = _hashes(texts_of(groups.names.take(pa.array(needed))), key)
        names.append(strings(f"{UNKNOWN_PATIENT}{hashed}" for hashed in hashes))
    return People(codes, pa.concat_arrays(names))


def _hashed(patients: Iterable[str], key: IdentityKey) -> pa.Array:
    return strings(_hashes(patients, key))


def _hashes(patients: Iterable[str], key: IdentityKey) -> Iterator[str]:
    return (key.patient(patient) or "" for patient in patients)
