"""Cropping to what counts, the body or the lungs, as a MONAI transform whose affine leads back to the source's pixels.

It goes after `UnitRanged` and before `Scaled`: then margins, table and air count in no statistic, and in no size. Where the region
is, `transforms.anatomy_search` says.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, get_args

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, convert_to_tensor

from transforms.anatomy_search import Box, Region, find_region
from transforms.carry import numbers_of

MARGINS: Mapping[Region, float] = {"body": 0.0, "lungs": 0.02}
"""Of the region's sides, on each side of it: beyond lungs is the chest wall, beyond the body only air, or a frame."""


class RegionCropped(MapTransform, InvertibleTransform):
    """(k, rows, columns) in 0-1 → the box of the body or of both lungs, with a margin (`MARGINS`); `inverse` puts it back among zeros.

    Meta "region" then says what was found: without lungs the body, without a body the whole "image"; "cropped_at" is its first
    pixel. "padding" is cropped with it, and "aspect" (height of a pixel / width of a pixel) tells the search the proportions.
    """

    def __init__(
        self, keys: KeysCollection, region: Region, margin: float | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        margin = MARGINS.get(region, 0.0) if margin is None else margin
        if region not in get_args(Region) or not 0 <= margin < 1:
            raise ValueError(
                f"expected region body or lungs and a margin from 0 to below 1, found {region!r} and {margin!r}"
            )
        self.region, self.margin = region, margin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = convert_to_tensor(result[key], track_meta=get_track_meta())
            if image.ndim != 3 or 0 in image.shape:
                raise ValueError(f"expected an image (channels, rows, columns), found shape {tuple(image.shape)}")
            aspect = float(image.meta.get("aspect", 1.0)) if isinstance(image, MetaTensor) else 1.0
            found, box = find_region(numbers_of(image).mean(axis=0), self.region, aspect, self.margin)
            result[key] = self._cropped(image, found, box)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            done = self.pop_transform(result[key])
            box = Box(*done[TraceKeys.EXTRA_INFO]["box"])
            image = result[key]
            whole = image.as_tensor().new_zeros((len(image), *map(int, done[TraceKeys.ORIG_SIZE])))
            whole[:, box.row : box.row_end, box.column : box.column_end] = image.as_tensor()
            with self.trace_transform(False):
                result[key] = self._tracked(image, whole, (-box.row, -box.column), None)
            for name in ("region", "cropped_at"):
                result[key].meta.pop(name, None)
        return result

    def _cropped(self, image: torch.Tensor, found: str, box: Box) -> torch.Tensor:
        rows, columns = slice(box.row, box.row_end), slice(box.column, box.column_end)
        if not isinstance(image, MetaTensor):
            return image[:, rows, columns].clone()
        part = image.as_tensor()[:, rows, columns].contiguous()
        tracked = self._tracked(image, part, (box.row, box.column), {"box": tuple(box)})
        tracked.meta["region"] = found
        tracked.meta["cropped_at"] = (box.row, box.column)
        if image.meta.get("padding") is not None:
            tracked.meta["padding"] = np.ascontiguousarray(image.meta["padding"][rows, columns])
        return tracked

    def _tracked(
        self, image: MetaTensor, values: torch.Tensor, start: tuple[int, int], extra: dict[str, Any] | None
    ) -> MetaTensor:
        """`values` with the image's meta, their first pixel at `start` of it; without its padding, which has its shape."""
        matrix = np.eye(4)
        matrix[:2, 3] = start
        meta = self.track_transform_meta(
            image,
            sp_size=values.shape[1:],
            affine=matrix,
            orig_size=tuple(image.shape[1:]),
            extra_info=extra,
            transform_info=self.get_transform_info(),
        )
        tracked: MetaTensor = MetaTensor(values).copy_meta_from(meta)
        tracked.meta.pop("padding", None)
        return tracked
