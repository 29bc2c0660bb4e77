"""Deterministic filters on prepared images, as a MONAI dictionary transform: (channels, rows, columns) in 0-1 → the same.

Each channel by itself, in this order: median, Gaussian (against noise), removal of low and of high spatial frequencies, contrast
(CLAHE). Frequencies are cycles a pixel, 0.5 the highest there is. Beyond its edge an image goes on with its outermost values or as in a
mirror, so that no filter darkens the border (MONAI's GaussianSmoothd does, by half: outside is 0 there). MetaTensors keep their affine
and meta: no filter moves a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from numpy.typing import NDArray
from scipy import fft, ndimage

from transforms.carry import numbers_of, with_values

Channel = NDArray[np.float32]  # (rows, columns)

BUTTERWORTH_ORDER = 2
"""Of the mask 1 / (1 + (f / cut-off)^(2 · order)): half goes through at the cut-off, 94 % an octave on the kept side, 6 % on the other. A
step overshoots by 3.4 % of its height; an ideal mask by 9 %, and rings over the whole image."""

HIGHEST_FREQUENCY = 0.5
"""Cycles a pixel: two pixels are needed to tell a wave from none."""

CLAHE_TILES = 8
"""On a side."""
CLAHE_BINS = 256
"""Of a tile's histogram. Within a bin the curve is a straight line, so that values stay as fine as they are. Not OpenCV's CLAHE on
16-bit levels: there a bin has far less than one pixel, and the clip limit, rounded up to one, does nothing (the same from 1 to 100)."""


def enhance_transforms(
    keys: KeysCollection,
    *,
    median: int | None = None,
    gaussian: float | None = None,
    remove_low: float | None = None,
    remove_high: float | None = None,
    clahe: float | None = None,
) -> list[Transform]:
    """A transform for each filter that is not None, in the order of the arguments, which mean what the functions below say.

    Raises ValueError for an even median, for any of the others that is not above 0, and for frequencies from 0.5 on.
    """
    _check(median, {"gaussian": gaussian, "remove_low": remove_low, "remove_high": remove_high, "clahe": clahe})
    filters: list[Callable[[Channel], NDArray[Any]]] = []
    if median is not None:
        filters.append(partial(without_speckle, side=median))
    if gaussian is not None:
        filters.append(partial(smoothed, deviation=gaussian))
    if remove_low is not None or remove_high is not None:
        filters.append(partial(without_frequencies, low=remove_low, high=remove_high))
    if clahe is not None:
        filters.append(partial(contrast_equalized, clip_limit=clahe))
    return [ChannelFilterd(keys, each) for each in filters]


def _check(median: int | None, others: Mapping[str, float | None]) -> None:
    if median is not None and (median < 1 or median % 2 == 0):
        raise ValueError(f"median: expected an odd number of pixels, found {median}")
    for name, value in others.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name}: expected a number above 0, found {value}")
        if value is not None and name in ("remove_low", "remove_high") and value >= HIGHEST_FREQUENCY:
            raise ValueError(f"{name}: expected cycles a pixel below {HIGHEST_FREQUENCY}, found {value}")


class ChannelFilterd(MapTransform):
    """`each` on every channel, the result clipped to 0-1."""

    def __init__(
        self, keys: KeysCollection, each: Callable[[Channel], NDArray[Any]], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.each = each

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key] if isinstance(result[key], torch.Tensor) else torch.as_tensor(result[key])
            channels = np.stack([self.each(channel) for channel in numbers_of(image)])
            values = np.clip(channels, 0.0, 1.0).astype(np.float32, copy=False)
            result[key] = with_values(image, torch.from_numpy(values).to(image.device))
        return result


def without_speckle(channel: Channel, side: int) -> Channel:
    """The median of side × side pixels (side odd): the values of MONAI's MedianSmoothd, in memory that does not grow with the side."""
    return ndimage.median_filter(channel, side, mode="nearest")


def smoothed(channel: Channel, deviation: float) -> Channel:
    """A Gaussian filter of this standard deviation, in pixels."""
    return ndimage.gaussian_filter(channel, deviation, mode="nearest")


