"""De-identification: any source's DICOM images without their patients, by PS3.15 annex E; every file accounted for.

DIR/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm (new UIDs), `deidentified.csv`, `held_back.csv` (what a person has to look
at), `rejects.csv`. No path stands in them, as folders are named after patients: `file` is a hash of it under the project's key, which the
crosswalk resolves. Same files, settings and key give the same bytes. Killed and called again it goes on; what has not changed is not read
again, and what an earlier call wrote and this one does not is removed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pipeline
from pipeline.archive import is_archive, list_members
from pipeline.crosswalk import COLUMNS, VERSION, Row, read_crosswalk, write_crosswalk
from pipeline.deidentify_settings import Deidentification, load_deidentification
from pipeline.dicom.deidentification import IDENTITY, Cleaned, HeldBack, Instance, deidentify_file
from pipeline.dicom.deidentification_risk import Held
from pipeline.errors import ConfigError, RejectReason, SourceError
from pipeline.files import alone, write_whole
from pipeline.identity import KEY_FILE, KEY_VARIABLE, IdentityKey
from pipeline.indexing.listing import Entry, listed_members, walk
from pipeline.indexing.sources import OpenedSource, open_source
from pipeline.progress import track
from pipeline.settings import digest
from pipeline.wording import counted
from pipeline.work import Failure, WorkerPool, default_workers

DEIDENTIFIED_FILE, HELD_FILE, REJECTS_FILE = "deidentified.csv", "held_back.csv", "rejects.csv"
WORK_FOLDER = ".deidentify"
"""In DIR: the journal, and files until they have their place. Nothing in it but hashes under the key and what the tables hold."""
JOURNAL_FILE = "journal.jsonl"
REVISION = 2
"""Of what is written: with another one every file is made anew."""
FLUSH_EVERY_S = 5.0
"""What is made again where the process is killed."""
TIMEOUT_S = 600.0
"""Of one file. A second for most; encoding thousands of large frames again takes minutes."""
MEMORY_BYTES = 10 * 2**30
"""Twice the largest image that is read (4 GiB decoded), and room for the rest."""
AT_ONCE = 4
"""Files that a worker takes along."""
HARMLESS = frozenset(
    map(
        str,
        (
            RejectReason.NOT_AN_IMAGE,
            RejectReason.EMPTY,
            RejectReason.DICOMDIR,
            RejectReason.NOT_REGULAR,
            RejectReason.MISSING,
        ),
    )
)
"""Reasons for which there is nothing to de-identify."""
PASSING = frozenset(
    map(
        str,
        (RejectReason.UNREADABLE, RejectReason.CHANGED, RejectReason.TIMED_OUT, RejectReason.CRASHED, Held.SAME_UID),
    )
)
"""Reasons that may be gone the next time although the file is the same."""
DICOMDIR = "dicomdir"
_SAME_UID = (str(Held.SAME_UID), "another file of its UID was there first")
DEIDENTIFIED_COLUMNS = [
    *("file", "path", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "patient_id", "sop_class_uid"),
    *("modality", "masked", "duplicate", "sha256"),
]
REASON_COLUMNS = ["file", "reason", "detail"]
_IDENTITY_COLUMNS = {
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer_of_patient_id",
    "PatientName": "patient_name",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
    "AccessionNumber": "accession_number",
    "StudyID": "study_id",
    "StudyDate": "study_date",
    "StudyTime": "study_time",
    "ReferringPhysicianName": "referring_physician_name",
    "StudyDescription": "study_description",
}
"""Columns of the crosswalk, by keyword."""


@dataclass(frozen=True)
class DeidentifySummary:
    """What was done. `held`, `rejected`: how many files for which reason."""

    deidentified: int
    duplicates: int
    kept: int
    masked: int
    held: Counter[str]
    rejected: Counter[str]
    removed: int
    patients: int
    studies: int

    @property
    def failed(self) -> int:
        """Files that might be images and came to nothing."""
        return sum(count for reason, count in self.rejected.items() if reason not in HARMLESS)

    def lines(self) -> list[str]:
        """For the terminal."""
        kept = f" ({self.kept} kept as they were)" if self.kept else ""
        whose = f"{counted(self.patients, 'patient')}, {counted(self.studies, 'study')}"
        lines = [f"de-identified: {counted(self.deidentified, 'image')} of {whose}{kept}"]
        if self.masked:
            lines.append(f"blackened: regions in {counted(self.masked, 'image')}")
        if self.duplicates:
            lines.append(f"duplicates: {counted(self.duplicates, 'file')} of the same content as another")
        for name, counts, table in (("held back", self.held, HELD_FILE), ("rejected", self.rejected, REJECTS_FILE)):
            if counts:
                told = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
                lines.append(f"{name}: {counted(counts.total(), 'file')} ({told}; {table})")
        if self.removed:
            lines.append(f"removed: {counted(self.removed, 'object')} of an earlier call that this one did not make")
        return lines


@dataclass(frozen=True)
class _Plan:
    """All that decides on what a file becomes, beside the file."""

    settings: Deidentification
    key: IdentityKey
    crosswalk: bool

    @property
    def name(self) -> str:
        """Known to the key's owner alone."""
        told = (pipeline.__version__, str(REVISION), digest(self.settings))
        return self.key.keyed("deidentify", *told).hex()[:32]

    def file(self, source: str, path: str) -> str:
        """The name of a file in tables."""
        return self.key.keyed("file", source, path).hex()[:24]

    def state(self, entry: Entry) -> str:
        """Of a file as it is now."""
        return self.key.keyed("state", self.name, str(entry.bytes), str(entry.mtime_ns)).hex()[:24]


