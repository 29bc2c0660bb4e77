"""The tables of an inventory, written from its listing and the rows that are known: the same input gives the same bytes.

`rejects.csv`, `stacks.csv` and `summary.json`, and last `index.parquet`, each whole: the state that the last two hold says that all
are there. Two passes: one over the few columns that depend on all rows together (collisions, stacks), one that writes, in groups
of some ten thousand rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import empty, from_numpy, from_values, present
from pipeline.columns import BATCH_SCHEMA, REJECT_COLUMNS, REPEATING, SCHEMA
from pipeline.errors import RejectReason
from pipeline.files import file_digest, whole_file, write_whole
from pipeline.indexing.collisions import COLLISION_COLUMNS, find_collisions
from pipeline.indexing.header_jobs import name_uid
from pipeline.indexing.known import KnownRows
from pipeline.indexing.listing import Listed
from pipeline.indexing.stacks import STACK_COLUMNS, stack_series
from pipeline.indexing.summary import Counts
from pipeline.indexing.uid_names import COMMON_NAMES
from pipeline.work import Failure, Pool

INDEX_FILE, REJECTS_FILE, SUMMARY_FILE, STACKS_FILE = "index.parquet", "rejects.csv", "summary.json", "stacks.csv"
ROWS_A_GROUP = 65_536

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class _Derived:
    """Columns that depend on all rows together, one value an image file, in the order of the index."""

    collision: pa.Array
    sha256: pa.Array
    stack: pa.Array
    unhashed: int

    def slice(self, start: int, count: int) -> dict[str, pa.Array]:
        return {name: getattr(self, name).slice(start, count) for name in ("collision", "sha256", "stack")}


def write_tables(
    sources: Sequence[Listed],
    numbers: Sequence[Numbers],
    known: KnownRows,
    out: Path,
    pool: Pool,
    *,
    metadata: Mapping[str, str],
) -> dict[str, Any]:
    """Writes the tables to `out` and returns the summary.

    `numbers`: for each source (n,) the known row of each listed file, -1 where it could not be opened. `metadata` goes into the
    index, its `state` into the summary too.
    """
    derived, stacks = _derive(sources, numbers, known, pool)
    roots = {source.name: str(source.root) for source in sources}
    listed = sum(len(source.files) for source in sources)
    counts = Counts(roots, metadata["state"], listed, derived.unhashed)
    with whole_file(out / INDEX_FILE) as index:
        with (
            pq.ParquetWriter(
                index, SCHEMA.with_metadata(dict(metadata) | {"roots": json.dumps(roots)}), compression="zstd"
            ) as writer,
            whole_file(out / REJECTS_FILE) as file,
        ):
            rejects = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            _write_rows(sources, numbers, known, derived, counts, writer, Rows(rejects))
            rejects.detach()
        write_whole(out / STACKS_FILE, _csv(stacks))
        counts.count_stacks(stacks)
        summary = counts.to_json(partial(_names, pool=pool))
        write_whole(out / SUMMARY_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def _derive(
    sources: Sequence[Listed], numbers: Sequence[Numbers], known: KnownRows, pool: Pool
) -> tuple[_Derived, pa.Table]:
    """Collisions, then stacks, so that never the columns of both are held."""
    rows = _image_rows(numbers, known)
    roots = {source.name: source.root for source in sources}
    unhashed = 0

    def digest_of(places: Numbers) -> list[str | None]:
        nonlocal unhashed
        digests = _digests(places, rows=rows, known=known, roots=roots, pool=pool)
        unhashed += digests.count(None)
        return digests

    collision, sha256 = find_collisions(_columns(rows, known, COLLISION_COLUMNS), digest_of)
    table = _columns(rows, known, [name for name in STACK_COLUMNS if name != "collision"])
    stack, stacks = stack_series(table.append_column("collision", collision).select(STACK_COLUMNS))
    return _Derived(collision, sha256, from_numpy(stack, missing=stack < 0), unhashed), stacks


def _image_rows(numbers: Sequence[Numbers], known: KnownRows) -> Numbers:
    """(n,) the known rows of all image files, in the order of the index."""
    images = [np.zeros(0, dtype=np.int64)]
    for some in (part[part >= 0] for of_source in numbers for part in _in_groups(of_source)):
        images.append(some[~present(known.take(some, ["reason"])["reason"])])
    return np.concatenate(images)


def _in_groups(rows: Numbers) -> Iterator[Numbers]:
    for start in range(0, len(rows), ROWS_A_GROUP):
        yield rows[start : start + ROWS_A_GROUP]


def _columns(rows: Numbers, known: KnownRows, columns: Sequence[str]) -> pa.Table:
    """These columns of all rows, the repeating ones as dictionaries, which are small."""
    pieces = [_encoded(known.take(some, columns)) for some in _in_groups(rows)]
    if not pieces:
        return empty(pa.schema([SCHEMA.field(name) for name in columns]))
    return pa.concat_tables(pieces).unify_dictionaries()


def _filtered(table: pa.Table, wanted: NDArray[np.bool_]) -> pa.Table:
    return table if wanted.all() else table.filter(from_numpy(wanted))


def _encoded(table: pa.Table) -> pa.Table:
    """With the repeating columns as dictionaries, which are small."""
    arrays = [
        pc.dictionary_encode(column) if name in REPEATING else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.Table.from_arrays(arrays, names=table.column_names)


def _digests(
    places: Numbers, *, rows: Numbers, known: KnownRows, roots: Mapping[str, Path], pool: Pool
) -> list[str | None]:
    """Content digests of the image files at these places, None for a file that cannot be read again."""
    table = known.take(rows[places], ["source", "path"])
    files = [
        roots[source] / path for source, path in zip(*(column.to_pylist() for column in table.columns), strict=True)
    ]
    outcomes = pool.run_each(file_digest, files)
    return [None if isinstance(digest, Failure) else digest for _, digest in outcomes]


def _names(uids: Sequence[str], *, pool: Pool) -> list[str]:
    """The standard's names of UIDs; uncommon ones from a worker, as this process does without pydicom."""
    uncommon = [uid for uid in uids if uid not in COMMON_NAMES]
    told = {uid: uid if isinstance(name, Failure) else name for uid, name in pool.run_each(name_uid, uncommon)}
    return [COMMON_NAMES.get(uid) or told.get(uid, "") for uid in uids]