def without_frequencies(channel: Channel, low: float | None = None, high: float | None = None) -> Channel:
    """Without the spatial frequencies below `low` and above `high`, in cycles a pixel; the mean, frequency 0, stays.

    By the cosine transform, which is the Fourier transform of the image and its mirror images: left edge never meets right one.
    """
    rows, columns = (np.arange(side) / (2.0 * side) for side in channel.shape)
    squared = np.square(rows)[:, None] + np.square(columns)
    passed = np.ones(channel.shape)
    if low is not None:
        passed -= 1.0 / (1.0 + (squared / low**2) ** BUTTERWORTH_ORDER)
    if high is not None:
        passed *= 1.0 / (1.0 + (squared / high**2) ** BUTTERWORTH_ORDER)
    passed[0, 0] = 1.0
    return fft.idctn(fft.dctn(channel) * passed.astype(np.float32))


def contrast_equalized(channel: Channel, clip_limit: float) -> Channel:
    """Contrast-limited adaptive histogram equalization (Zuiderveld, Graphics Gems IV, 1994) of values in 0-1.

    Each tile's values go through the cumulated histogram of the tile, in which no bin counts more than `clip_limit` times the mean
    bin; the rest is spread over all. Between the centres of tiles their four curves are mixed. 0 stays 0, and 1 stays 1.
    """
    curves = _tile_curves(channel, clip_limit)
    levels = np.clip(channel, 0.0, 1.0) * np.float32(CLAHE_BINS)
    bins = np.minimum(levels.astype(np.int64), CLAHE_BINS - 1)
    within = levels - bins
    result = np.zeros(channel.shape, np.float32)
    (upper, lower), (left, right) = (_neighbours(side) for side in channel.shape)
    for row, row_weight in (upper, lower):
        for column, column_weight in (left, right):
            at = (row[:, None] * CLAHE_TILES + column) * (CLAHE_BINS + 1) + bins
            low, high = curves.take(at), curves.take(at + 1)
            result += (row_weight[:, None] * column_weight) * (low + (high - low) * within)
    return result


def _tile_curves(channel: Channel, clip_limit: float) -> Channel:
    """(tiles · tiles · (bins + 1),) cumulated histograms, from 0 to 1 at the bins' edges."""
    side = [-(-length // CLAHE_TILES) for length in channel.shape]
    spare = [(0, CLAHE_TILES * tile - length) for tile, length in zip(side, channel.shape, strict=True)]
    values = np.clip(np.pad(channel, spare, mode="symmetric"), 0.0, 1.0)
    bins = np.minimum((values * np.float32(CLAHE_BINS)).astype(np.int64), CLAHE_BINS - 1)
    tile = (np.arange(len(bins)) // side[0])[:, None] * CLAHE_TILES + np.arange(bins.shape[1]) // side[1]
    tiles = CLAHE_TILES**2
    counts = np.bincount((tile * CLAHE_BINS + bins).ravel(), minlength=tiles * CLAHE_BINS).reshape(tiles, CLAHE_BINS)
    shares = counts / float(side[0] * side[1])
    clipped = np.minimum(shares, clip_limit / CLAHE_BINS)
    clipped += (1.0 - clipped.sum(axis=1, keepdims=True)) / CLAHE_BINS
    edges = np.zeros((tiles, CLAHE_BINS + 1), np.float32)
    np.cumsum(clipped, axis=1, out=edges[:, 1:])
    return edges.ravel()


def _neighbours(length: int) -> tuple[tuple[NDArray[np.int64], Channel], tuple[NDArray[np.int64], Channel]]:
    """Of each pixel along a side: the tile whose centre is before it and that tile's weight, and the same of the one after."""
    place = (np.arange(length) + 0.5) / -(-length // CLAHE_TILES) - 0.5
    first = np.floor(place).astype(np.int64)
    weight = (place - first).astype(np.float32)
    last = CLAHE_TILES - 1
    return (np.clip(first, 0, last), 1 - weight), (np.clip(first + 1, 0, last), weight)
