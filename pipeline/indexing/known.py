"""Rows that are known already: of the index that stands in a folder, and of parts that an interrupted indexing left there.

A row is known by its source, path, size and time. Rows stay on disk: what is held of each is its path and place, and they are read
in groups of some ten thousand. Parts are Arrow files of `BATCH_SCHEMA` (pipeline.indexing.entries), each written whole; the number in
a part's name says which is newer.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import empty, from_numpy, from_values, to_numpy
from pipeline.columns import BATCH_SCHEMA, SCHEMA
from pipeline.errors import RejectReason
from pipeline.files import whole_file

PASSING = frozenset(
    str(reason)
    for reason in (RejectReason.UNREADABLE, RejectReason.CHANGED, RejectReason.TIMED_OUT, RejectReason.CRASHED)
)
"""Reasons that may be gone the next time although the file is the same: such files are read again."""
GROUPS_HELD = 2
KEY_COLUMNS = ["path", "bytes", "mtime_ns"]


@dataclass(frozen=True)
class _Group:
    """Rows of one source that are read together: row group or batch `number` of a file, or a table that is held."""

    source: str
    path: Path | None
    number: int
    rows: int


class KnownRows:
    """Rows by number: `find` gives the numbers of files, `take` the rows of numbers."""

    def __init__(
        self, index: Path | None, rejects: Path | None, parts: Sequence[Path], roots: Mapping[str, str] | None = None
    ) -> None:
        """`roots`: of the sources as they are now; rows of the index that came from elsewhere are not known."""
        self._groups: list[_Group] = []
        self._keys: list[pa.Table] = []
        self._starts = np.zeros(0, dtype=np.int64)
        self._held: list[pa.Table] = []
        self._moved: set[str] = set()
        self._read = lru_cache(GROUPS_HELD)(self._read_group)
        for part in parts:
            self.add(part)
        if index is not None and rejects is not None:
            before = json.loads((pq.read_schema(index).metadata or {}).get(b"roots", b"{}"))
            self._moved = {name for name, root in before.items() if (roots or before).get(name) != root}
            self._add_index(index)
            for table in _rejected_before(rejects):
                self.hold(table)
            self._moved = set()

    def __len__(self) -> int:
        return sum(group.rows for group in self._groups)

    def add(self, part: Path) -> int:
        """Takes in a part, of one source; returns its first row's number."""
        first = len(self)
        with _open_part(part, ["source", *KEY_COLUMNS]) as reader:
            for number in range(reader.num_record_batches):
                self._add(part, number, pa.Table.from_batches([reader.get_batch(number)]))
        return first

    def hold(self, table: pa.Table) -> int:
        """Takes in rows of `BATCH_SCHEMA`, of one source, that stay in memory; returns the first one's number."""
        first = len(self)
        self._held.append(table)
        self._add(None, len(self._held) - 1, table)
        return first

    def find(self, source: str, listing: pa.Table) -> NDArray[np.int64]:
        """For each row of a listing the number of the newest known row of the same file, -1 where there is none."""
        found = np.full(len(listing), -1, dtype=np.int64)
        ours = [number for number, group in enumerate(self._groups) if group.source == source]
        if not ours:
            return found
        keys = pa.concat_tables([self._keys[number] for number in ours])
        numbers = np.concatenate([np.arange(self._groups[number].rows) + self._starts[number] for number in ours])
        place = to_numpy(pc.index_in(listing["path"], value_set=keys["path"]), missing=-1)
        known = np.flatnonzero(place >= 0)
        at = place[known]
        same = np.ones(len(at), dtype=bool)
        for column in ("bytes", "mtime_ns"):
            there = to_numpy(listing[column], missing=-1)[known]
            same &= there == to_numpy(keys[column], missing=-2)[at]
        found[known[same]] = numbers[at[same]]
        return found

    def forget_keys(self) -> None:
        """Frees what only `find` needs."""
        self._keys.clear()

    def take(self, numbers: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """These columns of the rows, in the order of `numbers`."""
        order = np.argsort(numbers, kind="stable")
        wanted = numbers[order]
        group_of = np.searchsorted(self._starts, wanted, side="right") - 1
        pieces = []
        for group in np.unique(group_of):
            rows = wanted[group_of == group] - self._starts[group]
            pieces.append(_rows(self._read(int(group), tuple(columns)), rows))
        if not pieces:
            return empty(pa.schema([BATCH_SCHEMA.field(name) for name in columns]))
        table = pa.concat_tables(pieces)
        return table if (np.diff(order) == 1).all() else table.take(from_numpy(np.argsort(order, kind="stable")))

    def _add(self, path: Path | None, number: int, keys: pa.Table) -> None:
        """A group of rows, unless they are of several sources, or of one that is another now: such files are read again."""
        sources = pc.unique(keys["source"]).to_pylist()
        if len(sources) == 1 and sources[0] not in self._moved:
            self._starts = np.append(self._starts, len(self))
            self._groups.append(_Group(sources[0], path, number, len(keys)))
            self._keys.append(keys.select(KEY_COLUMNS))

    def _add_index(self, path: Path) -> None:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                self._add(path, number, file.read_row_group(number, columns=["source", *KEY_COLUMNS]))

    def _read_group(self, number: int, columns: Sequence[str]) -> pa.Table:
        group = self._groups[number]
        if group.path is None:
            return self._held[group.number].select(list(columns))
        if group.path.suffix == PART_SUFFIX:
            with _open_part(group.path, columns) as reader:
                return pa.Table.from_batches([reader.get_batch(group.number)]).select(list(columns))
        with pq.ParquetFile(group.path) as file:
            table = file.read_row_group(group.number, columns=[name for name in columns if name in SCHEMA.names])
            rows = file.metadata.row_group(group.number).num_rows
        arrays = [table[name] if name in SCHEMA.names else pa.nulls(rows, pa.string()) for name in columns]
        return pa.Table.from_arrays(arrays, names=list(columns))


@contextmanager
def _open_part(path: Path, columns: Sequence[str]) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """A part of which only these columns are unpacked."""
    options = pa.ipc.IpcReadOptions(included_fields=sorted(BATCH_SCHEMA.get_field_index(name) for name in columns))
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
        yield reader


def _rows(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """These rows, ascending; without copying where they are one piece."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return table.slice(rows[0], len(rows))
    return table.take(from_numpy(rows))


def _rejected_before(path: Path) -> Iterator[pa.Table]:
    """What rejects.csv tells of files that were read, as rows of `BATCH_SCHEMA`, source by source; nothing where it is damaged."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["bytes"] and row["reason"] not in PASSING]
            rows = [row | {name: int(row[name]) for name in ("bytes", "mtime_ns")} for row in rows]
    except (TypeError, ValueError, KeyError, csv.Error):
        return
    for source, of_source in groupby(rows, key=itemgetter("source")):
        some = list(of_source)
        columns: dict[str, list[Any]] = {name: [row[name] for row in some] for name in ("path", "reason", "detail")}
        columns |= {name: [row[name] for row in some] for name in ("bytes", "mtime_ns")}
        columns["source"] = [source] * len(some)
        nothing = [None] * len(some)
        arrays = [from_values(columns.get(field.name, nothing), field.type) for field in BATCH_SCHEMA]
        yield pa.Table.from_arrays(arrays, schema=BATCH_SCHEMA)


PART_SUFFIX = ".arrow"


def parts_in(folder: Path) -> list[Path]:
    """The parts of a folder, the newest first."""
    return sorted(folder.glob(f"*{PART_SUFFIX}"), reverse=True) if folder.is_dir() else []


def part_names(folder: Path) -> Iterator[Path]:
    """Names for further parts."""
    newest = parts_in(folder)[:1]
    number = int(newest[0].stem) if newest else -1
    while True:
        number += 1
        yield folder / f"{number:08d}{PART_SUFFIX}"


def write_part(path: Path, table: pa.Table) -> None:
    """Rows of `BATCH_SCHEMA` as one batch; lz4, as it is read again within minutes."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with whole_file(path) as file, pa.ipc.new_file(file, BATCH_SCHEMA, options=options) as writer:
        writer.write_table(table.combine_chunks())
