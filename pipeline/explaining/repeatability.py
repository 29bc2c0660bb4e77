"""Repeatability: an image a little shifted or turned is the same image, so its heatmap, moved back, should be the same map.

What is changed is the prepared image, borders going on as they end. The map of the changed image is carried back onto the pixels of
the image as it was by the way that carries maps to source pixels, and compared where both images show something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from pipeline.explaining.likeness import Affine, FloatImage, cell_centres, in_pixels, rank_correlation
from pipeline.explaining.probes import Cells, Levels, Probe, maps_of
from pipeline.prediction.predict import TrainedModel

SHIFT = 0.04
"""Of the image's side, but half a feature cell at least: a map that stayed where it was would otherwise pass for one that moved along."""
TURN_DEGREES = 5.0


@dataclass(frozen=True)
class Change:
    """`affine` (2, 3) leads from pixels of the changed image to those of the image as it was."""

    name: str
    affine: Affine

    def __call__(self, levels: Levels) -> Levels:
        """(n, k, rows, columns), each image changed."""
        changed = np.empty_like(levels)
        for place in np.ndindex(levels.shape[:2]):
            plane = levels[place].astype(np.float64)
            moved = affine_transform(plane, self.affine[:, :2], self.affine[:, 2], order=1, mode="nearest")
            changed[place] = np.rint(moved).astype(levels.dtype)
        return changed


@dataclass(frozen=True)
class Repeated:
    """Of one change (images,): rank correlation of cells, and what it would be had the map stayed in place; between the peaks the distance
    in cells and in source pixels, NaN where the image has no evidence; by how much the probability changed. `example`: each image's map,
    moved back."""

    name: str
    rank_correlation: NDArray[np.float64]
    had_it_stayed: NDArray[np.float64]
    peak_cells: NDArray[np.float64]
    peak_source_pixels: NDArray[np.float64]
    probability_change: NDArray[np.float64]
    example: list[FloatImage]


def changes(size: int, cell_stride: float) -> list[Change]:
    """Shifts to four sides and turns both ways, about the middle."""
    shift, middle = max(1, round(SHIFT * size), round(cell_stride / 2)), (size - 1) / 2
    made = []
    for name, rows, columns in (("up", 1, 0), ("down", -1, 0), ("left", 0, 1), ("right", 0, -1)):
        made.append(Change(f"{shift} pixels {name}", np.array([[1.0, 0, rows * shift], [0, 1.0, columns * shift]])))
    for sign, name in ((1, "left"), (-1, "right")):
        angle = np.deg2rad(sign * TURN_DEGREES)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        offset = middle - turn @ np.array([middle, middle])
        made.append(Change(f"turned {TURN_DEGREES:g}° to the {name}", np.column_stack([turn, offset])))
    return made


def repeated(
    model: TrainedModel,
    probes: Sequence[Probe],
    original: Sequence[Cells],
    probabilities: Sequence[float],
    change: Change,
) -> Repeated:
    """What one change does to every image's map."""
    geometry, size = model.geometry, model.facts.preprocessing.size
    cells, after = maps_of(model, probes, change)
    seen = in_pixels(np.ones_like(original[0]), geometry, size, change.affine) > 0
    rows, columns = (cell_centres(geometry, count, size) for count in original[0].shape)
    centres = np.ix_(rows, columns)
    rank, stayed, in_cells, in_source, moved_back = [], [], [], [], []
    for probe, first, second in zip(probes, original, cells, strict=True):
        plain, moved = in_pixels(first, geometry, size), in_pixels(second, geometry, size, change.affine)
        unmoved, both = in_pixels(first, geometry, size, change.affine), seen[centres]
        rank.append(rank_correlation(plain[centres][both], moved[centres][both]))
        stayed.append(rank_correlation(plain[centres][both], unmoved[centres][both]))
        away = peak_distance(np.where(seen, plain, -np.inf), np.where(seen, moved, -np.inf))
        in_cells.append(float(np.hypot(*away)) / geometry.cell_stride)
        in_source.append(float(np.hypot(*(probe.prepared.affine[:, :2] @ away))))
        moved_back.append(moved)
    return Repeated(
        change.name,
        np.array(rank),
        np.array(stayed),
        np.array(in_cells),
        np.array(in_source),
        np.abs(np.array(after) - np.array(probabilities)),
        moved_back,
    )


def peak_distance(first: FloatImage, second: FloatImage) -> NDArray[np.float64]:
    """(2,) rows and columns from the peak of one map to that of the other; NaN where one has nothing above 0."""
    if not (first.max() > 0 and second.max() > 0):
        return np.full(2, np.nan)
    peaks = [np.array(np.unravel_index(one.argmax(), one.shape), dtype=np.float64) for one in (first, second)]
    return np.asarray(peaks[1] - peaks[0])
