"""0-1 as whole levels and back: the rounding of the cache, which is part of the chain wherever a network is fed.

Arrays or tensors of any shape, on any device. Rounding is to the nearest level, halves to the even one; levels that go there and
back stay what they are. Either way is one product or quotient, as IEEE 754 rounds it: numpy and torch give the same bits.
"""

from __future__ import annotations

from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

LEVELS = 65535
"""The greatest level. A step, 1/65535, is that of a 16-bit detector over the whole range, and 1/257 of one of a 8-bit picture's."""


@overload
def to_levels(image: torch.Tensor) -> torch.Tensor: ...
@overload
def to_levels(image: NDArray[np.float32]) -> NDArray[np.uint16]: ...
def to_levels(image: torch.Tensor | NDArray[np.float32]) -> torch.Tensor | NDArray[np.uint16]:
    """0-1 to 0-`LEVELS` in uint16; beyond is clipped."""
    if isinstance(image, torch.Tensor):
        plain = image.as_subclass(torch.Tensor)
        return (plain.clamp(0.0, 1.0) * LEVELS).round().to(torch.uint16)
    return np.rint(np.clip(image, np.float32(0), np.float32(1)) * np.float32(LEVELS)).astype(np.uint16)


@overload
def from_levels(levels: torch.Tensor) -> torch.Tensor: ...
@overload
def from_levels(levels: NDArray[np.uint16]) -> NDArray[np.float32]: ...
def from_levels(levels: torch.Tensor | NDArray[np.uint16]) -> torch.Tensor | NDArray[np.float32]:
    """Levels to float32 in 0-1."""
    if isinstance(levels, torch.Tensor):
        # A quotient by a plain number is a product with its rounded reciprocal on CUDA: the last bit would differ from the CPU's.
        return levels.to(torch.float32) / torch.full((), float(LEVELS), device=levels.device)
    return levels.astype(np.float32) / np.float32(LEVELS)
