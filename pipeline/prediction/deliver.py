"""From a case's results to what a radiologist opens: the objects that the profile wants for DICOM images, overlay PNGs for others.

`Delivery` is called once a case, in worker processes: it draws, makes the objects, checks each of them and their references, and
writes them into the source's study below OUT. Their UIDs follow from sources, model and settings. What could not be written, and why,
is said in the answer.
"""

from __future__ import annotations

import datetime
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import pipeline
from pipeline.config import Output
from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.conformance import check, check_references
from pipeline.dicom.derived import Algorithm, content_digest, write_object
from pipeline.dicom.source import read_source
from pipeline.errors import ObjectError, Rejected
from pipeline.files import write_whole
from pipeline.networks.cell_geometry import Geometry
from pipeline.prediction.case_stream import CaseOfResults
from pipeline.prediction.explain import evidence_unit, method_words
from pipeline.prediction.object_set import ALL_IMAGES, Made, Unmade, objects_of
from pipeline.prediction.pictures import cell_text, panel_lines, picture, said, source_evidence
from pipeline.prediction.predict import ImageResult
from pipeline.prepared.dataset import ImageFile, Prepared, read_image, shown_gray
from pipeline.profile_settings import Kind, Profile
from pipeline.render import Legend
from pipeline.run import ModelFacts
from pipeline.settings import digest
from pipeline.work import Failure, WorkerPool, preload

WRITE_TIMEOUT_S = 900.0
"""A case's objects take a second; of a series of thousands of slices minutes."""
WRITE_MEMORY_BYTES = 8 * 2**30
"""Above a worker's own size: a float map of 2,000 slices of 512 x 512 is 2 GB, and is copied on its way to the disk."""
CASES_A_TURN = 2
"""Cases that a writer takes at once."""
OVERLAYS_FOLDER = "overlays"
STRICT_SCOPE = "outside the model's scope, and --strict-scope was given"

preload(__name__)  # or each writer would import what it needs, for two seconds, after the first case is predicted


