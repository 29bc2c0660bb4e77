"""What a number means: from modality values to 0-1, then to the network's statistics.

Order, as PS3.3 C.11 and C.7.6.3.1.2 have it: modality values → window or VOI LUT → inversion of MONOCHROME1 last. Images
in Hounsfield units go by named windows, the same for every scanner, one a channel; other DICOM images by a VOI of their own
header, or by percentiles where it has none; PNG, JPEG and colour images over the range of their type. Arrays are (rows,
columns), or (rows, columns, 3) where colour was asked for; tensors (channels, rows, columns). Padding never counts and is
black in the end. `transforms.voi`, `transforms.levels` and `transforms.scaling` are had from here too.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from transforms.carry import is_moved, numbers_of, with_values
from transforms.levels import LEVELS as LEVELS
from transforms.levels import from_levels as from_levels
from transforms.levels import to_levels as to_levels
from transforms.scaling import Z_RANGE as Z_RANGE
from transforms.scaling import Scaled as Scaled
from transforms.scaling import Scaling as Scaling
from transforms.scaling import words_of_scaling
from transforms.voi import WINDOWS as WINDOWS
from transforms.voi import Voi, VoiFunction, apply_voi

FloatImage = NDArray[np.float32]  # (rows, columns), or (rows, columns, 3)

FALLBACK_PERCENTILES = (0.5, 99.5)
"""Displayed range of an image that has no VOI of its own: leaves out collimator edges and burned-in markers."""


class PixelUnit(StrEnum):
    """What an image's values count."""

    HU = "HU"
    """Hounsfield units: a named window gives them the same meaning for every scanner."""
    MODALITY = "modality"
    """Output of a modality LUT without a common scale (CR, DX, MR, ...): the file's own VOI says how to show them."""
    FRACTION = "fraction"
    """Already 0-1 over the range of the type (PNG, JPEG, colour DICOM)."""


@dataclass(frozen=True)
class Pixels:
    """One decoded frame and what is needed to give its values a meaning.

    `values` (rows, columns) float32: modality values, never inverted; or (rows, columns, 3) RGB fractions where colour was asked
    for. `voi`: the file's own, the preferred first. `inverted`: MONOCHROME1. `padding` (rows, columns) bool: True where the
    scanner put no data, or None. `spacing_mm`: (between rows, between columns), or None where the header does not tell.
    `aspect`: height of a pixel / its width.
    """

    values: FloatImage
    unit: PixelUnit
    voi: tuple[Voi, ...] = ()
    inverted: bool = False
    padding: NDArray[np.bool_] | None = None
    spacing_mm: tuple[float, float] | None = None
    aspect: float = 1.0


def choose_voi(pixels: Pixels, voi: int | str) -> Voi:
    """The file's VOI of this number (from 0) or whose explanation holds this word, in any case; without such a one its first.

    A file that has none goes by `percentile_voi`.
    """
    if not pixels.voi:
        return percentile_voi(pixels)
    if isinstance(voi, int):
        return pixels.voi[voi] if 0 <= voi < len(pixels.voi) else pixels.voi[0]
    wanted = voi.strip().casefold()
    return next((own for own in pixels.voi if wanted and wanted in own.explanation.casefold()), pixels.voi[0])


def percentile_voi(pixels: Pixels) -> Voi:
    """The range between `FALLBACK_PERCENTILES` of the values that are not padding, or where these are one, from least to most.

    However small it is: units are the file's, and diffusion in m²/s is about 1e-9.
    """
    inside = pixels.values if pixels.padding is None else pixels.values[~pixels.padding]
    if inside.size == 0:
        return Voi(VoiFunction.LINEAR_EXACT)
    low, high = (float(end) for end in np.percentile(inside, FALLBACK_PERCENTILES))
    if low == high:
        low, high = float(inside.min()), float(inside.max())
    return Voi(VoiFunction.LINEAR_EXACT, center=(low + high) / 2, width=high - low if high > low else 1.0)


def to_unit_range(pixels: Pixels, window: Voi, *, voi: int | str = 0) -> FloatImage:
    """0 (black) to 1 (white) as a reader should see the image: `window` for HU, else the file's VOI, else percentiles.

    (rows, columns); (rows, columns, 3) of an RGB image. `voi` chooses among the file's own, as `choose_voi` says.
    """
    if pixels.unit is PixelUnit.FRACTION:
        shown = np.clip(pixels.values, 0.0, 1.0).astype(np.float32, copy=False)
    elif pixels.unit is PixelUnit.HU:
        shown = apply_voi(pixels.values, window)
    else:
        shown = apply_voi(pixels.values, choose_voi(pixels, voi))
    if pixels.inverted:
        np.subtract(np.float32(1.0), shown, out=shown)
    if pixels.padding is not None:
        shown[pixels.padding] = 0.0
    return shown


def unit_channels(pixels: Pixels, windows: Sequence[Voi], *, voi: int | str = 0) -> FloatImage:
    """(k, rows, columns) in 0-1: of an image in HU one channel a window; other gray images k times the same; RGB is 3 always."""
    if len(windows) == 0:
        raise ValueError("expected one window at least, found none")
    first = to_unit_range(pixels, windows[0], voi=voi)
    if first.ndim == 3:
        return np.ascontiguousarray(np.moveaxis(first, -1, 0))
    if len(windows) == 1:
        return first[None]
    if pixels.unit is PixelUnit.HU:
        return np.stack([first, *(to_unit_range(pixels, window) for window in windows[1:])])
    return np.repeat(first[None], len(windows), axis=0)


