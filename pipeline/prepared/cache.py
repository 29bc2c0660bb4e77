"""Decode once: prepared images of files, from the cache where they are there, else decoded into it.

`prepared_images` may be called by several processes at once: they divide what is missing, and each ends with everything. Killed at any
moment, what was decoded stays but for the blocks in work. A file that cannot be decoded is remembered with its reason, unless the reason
may pass (`PASSING`). Whether a file is still the one that was indexed is asked each time.
"""

from __future__ import annotations

import errno
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import CacheError, Rejected, RejectReason
from pipeline.prepared.cache_block import FAILED, KEY_BYTES, MISSING, BlockWriter, Places
from pipeline.prepared.cache_folder import CACHE_VARIABLE, ChainFolder, open_chain, size_text
from pipeline.prepared.cache_key import file_keys
from pipeline.prepared.cache_store import BLOCK_BYTES, BUCKET_SHIFT, Claim, RowReader, Store
from pipeline.prepared.dataset import ImageFile, Prepared, Preparer, check_unchanged, prepare_all
from pipeline.progress import say, track
from pipeline.wording import counted
from pipeline.work import Failure

PASSING = frozenset(
    {
        RejectReason.UNREADABLE, RejectReason.CHANGED, RejectReason.TIMED_OUT, RejectReason.CRASHED, RejectReason.TOO_LARGE,
        RejectReason.NOT_REGULAR, RejectReason.MISSING,
    }
)  # fmt: skip
"""Reasons that may be the disk's, the machine's or the moment's, and not the file's: such a file is tried again."""
TRIED = -3
"""In `Places.block`: failed in this call for a reason that may pass."""
ROOM_FOR_TABLES = 1.01
"""Of the images' bytes; a key and a checksum are 20 bytes an image."""
_ASKED_AT_ONCE, _ASKING_THREADS = 500, 8
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Levels of images on disk, by the position of their file; `failures` has position, reason, detail of those without."""

    block: NDArray[np.int32]  # (n,), negative where there is none
    row: NDArray[np.int32]  # (n,)
    reader: RowReader
    failures: pd.DataFrame
    folder: ChainFolder | None = None
    """Held open, so that the cache is not cleared while it is read."""

    def __len__(self) -> int:
        return len(self.block)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"folder": None}  # a process's own; whoever sent this holds it

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(n,) whether there is an image."""
        return self.block >= 0

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        """(len(rows), channels, size, size) levels of the images at these positions, all of which must be usable."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not self.usable[rows].all():
            raise ValueError("expected positions of usable images")
        return self.reader.read(self.block[rows], self.row[rows])


def prepared_images(
    files: Sequence[ImageFile],
    preparer: Preparer,
    *,
    what: str,
    progress: bool = True,
    fallback: Path | None = None,
    workers: int | None = None,
) -> PreparedImages:
    """The prepared images of `files`. `fallback`: a folder in place of a cache that cannot be written.

    Raises CacheError where the cache cannot be used, or its disk is full.
    """
    if preparer.keep_shown or preparer.stress:
        raise ValueError(
            "the cache has neither pictures nor stresses: expected a Preparer without keep_shown and stress"
        )
    folder = open_chain(preparer.preprocessing, fallback)
    store = Store(folder.path, preparer.preprocessing.channels, preparer.preprocessing.size)
    keys, first, place = np.unique(file_keys(files), return_index=True, return_inverse=True)
    places = Places(keys)
    changed = _changed(files)
    _say_damaged(store, store.find(places) if len(keys) else 0)
    unchanged = np.ones(len(files), dtype=bool)
    unchanged[list(changed)] = False
    wanted = np.zeros(len(keys), dtype=bool)
    wanted[place[unchanged]] = True
    filler = _Filler(store, places, [files[position] for position in first], wanted, preparer, workers)
    if progress and len(filler.missing) < len(keys):
        say(f"{what}: {len(keys) - len(filler.missing):,} of {counted(len(keys), 'image')} prepared before")
    filler.fill(what, progress)
    block = np.where(unchanged, places.block[place], TRIED).astype(np.int32)
    failures = [
        (position, *(changed.get(position) or places.failures[int(place[position])]))
        for position in np.flatnonzero(block < 0).tolist()
    ]
    shape = (store.channels, store.size, store.size)
    return PreparedImages(
        block,
        places.row[place],
        RowReader(places.paths, shape),
        pd.DataFrame(failures, columns=["position", "reason", "detail"]),
        folder,
    )


@dataclass
class _Filler:
    """Decodes what is missing of `places` and `wanted`, bucket by bucket; `files` are those of the keys, in their order."""

    store: Store
    places: Places
    files: list[ImageFile]
    wanted: NDArray[np.bool_]
    preparer: Preparer
    workers: int | None
    _claims: deque[tuple[Claim, deque[int]]] = field(default_factory=deque)

    @property
    def missing(self) -> NDArray[np.int64]:
        """Positions of keys still to be decoded."""
        return np.flatnonzero((self.places.block == MISSING) & self.wanted)

    def fill(self, what: str, progress: bool) -> None:
        """Rounds until nothing is missing: in each, the buckets that no other process has; where others have all, waits for one."""
        waiting = False
        while len(missing := self.missing):
            if waiting:
                say(f"{what}: another process prepares {counted(len(missing), 'image')} of these; waiting for it")
            self._check_room(len(missing))
            outcomes = prepare_all(self._claimed(waiting), self.preparer, self.workers)
            try:
                self._write((outcome for _, outcome in track(outcomes, what, len(missing), show=progress)))
            except OSError as error:
                if error.errno in _FULL:
                    raise self._no_room(len(self.missing)) from error
                raise
            finally:
                outcomes.close()
                while self._claims:
                    self._claims.popleft()[0].release()
            waiting = True

    def _claimed(self, waiting: bool) -> Iterator[ImageFile]:
        """The files of one free bucket after the other, which this process then has until `_write` is through with it."""
        for bucket in np.unique(self._buckets(self.missing)).tolist():
            claim = self.store.claim(bucket, wait=waiting)
            waiting = False
            if claim is None:
                continue
            _say_damaged(self.store, self.store.find(self.places, [bucket]))  # what others made in the meantime
            missing = self.missing
            todo = sorted(missing[self._buckets(missing) == bucket].tolist(), key=self._order)
            if not todo:
                claim.release()
                continue
            self._claims.append((claim, deque(todo)))
            yield from [self.files[position] for position in todo]

    def _order(self, position: int) -> tuple[str, str, int]:
        file = self.files[position]
        return file.source, file.path, file.frame

    def _buckets(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        first = np.ascontiguousarray(self.places.keys).view(np.uint8).reshape(-1, KEY_BYTES)[positions, 0]
        return first >> BUCKET_SHIFT

    def _write(self, outcomes: Iterator[Prepared | Failure]) -> None:
        """Outcomes, in the order of the claims' files, into blocks; a claim is released when its last block is there."""
        for first in outcomes:
            claim, todo = self._claims[0]
            done: list[tuple[int, int]] = []
            with self.store.new_block(claim.bucket) as block:
                for outcome in chain([first], outcomes):
                    self._enter(todo.popleft(), outcome, block, done)
                    if not todo or block.image_bytes >= BLOCK_BYTES:
                        break
            if done:
                positions, rows = np.array(done).T
                self.places.block[positions], self.places.row[positions] = len(self.places.paths), rows
                self.places.paths.append(block.path)
            if not todo:
                self._claims.popleft()[0].release()

    def _enter(
        self, position: int, outcome: Prepared | Failure, block: BlockWriter, done: list[tuple[int, int]]
    ) -> None:
        key = self.places.keys[position : position + 1].tobytes()
        if isinstance(outcome, Prepared):
            done.append((position, block.add(key, outcome.image)))
            return
        self.places.failures[position] = (outcome.reason.value, outcome.detail)
        self.places.block[position] = TRIED if outcome.reason in PASSING else FAILED
        if outcome.reason not in PASSING:
            block.add_failure(key, outcome.reason.value, outcome.detail)

    def _check_room(self, count: int) -> None:
        if count * self.store.row_bytes * ROOM_FOR_TABLES > shutil.disk_usage(self.store.folder).free:
            raise self._no_room(count)

    def _no_room(self, count: int) -> CacheError:
        needed = size_text(int(count * self.store.row_bytes * ROOM_FOR_TABLES))
        free = size_text(shutil.disk_usage(self.store.folder).free)
        return CacheError(
            f"{self.store.folder.parent}: {counted(count, 'prepared image')} need {needed}, and {free} are free there; make room, set "
            f"{CACHE_VARIABLE} to a folder on another disk, or remove what is no longer used: radloop cache --clear --older-than 30"
        )


def _changed(files: Sequence[ImageFile]) -> dict[int, tuple[str, str]]:
    """By position, why a file is not the one that was indexed. Asked in threads: on a network disk each answer takes its time."""

    def ask(begin: int) -> list[tuple[int, tuple[str, str]]]:
        found = []
        for position, file in enumerate(files[begin : begin + _ASKED_AT_ONCE], start=begin):
            try:
                check_unchanged(file)
            except Rejected as rejected:
                found.append((position, (rejected.reason.value, rejected.detail)))
        return found

    with ThreadPoolExecutor(_ASKING_THREADS) as threads:
        return dict(chain.from_iterable(threads.map(ask, range(0, len(files), _ASKED_AT_ONCE))))


def _say_damaged(store: Store, count: int) -> None:
    if count:
        say(f"{store.folder}: {counted(count, 'block')} of prepared images damaged; what they held is prepared anew")
