"""Windows and VOI LUTs (PS3.3 C.11.2): modality values to 0-1, on arrays of any shape. Inversion and padding are not their matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class VoiFunction(StrEnum):
    """VOILUTFunction (0028,1056), and LUT for a VOILUTSequence (0028,3010)."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"
    LUT = "LUT"


@dataclass(frozen=True)
class Voi:
    """One window or VOI LUT. `lut` is (entries,) already divided by its largest possible output; `first` its first input value.

    `explanation`: the header's words for it (WindowCenterWidthExplanation, LUTExplanation), "" where it has none.
    """

    function: VoiFunction = VoiFunction.LINEAR
    center: float = 0.0
    width: float = 1.0
    first: float = 0.0
    lut: NDArray[np.float32] | None = None
    explanation: str = ""

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"a window's width: expected a number above 0, found {self.width!r}")


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


def apply_voi(values: NDArray[np.float32], voi: Voi) -> NDArray[np.float32]:
    """Values to 0-1 by PS3.3 C.11.2.1.2 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT) or C.11.2.1.1 (LUT)."""
    if voi.function is VoiFunction.LUT:
        if voi.lut is None or len(voi.lut) == 0:
            raise ValueError("a Voi of function LUT needs the table")
        position = np.clip(np.rint(values - voi.first), 0, len(voi.lut) - 1).astype(np.int64)
        return voi.lut[position].astype(np.float32, copy=False)
    if voi.function is VoiFunction.SIGMOID:
        exponent = np.clip(-4.0 * (values - voi.center) / voi.width, -80.0, 80.0)  # exp of more overflows float32
        return (1.0 / (1.0 + np.exp(exponent))).astype(np.float32, copy=False)
    if voi.function is VoiFunction.LINEAR_EXACT:
        return np.clip((values - voi.center) / voi.width + 0.5, 0.0, 1.0).astype(np.float32, copy=False)
    if voi.width <= 1.0:  # LINEAR of width 1 is a step at its centre; narrower is not allowed, and means the same
        return (values > voi.center - 0.5).astype(np.float32, copy=False)
    return np.clip((values - (voi.center - 0.5)) / (voi.width - 1.0) + 0.5, 0.0, 1.0).astype(np.float32, copy=False)