@dataclass(frozen=True)
class _File:
    """A file of the source: its name in tables, and what the system says of it. `known`: its outcome of an earlier call."""

    name: str
    source: str
    entry: Entry
    place: Path
    state: str
    known: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know of a file."""

    place: str
    target: str


@dataclass
class _Outcomes:
    """What became of the files so far; who has which place in DIR."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    held: list[tuple[str, str, str]] = field(default_factory=list)
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    claimed: dict[str, str] = field(default_factory=dict)
    """Path in DIR → sha256 of what stands there."""
    taken: set[str] = field(default_factory=set)
    """Paths in DIR that a row has."""
    kept: int = 0


def deidentify(
    source: str,
    out: Path,
    *,
    settings: Path | None = None,
    keep: Sequence[str] = (),
    crosswalk: Path | None = None,
    root: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> DeidentifySummary:
    """De-identifies every DICOM image of `source` into `out`.

    `settings`: a YAML file (`pipeline.deidentify_settings`); `keep`: options beside its own. `crosswalk`: where to write what stands for
    what. `workers`: processes, by default one a CPU; 0: all in this one, without a budget. Raises ConfigError for settings or places that
    cannot be, SourceError where there is nothing to read.
    """
    chosen = load_deidentification(settings, list(keep))
    opened = open_source(source, root)
    opened.refuse_output(out)
    _refuse_places(out, crosswalk, opened)
    _refuse_foreign(out)
    plan = _Plan(chosen, opened.key(), crosswalk is not None)
    count = default_workers() if workers is None else workers
    with alone(out, "de-identifies into"), WorkerPool(count, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES) as pool:
        (out / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        told = _crosswalk_before(crosswalk, plan)
        before, journal = _journal_before(out, plan)
        files = _listed(opened, plan, pool, journal, told)
        try:
            outcomes = _each(files, out, plan, pool, told, progress)
            cleaned = {row["file"] for row in outcomes.rows}
            told = (
                {file.name: told[file.name] if file.name in cleaned else _unmade_row(file, plan) for file in files}
                if crosswalk
                else {}
            )
        finally:
            if crosswalk is not None:
                write_crosswalk(crosswalk, [told[name] for name in sorted(told)])
        removed = _remove(out, before - outcomes.claimed.keys())
        _write_tables(out, outcomes)
        _compact(out, plan, files, outcomes)
    return _summary(outcomes, removed)


# --- places


def _refuse_places(out: Path, crosswalk: Path | None, opened: OpenedSource) -> None:
    """Neither the crosswalk nor the key may lie where the de-identified files are given away from."""
    inside = out.resolve()
    if crosswalk is not None:
        if crosswalk.resolve().is_relative_to(inside):
            raise ConfigError(
                f"--crosswalk {crosswalk} lies inside --out {out}, which is given away; give a path outside"
            )
        if not crosswalk.resolve().parent.is_dir():
            raise ConfigError(
                f"--crosswalk {crosswalk}: its folder does not exist; make it first, readable by its owner only"
            )
    if KEY_VARIABLE not in os.environ and opened.folder.resolve().is_relative_to(inside):
        raise ConfigError(
            f"the project's key {opened.folder / KEY_FILE} would lie inside --out {out}, which is given away; work in another folder"
        )


def _refuse_foreign(out: Path) -> None:
    """A folder that something else wrote into: its files would be taken for de-identified ones."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: expected a folder, found a file")
    if out.is_dir() and any(out.iterdir()) and not (out / WORK_FOLDER).is_dir():
        raise ConfigError(
            f"--out {out}: expected an empty folder, or one that radloop deidentify wrote; found other files, which it would mix in"
        )


# --- what there is to do


def _crosswalk_before(path: Path | None, plan: _Plan) -> dict[str, Row]:
    """The rows that stand and were made by this plan."""
    if path is None or not path.exists():
        return {}
    return {name: row for name, row in read_crosswalk(path).items() if row["plan"] == plan.name}


def _listed(
    opened: OpenedSource, plan: _Plan, pool: WorkerPool, journal: dict[str, Any], walked: Mapping[str, Row]
) -> list[_File]:
    """Every file of the source, in order; with its outcome where that is known, is not passing, and stands in the crosswalk if it must."""
    files = []
    for label, place in opened.places:
        source = label or place.name
        root, entries = _entries(place, pool)
        for entry in entries:
            name, state = plan.file(source, entry.path), plan.state(entry)
            known = journal.get(name, {}).get(state)
            if (
                known is not None
                and known["kind"] == "cleaned"
                and plan.crosswalk
                and not walked.get(name, {}).get("sop_instance_uid")
            ):
                known = None  # what the crosswalk has to say stands in the file alone
            files.append(_File(name, source, entry, root / entry.path, state, known))
    if not files:
        raise SourceError(f"{opened.places[0][1]}: expected DICOM images, found a folder without any file")
    return files


def _entries(place: Path, pool: WorkerPool) -> tuple[Path, Iterator[Entry]]:
    if place.is_file() and is_archive(place):
        [(_, members)] = pool.run_each(list_members, [place])
        if isinstance(members, Failure):
            raise SourceError(f"{place}: expected a .zip export, found one that cannot be read ({members.detail})")
        return place, listed_members(members, place.stat().st_mtime_ns)
    if place.is_file() and place.name.casefold() != DICOMDIR:
        status = place.stat()
        return place.parent, iter([Entry(place.name, None, status.st_size, status.st_mtime_ns)])
    folder = place.parent if place.is_file() else place
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise SourceError(
            f"{place}: cannot be read ({error.strerror}); expected a folder, a .zip or a DICOM file"
        ) from None
    return folder, walk(folder)


# --- the files


def _each(
    files: Sequence[_File], out: Path, plan: _Plan, pool: WorkerPool, told: dict[str, Row], progress: bool
) -> _Outcomes:
    """Every file in the order of the source: taken from the journal, or de-identified now; `told` gets the crosswalk's rows."""
    outcomes = _Outcomes()
    due = [file for file in files if file.known is None and file.entry.refusal is None]
    jobs = (_Job(str(file.place), str(_aside(out, file))) for file in due)
    work = partial(_work, settings=plan.settings, key=plan.key, crosswalk=plan.crosswalk)
    answers = pool.run_each(work, jobs, chunk=AT_ONCE)
    done = track((answer for _, answer in answers), "de-identifying", len(due), show=progress)
    with _Journal(out, plan) as journal:
        for file in files:
            if file.entry.refusal is not None:
                reason, detail = file.entry.refusal
                outcomes.rejects.append((file.name, str(reason), detail))
                continue
            if file.known is not None and _stands(file.known, out):
                _take_known(file, outcomes)
                continue
            answer = next(done) if file.known is None else _again(file, out, work, pool)
            record = _settle(file, answer, out, outcomes, told, plan)
            journal.add(file, record)
    return outcomes


def _work(job: _Job, *, settings: Deidentification, key: IdentityKey, crosswalk: bool) -> Cleaned | HeldBack:
    return deidentify_file(Path(job.place), Path(job.target), settings=settings, key=key, crosswalk=crosswalk)


def _again(file: _File, out: Path, work: Any, pool: WorkerPool) -> Any:
    """A file whose result is not in DIR any more, made while the others wait."""
    with WorkerPool(min(pool.size, 1), timeout_s=pool.timeout_s, memory_bytes=pool.memory_bytes) as single:
        [(_, answer)] = single.run_each(work, [_Job(str(file.place), str(_aside(out, file)))])
    return answer


def _aside(out: Path, file: _File) -> Path:
    return out / WORK_FOLDER / f"{file.name}.dcm"


def _stands(known: dict[str, Any], out: Path) -> bool:
    """Whether what an outcome speaks of is in its place."""
    if known["kind"] != "cleaned":
        return True
    try:
        return (out / known["row"]["path"]).stat().st_size == known["bytes"]
    except OSError:
        return False


def _take_known(file: _File, outcomes: _Outcomes) -> None:
    known = file.known or {}
    if known["kind"] != "cleaned":
        target = outcomes.held if known["kind"] == "held" else outcomes.rejects
        target.append((file.name, known["reason"], known["detail"]))
        return
    row = known["row"]
    claimed = outcomes.claimed.setdefault(row["path"], row["sha256"])
    if claimed != row["sha256"]:
        outcomes.held.append((file.name, *_SAME_UID))
        return
    outcomes.rows.append({**row, "duplicate": "yes" if row["path"] in outcomes.taken else ""})
    outcomes.taken.add(row["path"])
    outcomes.kept += 1


def _settle(
    file: _File, answer: Any, out: Path, outcomes: _Outcomes, told: dict[str, Row], plan: _Plan
) -> dict[str, Any]:
    """Gives a new file its place, or says why there is none; returns what the journal keeps."""
    if isinstance(answer, Failure):
        outcomes.rejects.append((file.name, str(answer.reason), answer.detail))
        return {"kind": "rejected", "reason": str(answer.reason), "detail": answer.detail}
    aside = _aside(out, file)
    if isinstance(answer, Cleaned):
        place = "/".join((*_folders(answer.now), f"{answer.now.sop_instance_uid}.dcm"))
        claimed = outcomes.claimed.get(place)
        if claimed is None or claimed == answer.sha256:
            row = _row(file, answer, place, duplicate=claimed is not None)
            if claimed is None:
                (out / place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside, out / place)
                outcomes.claimed[place] = answer.sha256
            aside.unlink(missing_ok=True)
            outcomes.rows.append(row)
            outcomes.taken.add(place)
            if answer.was is not None:
                told[file.name] = _crosswalk_row(file, answer, plan)
            return {"kind": "cleaned", "row": row, "bytes": answer.bytes}
        answer = HeldBack(Held(_SAME_UID[0]), _SAME_UID[1])
    aside.unlink(missing_ok=True)
    outcomes.held.append((file.name, str(answer.reason), answer.detail))
    return {"kind": "held", "reason": str(answer.reason), "detail": answer.detail}


def _folders(instance: Instance) -> tuple[str, str]:
    return instance.study_instance_uid, instance.series_instance_uid


def _row(file: _File, cleaned: Cleaned, place: str, *, duplicate: bool) -> dict[str, Any]:
    now = asdict(cleaned.now)
    return {
        "file": file.name,
        "path": place,
        **now,
        "patient_id": cleaned.patient_id,
        "sop_class_uid": cleaned.sop_class_uid,
        "modality": cleaned.modality,
        "masked": "yes" if cleaned.masked else "",
        "duplicate": "yes" if duplicate else "",
        "sha256": cleaned.sha256,
    }


def _crosswalk_row(file: _File, cleaned: Cleaned, plan: _Plan) -> dict[str, str]:
    was = asdict(cleaned.was) if cleaned.was is not None else {}
    identity = dict(zip((_IDENTITY_COLUMNS[keyword] for keyword in IDENTITY), cleaned.identity, strict=True))
    return {
        **_unmade_row(file, plan),
        **was,
        **{f"new_{name}": value for name, value in asdict(cleaned.now).items()},
        **identity,
        "new_patient_id": cleaned.patient_id,
        "days": str(cleaned.days),
        "sop_class_uid": cleaned.sop_class_uid,
        "frames": str(cleaned.frames),
        "frame_of_reference_uid": cleaned.frame_of_reference_uid,
        "new_frame_of_reference_uid": cleaned.new_frame_of_reference_uid,
        "original": cleaned.original,
    }


def _unmade_row(file: _File, plan: _Plan) -> dict[str, str]:
    """Of a file that is held back or rejected: which one it is."""
    return {
        **dict.fromkeys(COLUMNS, ""),
        "version": VERSION,
        "file": file.name,
        "source": file.source,
        "path": file.entry.path,
        "plan": plan.name,
    }


# --- the journal


class _Journal:
    """Outcomes as they come, a line each, on the disk every few seconds; a torn last line is one file that is made again."""

    def __init__(self, out: Path, plan: _Plan) -> None:
        self._path = out / WORK_FOLDER / JOURNAL_FILE
        self._plan = plan.name

    def __enter__(self) -> _Journal:
        self._file = self._path.open("a", encoding="utf-8")
        self._since = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, file: _File, record: dict[str, Any]) -> None:
        if record.get("reason") not in PASSING:
            self._file.write(_line(self._plan, file, record))
        if time.monotonic() - self._since > FLUSH_EVERY_S:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._since = time.monotonic()


def _line(plan: str, file: _File, record: dict[str, Any]) -> str:
    # With a line end before it, too: the line before may have been torn.
    return "\n" + json.dumps({"plan": plan, "file": file.name, "state": file.state, **record}, sort_keys=True) + "\n"


def _journal_before(out: Path, plan: _Plan) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """Every path in DIR that an earlier call wrote, and by file and state the outcomes that this plan had."""
    paths: set[str] = set()
    outcomes: dict[str, dict[str, Any]] = {}
    path = out / WORK_FOLDER / JOURNAL_FILE
    if not path.exists():
        return paths, outcomes
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
                if record["kind"] == "cleaned":
                    paths.add(record["row"]["path"])
                if record["plan"] == plan.name:
                    outcomes.setdefault(record["file"], {})[record["state"]] = record
            except (ValueError, KeyError, TypeError):
                continue  # torn
    return paths, outcomes


def _compact(out: Path, plan: _Plan, files: Sequence[_File], outcomes: _Outcomes) -> None:
    """The journal without what is not so any more, and the work folder with nothing else in it."""
    _, journal = _journal_before(out, plan)
    lines = []
    for file in files:
        record = journal.get(file.name, {}).get(file.state)
        if record is not None:
            kept = {name: value for name, value in record.items() if name not in ("plan", "file", "state")}
            lines.append(_line(plan.name, file, kept).lstrip())
    write_whole(out / WORK_FOLDER / JOURNAL_FILE, "".join(lines))
    for left in (out / WORK_FOLDER).iterdir():
        if left.name != JOURNAL_FILE:
            left.unlink(missing_ok=True)


def _remove(out: Path, paths: set[str]) -> int:
    """Objects of before that nothing claims: of files that are gone, or of other settings. Their empty folders go, too."""
    removed = 0
    for path in sorted(paths):
        place = out / path
        if place.is_file():
            place.unlink()
            removed += 1
        for folder in (place.parent, place.parent.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                shutil.rmtree(folder)
    return removed


# --- tables


def _write_tables(out: Path, outcomes: _Outcomes) -> None:
    """In an order that says nothing of the source's."""
    rows = sorted(outcomes.rows, key=lambda row: (row["path"], row["file"]))
    write_whole(
        out / DEIDENTIFIED_FILE,
        _table(DEIDENTIFIED_COLUMNS, [[row[name] for name in DEIDENTIFIED_COLUMNS] for row in rows]),
    )
    write_whole(out / HELD_FILE, _table(REASON_COLUMNS, sorted(outcomes.held)))
    write_whole(out / REJECTS_FILE, _table(REASON_COLUMNS, sorted(outcomes.rejects)))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As CSV; with the standard library, as nothing here needs pandas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _summary(outcomes: _Outcomes, removed: int) -> DeidentifySummary:
    return DeidentifySummary(
        deidentified=len(outcomes.taken),
        duplicates=len(outcomes.rows) - len(outcomes.taken),
        kept=outcomes.kept,
        masked=sum(row["masked"] == "yes" and not row["duplicate"] for row in outcomes.rows),
        held=Counter(reason for _, reason, _ in outcomes.held),
        rejected=Counter(reason for _, reason, _ in outcomes.rejects),
        removed=removed,
        patients=len({row["patient_id"] for row in outcomes.rows}),
        studies=len({row["study_instance_uid"] for row in outcomes.rows}),
    )
