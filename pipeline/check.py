"""`radloop check`: is this valid DICOM? Anybody's files: how many are ok, and a line for each that is not; nothing of a patient is shown.

Each file is read in a worker process under a budget, because it may be hostile. References are followed where the instance referred to is
among the files. `check.csv` in --out has a row a file: path, sop_class, sop_instance_uid, status, findings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.archive import is_archive, list_members
from pipeline.csv_text import csv_text
from pipeline.dicom.checked_file import CheckedFile, check_file, cross_findings
from pipeline.errors import RejectReason, SourceError
from pipeline.files import write_whole
from pipeline.indexing.listing import Entry, listed_members, walk
from pipeline.progress import track
from pipeline.wording import counted
from pipeline.work import Failure, WorkerPool, default_workers

CHECK_FILE = "check.csv"
COLUMNS = ["path", "sop_class", "sop_instance_uid", "status", "findings"]
TIMEOUT_S = 60.0
"""Reading and judging one file. The functional groups of 20,000 frames take half of it."""
MEMORY_BYTES = 4 * 2**30
"""A file is read whole; a deflated one may grow in memory."""
AT_ONCE = 8
"""Files that a worker takes along: small ones are judged in milliseconds."""


class Status(StrEnum):
    """What a check says of a file."""

    OK = "ok"
    INVALID = "invalid"
    """DICOM with findings."""
    UNKNOWN_CLASS = "unknown_class"
    """DICOM of a class whose modules radloop does not know (retired, private or newer); all else is right."""
    UNREADABLE = "unreadable"
    """DICOM that cannot be parsed to its end, or a file that cannot be read."""
    NOT_JUDGED = "not_judged"
    """No DICOM file, or a DICOMDIR."""


HARMLESS = frozenset({RejectReason.NOT_AN_IMAGE, RejectReason.EMPTY, RejectReason.DICOMDIR, RejectReason.NOT_REGULAR})
"""Reasons for which there is nothing to judge."""


@dataclass(frozen=True)
class FileVerdict:
    """A row of `check.csv`."""

    path: str
    sop_class: str
    sop_instance_uid: str
    status: Status
    findings: tuple[str, ...]
    shown_path: str
    reason: RejectReason | None = None
    """Why it was not judged or not read."""

    def line(self) -> str:
        """For the terminal."""
        what = "; ".join(self.findings) or self.sop_class
        return f"{self.status:<13} {self.shown_path}: {what}"


@dataclass(frozen=True)
class CheckSummary:
    """What was found."""

    files: tuple[FileVerdict, ...]

    @property
    def failed(self) -> int:
        """Files that are invalid or unreadable."""
        return sum(file.status in (Status.INVALID, Status.UNREADABLE) for file in self.files)

    def lines(self, *, every: bool = False) -> list[str]:
        """One for each DICOM file that is not ok (`every`: for each file), and the number of files of each status."""
        told = [file for file in self.files if every or file.status not in (Status.OK, Status.NOT_JUDGED)]
        counts = {status: sum(file.status == status for file in self.files) for status in Status}
        totals = [f"{count} {status.replace('_', ' ')}" for status, count in counts.items() if count]
        if counts[Status.NOT_JUDGED]:
            reasons = Counter(str(file.reason) for file in self.files if file.status == Status.NOT_JUDGED)
            totals[-1] += f" ({', '.join(f'{reason} {count}' for reason, count in sorted(reasons.items()))})"
        return [*(file.line() for file in told), f"{counted(len(self.files), 'file')}: {', '.join(totals)}"]


def check(
    paths: Sequence[Path], *, out: Path | None = None, workers: int | None = None, progress: bool = True
) -> CheckSummary:
    """Judges files, all files of folders, and members of .zip archives; writes `check.csv` to `out`.

    `workers`: processes, by default one a CPU; 0 reads in this process, without a budget. Raises SourceError for a path that is not there,
    and where not one of the files is DICOM.
    """
    count = default_workers() if workers is None else workers
    with WorkerPool(count, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES) as pool:
        listed = [found for path in paths for found in _listed(path, pool)]
        readable = [place for place, entry in listed if entry.refusal is None]
        outcomes = pool.run_each(check_file, readable, chunk=AT_ONCE)
        judged = [outcome for _, outcome in track(outcomes, "checking", len(readable), show=progress)]
    if all(isinstance(outcome, Failure) and outcome.reason in HARMLESS for outcome in judged):
        raise SourceError(
            f"{', '.join(map(str, paths))}: expected DICOM files, found none among {counted(len(listed), 'file')}"
        )
    summary = CheckSummary(tuple(_verdicts(listed, judged)))
    if out is not None:
        write_whole(out / CHECK_FILE, csv_text(COLUMNS, map(_row, summary.files)))
    return summary


def _row(file: FileVerdict) -> tuple[str, ...]:
    return file.path, file.sop_class, file.sop_instance_uid, file.status, "; ".join(file.findings)


def _listed(path: Path, pool: WorkerPool) -> Iterator[tuple[Path, Entry]]:
    """Every file that `path` stands for, with what the system says of it."""
    if path.is_dir():
        yield from ((path / entry.path, entry) for entry in walk(path))
    elif path.is_file() and is_archive(path):
        [(_, members)] = pool.run_each(list_members, [path])
        if isinstance(members, Failure):
            raise SourceError(f"{path}: expected a .zip export, found one that cannot be read ({members.detail})")
        yield from ((path / entry.path, entry) for entry in listed_members(members, path.stat().st_mtime_ns))
    elif path.exists():
        yield path, Entry(path.name)
    else:
        raise SourceError(f"{path}: no such file or folder; expected DICOM files, folders of them or .zip archives")


def _verdicts(listed: Sequence[tuple[Path, Entry]], judged: Sequence[CheckedFile | Failure]) -> Iterator[FileVerdict]:
    crossed = iter(cross_findings([outcome for outcome in judged if isinstance(outcome, CheckedFile)]))
    outcomes = iter(judged)
    for place, entry in listed:
        outcome = Failure(*entry.refusal) if entry.refusal is not None else next(outcomes)
        if isinstance(outcome, Failure):
            status = Status.NOT_JUDGED if outcome.reason in HARMLESS else Status.UNREADABLE
            said = (f"{outcome.reason}: {outcome.detail}",)
            yield FileVerdict(str(place), "", "", status, said, str(place), outcome.reason)
            continue
        findings = (*outcome.findings, *next(crossed))
        status = Status.INVALID if findings else Status.OK if outcome.judged else Status.UNKNOWN_CLASS
        yield FileVerdict(
            str(place),
            outcome.class_name,
            outcome.instance.sop_instance_uid,
            status,
            findings,
            _shown(place, outcome.path_holds_identity),
        )


def _shown(place: Path, holds_identity: bool) -> str:
    return (
        f"(not shown, as it holds a patient's name or ID; {len(place.parts)} parts deep)"
        if holds_identity
        else str(place)
    )
