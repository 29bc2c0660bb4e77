"""The label sheet: rows of text joined to images by UID, keyed hash, file name or path, and what they say of each image.

Rows of one key are one entry: where they differ the entry says SEVERAL things, which is never settled by choosing one. Arrays of
places and codes are (n,) integers, NONE where there is nothing. No message quotes a cell.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.cohort.worksheet import read_columns
from pipeline.columns import ATTRIBUTES, TEXT, snake_case, text
from pipeline.dicom.header import read_header
from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey
from pipeline.indexing.sources import OpenedSource, find_sheet
from pipeline.manifest import JoinKey, Manifest, Sheet
from pipeline.work import run_each

Codes = NDArray[np.int64]
NONE, SEVERAL = -1, -2

JOIN_COLUMN = {
    JoinKey.STUDY: "study_instance_uid",
    JoinKey.SERIES: "series_instance_uid",
    JoinKey.IMAGE: "sop_instance_uid",
    JoinKey.ACCESSION: "accession_key",
    JoinKey.PATIENT: "patient_key",
    JoinKey.FILE_NAME: "path",
    JoinKey.PATH: "path",
}
FACT_COLUMNS = tuple(
    snake_case(keyword) for keyword, kind in ATTRIBUTES.items() if kind == TEXT and not keyword.endswith("UID")
)
"""What a sheet may fill in: attributes of text. Not UIDs, which tie images together, and no hash of an identity."""

BATCH = 8192
"""Texts that are Python objects at a time."""
SAMPLE = 200
"""Cells of a column that are tried against the images when nothing matches."""
PROBED_HEADERS, PROBE_TIMEOUT_S = 3, 60.0


@dataclass(frozen=True)
class Column:
    """Cells of one heading: `codes` (rows,) are places in `values`, its distinct cells; NONE where a cell is empty."""

    codes: Codes
    values: pa.Array


@dataclass(frozen=True)
class LabelSheet:
    """A sheet as the manifest needs it. `lines`, `key_of_row` (rows,); `keys` as images have them, identifiers hashed."""

    path: Path
    spec: Sheet
    lines: Codes
    key_of_row: Codes
    keys: pa.Array
    columns: Mapping[str, Column]

    def keys_of(self, images: pd.DataFrame) -> Codes:
        """For each image the place of its key in `keys`."""
        places = places_in(join_values(images, self.spec.join), self.keys)
        pa.default_memory_pool().release_unused()  # the allocator would keep what looking up needed
        return places

    def by_key(self, codes: Codes) -> Codes:
        """What the rows say together, for each of `keys`: their code, NONE, or SEVERAL."""
        return agreed(self.key_of_row, codes, len(self.keys))


def read_sheet(manifest: Manifest, opened: OpenedSource, key: IdentityKey) -> LabelSheet:
    """The manifest's sheet; ConfigError where it cannot be read as a table that has the manifest's headings."""
    spec = manifest.sheet
    if spec is None:
        raise ConfigError(f"manifest {manifest.name}: it names no sheet")
    _check_facts(spec)
    path = find_sheet(spec, opened)
    told = _told(manifest)
    lines, cells = read_columns(path, spec.worksheet, {spec.column, *told})
    columns = {heading: Column(*reversed(_encoded(cells[heading]))) for heading in told}
    keys, key_of_row = _keys(cells.pop(spec.column), spec, key)
    pa.default_memory_pool().release_unused()
    return LabelSheet(path, spec, lines, key_of_row, keys, columns)


def _told(manifest: Manifest) -> set[str]:
    """Headings of what the sheet says of its keys."""
    told = set(manifest.sheet.facts.values() if manifest.sheet else ())
    if manifest.labels.source == "sheet":
        told |= set(manifest.labels.columns.values()) or {manifest.labels.column}
    if manifest.patients.source == "column":
        told.add(manifest.patients.column)
    return told


def _keys(cells: pa.ChunkedArray, spec: Sheet, key: IdentityKey) -> tuple[pa.Array, Codes]:
    """The distinct keys, and (rows,) the place of each row's; different cells may be one key (`a\\b`, `a/b`)."""
    different, cell_of_row = _encoded(cells)
    keyed = _keyed(different, spec.join, spec.issuer, key)
    if keyed is different:
        return different, cell_of_row
    keys, key_of_cell = _encoded(keyed)
    return keys, taken(key_of_cell, cell_of_row)


