"""From a case's results to what a radiologist opens: a Secondary Capture for DICOM images, an overlay PNG for others.

One picture for each key image: the source image with its evidence over it at its own resolution, and below it the legend, the
prediction, the model and "research use only". Objects go into the source's study; their UIDs follow from source, model and settings.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import pipeline
from pipeline import RESEARCH_ONLY
from pipeline.config import Output, digest
from pipeline.dicom.derived import Algorithm, content_digest, write_object
from pipeline.dicom.secondary_capture import secondary_capture
from pipeline.dicom.source import read_source
from pipeline.errors import ObjectError, Rejected
from pipeline.files import write_whole
from pipeline.prediction.explain import cell_sides, evidence_in_source
from pipeline.prediction.predict import ImageResult, TrainedModel
from pipeline.prepared.dataset import Prepared
from pipeline.render import Legend, result_picture

OVERLAYS_FOLDER = "overlays"
POOLED = {
    "mean": "mean of {} images",
    "attention": "{} images, weighed by attention",
    "volume": "{} images as one volume",
}
"""How a case's images became its prediction, in the words of its pictures."""
DERIVATION = "Heatmap of the classifier's evidence (Grad-CAM of a linear head) over the source image"


@dataclass(frozen=True)
class Case:
    """A case as its objects tell of it. `findings`: what is called, with its probability; `shown`: the class whose evidence is drawn;
    `content`: digest of all its images; `out_of_scope`: why, or ''.
    """

    case_id: str
    findings: tuple[tuple[str, float], ...]
    shown: int
    images: int
    content: str
    out_of_scope: str

    def said(self, digits: int) -> str:
        """The findings in one line."""
        if not self.findings:
            return "no finding reaches its threshold"
        return "; ".join(f"{name}, probability {probability:.{digits}f}" for name, probability in self.findings)


@dataclass
class Delivery:
    """Writes to `out` and remembers what it wrote: rows of `objects.csv` and `references.csv`, and overlays."""

    out: Path
    model: TrainedModel
    settings: Output
    objects: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    references: list[tuple[str, str]] = field(default_factory=list)
    overlays: int = 0
    _written: dict[str, str] = field(default_factory=dict)

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm("radloop", pipeline.__version__, self.model.facts.name, self.model.facts.digest)

    def deliver(self, case: Case, key_images: Sequence[ImageResult]) -> str:
        """Writes one picture for each key image; returns why one could not be written, or ''."""
        problem = ""
        for place, result in enumerate(key_images, start=1):
            try:
                picture = self._picture(case, result, place, len(key_images))
                if result.file.format == "dicom":
                    self._secondary_capture(case, result, picture)
                else:
                    self._overlay(result, picture)
            except (ObjectError, Rejected) as error:
                problem = f"no object: {error}"
            except OSError as error:  # of one name; a full disk ends the tables, too, and is said there
                problem = f"no object: it cannot be written ({error.strerror})"
        return problem

    def _picture(self, case: Case, result: ImageResult, place: int, key_images: int) -> NDArray[np.uint8]:
        prepared, facts = result.prepared, self.model.facts
        if prepared is None or prepared.shown is None or result.evidence is None or result.probabilities is None:
            raise ValueError("a picture needs a predicted image whose pixels were kept")
        evidence = evidence_in_source(
            result.evidence[case.shown],
            self.model.geometry,
            prepared.affine,
            prepared.source_shape,
            facts.preprocessing.size,
        )
        own = f", {facts.classes[case.shown]} {result.probabilities[case.shown]:.2f}"
        pooling = facts.network.pooling
        lines = [case.said(2)]
        if case.images > 1:
            what = POOLED[pooling].format(case.images)
            lines.append(f"{what}; this one is key image {place} of {key_images}{'' if pooling == 'volume' else own}")
        lines += [f"model {facts.name}, radloop {pipeline.__version__}, {facts.digest[:12]}", RESEARCH_ONLY]
        warnings = [text for text in (case.out_of_scope, facts.notice) if text]
        return result_picture(
            prepared.shown.astype(np.float32) / 255.0,
            evidence,
            facts.heatmap_scale,
            lines,
            self._legend(case, prepared),
            warnings,
        )

    def _legend(self, case: Case, prepared: Prepared) -> Legend:
        facts = self.model.facts
        sides, spacing = cell_sides(self.model.geometry, prepared.affine), prepared.spacing_mm
        rows, columns = (f"{side:.0f}" for side in sides)
        size = f"{columns} pixels wide" if rows == columns else f"{rows} rows high and {columns} columns wide"
        in_mm = [f"{side * step:.0f}" for side, step in zip(sides, spacing, strict=True)] if spacing else []
        told = f" ({' × '.join(dict.fromkeys(in_mm))} mm)" if in_mm else ""
        return Legend(
            label=f"evidence for {facts.classes[case.shown]}",
            scale=facts.heatmap_scale,
            unit="logit" if facts.several else "logit margin" if len(facts.classes) == 2 else "centred logit",
            cell=f"one feature cell is {size}{told}; finer detail is interpolation",
        )

    def _secondary_capture(self, case: Case, result: ImageResult, picture: NDArray[np.uint8]) -> None:
        facts, file = self.model.facts, result.file
        source = read_source(file.location)
        dataset = secondary_capture(
            source,
            file.frame,
            picture,
            algorithm=self.algorithm,
            source_digest=case.content,
            configuration_digest=digest(self.settings),
            series_number=self.settings.series_number,
            instance_number=_instance_number(source.get("InstanceNumber"), file.frame),
            series_description=f"radloop {facts.name} heatmap (research use only)",
            derivation=DERIVATION,
            image_comments=" ".join(text for text in (f"{case.said(3)}.", case.out_of_scope, facts.notice) if text),
            created=datetime.datetime.now().astimezone(),
        )
        uid = str(dataset.SOPInstanceUID)
        if uid not in self._written:  # a file that was exported twice has one object
            write_object(dataset, self.out)
            self._written[uid] = content_digest(dataset)
            self.references.append((uid, str(source.SOPInstanceUID)))
        self.objects.append(("sc", case.case_id, file.path, uid, self._written[uid]))

    def _overlay(self, result: ImageResult, picture: NDArray[np.uint8]) -> None:
        suffix = f".frame-{result.file.frame + 1}.png" if result.file.frame else ".png"
        content = io.BytesIO()
        Image.fromarray(picture).save(content, format="PNG")
        folder = self.out / OVERLAYS_FOLDER / safe_name(result.file.source)
        write_whole(folder / f"{result.file.path}{suffix}", content.getvalue())
        self.overlays += 1


def safe_name(source: str) -> str:
    """A source's name as one folder's name: a manifest may name a source by a path that leads anywhere."""
    return re.sub(r"[^\w.-]+", "_", source).strip("._") or "source"


def case_content(results: Sequence[ImageResult]) -> str:
    """Digest of a case: of its image's file, or of all its images' files and frames, whatever their names and order are."""
    parts = sorted({(result.prepared.digest, result.file.frame) for result in results if result.prepared})
    if len(parts) == 1:
        return parts[0][0]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _instance_number(of_source: object, frame: int) -> int:
    """The source's own number, so that pictures sort like their sources whatever else is given; frames follow it."""
    try:
        number = int(str(of_source))
    except ValueError:
        number = 1
    return number + frame if 0 < number + frame < 2**31 else 1
