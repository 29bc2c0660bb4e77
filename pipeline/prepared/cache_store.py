"""A folder of blocks of prepared images, which many processes may read and add to at once.

It has `BUCKETS` sub-folders; the first bits of a key say which of them holds it. Whoever adds to a bucket holds its lock, so that processes
divide the work by buckets, whatever files each of them was given. Rows are read with `pread` and not mapped: a disk that fails is then an
error and not a signal that ends the process, and no memory but the batch's own is touched.
"""

from __future__ import annotations

import os
import secrets
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheError
from pipeline.prepared.cache_block import LEVELS_TYPE, MISSING, UNREADABLE, BlockWriter, Places, read_table

BUCKETS, BUCKET_SHIFT = 64, 2
"""64 parts of the work, by the upper 6 bits of a key's first byte: enough for some processes to divide 1,000 images, few enough files."""
BLOCK_BYTES = 64 * 2**20
"""A block is closed at this size: 668 gray images of 224 x 224, some seconds of decoding, are what a killed process loses at most."""
SUFFIX, PART = ".block", ".part"

_OPEN_FILES = 128
_VERIFY_THREADS = 8


class Claim:
    """A bucket that this process alone may add to, until it is released or the process ends."""

    def __init__(self, bucket: int, descriptor: int) -> None:
        self.bucket, self._descriptor = bucket, descriptor

    def release(self) -> None:
        """Lets the next one in; a second time without effect."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


@dataclass(frozen=True)
class Store:
    """The blocks of images (channels, size, size) in `folder`."""

    folder: Path
    channels: int
    size: int

    @property
    def row_bytes(self) -> int:
        return self.channels * self.size * self.size * LEVELS_TYPE.itemsize

    def find(self, places: Places, buckets: Iterable[int] | None = None) -> int:
        """Enters what the blocks of `buckets` (all where None) hold of the missing keys, each image verified by its checksum.

        Damaged blocks are removed, and their number returned: what they held stays missing.
        """
        known, found, damaged = set(places.paths), [], 0
        for bucket in range(BUCKETS) if buckets is None else buckets:
            for path in sorted(self._bucket(bucket).glob(f"*{SUFFIX}")):
                if path in known:
                    continue
                try:
                    table = read_table(path, self.channels, self.size)
                except FileNotFoundError:
                    continue
                except UNREADABLE:
                    damaged += 1
                    path.unlink(missing_ok=True)
                    continue
                rows = table.enter(places)
                if len(rows):
                    found.append((table, rows))
        with ThreadPoolExecutor(_VERIFY_THREADS) as threads:
            whole = list(threads.map(lambda pair: pair[0].holds(pair[1], self.row_bytes), found))
        for (table, _), good in zip(found, whole, strict=True):
            if not good:
                damaged += 1
                table.path.unlink(missing_ok=True)
                places.block[places.block == places.paths.index(table.path)] = MISSING
        return damaged

    def claim(self, bucket: int, *, wait: bool = False) -> Claim | None:
        """The bucket for this process alone; None where another has it and `wait` is False."""
        folder = self._bucket(bucket)
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else -1
        if descriptor >= 0 and not lock(descriptor, exclusive=True, wait=wait):
            os.close(descriptor)
            return None
        for left in folder.glob(f".*{PART}"):  # of a killed process: nobody else writes here now
            left.unlink(missing_ok=True)
        return Claim(bucket, descriptor)

    @contextmanager
    def new_block(self, bucket: int) -> Iterator[BlockWriter]:
        """A block to add to, in a bucket that is claimed.

        It is there when the `with` block ends, if anything was added, and never was when that raises.
        """
        path = self._bucket(bucket) / f"{secrets.token_hex(8)}{SUFFIX}"
        with ExitStack() as stack:
            writer = BlockWriter(path, lambda: stack.enter_context(_appearing(path)), self.channels, self.size)
            yield writer
            writer.finish()

    def _bucket(self, bucket: int) -> Path:
        return self.folder / f"{bucket:02d}"


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """As `files.whole_file`, but not flushed to the disk, twice for each block: what a power failure cuts short, its checksum tells."""
    aside = path.with_name(f".{path.name}{PART}")
    try:
        with open(aside, "xb") as file:
            yield file
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


class RowReader:
    """Rows of blocks, read where they lie. Opens files when they are first needed, and again in each process that it is sent to."""

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int, int]) -> None:
        self.paths, self.shape = list(paths), shape
        self._open: OrderedDict[int, FileIO] = OrderedDict()
        weakref.finalize(self, _close, self._open)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["paths"], state["shape"])  # type: ignore[misc]

    def read(self, block: NDArray[np.int32], row: NDArray[np.int32]) -> NDArray[np.uint16]:
        """(n, channels, size, size) levels of `block` (n,), `row` (n,). Raises CacheError where they are not there any more."""
        levels = np.empty((len(block), *self.shape), dtype=LEVELS_TYPE)
        for place, (number, index) in enumerate(zip(block.tolist(), row.tolist(), strict=True)):
            target = levels[place].data.cast("B")
            try:
                length = _read_at(self._file(number), target, index * target.nbytes)
            except OSError as error:
                raise _gone(self.paths[number], error.strerror or "cannot be read") from error
            if length != target.nbytes:
                raise _gone(self.paths[number], "is shorter than it was")
        return levels.astype(np.uint16, copy=False)

    def _file(self, number: int) -> FileIO:
        file = self._open.get(number)
        if file is None:
            file = self._open[number] = FileIO(self.paths[number])
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        else:
            self._open.move_to_end(number)
        return file


def lock(descriptor: int, *, exclusive: bool, wait: bool) -> bool:
    """Locks an open file or folder; False where another process has it. True where the system or its disk knows no such locks."""
    try:
        import fcntl
    except ImportError:
        return True
    kind = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _read_at(file: FileIO, target: memoryview, offset: int) -> int:
    """Without the file's position, which processes forked from this one share."""
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [target], offset)
    file.seek(offset)
    return file.readinto(target) or 0


def _gone(path: Path, why: str) -> CacheError:
    return CacheError(f"{path}: a block of prepared images {why} while it was in use; run the command again")


def _close(files: OrderedDict[int, FileIO]) -> None:
    for file in files.values():
        file.close()
