"""Files appear whole or not at all: written aside in the same folder, flushed to the disk, then renamed into place.

Whoever is killed in between leaves a `.<name>.<token>.part` beside the old file, and the old file as it was.
Files of a source are opened without waiting for ever: a FIFO or a device in a file's place is refused. A path that leads through a
.zip names a member of it, which is read as a file is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO

from pipeline.archive import member_status, open_member, open_plain
from pipeline.errors import Rejected, RejectReason

NAME_CHARACTERS_KEPT = 40  # of the final name in the temporary one: both stay under the 255 bytes a file system allows
_NO_SUCH_PATH = (errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG)
"""What a path through a regular file is to the system: Windows says ENOENT; a member's name may be longer than any file's."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write into that becomes `path` when the block ends, and vanishes when the block raises.

    Its `name` is the temporary path, for writers that open files themselves. The folder is made where it is missing.
    Raises OSError as `open` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name[:NAME_CHARACTERS_KEPT]}.{secrets.token_hex(6)}.part")
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """One process at a time for a folder, which is made where it is missing: the second waits, and says so.

    Without effect where the system has no such locks (Windows, some network disks).
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"radloop: waiting for another process that {what} {folder}", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a disk without locks
        yield
    finally:
        os.close(descriptor)


def left_behind(path: Path) -> list[Path]:
    """What killed writers of `path` left beside it. Only to be removed where nobody is writing."""
    start, end = f".{path.name[:NAME_CHARACTERS_KEPT]}.", ".part"
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return [file for file in beside if file.name.startswith(start) and file.name.endswith(end)]


def file_digest(path: Path) -> str:
    """SHA-256 of the content of a regular file or a member of an archive, hexadecimal; a file is read in pieces.

    Raises OSError as `open` does, and Rejected as `archive.open_member` does.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes | str) -> None:
    """Makes `path` hold `content` (text as UTF-8), whole or not at all."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file with something in it, open for reading in binary; or so a member of a .zip, in memory.

    A path that leads through a regular file (/x/export.zip/DICOM/IM1) is a member of it (pipeline.archive). Raises Rejected, also
    for what reading it meets: not_a_regular_file, unreadable, changed (gone), empty; of members as `archive.open_member`.
    """
    try:
        with _opened(path) as file:
            if not file.read(1):
                raise Rejected(RejectReason.EMPTY, "0 bytes")
            file.seek(0)
            yield file
    except FileNotFoundError:
        raise Rejected(RejectReason.CHANGED, "it is not there any more") from None
    except OSError as error:
        raise Rejected(RejectReason.UNREADABLE, error.strerror or type(error).__name__) from None


def status_of(path: Path) -> tuple[int, int]:
    """(bytes, mtime_ns) of a regular file; of a member of a .zip its own bytes with the archive's time.

    Raises Rejected: CHANGED where it is gone, UNREADABLE; of members as `archive.open_member`.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        place = _member_of(path, error)
        if place is not None:
            return member_status(*place)
        if isinstance(error, FileNotFoundError):
            raise Rejected(RejectReason.CHANGED, "it is not there any more") from None
        raise Rejected(RejectReason.UNREADABLE, error.strerror or type(error).__name__) from None
    return found.st_size, found.st_mtime_ns


def _opened(path: Path) -> BufferedReader | BytesIO:
    """A regular file, or a member of one. Raises OSError, Rejected."""
    try:
        return open_plain(path)
    except OSError as error:
        place = _member_of(path, error)
        if place is None:
            raise
        return open_member(*place)


def _member_of(path: Path, error: OSError) -> tuple[Path, str] | None:
    """The regular file that `path` leads through, and the rest of the path; None where it leads through folders only."""
    if error.errno not in _NO_SUCH_PATH:
        return None
    for above in path.parents:
        try:
            mode = os.stat(above).st_mode
        except OSError:
            continue
        return (above, path.relative_to(above).as_posix()) if stat.S_ISREG(mode) else None
    return None


def flush_folder(folder: Path) -> None:
    """The rename itself lasts only once the folder is on the disk; Windows has no such call, and needs none."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
