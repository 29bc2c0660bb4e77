"""Rows that are known already: of the index that stands in a folder, and of parts that an interrupted indexing left there.

A row is known by its source, path, size and time. Rows stay on disk: what is held of each is its path and place, and they are read
in groups of some ten thousand. Parts are Arrow files of `BATCH_SCHEMA` (pipeline.entries), each written whole; the number in
a part's name says which is newer.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import empty, from_numpy, from_values, present, to_numpy
from pipeline.columns import BATCH_SCHEMA
from pipeline.errors import RejectReason
from pipeline.files import whole_file

PASSING = frozenset(
    str(reason)
    for reason in (RejectReason.UNREADABLE, RejectReason.CHANGED, RejectReason.TIMED_OUT, RejectReason.CRASHED)
)
"""Reasons that may be gone the next time although the file is the same: such files are read again."""
GROUPS_HELD = 4
KEY_COLUMNS = ["source", "path", "bytes", "mtime_ns"]


@dataclass(frozen=True)
class _Group:
    """Rows that are read together: row group `number` of the index, batch `number` of a part, or a table that is held."""

    path: Path | None
    number: int
    rows: int


class KnownRows:
    """Rows by number: `find` gives the numbers of files, `take` the rows of numbers."""

    def __init__(self, index: Path | None, rejects: Path | None, parts: Sequence[Path]) -> None:
        self._groups: list[_Group] = []
        self._keys: list[pa.Table] = []
        self._starts = np.zeros(0, dtype=np.int64)
        self._held: list[pa.Table] = []
        for part in parts:
            self.add(part)
        if index is not None:
            self._add_index(index)
        if rejects is not None:
            self.hold(_rejected_before(rejects))
        self._read = lru_cache(GROUPS_HELD)(self._read_group)

    def __len__(self) -> int:
        return sum(group.rows for group in self._groups)

    def add(self, part: Path) -> int:
        """Takes in a part; returns its first row's number."""
        first = len(self)
        with pa.memory_map(str(part)) as file, pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                keys = pa.Table.from_batches([reader.get_batch(number).select(KEY_COLUMNS)])
                self._add(_Group(part, number, len(keys)), keys)
        return first

    def hold(self, table: pa.Table) -> int:
        """Takes in rows of `BATCH_SCHEMA` that stay in memory; returns the first one's number."""
        first = len(self)
        self._held.append(table)
        self._add(_Group(None, len(self._held) - 1, len(table)), table.select(KEY_COLUMNS))
        return first

    def find(self, source: str, listing: pa.Table) -> NDArray[np.int64]:
        """For each row of a listing the number of the newest known row of the same file, -1 where there is none."""
        missing = np.full(len(listing), -1, dtype=np.int64)
        if not self._keys:
            return missing
        keys = pa.concat_tables(self._keys)
        numbers = np.flatnonzero(present(pc.index_in(keys["source"], value_set=from_values([source], pa.string()))))
        if len(numbers) < len(keys):
            keys = keys.take(from_numpy(numbers))
        place = to_numpy(pc.index_in(listing["path"], value_set=keys["path"]), missing=-1)
        known = np.flatnonzero(place >= 0)
        at = place[known]
        same = np.ones(len(at), dtype=bool)
        for column in ("bytes", "mtime_ns"):
            there = to_numpy(listing[column], missing=-1)[known]
            same &= there == to_numpy(keys[column], missing=-2)[at]
        missing[known[same]] = numbers[at[same]]
        return missing

    def take(self, numbers: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """These columns of the rows, in the order of `numbers`."""
        order = np.argsort(numbers, kind="stable")
        wanted = numbers[order]
        group_of = np.searchsorted(self._starts, wanted, side="right") - 1
        pieces = []
        for group in np.unique(group_of):
            rows = wanted[group_of == group] - self._starts[group]
            pieces.append(_rows(self._read(int(group)).select(list(columns)), rows))
        if not pieces:
            return empty(pa.schema([BATCH_SCHEMA.field(name) for name in columns]))
        table = pa.concat_tables(pieces)
        return table if (np.diff(order) == 1).all() else table.take(from_numpy(np.argsort(order, kind="stable")))

    def _add(self, group: _Group, keys: pa.Table) -> None:
        self._starts = np.append(self._starts, len(self))
        self._groups.append(group)
        self._keys.append(keys)

    def _add_index(self, path: Path) -> None:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                keys = file.read_row_group(number, columns=KEY_COLUMNS).select(KEY_COLUMNS)
                self._add(_Group(path, number, len(keys)), keys)

    def _read_group(self, number: int) -> pa.Table:
        group = self._groups[number]
        if group.path is None:
            return self._held[group.number]
        if group.path.suffix == PART_SUFFIX:
            with pa.memory_map(str(group.path)) as file, pa.ipc.open_file(file) as reader:
                return pa.Table.from_batches([reader.get_batch(group.number)])
        with pq.ParquetFile(group.path) as file:
            table = file.read_row_group(group.number)
        for name in ("reason", "detail"):
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
        return table.select(BATCH_SCHEMA.names)


def _rows(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """These rows, ascending; without copying where they are one piece."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return table.slice(rows[0], len(rows))
    return table.take(from_numpy(rows))


def _rejected_before(path: Path) -> pa.Table:
    """What rejects.csv tells of files that were read, as rows of `BATCH_SCHEMA`."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["bytes"] and row["reason"] not in PASSING]
    columns = {name: [row[name] for row in rows] for name in ("source", "path", "reason", "detail")}
    columns |= {name: [int(row[name]) for row in rows] for name in ("bytes", "mtime_ns")}
    nothing = [None] * len(rows)
    arrays = [from_values(columns.get(field.name, nothing), field.type) for field in BATCH_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=BATCH_SCHEMA)


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
