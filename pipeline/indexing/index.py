"""The index in pandas: one row for each image file of a source, one reject with its reason for everything else.

Everything that a source holds is in exactly one of the two tables (indexing.inventory). Nothing names a patient, but for paths, which
stand as they are (`path_holds_identity` says which to mask elsewhere). Columns, their order and types are those of pipeline.columns,
also where a table is empty: text that repeats is categorical.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cluster import LOCAL
from pipeline.columns import COLUMNS, REJECT_COLUMNS, REPEATING, SCHEMA
from pipeline.errors import SourceError
from pipeline.identity import IdentityKey
from pipeline.indexing.inventory import take_inventory
from pipeline.indexing.tables import INDEX_FILE, REJECTS_FILE, SUMMARY_FILE

DTYPES = {
    pa.string(): pd.StringDtype("pyarrow"),
    pa.int64(): pd.Int64Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}
"""Of the columns that are not categorical; each has a missing value (pd.NA)."""


@dataclass(frozen=True)
class Index:
    """`table`: a row an image file. `rejects`: a row for all else (`REJECT_COLUMNS`, text). `roots`: source → its folder or .zip."""

    table: pd.DataFrame
    rejects: pd.DataFrame
    summary: dict[str, Any]
    roots: dict[str, Path]


def index_source(
    source: Path, *, key: IdentityKey, name: str | None = None, workers: int | None = None, progress: bool = False
) -> Index:
    """The index of one source: a folder, a .zip, a DICOMDIR with its folder, or a single file.

    `name` is the source's name in the tables, by default its folder's. Of a DICOMDIR the files that it lists and that
    are not there are rejects (`missing`); files it does not list are indexed all the same (`listed` is False).
    `workers`: processes, by default one a CPU; 0 reads in this process, without a budget of time and memory.
    Raises SourceError where there is nothing to read.
    """
    return index_sources([(name, source)], key=key, workers=workers, progress=progress)


def index_sources(
    places: Sequence[tuple[str | None, Path]],
    *,
    key: IdentityKey,
    out: Path | None = None,
    columns: Collection[str] | None = None,
    workers: int | None = None,
    engine: str = LOCAL,
    progress: bool = False,
) -> Index:
    """The index of several sources (name or None, place), in their order; collisions are found across them.

    `out`: a folder for the tables, where an interrupted call goes on and an unchanged source is not read again. `columns`: those
    to read, by default all. `engine`: as `take_inventory` has it.
    """
    if out is not None:
        take_inventory(places, out, key=key, workers=workers, engine=engine, progress=progress)
        return read_index(out, columns)
    with tempfile.TemporaryDirectory(prefix="radloop-") as folder:
        take_inventory(places, Path(folder), key=key, workers=workers, engine=engine, progress=progress)
        return read_index(Path(folder), columns)


def read_index(folder: Path, columns: Collection[str] | None = None) -> Index:
    """What stands in `folder`, all columns or some. Raises SourceError where it is not there, or of another version."""
    try:
        schema = pq.read_schema(folder / INDEX_FILE)
        rejects = pd.read_csv(folder / REJECTS_FILE, dtype=str, na_filter=False, lineterminator="\n")
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        roots = {name: Path(root) for name, root in summary["sources"].items()}
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise SourceError(
            f"{folder}: expected {INDEX_FILE}, {REJECTS_FILE} and {SUMMARY_FILE} as radloop index writes them, found "
            f"{type(error).__name__}; index the source again"
        ) from error
    if schema.names != SCHEMA.names or tuple(rejects.columns) != REJECT_COLUMNS:
        raise SourceError(
            f"{folder}: expected the columns of this version of radloop, found others; index the source again"
        )
    wanted = [name for name in COLUMNS if columns is None or name in columns]
    return Index(_read_table(folder / INDEX_FILE, wanted), rejects.astype(DTYPES[pa.string()]), summary, roots)


def _read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Column by column, so that never more than one stands there twice."""
    frame: dict[str, pd.Series] = {}
    with pq.ParquetFile(path, read_dictionary=[name for name in REPEATING if name in columns]) as file:
        for name in columns:
            column = file.read(columns=[name]).unify_dictionaries()[name].combine_chunks()
            if pa.types.is_dictionary(column.type):
                column = _narrow(column)
            frame[name] = column.to_pandas(types_mapper=DTYPES.get)
    return pd.DataFrame(frame, columns=columns, copy=False)


def _narrow(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """With the smallest index type, as pandas would choose."""
    values = len(column.dictionary)
    kind = pa.int8() if values < 2**7 else pa.int16() if values < 2**15 else pa.int32()
    return pa.DictionaryArray.from_arrays(column.indices.cast(kind), column.dictionary)