def describe_unit_range(
    windows: Voi | Sequence[Voi],
    *,
    voi: int | str = 0,
    color: Literal["gray", "rgb"] = "gray",
    scaling: Scaling = "none",
    percentiles: tuple[float, float] = (1, 99),
) -> dict[str, str]:
    """The path to 0-1 for each kind of input (`PixelUnit`), in words, for `model.json`."""
    ranges = [_words_of(window) for window in ([windows] if isinstance(windows, Voi) else windows)]
    in_hu = ranges[0] if len(ranges) == 1 else "; ".join(f"channel {n}: {words}" for n, words in enumerate(ranges, 1))
    which = "first VOI LUT or window"
    if voi != 0:
        number = f"VOI LUT or window number {voi}, from 0" if isinstance(voi, int) else f"VOI explained as {voi!r}"
        which = f"{number} (its first where it has no such one)"
    alike = "" if len(ranges) == 1 else "; every channel the same"
    colors = "colour in three channels, red, green, blue" if color == "rgb" else "colour by luma (ITU-R BT.601)"
    low, high = FALLBACK_PERCENTILES
    described = {
        PixelUnit.HU: f"modality values in HU, {in_hu}, clipped; padding black",
        PixelUnit.MODALITY: f"modality values through the file's {which} (PS3.3 C.11.2); where it has none, linear between "
        f"percentiles {low:g} and {high:g}; MONOCHROME1 inverted last; padding black{alike}",
        PixelUnit.FRACTION: f"stored values over the range of their type; {colors}, alpha ignored{alike}",
    }
    return {str(unit): words + words_of_scaling(scaling, percentiles) for unit, words in described.items()}


def _words_of(window: Voi) -> str:
    low, high = window.center - window.width / 2, window.center + window.width / 2
    return f"linear from {low:g} to {high:g} HU (PS3.3 C.11.2.1.2)"


def to_metatensor(pixels: Pixels) -> MetaTensor:
    """A MetaTensor (1 or 3, rows, columns) whose meta carries the `Pixels`.

    Its affine maps array indices to source pixels (identity). The tensor shares the memory of gray values.
    """
    values = pixels.values[None] if pixels.values.ndim == 2 else np.moveaxis(pixels.values, -1, 0)
    image = MetaTensor(torch.from_numpy(np.ascontiguousarray(values)), affine=torch.eye(4))
    image.meta["pixels"] = pixels  # not by the constructor, which would copy it deep
    return image


class UnitRanged(MapTransform):
    """`unit_channels` as a dictionary transform, for tensors made by `to_metatensor` or radloop's readers.

    (1 or 3, rows, columns) → (k, rows, columns) in 0-1. Its meta has "aspect" and, where there is some, "padding" (rows, columns),
    in place of "pixels". It goes before whatever moves pixels: ValueError else.
    """

    def __init__(
        self,
        keys: KeysCollection,
        windows: Voi | Sequence[Voi],
        *,
        voi: int | str = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.windows = (windows,) if isinstance(windows, Voi) else tuple(windows)
        if not self.windows or not all(isinstance(window, Voi) for window in self.windows):
            raise ValueError(f"windows: expected a Voi or several, such as WINDOWS['lung'], found {windows!r}")
        self.voi = voi

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            pixels = _pixels_of(image)
            shown = with_values(image, torch.from_numpy(unit_channels(pixels, self.windows, voi=self.voi)))
            del shown.meta["pixels"]
            shown.meta["aspect"] = pixels.aspect
            if pixels.padding is not None:  # no None: DataLoader cannot collate it
                shown.meta["padding"] = pixels.padding
            result[key] = shown
        return result


def _pixels_of(image: Any) -> Pixels:
    """What the meta carries, with the tensor's own values: an intensity transform may have changed them."""
    carried = image.meta.get("pixels") if isinstance(image, MetaTensor) else None
    if carried is None:
        raise ValueError("UnitRanged needs a MetaTensor made by to_metatensor: its meta has no 'pixels'")
    pixels: Pixels = carried.item() if isinstance(carried, np.ndarray) else carried
    values = numbers_of(image)
    channels = 1 if pixels.values.ndim == 2 else 3
    expected = (channels, *pixels.values.shape[:2])
    if values.shape != expected or is_moved(image):
        raise ValueError(
            f"UnitRanged needs the image as it was read, {expected} on the affine of its reader, found {values.shape}"
            f"{' on another' if is_moved(image) else ''}: it goes before what moves pixels"
        )
    return replace(pixels, values=values[0] if channels == 1 else np.moveaxis(values, 0, -1))


class Standardized(MapTransform):
    """(x - mean) / std channel by channel; a gray image is repeated over the channels first."""

    def __init__(
        self, keys: KeysCollection, mean: Sequence[float], std: Sequence[float], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError("mean and std need one entry a channel, std above 0")
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            channels = len(self.mean)
            if len(image) not in (1, channels):
                raise ValueError(f"statistics of {channels} channel(s) do not fit an image of {len(image)}")
            mean, std = self.mean.to(image.device), self.std.to(image.device)
            result[key] = (image.expand(channels, -1, -1) - mean) / std
        return result
