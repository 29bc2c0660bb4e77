"""The way back: objects that radloop made of de-identified studies become objects of the original ones, through the crosswalk.

In: OUT of an inference over what `radloop deidentify` wrote, and the crosswalk that it wrote beside. DIR gets the objects under
<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm of the original studies, with `objects.csv` and `references.csv` as OUT has
them, and `not_reidentified.csv`: a row of OUT's `objects.csv` is afterwards in one of the two. Called again it makes the same. DIR holds
whatever the original studies hold of their patients.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.crosswalk import Row, read_crosswalk
from pipeline.csv_text import csv_text
from pipeline.dicom.reidentification import Image, NotReturned, Returned, StudyJob, return_study
from pipeline.errors import ConfigError, SourceError
from pipeline.files import alone, write_whole
from pipeline.progress import track
from pipeline.wording import counted
from pipeline.work import Failure, WorkerPool, default_workers

OBJECTS_FILE, REFERENCES_FILE, LEFT_FILE = "objects.csv", "references.csv", "not_reidentified.csv"
OBJECT_COLUMNS = ("kind", "case_id", "path", "sop_instance_uid", "content_digest")
REFERENCE_COLUMNS = ("object", "source")
LEFT_COLUMNS = ("path", "reason", "detail")
TIMEOUT_S = 900.0
"""Of one study, as infer gives a case: a second for most."""
MEMORY_BYTES = 8 * 2**30
"""All objects of a study are in memory at once: what one refers to is judged with it."""


@dataclass(frozen=True)
class ReidentifySummary:
    """What was done. `left`: how many objects for which reason."""

    objects: int
    studies: int
    left: Counter[str]

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"re-identified: {counted(self.objects, 'object')} of {counted(self.studies, 'study')}"]
        if self.left:
            told = ", ".join(f"{reason} {count}" for reason, count in sorted(self.left.items()))
            lines.append(f"left: {counted(self.left.total(), 'object')} ({told}; {LEFT_FILE})")
        return lines


@dataclass(frozen=True)
class _Object:
    """A row of OUT's `objects.csv`."""

    kind: str
    case_id: str
    path: str


def reidentify(
    out: Path, target: Path, *, crosswalk: Path, workers: int | None = None, progress: bool = True
) -> ReidentifySummary:
    """Writes the objects of `out` as objects of the original studies to `target`.

    `workers`: processes, by default one a CPU; 0: all in this one, without a budget. Raises ConfigError for a crosswalk or places that
    cannot be, SourceError where `out` is no folder of results.
    """
    _refuse_places(out, target)
    images = _images_by_study(read_crosswalk(crosswalk).values())
    objects = _read_objects(out)
    jobs = [
        StudyJob(str(out), tuple(one.path for one in of_study), str(target), images.get(study, ()))
        for study, of_study in _by_study(objects).items()
    ]
    count = default_workers() if workers is None else workers
    with alone(target, "re-identifies into"), WorkerPool(count, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES) as pool:
        outcomes: dict[str, Returned | NotReturned | Failure] = {}
        for job, answer in track(pool.run_each(return_study, jobs), "re-identifying", len(jobs), show=progress):
            answers = [answer] * len(job.paths) if isinstance(answer, Failure) else answer
            outcomes |= zip(job.paths, answers, strict=True)
        _write_tables(target, objects, outcomes)
    done = [outcome for outcome in outcomes.values() if isinstance(outcome, Returned)]
    left = Counter(str(outcome.reason) for outcome in outcomes.values() if not isinstance(outcome, Returned))
    return ReidentifySummary(len(done), len({PurePosixPath(one.path).parts[0] for one in done}), left)


def _refuse_places(out: Path, target: Path) -> None:
    """What names patients does not get among what does not."""
    one, other = out.resolve(), target.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ConfigError(
            f"--out {target}: expected a folder apart from {out}, as what is written to it names patients"
        )


def _read_objects(out: Path) -> list[_Object]:
    """The rows of OUT; their paths lead nowhere else."""
    try:
        with (out / OBJECTS_FILE).open(newline="", encoding="utf-8") as file:
            found = [_Object(row["kind"], row["case_id"], row["path"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, UnicodeDecodeError, csv.Error):
        raise SourceError(
            f"{out}: expected the OUT of radloop infer, found no {OBJECTS_FILE} that can be read"
        ) from None
    for one in found:
        parts = PurePosixPath(one.path or "").parts
        if len(parts) != 3 or ".." in parts or parts[0] == "/":
            raise SourceError(f"{out / OBJECTS_FILE}: expected paths of study, series and instance, found another")
    if not found:
        raise SourceError(f"{out}: expected DICOM objects, found none in {OBJECTS_FILE}")
    return list({one.path: one for one in found}.values())


def _by_study(objects: Iterable[_Object]) -> Mapping[str, Sequence[_Object]]:
    studies: dict[str, list[_Object]] = defaultdict(list)
    for one in objects:
        studies[PurePosixPath(one.path).parts[0]].append(one)
    return studies


def _images_by_study(rows: Iterable[Row]) -> Mapping[str, tuple[Image, ...]]:
    """By new StudyInstanceUID its images, each once, of files that were de-identified."""
    studies: dict[str, dict[str, Image]] = defaultdict(dict)
    for row in rows:
        if row["new_sop_instance_uid"]:
            studies[row["new_study_instance_uid"]].setdefault(row["new_sop_instance_uid"], _image(row))
    return {study: tuple(images.values()) for study, images in studies.items()}


def _image(row: Row) -> Image:
    names = [name for name in Image.__dataclass_fields__ if name not in ("frames", "days")]
    try:
        return Image(**{name: row[name] for name in names}, frames=int(row["frames"]), days=int(row["days"]))
    except ValueError:
        raise ConfigError("a damaged crosswalk: a number is none; write it anew with radloop deidentify") from None


def _write_tables(
    target: Path, objects: Sequence[_Object], outcomes: Mapping[str, Returned | NotReturned | Failure]
) -> None:
    done = [(one, outcome) for one in objects if isinstance(outcome := outcomes[one.path], Returned)]
    left = [
        (one.path, str(outcome.reason), outcome.detail)
        for one in objects
        if not isinstance(outcome := outcomes[one.path], Returned)
    ]
    rows = [(one.kind, one.case_id, to.path, to.sop_instance_uid, to.content_digest) for one, to in done]
    write_whole(target / OBJECTS_FILE, csv_text(OBJECT_COLUMNS, rows))
    references = ((to.sop_instance_uid, source) for _, to in done for source in to.sources)
    write_whole(target / REFERENCES_FILE, csv_text(REFERENCE_COLUMNS, references))
    write_whole(target / LEFT_FILE, csv_text(LEFT_COLUMNS, left))
