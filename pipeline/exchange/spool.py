"""Received instances on the disk: written aside, flushed, renamed, and the folder flushed, before the peer hears of success.

`SPOOL/studies/<StudyInstanceUID>/images/<SOPInstanceUID>.dcm`; objects that radloop made lie beside, in `own/`, and are nobody's source.
An instance that comes again with the same content changes nothing; with other content it takes the old one's place. Where the disk is
full, or the spool as large as it may be, the peer is told that we are out of resources (0xA700), and may try again: each is judged anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.dicom.received import ReceivedHeader, read_received
from pipeline.dicom.storage_scp import NOT_UNDERSTOOD, OUT_OF_RESOURCES, STORED, WRONG_CLASS, Arrived
from pipeline.errors import ConfigError, Rejected
from pipeline.files import flush_folder, whole_file

STUDIES, ARRIVING, IMAGES, OWN, REMOVED = "studies", "arriving", "images", "own", ".removed-"
PIECE_BYTES = 2**20
LOCK_PATIENCE_S = 10.0
"""For a node that was just killed to be gone."""


@dataclass
class Counts:
    """Since the start."""

    stored: int = 0
    own: int = 0
    again: int = 0
    refused: int = 0
    last_problem: str = ""


@dataclass
class Spool:
    """A folder of received studies. `on_image(study, time)` is called for each new image, `on_own(study)` for each object that radloop
    made, from many threads."""

    root: Path
    most_bytes: int
    least_free_bytes: int
    on_image: Callable[[str, float], None]
    on_own: Callable[[str], None] = lambda _: None
    counts: Counts = field(default_factory=Counts)
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _flushed: set[Path] = field(default_factory=set, repr=False)
    _busy: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Finishes what a killed node left: removals that were begun, files that never became whole."""
        self.studies.mkdir(parents=True, exist_ok=True)
        for rest in self.studies.glob(f"{REMOVED}*"):
            shutil.rmtree(rest, ignore_errors=True)
        for kind in (IMAGES, OWN):
            for rest in self.studies.glob(f"*/{kind}/.*.part"):
                rest.unlink(missing_ok=True)
        self.bytes = sum(path.stat().st_size for path in self.studies.glob("*/*/*.dcm"))

    @property
    def studies(self) -> Path:
        """The folder of studies."""
        return self.root / STUDIES

    @property
    def arriving(self) -> Path:
        """The folder of large objects on their way."""
        return self.root / ARRIVING

    def images(self, study: str) -> Path:
        """The folder of a study's images."""
        return self.studies / study / IMAGES

    def keep(self, arrived: Arrived) -> int:
        """The status for the peer; `STORED` when the instance is safe."""
        try:
            if arrived.data.problem:
                return self._refused(OUT_OF_RESOURCES, arrived.data.problem)
            with arrived.data.open() as data:
                header = read_received(data, arrived.transfer_syntax_uid)
            same = (header.sop_class_uid, header.sop_instance_uid) == (arrived.sop_class_uid, arrived.sop_instance_uid)
            if not same:
                return self._refused(WRONG_CLASS, "data set and command do not name the same instance")
            if self._is_full(arrived.data.size):
                return self._refused(OUT_OF_RESOURCES, "the disk, or the spool, is full")
            with self._at_work_on(header.study_instance_uid):
                return self._kept(arrived, header)
        except Rejected as rejected:
            return self._refused(NOT_UNDERSTOOD, str(rejected))
        except OSError as error:
            return self._refused(OUT_OF_RESOURCES, error.strerror or type(error).__name__)
        except MemoryError:
            return self._refused(OUT_OF_RESOURCES, "memory ran out")

    def remove(self, study: str) -> bool:
        """Removes a study with all that belongs to it; False where something arrives for it at this moment."""
        folder = self.studies / study
        with self._lock:
            if self._busy.get(study):
                return False
            gone = self.studies / f"{REMOVED}{study}"
            shutil.rmtree(gone, ignore_errors=True)
            size = sum(path.stat().st_size for path in folder.glob("*/*.dcm"))
            os.replace(folder, gone)
            self._flushed -= {folder / IMAGES, folder / OWN}
            self.bytes -= size
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _kept(self, arrived: Arrived, header: ReceivedHeader) -> int:
        folder = self.studies / header.study_instance_uid / (OWN if header.is_own else IMAGES)
        path = folder / f"{header.sop_instance_uid}.dcm"
        head = arrived.file_head()
        before = path.stat().st_size if path.exists() else 0
        if before and before == len(head) + arrived.data.size and _holds(path, arrived, len(head)):
            with self._lock:
                self.counts.again += 1
            return STORED
        if folder not in self._flushed:
            folder.mkdir(parents=True, exist_ok=True)
            for above in (folder.parent, self.studies):
                flush_folder(above)
            self._flushed.add(folder)
        with whole_file(path) as file, arrived.data.open() as data:
            file.write(head)
            shutil.copyfileobj(data, file, PIECE_BYTES)
        with self._lock:
            self.bytes += len(head) + arrived.data.size - before
            self.counts.stored += 1
            self.counts.own += header.is_own
        if header.is_own:
            self.on_own(header.study_instance_uid)
        else:
            self.on_image(header.study_instance_uid, time.time())
        return STORED

    def _is_full(self, more: int) -> bool:
        free = shutil.disk_usage(self.root).free
        return self.bytes + more > self.most_bytes or free - more < self.least_free_bytes

    def _refused(self, status: int, why: str) -> int:
        with self._lock:
            self.counts.refused += 1
            self.counts.last_problem = why
        return status

    @contextmanager
    def _at_work_on(self, study: str) -> Iterator[None]:
        """`remove` leaves the study alone meanwhile."""
        with self._lock:
            self._busy[study] = self._busy.get(study, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._busy[study] -= 1
                if not self._busy[study]:
                    del self._busy[study]


@contextmanager
def only_node(root: Path) -> Iterator[None]:
    """No other node works on this spool. Raises ConfigError where one does."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{root}: another radloop receive works on this spool; give it one of its own"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _holds(path: Path, arrived: Arrived, head_bytes: int) -> bool:
    """Whether the data set that lies there is this one; who sent it may be somebody else."""
    with open(path, "rb") as old, arrived.data.open() as new:
        old.seek(head_bytes)
        return hashlib.file_digest(old, "sha256").digest() == hashlib.file_digest(new, "sha256").digest()