@dataclass(frozen=True)
class ObjectRow:
    """A row of `objects.csv`; `path` is relative to OUT. `sources` are rows of `references.csv`."""

    kind: str
    case_id: str
    path: str
    sop_instance_uid: str
    content_digest: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Delivered:
    """What one case became. `unmade`: (kind, reason); `problem`: why an object that was due is not there, or ''."""

    objects: tuple[ObjectRow, ...] = ()
    overlays: int = 0
    unmade: tuple[tuple[str, str], ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Delivery:
    """All that the cases of one inference share; picklable."""

    out: Path
    facts: ModelFacts
    geometry: Geometry
    profile: Profile
    kinds: tuple[Kind, ...]
    output: Output
    strict_scope: bool = False

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm("radloop", pipeline.__version__, self.facts.name, self.facts.digest)

    @property
    def configuration_digest(self) -> str:
        """Of what changes an object beside the model."""
        return digest(self.output.model_copy(update={"profile": self.profile.content_digest}))

    def __call__(self, case: CaseOfResults) -> Delivered:
        """Writes what there is to write of `case`."""
        if not case.keys or not self.kinds:
            return Delivered()
        if self.strict_scope and case.out_of_scope:
            return Delivered(unmade=tuple((kind, STRICT_SCOPE) for kind in self.kinds))
        rows: list[ObjectRow] = []
        try:
            overlays = self._overlays(case)
            result = self._case_result(case)
            if result is None:
                return Delivered(overlays=overlays)
            outcomes = list(objects_of(result, self.kinds))
            made = [outcome for outcome in outcomes if isinstance(outcome, Made)]
            for one in made:  # all of them, before the first is written: they refer to each other
                check(one.dataset)
            check_references([one.dataset for one in made], [image.source for image in result.images])
            rows.extend(self._write(case.case_id, one) for one in made)
        except (ObjectError, Rejected) as error:
            return Delivered(problem=f"no object: {error}")
        except OSError as error:  # of one name; a full disk ends the tables, too, and is said there
            return Delivered(tuple(rows), problem=f"no object: it cannot be written ({error.strerror})")
        unmade = [outcome for outcome in outcomes if isinstance(outcome, Unmade)]
        failed = [f"{one.kind}: {one.reason}" for one in unmade if one.failed]
        told = tuple((one.kind, one.reason) for one in unmade)
        return Delivered(tuple(rows), overlays, told, f"no object: {'; '.join(failed)}" if failed else "")

    def _write(self, case_id: str, made: Made) -> ObjectRow:
        dataset = made.dataset
        path = write_object(dataset, self.out, checked=True).relative_to(self.out).as_posix()
        return ObjectRow(made.kind, case_id, path, str(dataset.SOPInstanceUID), content_digest(dataset), made.sources)

    def _case_result(self, case: CaseOfResults) -> CaseResult | None:
        """The case as objects take it, of its images that are DICOM; None where none is."""
        wanted = case.results if ALL_IMAGES & set(self.kinds) else case.keys
        found = [result for result in _once(wanted) if result.file.format == "dicom" and result.prepared is not None]
        if not found:
            return None
        places = {_identity(result): place for place, result in enumerate(case.keys, start=1)}
        with_pixels = {_identity(result): result for result in case.keys}
        sources = {location: read_source(location) for location in {result.file.location for result in found}}
        texts, facts = self.profile.texts, self.facts
        first = case.keys[0].prepared
        assert first is not None
        return CaseResult(
            findings=case.findings,
            shown=facts.classes[case.shown],
            said=said(case.findings, texts, 3),
            content=case.content,
            method=method_words(facts),
            unit=evidence_unit(facts),
            scale=facts.heatmap_scale,
            notes=self._notes(case),
            cell=cell_text(first, self.geometry),
            made_how=self._made_how(case, first),
            algorithm=self.algorithm,
            configuration_digest=self.configuration_digest,
            profile=self.profile,
            created=datetime.datetime.now().astimezone(),
            images=tuple(
                ResultImage(
                    source=sources[result.file.location],
                    frame=result.file.frame,
                    evidence_of=partial(source_evidence, result, case.shown, facts, self.geometry),
                    picture_of=partial(self._picture, case, with_pixels.get(_identity(result), result), places),
                    probability=float(result.probabilities[case.shown]) if result.probabilities is not None else 0.0,
                    key=places.get(_identity(result), 0),
                )
                for result in found
            ),
        )

    def _picture(
        self, case: CaseOfResults, result: ImageResult, places: dict[tuple[str, int], int]
    ) -> NDArray[np.uint8]:
        prepared, texts = result.prepared, self.profile.texts
        assert prepared is not None
        gray = prepared.shown if prepared.shown is not None else self._gray_again(result.file)
        legend = Legend(
            label=texts.evidence.format(name=self.facts.classes[case.shown]),
            scale=self.facts.heatmap_scale,
            unit=evidence_unit(self.facts, texts.units),
            cell=self._cell(prepared),
        )
        place = places.get(_identity(result), 0)
        lines = panel_lines(
            case.findings, result, place, len(case.keys), len(case.results), case.shown, self.facts, self.profile
        )
        evidence = source_evidence(result, case.shown, self.facts, self.geometry)
        return picture(gray, evidence, legend, lines, self._notes(case), self.profile)

    def _gray_again(self, file: ImageFile) -> NDArray[np.uint8]:
        """The frame as it is shown, of an image whose pixels were not kept: only key images' are."""
        settings = self.facts.preprocessing
        return shown_gray(read_image(file, color=settings.color == "rgb"), settings)

    def _notes(self, case: CaseOfResults) -> tuple[str, ...]:
        notice = self.profile.texts.notices.get(self.facts.notice, self.facts.notice)
        return tuple(text for text in (case.out_of_scope, notice) if text)

    def _made_how(self, case: CaseOfResults, prepared: Prepared) -> tuple[str, ...]:
        texts, facts = self.profile.texts, self.facts
        evidence = texts.evidence.format(name=facts.classes[case.shown])
        made = f"{evidence}: {method_words(facts, texts.methods)}; {evidence_unit(facts, texts.units)}"
        return made, self._cell(prepared)

    def _cell(self, prepared: Prepared) -> str:
        return self.profile.texts.cell.format(size=cell_text(prepared, self.geometry, self.profile.texts))

    def _overlays(self, case: CaseOfResults) -> int:
        """A PNG for each key image that is no DICOM; how many."""
        places = {_identity(result): place for place, result in enumerate(case.keys, start=1)}
        others = [result for result in case.keys if result.file.format != "dicom"]
        for result in others:
            file = result.file
            content = io.BytesIO()
            Image.fromarray(self._picture(case, result, places)).save(content, format="PNG")
            suffix = f".frame-{file.frame + 1}.png" if file.frame else ".png"
            write_whole(
                self.out / OVERLAYS_FOLDER / safe_name(file.source) / f"{file.path}{suffix}", content.getvalue()
            )
        return len(others)


@dataclass(frozen=True)
class Through:
    """A case that is through, without its pixels."""

    case_id: str
    results: tuple[ImageResult, ...]
    delivered: Delivered


def delivered_each(cases: Iterable[CaseOfResults], delivery: Delivery, pool: WorkerPool) -> Iterator[Through]:
    """Each case with what became of it, in order."""
    if not delivery.kinds:
        yield from (Through(case.case_id, case.results, Delivered()) for case in cases)
        return
    with closing(pool.run_each(delivery, cases, chunk=CASES_A_TURN)) as outcomes:
        for case, outcome in outcomes:
            if isinstance(outcome, Failure):
                outcome = Delivered(problem=f"no object: {outcome.reason}: {outcome.detail}")
            yield Through(case.case_id, case.results, outcome)


def safe_name(source: str) -> str:
    """A source's name as one folder's name: a manifest may name a source by a path that leads anywhere."""
    return re.sub(r"[^\w.-]+", "_", source).strip("._") or "source"


def _identity(result: ImageResult) -> tuple[str, int]:
    """Of a frame, whatever its file is called."""
    return (result.prepared.digest if result.prepared else "", result.file.frame)


def _once(results: Iterable[ImageResult]) -> Iterator[ImageResult]:
    """Each predicted frame once, though its file was exported twice."""
    seen: set[tuple[str, int]] = set()
    for result in results:
        if result.probabilities is not None and _identity(result) not in seen:
            seen.add(_identity(result))
            yield result
