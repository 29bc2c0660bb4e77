"""What a number means: from modality values to 0-1, then to the network's statistics.

Order, as PS3.3 C.11 and C.7.6.3.1.2 have it: modality values → window or VOI LUT → inversion of MONOCHROME1 last. Images
in Hounsfield units go by one named window, the same for every scanner; other DICOM images by the VOI of their own header, or by
percentiles where it has none; PNG, JPEG and colour images over the range of their type. Arrays are (rows, columns);
tensors (channels, rows, columns). Padding never counts and is black in the end.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]  # (rows, columns)

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


class VoiFunction(StrEnum):
    """VOILUTFunction (0028,1056), and LUT for a VOILUTSequence (0028,3010)."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"
    LUT = "LUT"


@dataclass(frozen=True)
class Voi:
    """One window or VOI LUT. `lut` is (entries,) already divided by its largest possible output; `first` its first input value."""

    function: VoiFunction = VoiFunction.LINEAR
    center: float = 0.0
    width: float = 1.0
    first: float = 0.0
    lut: FloatImage | None = None


WINDOWS: Mapping[str, Voi] = {
    "lung": Voi(center=-600, width=1500),
    "mediastinum": Voi(center=40, width=400),
    "abdomen": Voi(center=60, width=400),
    "bone": Voi(center=400, width=1800),
    "brain": Voi(center=40, width=80),
    "subdural": Voi(center=75, width=215),
    "wide": Voi(center=0, width=2000),
}
"""Windows by name, in HU, as radiology commonly sets them."""


@dataclass(frozen=True)
class Pixels:
    """One decoded gray frame and what is needed to give its values a meaning.

    `values` (rows, columns) float32: modality values, never inverted. `voi`: the file's own, the preferred first.
    `inverted`: MONOCHROME1. `padding` (rows, columns) bool: True where the scanner put no data, or None.
    `spacing_mm`: (between rows, between columns), or None where the header does not tell.
    """

    values: FloatImage
    unit: PixelUnit
    voi: tuple[Voi, ...] = ()
    inverted: bool = False
    padding: NDArray[np.bool_] | None = None
    spacing_mm: tuple[float, float] | None = None


def apply_voi(values: FloatImage, voi: Voi) -> FloatImage:
    """Values to 0-1 by PS3.3 C.11.2.1.2 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT) or C.11.2.1.1 (LUT)."""
    if voi.function is VoiFunction.LUT:
        if voi.lut is None or len(voi.lut) == 0:
            raise ValueError("a Voi of function LUT needs the table")
        position = np.clip(np.rint(values - voi.first), 0, len(voi.lut) - 1).astype(np.int64)
        return voi.lut[position].astype(np.float32)
    if voi.function is VoiFunction.SIGMOID:
        exponent = np.clip(-4.0 * (values - voi.center) / voi.width, -80.0, 80.0)  # exp of more overflows float32
        return (1.0 / (1.0 + np.exp(exponent))).astype(np.float32)
    if voi.function is VoiFunction.LINEAR_EXACT:
        return np.clip((values - voi.center) / voi.width + 0.5, 0.0, 1.0).astype(np.float32)
    if voi.width <= 1.0:  # LINEAR of width 1 is a step at its centre; narrower is not allowed, and means the same
        return (values > voi.center - 0.5).astype(np.float32)
    return np.clip((values - (voi.center - 0.5)) / (voi.width - 1.0) + 0.5, 0.0, 1.0).astype(np.float32)


def percentile_voi(pixels: Pixels) -> Voi:
    """The range between `FALLBACK_PERCENTILES` of the values that are not padding."""
    inside = pixels.values if pixels.padding is None else pixels.values[~pixels.padding]
    if inside.size == 0:
        return Voi(VoiFunction.LINEAR_EXACT)
    low, high = np.percentile(inside, FALLBACK_PERCENTILES)
    return Voi(VoiFunction.LINEAR_EXACT, center=float(low + high) / 2, width=max(float(high - low), 1e-6))


def to_unit_range(pixels: Pixels, window: Voi) -> FloatImage:
    """0 (black) to 1 (white) as a reader should see the image: `window` for HU, else the file's VOI, else percentiles."""
    if pixels.unit is PixelUnit.FRACTION:
        shown = np.clip(pixels.values, 0.0, 1.0).astype(np.float32)
    elif pixels.unit is PixelUnit.HU:
        shown = apply_voi(pixels.values, window)
    else:
        shown = apply_voi(pixels.values, pixels.voi[0] if pixels.voi else percentile_voi(pixels))
    if pixels.inverted:
        shown = 1.0 - shown
    if pixels.padding is not None:
        shown = np.where(pixels.padding, np.float32(0.0), shown)
    return shown


def describe_unit_range(window: Voi) -> dict[str, str]:
    """The path to 0-1 for each kind of input, in words, for `model.json`."""
    low, high = window.center - window.width / 2, window.center + window.width / 2
    return {
        PixelUnit.HU: f"modality values in HU, linear from {low:g} to {high:g} HU (PS3.3 C.11.2.1.2), clipped",
        PixelUnit.MODALITY: "modality values through the file's first VOI LUT or window (PS3.3 C.11.2); where it has none, linear between "
        f"percentiles {FALLBACK_PERCENTILES[0]} and {FALLBACK_PERCENTILES[1]}; MONOCHROME1 inverted last",
        PixelUnit.FRACTION: "stored values over the range of their type; colour by luma (ITU-R BT.601), alpha ignored",
    }


def to_metatensor(pixels: Pixels) -> MetaTensor:
    """A MetaTensor (1, rows, columns) whose meta carries the `Pixels`; its affine maps array indices to source pixels (identity)."""
    return MetaTensor(
        torch.from_numpy(np.ascontiguousarray(pixels.values))[None], affine=torch.eye(4), meta={"pixels": pixels}
    )


class UnitRanged(MapTransform):
    """`to_unit_range` as a dictionary transform, for tensors made by `to_metatensor` (or radloop's readers)."""

    def __init__(self, keys: KeysCollection, window: Voi, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.window = window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            pixels: Pixels | None = image.meta.get("pixels")
            if pixels is None:
                raise ValueError("UnitRanged needs a MetaTensor made by to_metatensor: its meta has no 'pixels'")
            shown = torch.from_numpy(to_unit_range(pixels, self.window))[None]
            meta = {name: value for name, value in image.meta.items() if name not in ("pixels", "affine")}
            result[key] = MetaTensor(shown, affine=image.affine, meta=meta)
        return result


class MinMaxd(MapTransform):
    """Each image's own minimum to 0 and maximum to 1 (the CT report's recipe); a constant image becomes 0."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            low, high = image.min(), image.max()
            result[key] = (image - low) / (high - low) if high > low else torch.zeros_like(image)
        return result


class Standardized(MapTransform):
    """Repeats a gray image over the channels and applies (x - mean) / std channel by channel."""

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
            result[key] = (image.expand(len(self.mean), -1, -1) - self.mean) / self.std
        return result