def _check_facts(spec: Sheet) -> None:
    for name in spec.facts:
        if name not in FACT_COLUMNS:
            nearest = difflib.get_close_matches(name, FACT_COLUMNS, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"possible are {', '.join(FACT_COLUMNS)}"
            raise ConfigError(f"sheet.facts: {name} is no column of the index that a sheet can fill; {hint}")


# Joining


def join_values(images: pd.DataFrame, join: JoinKey) -> pd.Series:
    """What each image has of what the sheet's key column holds."""
    column = images[JOIN_COLUMN[join]]
    if join not in (JoinKey.PATH, JoinKey.FILE_NAME):
        return column
    paths = _plain_paths(as_arrow(column))
    if join is JoinKey.FILE_NAME:
        paths = pc.replace_substring_regex(paths, r"^.*/", "")
    return pd.Series(pd.array(paths, dtype="str"), index=images.index)


def key_values(values: pd.Series, join: JoinKey, issuer: str, key: IdentityKey) -> pd.Series:
    """A sheet's key cells as `join_values` has them: identifiers hashed, paths with '/'; '' where there is none."""
    keyed = _keyed(pc.utf8_trim_whitespace(as_arrow(values)), join, issuer, key)
    return pd.Series(pd.array(keyed, dtype="str"), index=values.index)


def _keyed(cells: pa.Array, join: JoinKey, issuer: str, key: IdentityKey) -> pa.Array:
    if join is JoinKey.ACCESSION:
        return strings(key.accession(cell) or "" for cell in texts_of(cells))
    if join is JoinKey.PATIENT:
        return strings(key.patient(cell, issuer) or "" for cell in texts_of(cells))
    return _plain_paths(cells) if join in (JoinKey.PATH, JoinKey.FILE_NAME) else cells


def _plain_paths(paths: pa.Array) -> pa.Array:
    """With '/' between folders, without './' before them, and in the one of Unicode's spellings: macOS writes the other."""
    if not pc.all(pc.string_is_ascii(paths)).as_py():
        paths = pc.utf8_normalize(paths, form="NFC")
    return pc.replace_substring_regex(pc.replace_substring(paths, "\\", "/"), r"^(\./+)+", "")


def places_in(column: pd.Series, keys: pa.Array) -> Codes:
    """(n,) where each value stands among `keys`, which are distinct; NONE where it does not, or is ''."""
    if column.dtype == "category":
        return taken(places_in(text(pd.Series(column.cat.categories)), keys), column.cat.codes.to_numpy())
    found = pc.index_in(as_arrow(column), value_set=keys)
    return _without_empty(pc.fill_null(found, NONE).to_numpy().astype(np.int64), keys)


def agreed(groups: Codes, codes: Codes, count: int) -> Codes:
    """(count,) the one code of each group: NONE where it has none, SEVERAL where they differ or one is SEVERAL already."""
    inside = groups != NONE
    known = inside & (codes >= 0)
    lowest, highest = np.full(count, np.iinfo(np.int64).max), np.full(count, NONE, dtype=np.int64)
    np.minimum.at(lowest, groups[known], codes[known])
    np.maximum.at(highest, groups[known], codes[known])
    one = np.where(highest > lowest, SEVERAL, highest)
    one[groups[inside & (codes == SEVERAL)]] = SEVERAL
    return one


def taken(values: Codes, places: NDArray[np.integer]) -> Codes:
    """(n,) `values` at the places, NONE where the place is."""
    if len(values) == 0:
        return np.full(len(places), NONE, dtype=np.int64)
    return np.where(places == NONE, NONE, values[places])


def distinct(column: pd.Series) -> tuple[Codes, pa.Array]:
    """(n,) places of a column's values among its distinct ones, as text; NONE where it is missing or ''."""
    if isinstance(column.dtype, pd.StringDtype):
        texts, codes = _encoded(as_arrow(column))
        return codes, texts
    codes, values = column.factorize()
    texts = as_arrow(pd.Series(values))
    return _without_empty(codes, texts), texts


def categories(codes: Codes, texts: pa.Array) -> pd.Categorical:
    """(n,) texts by their places, missing where the code is NONE; only those that are needed are categories."""
    used = np.zeros(len(texts) + 1, dtype=bool)  # the last for NONE
    used[codes] = True
    used[NONE] = False
    narrow = np.cumsum(used, dtype=np.int32) - 1
    narrow[NONE] = NONE
    return pd.Categorical.from_codes(narrow[codes], pd.Index(pd.array(texts.filter(pa.array(used[:-1])), dtype="str")))


def _encoded(cells: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, Codes]:
    """The distinct cells, and (n,) the place of each, NONE of ''."""
    encoded = pa.chunked_array(
        [cells] if isinstance(cells, pa.Array) else cells.chunks, pa.large_string()
    ).dictionary_encode()
    if not encoded.num_chunks:
        return strings(()), np.array([], dtype=np.int64)
    texts = encoded.chunk(encoded.num_chunks - 1).dictionary  # one for all chunks
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks]).astype(np.int64)
    return texts, _without_empty(codes, texts)


