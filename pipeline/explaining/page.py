"""The page of `radloop explain`: what each test asks, its figures and verdict, and pictures to judge by.

In: the plain values of explanation.json, and of a few images the maps behind them. Out: one self-contained HTML file. Pictures are the
image as the network was given it, at its size; maps lie on it where each cell looks.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.explaining.deletion import Deleted
from pipeline.explaining.likeness import FloatImage, in_pixels
from pipeline.explaining.probes import Cells, Probe
from pipeline.explaining.randomization import Stage
from pipeline.explaining.repeatability import Repeated
from pipeline.pages.report import page_environment
from pipeline.prediction.predict import TrainedModel
from pipeline.render import overlay
from transforms.levels import LEVELS

OWN_SCALE_PERCENTILE = 99.0
"""Of a shuffled network's map: its evidence has another size, so its colours have a scale of their own."""
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Shown:
    """The first images of each list are drawn, as many as there are `probes`."""

    probes: Sequence[Probe]
    maps: Sequence[Cells]
    stages: Sequence[Stage]
    repeats: Sequence[Repeated]
    deletion: Deleted | None


def explanation_page(record: Mapping[str, Any], shown: Shown, model: TrainedModel) -> str:
    """The page for what `explanation.json` holds."""
    geometry, size, scale = model.geometry, model.facts.preprocessing.size, model.facts.heatmap_scale
    rows: dict[str, list[list[str]]] = {"randomization": [], "repeatability": [], "deletion": []}
    for place, probe in enumerate(shown.probes):
        gray = gray_of(probe)
        image, drawn = _picture(gray, None, 1.0), _picture(gray, in_pixels(shown.maps[place], geometry, size), scale)
        shuffled = [in_pixels(stage.example[place], geometry, size) for stage in shown.stages]
        rows["randomization"].append([image, drawn, *(_picture(gray, one, _own_scale(one)) for one in shuffled)])
        rows["repeatability"].append([drawn, *(_picture(gray, one.example[place], scale) for one in shown.repeats)])
        if shown.deletion is not None:
            rows["deletion"].append([image, drawn, _picture(shown.deletion.example[place], None, 1.0)])
    return page_environment().get_template("explanation.html").render(
        record,
        rows=rows,
        stages=[stage.name for stage in shown.stages],
        moves=[one.name for one in shown.repeats],
    )  # fmt: skip


def gray_of(probe: Probe) -> FloatImage:
    """(size, size) 0-1: the image looked at, its windows or colours averaged."""
    levels: NDArray[np.float32] = probe.levels[probe.place].astype(np.float32)
    return np.asarray(levels.mean(axis=0) / np.float32(LEVELS), dtype=np.float32)


def _own_scale(evidence: FloatImage) -> float:
    above = evidence[evidence > 0]
    return float(np.percentile(above, OWN_SCALE_PERCENTILE)) if above.size else 1.0


def _picture(gray: FloatImage, evidence: FloatImage | None, scale: float) -> str:
    """A data URI."""
    content = BytesIO()
    Image.fromarray(overlay(gray, evidence, scale)).save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