def _write_rows(
    sources: Sequence[Listed],
    numbers: Sequence[Numbers],
    known: KnownRows,
    derived: _Derived,
    counts: Counts,
    index: pq.ParquetWriter,
    rejects: Rows,
) -> None:
    rejects.writerow(REJECT_COLUMNS)
    written = 0
    for source, of_source in zip(sources, numbers, strict=True):
        directory = _Directory.of(source)
        for start in range(0, len(of_source), ROWS_A_GROUP):
            some = of_source[start : start + ROWS_A_GROUP]
            rows = known.take(some[some >= 0], BATCH_SCHEMA.names)
            image = ~present(rows["reason"])
            images = _filtered(rows, image)
            images = _completed(images, derived.slice(written, len(images)), directory)
            written += len(images)
            if len(images):
                index.write_table(images, row_group_size=ROWS_A_GROUP)
            counts.count_images(images)
            listing = source.files.slice(start, len(some))
            for row in _rejected(source.name, listing, some, rows, image):
                directory.see(row[1])
                counts.count_reject(row[2])
                rejects.writerow(row)
        for path in directory.missing():
            reason = str(RejectReason.MISSING)
            counts.count_reject(reason)
            rejects.writerow((source.name, path, reason, "the DICOMDIR lists it", None, None))
        directory.count(source.name, counts)


def _completed(images: pa.Table, derived: Mapping[str, pa.Array], directory: _Directory) -> pa.Table:
    """The rows as the index has them."""
    values = dict(derived) | {"listed": directory.listed(images["path"])}
    arrays = [values.get(field.name, images[field.name]) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA).combine_chunks()


def _rejected(
    source: str, listing: pa.Table, numbers: Numbers, rows: pa.Table, image: NDArray[np.bool_]
) -> Iterator[tuple[Any, ...]]:
    """Rows of rejects.csv, in the listing's order: what was read and is no image, and what could not be opened."""
    read = np.flatnonzero(numbers >= 0)[~image]
    refused = np.flatnonzero(numbers < 0)
    columns = ["path", "reason", "detail", "bytes", "mtime_ns"]
    from_rows = rows.select(columns).filter(from_numpy(~image)).to_pylist()
    from_listing = listing.select(columns).take(from_numpy(refused)).to_pylist()
    found = sorted(
        zip((*read, *refused), (*from_rows, *from_listing), strict=True),
        key=lambda pair: int(pair[0]),
    )
    for _, row in found:
        yield (source, *(row[name] for name in columns))


class _Directory:
    """What a DICOMDIR lists against what is there, whatever the case: media are often copied with lower-case names."""

    def __init__(self, listed: Sequence[str] | None) -> None:
        self._wanted = None if listed is None else {path.casefold(): path for path in listed}
        self._seen: set[str] = set()
        self._unlisted = 0

    @classmethod
    def of(cls, source: Listed) -> _Directory:
        return cls(source.directory)

    def see(self, path: str) -> bool:
        """Whether the DICOMDIR lists the file, which is there."""
        folded = path.casefold()
        if self._wanted is None or folded not in self._wanted:
            return False
        self._seen.add(folded)
        return True

    def listed(self, paths: pa.ChunkedArray) -> pa.Array:
        """The column `listed`: null where there is no DICOMDIR."""
        if self._wanted is None:
            return pa.nulls(len(paths), pa.bool_())
        listed = [self.see(path) for path in paths.to_pylist()]
        self._unlisted += listed.count(False)
        return from_values(listed, pa.bool_())

    def missing(self) -> list[str]:
        """Files that are listed and not there."""
        gone = [path for folded, path in (self._wanted or {}).items() if folded not in self._seen]
        return [path.encode("utf-8", "backslashreplace").decode() for path in gone]

    def count(self, source: str, counts: Counts) -> None:
        if self._wanted is not None:
            counts.count_directory(source, len(self._wanted), len(self.missing()), self._unlisted)


class Rows:
    """Writes rows of CSV. A cell with a carriage return, which file names may hold, is quoted: the csv module would not."""

    def __init__(self, file: TextIO) -> None:
        self._plain = csv.writer(file, lineterminator="\n")
        self._quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def writerow(self, row: Sequence[Any]) -> None:
        odd = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (self._quoting if odd else self._plain).writerow(row)


def _csv(table: pa.Table) -> str:
    text = io.StringIO()
    writer = Rows(text)
    writer.writerow(table.column_names)
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        writer.writerow(row)
    return text.getvalue()
