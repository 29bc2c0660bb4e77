"""What people see of an image: the frame with its evidence over it at its own resolution, and below it what that means, in a site's words.

Texts are the profile's; a probability is never rounded to 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import pipeline
from pipeline.dicom.case_result import Finding
from pipeline.networks.cell_geometry import Geometry
from pipeline.prediction.explain import cell_sides, evidence_in_source
from pipeline.prediction.predict import ImageResult
from pipeline.prepared.dataset import Prepared
from pipeline.profile_settings import Profile, Texts
from pipeline.render import USUAL_TEXTS, Legend, result_picture
from pipeline.run import ModelFacts
from pipeline.wording import probability_text


def said(findings: Sequence[Finding], texts: Texts, digits: int) -> str:
    """What is called, in one line."""
    lines = [
        texts.prediction.format(name=finding.name, probability=probability_text(finding.probability, digits))
        for finding in findings
        if finding.called
    ]
    return "; ".join(lines) or texts.no_finding


def source_evidence(result: ImageResult, shown: int, facts: ModelFacts, geometry: Geometry) -> NDArray[np.float32]:
    """(rows, columns) of the source: the evidence for class `shown`."""
    if result.evidence is None or result.prepared is None:
        raise ValueError("evidence needs an image that was predicted")
    prepared = result.prepared
    return evidence_in_source(
        result.evidence[shown], geometry, prepared.affine, prepared.source_shape, facts.preprocessing.size
    )


def cell_text(prepared: Prepared, geometry: Geometry, texts: Texts = USUAL_TEXTS) -> str:
    """How much of the source one feature cell covers, in pixels and, where they have a size, in mm."""
    sides, spacing = cell_sides(geometry, prepared.affine), prepared.spacing_mm
    rows, columns = (f"{side:.0f}" for side in sides)
    size = (texts.cell_square if rows == columns else texts.cell_oblong).format(rows=rows, columns=columns)
    in_mm = [f"{side * step:.0f}" for side, step in zip(sides, spacing, strict=True)] if spacing else []
    return size + (f" ({' × '.join(dict.fromkeys(in_mm))} mm)" if in_mm else "")


def picture(
    gray: NDArray[np.uint8],
    evidence: NDArray[np.float32],
    legend: Legend,
    lines: Sequence[str],
    notes: Sequence[str],
    profile: Profile,
) -> NDArray[np.uint8]:
    """(rows, columns, 3): the image with its evidence at the top left, below it what the profile wants burned in, and always that
    this is for research only, and the `notes`."""
    return result_picture(
        gray.astype(np.float32) / np.float32(255.0),
        evidence,
        legend.scale,
        [*lines, profile.texts.research_only],
        legend if profile.burned_in.legend else None,
        notes,
        colors=profile.colors,
        texts=profile.texts,
    )


def panel_lines(
    findings: Sequence[Finding],
    result: ImageResult,
    place: int,
    keys: int,
    images: int,
    shown: int,
    facts: ModelFacts,
    profile: Profile,
) -> list[str]:
    """The lines below an image that is number `place` (from 1; 0: none) of the `keys` key images of a case of `images`."""
    texts, pooling = profile.texts, facts.network.pooling
    lines = []
    if profile.burned_in.prediction:
        lines.append(said(findings, texts, 2))
        if images > 1:
            pooled = {"mean": texts.images, "attention": texts.images_attention, "volume": texts.images_volume}
            parts = [pooled[pooling].format(count=images)]
            parts += [texts.key_image.format(place=place, count=keys)] if place else []
            line = "; ".join(parts)
            if pooling != "volume" and result.probabilities is not None:
                line += f", {facts.classes[shown]} {probability_text(float(result.probabilities[shown]), 2)}"
            lines.append(line)
    if profile.burned_in.model:
        lines.append(texts.model.format(name=facts.name, version=pipeline.__version__, digest=facts.digest[:12]))
    return lines