def _without_empty(codes: Codes, texts: pa.Array) -> Codes:
    place = pc.index(texts, pa.scalar("", texts.type)).as_py()
    return np.where(codes == place, NONE, codes) if place >= 0 else codes


def as_arrow(column: pd.Series) -> pa.Array:
    """A column as text, '' where it has none."""
    if not isinstance(column.dtype, pd.StringDtype):
        column = text(column)
    values = pc.cast(_one(pa.array(column, from_pandas=True)), pa.large_string())
    return pc.fill_null(values, "") if values.null_count else values


def _one(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()


def strings(values: Iterable[str]) -> pa.Array:
    """Texts in Arrow, of which few are Python objects at a time."""
    rest, parts = iter(values), []
    while batch := list(islice(rest, BATCH)):
        parts.append(pa.array(batch, pa.large_string()))
    return _one(pa.chunked_array(parts, pa.large_string()))


def texts_of(texts: pa.Array) -> Iterator[str]:
    """Each text, few of them Python objects at a time."""
    for start in range(0, len(texts), BATCH):
        yield from texts.slice(start, BATCH).to_pylist()


# Facts


def fill_facts(table: pd.DataFrame, sheet: LabelSheet) -> pd.DataFrame:
    """A copy with the sheet's facts where there is nothing; rows that differ in a fact, or fit several files' names, tell none."""
    keys = sheet.keys_of(table)
    keys = np.where(np.isin(keys, ambiguous_keys(table, keys, sheet.spec.join)), NONE, keys)
    filled = {}
    for name, heading in sheet.spec.facts.items():
        column = sheet.columns[heading]
        codes = taken(sheet.by_key(column.codes), keys)
        filled[name] = _filled(table[name], np.where(codes == SEVERAL, NONE, codes), column.values)
    return table.assign(**filled)


def _filled(column: pd.Series, codes: Codes, values: pa.Array) -> pd.Series:
    """The column with `values[codes]` where it is empty, of the dtype that it has."""
    there, known = distinct(column)
    fill = (there == NONE) & (codes >= 0)
    needed, places = np.unique(codes[fill], return_inverse=True)
    merged = there.copy()
    merged[fill] = len(known) + places
    names = pa.concat_arrays([known, values.take(pa.array(needed))])
    texts, place_of_name = _encoded(names)
    result = pd.Series(categories(taken(place_of_name, merged), texts), index=column.index)
    return result if column.dtype == "category" else result.astype(column.dtype)


def ambiguous_keys(images: pd.DataFrame, keys: Codes, join: JoinKey) -> Codes:
    """Of the keys that name one file (a file's name or path) those that several files have."""
    if join not in (JoinKey.FILE_NAME, JoinKey.PATH):
        return np.array([], dtype=np.int64)
    one_a_file = keys[(images["frame"] == 0).to_numpy()] if "frame" in images else keys
    return np.flatnonzero(np.bincount(one_a_file[one_a_file != NONE]) > 1)


# Where nothing matches


def no_match(
    images: pd.DataFrame, sheet: LabelSheet, opened: OpenedSource, manifest: Manifest, key: IdentityKey
) -> ConfigError:
    """What to say where no row of the sheet matches an image: which column and key would."""
    spec = sheet.spec
    said = f"{sheet.path}: none of its {len(sheet.lines)} rows matches an image by {spec.join} (column `{spec.column}`)"
    if len(sheet.lines) and (sheet.key_of_row == NONE).all():
        return ConfigError(
            f"{said}: the column is empty; of a workbook's formulas, only values that were saved can be read"
        )
    better = _better_join(images, sheet, manifest, key)
    if better is not None:
        heading, join, issuer = better
        setting = f"`join: {join}`, `column: {heading}`"
        if join is JoinKey.PATIENT and issuer != spec.issuer:
            setting = "no `issuer`"
        return ConfigError(f"{said}; the column `{heading}` holds values that match {join}: set {setting}")
    if spec.join is JoinKey.PATIENT and not spec.issuer and _have_issuers(images, opened):
        return ConfigError(
            f"{said}; the images have an IssuerOfPatientID, which is part of who they are: give it as `issuer`"
        )
    return ConfigError(f"{said}, nor does another of its columns by any key; is it the sheet of these images?")


def _better_join(
    images: pd.DataFrame, sheet: LabelSheet, manifest: Manifest, key: IdentityKey
) -> tuple[str, JoinKey, str] | None:
    """Heading, key and issuer with which most of a sample match. Headings may be named here: the wanted ones are among them."""
    wanted = {sheet.spec.column, *_told(manifest)}
    _, cells = read_columns(sheet.path, sheet.spec.worksheet, wanted, every=True)
    samples = {heading: _sample(column) for heading, column in cells.items()}
    best, share = None, 0.0
    for join in JoinKey:
        issuers = dict.fromkeys((sheet.spec.issuer, "")) if join is JoinKey.PATIENT else {"": None}
        there = as_arrow(join_values(images, join)).unique()
        for issuer in issuers:
            for heading, sample in samples.items():
                found = pc.is_in(_keyed(sample, join, issuer, key), value_set=there)
                matching = pc.mean(found).as_py() or 0.0
                if matching > share:
                    best, share = (heading, join, issuer), matching
    return best


def _sample(cells: pa.ChunkedArray) -> pa.Array:
    distinct = cells.unique().drop_null()
    distinct = distinct.filter(pc.not_equal(distinct, ""))
    return (
        distinct.take(pa.array(np.unique(np.linspace(0, len(distinct) - 1, SAMPLE).astype(int))))
        if len(distinct)
        else distinct
    )


class _IssuerProbe(IdentityKey):
    """Tells of a header only whether its PatientID has an issuer."""

    def patient(self, patient_id: str, issuer: str = "") -> str | None:
        return "issued" if patient_id.strip() and issuer.strip() else None


def _has_issuer(path: Path) -> bool:
    return read_header(path, _IssuerProbe(b""))["patient_key"] is not None


def _have_issuers(images: pd.DataFrame, opened: OpenedSource) -> bool:
    roots = {name or place.name: place if place.is_dir() else place.parent for name, place in opened.places}
    some = images.loc[(text(images["format"]) == "dicom").to_numpy(), ["source", "path"]].head(PROBED_HEADERS)
    paths = [roots[source] / path for source, path in some.itertuples(index=False, name=None)]
    outcomes = run_each(_has_issuer, [path for path in paths if path.is_file()], workers=1, timeout_s=PROBE_TIMEOUT_S)
    return any(outcome is True for _, outcome in outcomes)
