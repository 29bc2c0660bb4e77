"""De-identification: any source's DICOM images without their patients, by PS3.15 annex E; every file accounted for.

DIR/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm (new UIDs), `deidentified.csv`, `held_back.csv` (what a person has to look
at), `rejects.csv`. No path stands in them, as folders are named after patients: `file` is a hash of it under the project's key, which the
crosswalk resolves. Same files, settings and key give the same bytes. Killed and called again it goes on; what has not changed is not read
again, and what an earlier call wrote and this one does not is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.archive import is_archive, list_members
from pipeline.crosswalk import Row, read_crosswalk, write_crosswalk
from pipeline.deidentify_settings import Deidentification, load_deidentification
from pipeline.deidentifying.journal import WORK_FOLDER, Journal, compact, read_journal
from pipeline.deidentifying.outcomes import Outcomes, aside_of, remove_unclaimed, settle, stands, take_known, unmade_row
from pipeline.deidentifying.plan import Plan, SourceFile
from pipeline.deidentifying.tables import DeidentifySummary, summary_of, write_tables
from pipeline.dicom.deidentification import Cleaned, HeldBack, deidentify_file
from pipeline.errors import ConfigError, SourceError
from pipeline.files import alone
from pipeline.identity import KEY_FILE, KEY_VARIABLE, IdentityKey
from pipeline.indexing.listing import Entry, listed_members, walk
from pipeline.indexing.sources import OpenedSource, open_source
from pipeline.progress import track
from pipeline.work import Failure, WorkerPool, default_workers

TIMEOUT_S = 600.0
"""Of one file. A second for most; encoding thousands of large frames again takes minutes."""
MEMORY_BYTES = 10 * 2**30
"""Twice the largest image that is read (4 GiB decoded), and room for the rest."""
AT_ONCE = 4
"""Files that a worker takes along."""
DICOMDIR = "dicomdir"


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know of a file."""

    place: str
    target: str


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
    plan = Plan(chosen, opened.key(), crosswalk is not None)
    count = default_workers() if workers is None else workers
    with alone(out, "de-identifies into"), WorkerPool(count, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES) as pool:
        (out / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        told = _crosswalk_before(crosswalk, plan)
        before, journal = read_journal(out, plan)
        files = _listed(opened, plan, pool, journal, told)
        try:
            outcomes = _each(files, out, plan, pool, told, progress)
            cleaned = {row["file"] for row in outcomes.rows}
            told = (
                {file.name: told[file.name] if file.name in cleaned else unmade_row(file, plan) for file in files}
                if crosswalk
                else {}
            )
        finally:
            if crosswalk is not None:
                write_crosswalk(crosswalk, [told[name] for name in sorted(told)])
        removed = remove_unclaimed(out, before - outcomes.claimed.keys())
        write_tables(out, outcomes)
        compact(out, plan, files)
    return summary_of(outcomes, removed)


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


def _crosswalk_before(path: Path | None, plan: Plan) -> dict[str, Row]:
    """The rows that stand and were made by this plan."""
    if path is None or not path.exists():
        return {}
    return {name: row for name, row in read_crosswalk(path).items() if row["plan"] == plan.name}


def _listed(
    opened: OpenedSource, plan: Plan, pool: WorkerPool, journal: dict[str, Any], walked: Mapping[str, Row]
) -> list[SourceFile]:
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
            files.append(SourceFile(name, source, entry, root / entry.path, state, known))
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


def _each(
    files: Sequence[SourceFile], out: Path, plan: Plan, pool: WorkerPool, told: dict[str, Row], progress: bool
) -> Outcomes:
    """Every file in the order of the source: taken from the journal, or de-identified now; `told` gets the crosswalk's rows."""
    outcomes = Outcomes()
    due = [file for file in files if file.known is None and file.entry.refusal is None]
    jobs = (_Job(str(file.place), str(aside_of(out, file))) for file in due)
    work = partial(_work, settings=plan.settings, key=plan.key, crosswalk=plan.crosswalk)
    answers = pool.run_each(work, jobs, chunk=AT_ONCE)
    done = track((answer for _, answer in answers), "de-identifying", len(due), show=progress)
    with Journal(out, plan) as journal:
        for file in files:
            if file.entry.refusal is not None:
                reason, detail = file.entry.refusal
                outcomes.rejects.append((file.name, str(reason), detail))
                continue
            if file.known is not None and stands(file.known, out):
                take_known(file, outcomes)
                continue
            answer = next(done) if file.known is None else _again(file, out, work, pool)
            record = settle(file, answer, out, outcomes, told, plan)
            journal.add(file, record)
    return outcomes


def _work(job: _Job, *, settings: Deidentification, key: IdentityKey, crosswalk: bool) -> Cleaned | HeldBack:
    return deidentify_file(Path(job.place), Path(job.target), settings=settings, key=key, crosswalk=crosswalk)


def _again(file: SourceFile, out: Path, work: Any, pool: WorkerPool) -> Any:
    """A file whose result is not in DIR any more, made while the others wait."""
    with WorkerPool(min(pool.size, 1), timeout_s=pool.timeout_s, memory_bytes=pool.memory_bytes) as single:
        [(_, answer)] = single.run_each(work, [_Job(str(file.place), str(aside_of(out, file)))])
    return answer
