"""The slices of a case to a volume of fixed depth, and what a 3-D network says of the volume back to the slices.

Slices lie in the order of the case (`pipeline.cohort.cases` sorts them by position). They are resampled along that order by linear
interpolation whose triangle widens where the case has more slices than the volume, so that every slice counts: two neighbours alone
would leave out 252 of 300 slices at depth 24, and with them a nodule that three slices show. Slice i of n is centred on place
(i + 0.5) · depth / n - 0.5 of the volume, as pixels are where an image is resized. Memory does not grow with the number of slices.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.networks.cell_geometry import Geometry

CHUNK_BYTES = 32 * 2**20
"""Of slices as float32 that are in work at once: 160 of 224 x 224 pixels."""

Take = Callable[[NDArray[np.int64]], NDArray[np.uint16]]
"""Levels (m, k, rows, columns) of the slices at these places (m,) of the case."""


def resampled_volume(levels: NDArray[np.uint16], depth: int) -> NDArray[np.uint16]:
    """(n, k, rows, columns) levels of a case's slices in their order, to (k, depth, rows, columns) levels."""
    return resampled_slices(lambda places: levels[places], len(levels), depth)


def resampled_slices(take: Take, count: int, depth: int) -> NDArray[np.uint16]:
    """`resampled_volume` of `count` slices that `take` reads, a few at a time. ValueError where there are none."""
    if count < 1 or depth < 1:
        raise ValueError(f"expected a slice and a depth of 1 at least, found {count} slices and depth {depth}")
    first = take(np.zeros(1, dtype=np.int64))
    shape = first.shape[1:]
    chunk = max(1, CHUNK_BYTES // (4 * int(np.prod(shape))))
    volume = np.zeros((depth, int(np.prod(shape))), dtype=np.float32)
    for begin in range(0, count, chunk):
        places = np.arange(begin, min(begin + chunk, count))
        weights = _weights(places, count, depth)
        rows = np.flatnonzero(weights.any(axis=1))
        volume[rows] += weights[rows] @ take(places).reshape(len(places), -1).astype(np.float32)
    levels = np.rint(volume).astype(np.uint16)
    return np.ascontiguousarray(np.moveaxis(levels.reshape(depth, *shape), 0, 1))


def _weights(places: NDArray[np.int64], count: int, depth: int) -> NDArray[np.float32]:
    """(depth, m): what the slices at `places` (m,) of `count` give to each of the volume; those of all slices sum to 1.

    At either end, where the triangle reaches beyond the case, the slices that are there share its weight.
    """
    shrinking = count / depth
    centres = (np.arange(depth) + 0.5) * shrinking - 0.5
    reach = max(1.0, shrinking)
    total = np.zeros(depth)
    nearest = np.floor(centres).astype(np.int64)
    for step in range(-int(np.ceil(reach)), int(np.ceil(reach)) + 2):
        place = nearest + step
        total += np.where((place >= 0) & (place < count), _triangle(place - centres, reach), 0.0)
    return (_triangle(places[None, :] - centres[:, None], reach) / total[:, None]).astype(np.float32)


def _triangle(distance: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(distance) / reach), dtype=np.float64)


def slice_places(count: int, depth: int) -> NDArray[np.float64]:
    """(count,): where in a volume of `depth` slices the centre of each of a case's `count` slices lies."""
    return (np.arange(count, dtype=np.float64) + 0.5) * (depth / count) - 0.5


def evidence_on_slices(
    cells: NDArray[np.float32], count: int, depth: int, depth_geometry: Geometry
) -> NDArray[np.float32]:
    """Evidence (k, cell depth, cell rows, cell columns) of a volume of `depth` slices, on each of the case's `count`: (count, k, cell
    rows, cell columns).

    Cell i is centred on slice offset + stride · i of the volume; between two centres evidence is interpolated, and beyond the outermost
    the outermost holds, as `transforms.spatial.map_back` has it within a slice. That each slice is a map of cells, not of
    pixels, keeps a long series small.
    """
    last = cells.shape[1] - 1
    among = (slice_places(count, depth) - depth_geometry.cell_offset) / depth_geometry.cell_stride
    among = np.clip(among, 0.0, last)
    below = np.minimum(np.floor(among).astype(np.int64), max(last - 1, 0))
    share = (among - below).astype(np.float32)[:, None, None, None]
    by_depth = np.moveaxis(cells.astype(np.float32, copy=False), 1, 0)
    return np.asarray((1 - share) * by_depth[below] + share * by_depth[np.minimum(below + 1, last)])
