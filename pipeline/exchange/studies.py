"""Where each received study stands, on the disk as well: waiting until it is quiet, failed so often, done.

`study.json` in the study's folder says of which images (their names, sizes and times, as a digest) it was done. So a node that was killed
at any moment knows what is left to do, and does nothing twice; an image that comes late makes the study wait anew.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from pipeline.exchange.spool import IMAGES, REMOVED
from pipeline.files import write_whole
from pipeline.peers import Patience

STATE_FILE, RESULTS = "study.json", "out"
DIGEST_CHARACTERS = 16
PATIENCE = Patience(attempts=3, first_pause_s=5.0, longest_pause_s=600.0)
"""With a study: a PACS that is down comes back; what cannot be inferred three times will not be."""


class State(StrEnum):
    """What is to be done next with a study."""

    WAITING = "waiting"
    INFERRING = "inferring"
    SENDING = "sending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Record:
    """`study.json`."""

    state: State = State.WAITING
    images: str = ""
    """Digest of the images that it is about."""
    inferred: bool = False
    """Whether their results are complete."""
    previous: str = ""
    """Digest of images whose results were complete before, and are to be replaced."""
    failures: int = 0
    """In a row."""
    note: str = ""
    """What there is to say of the inference."""
    problem: str = ""
    """That, or why the study is not done."""
    finished: float = 0.0


@dataclass
class Study:
    """A study as the node knows it. `arrived`, `not_before`: seconds since the epoch."""

    uid: str
    folder: Path
    record: Record
    arrived: float
    not_before: float = 0.0
    active: State | None = None

    @property
    def images(self) -> Path:
        """The folder of its images."""
        return self.folder / IMAGES

    def results(self, images: str) -> Path:
        """OUT of the inference of the images with this digest."""
        return self.folder / RESULTS / images


@dataclass
class Studies:
    """All studies of a spool. Its methods may be called from any thread."""

    root: Path
    quiet_s: float
    _studies: dict[str, Study] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self) -> None:
        """What is on the disk, after a stop of any kind; a study that had failed gets another chance."""
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir() and not folder.name.startswith(REMOVED):
                record = _read(folder / STATE_FILE)
                late = record.state is State.DONE and digest_of(folder / IMAGES) != record.images
                if late or record.state is State.FAILED:
                    record = replace(record, state=State.WAITING, failures=0)
                self._studies[folder.name] = Study(folder.name, folder, record, _newest(folder / IMAGES))

    def image_arrived(self, uid: str, when: float) -> None:
        """A new image of a study: it has to be quiet anew."""
        with self._lock:
            study = self._studies.setdefault(uid, Study(uid, self.root / uid, Record(), when))
            study.arrived, study.not_before = when, 0.0
            if study.record.state in (State.DONE, State.FAILED):
                study.record = replace(study.record, state=State.WAITING, failures=0)

    def due(self) -> Study | None:
        """A study that is to be worked on now, the one that has been quiet longest first."""
        now = time.time()
        with self._lock:
            ready = [
                study
                for study in self._studies.values()
                if study.record.state is State.WAITING
                and study.arrived
                and now >= max(study.arrived + self.quiet_s, study.not_before)
            ]
            return min(ready, key=lambda study: study.arrived, default=None)

    def old(self, keep_s: float) -> list[str]:
        """Studies that were done so long ago, or that hold objects of radloop's own alone and were last touched then."""
        limit = time.time() - keep_s
        with self._lock:
            return [
                uid
                for uid, study in self._studies.items()
                if (study.record.state is State.DONE and study.record.finished < limit)
                or (not study.arrived and _touched(study.folder) < limit)
            ]

    def forget(self, uid: str) -> None:
        """It was removed; unless an image came at that moment, with which it begins anew."""
        with self._lock:
            study = self._studies.get(uid)
            if study is not None and study.folder.exists():
                study.record, study.arrived = Record(), max(study.arrived, _newest(study.images))
            else:
                self._studies.pop(uid, None)

    def note_own(self, uid: str) -> None:
        """An object of radloop's own came; nothing is to be done."""
        with self._lock:
            self._studies.setdefault(uid, Study(uid, self.root / uid, Record(), 0.0))

    def keep(self, study: Study, record: Record) -> None:
        """Writes what was reached; what arrived meanwhile keeps the study waiting."""
        write_whole(study.folder / STATE_FILE, json.dumps(asdict(record), indent=1) + "\n")
        with self._lock:
            late = record.state in (State.DONE, State.FAILED) and digest_of(study.folder / IMAGES) != record.images
            study.record = replace(record, state=State.WAITING, failures=0) if late else record

    def counts(self) -> dict[str, int]:
        """State → studies."""
        with self._lock:
            states = [study.active or study.record.state for study in self._studies.values() if study.arrived]
        return {str(state): states.count(state) for state in State}

    def listed(self, most: int) -> list[tuple[str, str, int, str, float]]:
        """(uid, state, failures, problem, when) of the `most` that changed last."""
        with self._lock:
            rows = [
                (
                    study.uid,
                    str(study.active or study.record.state),
                    study.record.failures,
                    study.record.problem,
                    max(study.arrived, study.record.finished),
                )
                for study in self._studies.values()
                if study.arrived
            ]
        return sorted(rows, key=lambda row: row[-1], reverse=True)[:most]


def digest_of(images: Path) -> str:
    """Of the instances in a folder: names, sizes and times. '' where there is none."""
    found = hashlib.sha256()
    names = sorted(path.name for path in images.glob("*.dcm")) if images.is_dir() else []
    for name in names:
        status = (images / name).stat()
        found.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()[:DIGEST_CHARACTERS] if names else ""


def _read(path: Path) -> Record:
    """What was kept; nothing where it cannot be read: then the study is done anew, which makes the same objects."""
    try:
        kept = json.loads(path.read_text())
        return Record(**{**kept, "state": State(kept["state"])})
    except (OSError, ValueError, TypeError, KeyError):
        return Record()


def _newest(images: Path) -> float:
    return max((path.stat().st_mtime for path in images.glob("*.dcm")), default=0.0) if images.is_dir() else 0.0


def _touched(folder: Path) -> float:
    try:
        return max((path.stat().st_mtime for path in (folder, *folder.iterdir())), default=0.0)
    except OSError:
        return time.time()
