"""Opening a file that somebody else put there: a regular one, without waiting for ever on anything that only looks like one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import Rejected, RejectReason


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading. Raises Rejected: NOT_REGULAR, UNREADABLE, CHANGED (it is gone), EMPTY."""
    try:
        # Without O_NONBLOCK (which Windows lacks, as it lacks FIFOs) a FIFO waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise Rejected(RejectReason.CHANGED, "the file is not there") from None
    except OSError as error:
        raise Rejected(RejectReason.UNREADABLE, f"the file cannot be opened ({error.strerror})") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Rejected(RejectReason.NOT_REGULAR, "only regular files are read")
        if status.st_size == 0:
            raise Rejected(RejectReason.EMPTY, "the file has no bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)
