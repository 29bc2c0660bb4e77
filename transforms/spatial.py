"""Resizing that can be undone: MONAI transforms whose MetaTensor affine maps each output pixel to its place in the source.

Axes: (channels, rows, columns); an affine works on (row, column) indices of pixel centres. `stretch` changes the aspect,
`fit` keeps it and pads, `crop` keeps it and cuts the longer side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCropd, MapTransform, Resized, SpatialPadd
from numpy.typing import NDArray

ResizeMode = Literal["stretch", "fit", "crop"]

EDGE_TOLERANCE = 1e-6
"""Input pixels: the inverse of an affine places a source pixel on the input's very edge only to rounding."""


def resize_chain(keys: KeysCollection, size: int, mode: ResizeMode) -> list[MapTransform]:
    """Transforms that bring an image to (size, size): bilinear, anti-aliased where it shrinks, padded with 0."""
    if mode == "stretch":
        return [Resized(keys, (size, size), mode="bilinear", anti_aliasing=True)]
    if mode == "fit":
        return [SideResized(keys, size, max), SpatialPadd(keys, (size, size), value=0.0)]
    return [SideResized(keys, size, min), CenterSpatialCropd(keys, (size, size))]


class SideResized(Resized):
    """Resizes so that the longer (`which=max`) or shorter (`min`) side has `size` pixels; invertible as Resized is.

    MONAI's `size_mode` knows only the longest, and lets the other side of a very narrow image become 0.
    """

    def __init__(self, keys: KeysCollection, size: int, which: Callable[[Iterable[int]], int]) -> None:
        super().__init__(keys, (size, size), mode="bilinear", anti_aliasing=True)
        self.size, self.which = size, which

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            sides = result[key].shape[-2:]
            factor = self.size / self.which(sides)
            # MONAI's inverse wants the very transform that was applied, so the size changes and not the object.
            self.resizer.spatial_size = tuple(max(1, round(side * factor)) for side in sides)
            result[key] = self.resizer(result[key], lazy=lazy)
        return result


def index_affine(image: MetaTensor) -> NDArray[np.float64]:
    """(2, 3) affine from (row, column) of `image` to (row, column) of the source, both in pixel centres."""
    affine = np.asarray(image.affine, dtype=np.float64)
    return np.concatenate([affine[:2, :2], affine[:2, -1:]], axis=1)


def map_back(
    cells: torch.Tensor,
    affine: NDArray[np.float64],
    source_shape: tuple[int, int],
    input_shape: tuple[int, int],
    cell_stride: float,
    cell_offset: float,
) -> NDArray[np.float32]:
    """Feature-map values (rows, columns of cells) as a map over the source image (rows, columns), in one bilinear step.

    Cell (i, j) is centred on input pixel (offset + stride·i, offset + stride·j): where the network looks. `affine` (2, 3)
    takes input pixels to source pixels, so its inverse takes each source pixel to its place among the cells. Beyond the
    outermost centres the outermost value holds. What lies outside the input (cropped away) is 0: the network never saw it.
    """
    rows, columns = np.meshgrid(
        *(np.arange(side, dtype=np.float64) for side in source_shape), indexing="ij", sparse=True
    )
    inverse = np.linalg.inv(affine[:, :2])
    rows, columns = rows - affine[0, 2], columns - affine[1, 2]
    in_input = [inverse[axis, 0] * rows + inverse[axis, 1] * columns for axis in (0, 1)]
    grid = [
        torch.from_numpy((2.0 * (place - cell_offset) / cell_stride / max(count - 1, 1) - 1.0).astype(np.float32))
        for place, count in zip(in_input, cells.shape, strict=True)
    ]
    where = torch.stack([grid[1], grid[0]], dim=-1)[
        None
    ]  # grid_sample wants (x, y); -1 and 1 are the outermost cell centres
    sampled = torch.nn.functional.grid_sample(
        cells.detach().to("cpu", torch.float32)[None, None],
        where,
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    seen = np.ones(source_shape, dtype=bool)
    for place, side in zip(in_input, input_shape, strict=True):
        seen &= (place >= -0.5 - EDGE_TOLERANCE) & (place <= side - 0.5 + EDGE_TOLERANCE)
    return np.where(seen, sampled[0, 0].numpy(), np.float32(0.0))
