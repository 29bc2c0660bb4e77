"""Files appear whole or not at all: written aside in the same folder, flushed to the disk, then renamed into place.

Whoever is killed in between leaves a `.<name>.<token>.part` beside the old file, and the old file as it was.
Files of a source are opened without waiting for ever: a FIFO or a device in a file's place is refused.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import Rejected, RejectReason

NAME_CHARACTERS_KEPT = 40  # of the final name in the temporary one: both stay under the 255 bytes a file system allows


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
    _flush_folder(path.parent)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal; read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes | str) -> None:
    """Makes `path` hold `content` (text as UTF-8), whole or not at all."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file with something in it, open for reading in binary.

    Raises Rejected, also for what reading it meets: not_a_regular_file, unreadable, changed (gone), empty.
    """
    try:
        # Without O_NONBLOCK, which Windows has not, opening a FIFO waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Rejected(RejectReason.NOT_REGULAR, "only regular files are read")
            if status.st_size == 0:
                raise Rejected(RejectReason.EMPTY, "0 bytes")
            yield file
    except FileNotFoundError:
        raise Rejected(RejectReason.CHANGED, "it is not there any more") from None
    except OSError as error:
        raise Rejected(RejectReason.UNREADABLE, error.strerror or type(error).__name__) from None


def _flush_folder(folder: Path) -> None:
    """The rename itself lasts only once the folder is on the disk; Windows has no such call, and needs none."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
