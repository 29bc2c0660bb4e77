"""What lies in a source: every file once, in the same order each time; nothing is opened and no link is followed.

In: a source's place (folder, .zip, single file). Out: a table of `LISTING_SCHEMA`, one row a file, also for what is no regular file
(with the reason for which it is not to be opened). Paths are posix, relative to the source's root, depth first in the order of
their folders' sorted names. What a link inside the source points to is found under its own path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import from_values, present
from pipeline.errors import RejectReason

if TYPE_CHECKING:
    from pipeline.archive import Member

LISTING_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
ROWS_A_BATCH = 65_536
"""Rows that are plain Python objects before they become columns: some MiB."""


class Entry(NamedTuple):
    """Something found in a source; `refusal` where it is not to be opened, size and time where it is."""

    path: str
    refusal: tuple[RejectReason, str] | None = None
    bytes: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True)
class Listed:
    """A source with its listing (`LISTING_SCHEMA`). `directory`: what its DICOMDIR lists, where it is one."""

    name: str
    root: Path
    files: pa.Table
    directory: list[str] | None = None

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(n,) whether each is a regular file that may be opened."""
        return ~present(self.files["reason"])


def walk(root: Path) -> Iterator[Entry]:
    """Every file below the folder `root`. Raises OSError where root itself cannot be listed."""
    base = str(root).rstrip(os.sep) + os.sep
    pending = [(base, "", iter(_names(base)))]  # a folder, its path within the source, and its names still to come
    while pending:
        folder, inside, names = pending[-1]
        name = next(names, None)
        if name is None:
            pending.pop()
            continue
        entry = _entry(folder + name, inside + name, root)
        if entry is not None:
            yield entry
            continue
        try:
            pending.append((folder + name + os.sep, f"{inside}{name}/", iter(_names(folder + name))))
        except OSError as error:
            detail = f"a folder that cannot be listed: {error.strerror}"
            yield Entry(_shown(inside + name), (RejectReason.UNREADABLE, detail))


def _names(folder: str) -> list[str]:
    """Sorted as they are shown, so that the order of paths is that of the tables."""
    names = os.listdir(folder)
    names.sort(key=_shown)
    return names


def _entry(place: str, path: str, root: Path) -> Entry | None:
    """What stands there, None for a folder. Names that are not UTF-8 cannot stand in a table: they are refused, escaped."""
    try:
        status = os.lstat(place)
    except OSError as error:
        return Entry(_shown(path), (RejectReason.UNREADABLE, error.strerror or type(error).__name__))
    if stat.S_ISDIR(status.st_mode):
        return None
    shown = _shown(path)
    if not stat.S_ISREG(status.st_mode):
        return Entry(shown, (RejectReason.NOT_REGULAR, _kind(place, status.st_mode, root)))
    if shown != path:
        return Entry(shown, (RejectReason.UNREADABLE, "its name is not UTF-8; rename it"))
    return Entry(path, None, status.st_size, status.st_mtime_ns)


def _shown(name: str) -> str:
    if name.isascii():
        return name
    try:
        name.encode()
    except UnicodeEncodeError:
        escaped = os.fsencode(name.replace("\\", "\\\\"))  # or another name might be shown the same
        return escaped.decode("utf-8", "backslashreplace")
    return name


def _kind(place: str, mode: int, root: Path) -> str:
    if stat.S_ISLNK(mode):
        target = Path(os.path.realpath(place))
        if not os.path.exists(place):
            return "a symbolic link to nothing"
        inside = target.is_relative_to(os.path.realpath(root))
        return "a symbolic link to what the source holds elsewhere" if inside else "a symbolic link out of the source"
    names = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return names.get(stat.S_IFMT(mode), "no regular file")


def listed_members(members: Iterable[Member], mtime_ns: int) -> Iterator[Entry]:
    """The files of an archive; each has the archive's own time, so that another archive means other files."""
    for member in members:
        refused = member.refusal is not None
        yield Entry(member.name, member.refusal, None if refused else member.bytes, None if refused else mtime_ns)


def as_table(entries: Iterable[Entry]) -> pa.Table:
    """The entries as one table of `LISTING_SCHEMA`."""
    batches, rows = [], []
    for entry in entries:
        rows.append(entry)
        if len(rows) == ROWS_A_BATCH:
            batches.append(_batch(rows))
            rows.clear()
    return pa.Table.from_batches([*batches, _batch(rows)], LISTING_SCHEMA)


def _batch(entries: list[Entry]) -> pa.RecordBatch:
    refusals = [entry.refusal or (None, None) for entry in entries]
    columns: list[list[Any]] = [
        [entry.path for entry in entries],
        [entry.bytes for entry in entries],
        [entry.mtime_ns for entry in entries],
        [None if reason is None else str(reason) for reason, _ in refusals],
        [detail for _, detail in refusals],
    ]
    arrays = [from_values(values, field.type) for values, field in zip(columns, LISTING_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=LISTING_SCHEMA)
