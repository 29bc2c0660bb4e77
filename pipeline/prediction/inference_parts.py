"""Inference in parts: what is done stays done, and memory does not grow with the images.

A part is some hundred images of whole cases. When all its cases are through, its rows of every table are kept in
`OUT/.inference/<part>-<digest>/`, a folder that appears whole. An inference that was killed finds there what need not be done again: the
digest is of the model, the settings and the part's files with their sizes and times. In the end the tables are put together, and the
folder goes. Rows stand in the order of the cases, whatever was killed in between.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from pipeline.columns import text
from pipeline.csv_text import csv_text
from pipeline.files import whole_file, write_whole
from pipeline.prediction.deliver import Delivered, ObjectRow
from pipeline.prediction.prediction_tables import STATUS_FAILED, STATUS_OK

FOLDER = ".inference"
PART_IMAGES = 256
"""Images a part, at least: what a killed inference does again, and what its tables hold in memory."""
STATUS_NO_OBJECT = "object_failed"
IMAGES, CASES, OBJECTS, REFERENCES, NOT_WRITTEN = (
    "image_predictions.csv",
    "predictions.csv",
    "objects.csv",
    "references.csv",
    "not_written.csv",
)
OBJECT_COLUMNS = ("kind", "case_id", "path", "sop_instance_uid", "content_digest")
REFERENCE_COLUMNS = ("object", "source")
NOT_WRITTEN_COLUMNS = ("kind", "case_id", "reason")
COUNTS_FILE = "counts.json"


@dataclass(frozen=True)
class Counts:
    """Of a part, or of all. `problems` are cases that failed, or whose objects did."""

    cases: int = 0
    failed: int = 0
    objects: int = 0
    overlays: int = 0
    out_of_scope: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Part:
    """Rows [`first_image`, `last_image`) of the images and [`first_case`, `last_case`) of the cases."""

    number: int
    first_image: int
    last_image: int
    first_case: int
    last_case: int
    name: str

    @property
    def images(self) -> int:
        return self.last_image - self.first_image

    @property
    def cases(self) -> int:
        return self.last_case - self.first_case


def parts_of(images: pd.DataFrame, identity: str) -> Iterator[Part]:
    """The parts of `images`, whose rows are sorted by case. `identity`: of all that results depend on beside the files."""
    case_id = text(images["case_id"]).to_numpy()
    if not len(case_id):
        return
    starts = np.flatnonzero(np.append(True, case_id[1:] != case_id[:-1]))
    ends = np.append(starts[1:], len(case_id))
    number, first = 0, 0
    for case, end in enumerate(ends.tolist()):
        begin = int(starts[first])
        if end - begin >= PART_IMAGES or case == len(ends) - 1:
            name = f"{number:08d}-{_digest(images.iloc[begin:end], identity)}"
            yield Part(number, begin, end, first, case + 1, name)
            number, first = number + 1, case + 1


def _digest(images: pd.DataFrame, identity: str) -> str:
    columns = ["case_id", "source", "path", "frame", "bytes", "mtime_ns", "rule"]
    rows = images[columns].to_csv(index=False, header=False)
    return hashlib.sha256(f"{identity}\n{rows}".encode()).hexdigest()[:16]


class Ledger:
    """The parts that are done, in `OUT/.inference`."""

    def __init__(self, out: Path, parts: Sequence[Part]) -> None:
        """Keeps of an earlier inference what is a part of this one, its objects still there; removes the rest."""
        self.out, self.folder, self.parts = out, out / FOLDER, parts
        known = {part.name for part in parts}
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if folder.name not in known or not self._objects_stand(folder):
                shutil.rmtree(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, part: Part) -> bool:
        return (self.folder / part.name).is_dir()

    def keep(
        self, part: Part, images: pd.DataFrame, cases: pd.DataFrame, delivered: Sequence[tuple[str, Delivered]]
    ) -> None:
        """A part is done: its rows of `predictions.csv` and `image_predictions.csv`, and what became of each case (case_id, Delivered)."""
        problems = {case_id: one.problem for case_id, one in delivered if one.problem}
        problem = pd.Series([problems.get(case_id, "") for case_id in cases["case_id"]], dtype=str, index=cases.index)
        cases = cases.assign(
            status=cases["status"].where((problem == "") | (cases["status"] == STATUS_FAILED), STATUS_NO_OBJECT),
            reason=cases["reason"].where(problem == "", problem),
        )
        objects = [row for _, one in delivered for row in one.objects]
        unmade = [(kind, case_id, reason) for case_id, one in delivered for kind, reason in one.unmade]
        counts = Counts(
            cases=len(cases),
            failed=int((cases["status"] != STATUS_OK).sum()),
            objects=len(objects),
            overlays=sum(one.overlays for _, one in delivered),
            out_of_scope=int((~cases["in_scope"]).sum()),
        )
        aside = self.folder / f".{part.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        (aside / IMAGES).write_text(images.to_csv(index=False, lineterminator="\n"))
        (aside / CASES).write_text(cases.to_csv(index=False, lineterminator="\n"))
        (aside / OBJECTS).write_text(csv_text(OBJECT_COLUMNS, map(object_cells, objects)))
        (aside / REFERENCES).write_text(csv_text(REFERENCE_COLUMNS, _references(objects)))
        (aside / NOT_WRITTEN).write_text(csv_text(NOT_WRITTEN_COLUMNS, unmade))
        write_whole(aside / COUNTS_FILE, json.dumps(asdict(counts)))
        os.replace(aside, self.folder / part.name)

    def finish(self) -> tuple[Counts, Counter[tuple[str, str]]]:
        """The tables in OUT, whole; what was counted, and how many cases are without an object of a kind for a reason."""
        for name in (IMAGES, CASES, OBJECTS, NOT_WRITTEN):
            self._join(name)
        self._join(REFERENCES, once=True)
        counts, unmade = Counts(), Counter[tuple[str, str]]()
        for part in self.parts:
            folder = self.folder / part.name
            counts += Counts(**json.loads((folder / COUNTS_FILE).read_text()))
            with (folder / NOT_WRITTEN).open(newline="") as file:
                unmade.update((row["kind"], row["reason"]) for row in csv.DictReader(file))
        shutil.rmtree(self.folder)
        return counts, unmade

    def _join(self, name: str, *, once: bool = False) -> None:
        """All parts' rows of a table, with one heading; of equal rows one where `once`."""
        seen: set[str] = set()
        with whole_file(self.out / name) as whole:
            for place, part in enumerate(self.parts):
                with (self.folder / part.name / name).open(newline="") as file:
                    heading = file.readline()
                    if place == 0:
                        whole.write(heading.encode())
                    for line in _lines(file, seen if once else None):
                        whole.write(line.encode())

    def _objects_stand(self, folder: Path) -> bool:
        try:
            with (folder / OBJECTS).open(newline="") as file:
                return all((self.out / row["path"]).is_file() for row in csv.DictReader(file))
        except (OSError, KeyError):
            return False


def object_cells(row: ObjectRow) -> tuple[str, ...]:
    """A row of `objects.csv`."""
    return tuple(getattr(row, name) for name in OBJECT_COLUMNS)


def _references(objects: Iterable[ObjectRow]) -> Iterator[tuple[str, str]]:
    return ((row.sop_instance_uid, source) for row in objects for source in row.sources)


def _lines(file: TextIO, seen: set[str] | None) -> Iterator[str]:
    for line in file:
        if seen is None or line not in seen:
            yield line
            if seen is not None:
                seen.add(line)
