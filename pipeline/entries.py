"""What lies in a source, and what one file of it is: everything is found once, in the same order each time.

`walk` lists a folder's files, and what is no regular file with the reason; it opens nothing and follows no link: what a
link inside the source points to is found under its own path. `read_entry` reads one file's header, in a worker process.
Paths are relative to the source's root, posix, in the order of their folders' sorted names.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dicom.header import is_dicom, read_header
from pipeline.errors import Rejected, RejectReason
from pipeline.files import open_regular
from pipeline.identity import IdentityKey
from pipeline.raster import read_raster_header

HEAD_BYTES = 352  # a NIfTI header's magic ends here, after that of every other format

FORMATS_BY_MAGIC = (
    (344, b"n+1\0", "NIfTI"),
    (344, b"ni1\0", "NIfTI"),
    (4, b"n+2\0", "NIfTI"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"%PDF", "PDF"),
    (0, b"NRRD", "NRRD"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
)
"""Of files that are no image to radloop, what people like to know which they are: offset, bytes, name."""


@dataclass(frozen=True)
class Entry:
    """Something found in a source; `refusal` where it is not to be opened."""

    path: str
    refusal: tuple[RejectReason, str] | None = None


def walk(root: Path) -> Iterator[Entry]:
    """Every file below `root`, depth first, folders sorted by name. Raises OSError where root itself is unreadable."""
    pending = _listed(str(root))
    pending.reverse()
    while pending:
        item = pending.pop()
        path = Path(item.path).relative_to(root).as_posix()
        refusal = _refusal(item, root)
        if not _is_folder(item):
            yield _entry(path, refusal)
            continue
        try:
            pending += reversed(_listed(item.path))
        except OSError as error:
            yield _entry(path, (RejectReason.UNREADABLE, f"a folder that cannot be listed: {error.strerror}"))


def _listed(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _refusal(item: os.DirEntry[str], root: Path) -> tuple[RejectReason, str] | None:
    try:
        mode = item.stat(follow_symlinks=False).st_mode
    except OSError as error:
        return RejectReason.UNREADABLE, error.strerror or type(error).__name__
    if stat.S_ISREG(mode):
        return None
    return RejectReason.NOT_REGULAR, _kind(item.path, mode, root)


def _kind(path: str, mode: int, root: Path) -> str:
    if stat.S_ISLNK(mode):
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
        return "a symbolic link to what the source holds elsewhere" if inside else "a symbolic link out of the source"
    names = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return names.get(stat.S_IFMT(mode), "no regular file")


def _entry(path: str, refusal: tuple[RejectReason, str] | None) -> Entry:
    """Names that are not UTF-8 cannot stand in a table: such a file is refused under its name with \\x escapes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        return Entry(shown, refusal or (RejectReason.UNREADABLE, "its name is not UTF-8; rename it"))
    return Entry(path, refusal)


def read_entry(entry: Entry, *, root: str, key: IdentityKey) -> dict[str, Any]:
    """One row of the index: path, format, bytes, mtime_ns, frames, rows, columns, and what the format's header tells.

    Raises Rejected with the reason for which the file is no row.
    """
    if entry.refusal is not None:
        raise Rejected(*entry.refusal)
    path = Path(root) / entry.path
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        head = file.read(HEAD_BYTES)
    row: dict[str, Any] = {"path": entry.path, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    if is_dicom(head):
        return row | {"format": "dicom"} | read_header(path, key, shown_path=entry.path)
    raster = read_raster_header(path)
    if raster is None:
        raise Rejected(RejectReason.NOT_AN_IMAGE, _format_name(head))
    return row | raster


def _format_name(head: bytes) -> str:
    for offset, magic, name in FORMATS_BY_MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" or byte > 127 for byte in head)
    return "text" if printable == len(head) else "unknown format"
