"""Each image's values scaled by its own statistics, so that window, exposure and format count for less.

(channels, rows, columns) in 0-1 → the same; one scale for all channels. Padding, and what `RegionCropped` cut off, counts in no
statistic.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from transforms.anatomy_search import otsu
from transforms.carry import is_moved, numbers_of, with_values

FloatImage = NDArray[np.float32]  # (channels, rows, columns)
Scaling = Literal["none", "min_max", "percentile", "z_score", "tissue"]

Z_RANGE = 4.0
"""Standard deviations on either side of the mean that 0-1 holds after `z_score`: beyond lies less than 1 in 10,000 of a normal
distribution. So mean 0.5 and standard deviation 1 / (2 · Z_RANGE) give z back."""

DARK_PERCENTILE = 25.0
"""Of what is darker than the threshold: air-filled lung, as long as a quarter of it is that."""
DARK_LEVEL, BRIGHT_LEVEL = 0.25, 0.9
"""What it and the median of what is brighter, soft tissue, become. Brighter than that nothing is: whether bone stands out from soft tissue
is a matter of the window that a picture was saved with, and a network that saw bones lost 0.165 of AUROC under a lower window."""
SAMPLES = 65536
"""Of an image's values at most: more tell no threshold better."""

_NARROWEST = 1e-12  # of a range to scale by: a constant image becomes 0, and no quotient overflows float32


class Scaled(MapTransform):
    """Each image's values scaled by its own statistics over all channels; (channels, rows, columns) → the same in 0-1.

    min_max: minimum to 0, maximum to 1 (the CT report's recipe); percentile: the same by two percentiles; a constant image becomes
    0. z_score: clip(z, -Z_RANGE, Z_RANGE) / (2 · Z_RANGE) + 0.5. tissue: two groups of values are told apart by Otsu's threshold; the
    dark one's `DARK_PERCENTILE` becomes `DARK_LEVEL`, the median of the bright one and all above it `BRIGHT_LEVEL`, so that lung and soft
    tissue have their shades in any window. The meta's "padding" counts in no statistic and is 0 after.
    """

    def __init__(
        self,
        keys: KeysCollection,
        scaling: Scaling,
        percentiles: tuple[float, float] = (1, 99),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if scaling not in get_args(Scaling):
            raise ValueError(f"scaling: expected one of {', '.join(get_args(Scaling))}, found {scaling!r}")
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError(f"percentiles: expected two within 0-100, the lower first, found {tuple(percentiles)}")
        self.scaling, self.percentiles = scaling, tuple(percentiles)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if self.scaling == "none":
            return result
        for key in self.key_iterator(result):
            image = result[key] if isinstance(result[key], torch.Tensor) else torch.as_tensor(result[key])
            scaled = torch.from_numpy(self._scaled(numbers_of(image), _padding_of(image)))
            result[key] = with_values(image, scaled.to(image.device))
        return result

    def _scaled(self, values: FloatImage, padding: NDArray[np.bool_] | None) -> FloatImage:
        inside = values if padding is None else values[:, ~padding]
        if inside.size == 0:
            return np.zeros_like(values)
        offset, top = 0.0, 1.0
        if self.scaling == "z_score":
            origin, width, offset = inside.mean(dtype=np.float64), 2 * Z_RANGE * inside.std(dtype=np.float64), 0.5
        elif self.scaling == "tissue":
            dark, bright = two_levels(inside)
            origin, width, offset = dark, (bright - dark) / (BRIGHT_LEVEL - DARK_LEVEL), DARK_LEVEL
            top = BRIGHT_LEVEL
        else:
            low, high = (inside.min(), inside.max()) if self.scaling == "min_max" else self._ends(inside)
            origin, width = low, high - low
        scaled = (values - np.float32(origin)) / np.float32(max(width, _NARROWEST))
        if offset:
            scaled += np.float32(offset)
        np.clip(scaled, 0.0, top, out=scaled)
        if padding is not None:
            scaled[:, padding] = 0.0
        return scaled

    def _ends(self, inside: FloatImage) -> tuple[float, float]:
        low, high = np.percentile(inside, self.percentiles)
        return float(low), float(high)


def two_levels(values: FloatImage) -> tuple[float, float]:
    """The dark and the bright group's own level; twice the same of a constant image."""
    flat = values.ravel()
    sampled = flat[:: -(-flat.size // SAMPLES)]
    threshold = otsu(sampled)
    dark, bright = sampled[sampled <= threshold], sampled[sampled > threshold]
    low = float(np.percentile(dark, DARK_PERCENTILE))
    return low, float(np.median(bright)) if bright.size else low


def words_of_scaling(scaling: Scaling, percentiles: tuple[float, float]) -> str:
    """What `Scaled` does, for `describe_unit_range`; "" for none."""
    how = {
        "none": "",
        "min_max": "from the image's own minimum to its maximum",
        "percentile": f"from the image's own percentile {percentiles[0]:g} to {percentiles[1]:g}, clipped",
        "tissue": f"so that percentile {DARK_PERCENTILE:g} of what is darker than Otsu's threshold becomes {DARK_LEVEL:g} and the median "
        f"of what is brighter {BRIGHT_LEVEL:g}, clipped there",
        "z_score": f"to the image's own mean at 0.5, within {Z_RANGE:g} standard deviations on either side",
    }[scaling]
    return f"; then scaled {how}, over all channels, padding left out" if how else ""


def _padding_of(image: Any) -> NDArray[np.bool_] | None:
    padding = image.meta.get("padding") if isinstance(image, MetaTensor) else None
    if padding is None:
        return None
    if padding.shape != image.shape[-2:] or is_moved(image, image.meta.get("cropped_at", (0, 0))):
        raise ValueError(
            "Scaled needs the image as it was read or cropped by RegionCropped, where its padding is: it goes before what moves pixels"
        )
    return np.asarray(padding, dtype=bool)
