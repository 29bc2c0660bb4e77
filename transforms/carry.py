"""What the dictionary transforms share: values out of whatever MONAI carries an image in, and back into the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray


def with_values(image: Any, values: torch.Tensor) -> Any:
    """`values` in place of those of `image`: with its affine, meta and history where it is a MetaTensor, else as they are."""
    if not isinstance(image, MetaTensor):
        return values
    result = MetaTensor(values, affine=image.affine, applied_operations=list(image.applied_operations))
    result.meta |= {name: value for name, value in image.meta.items() if name != "affine"}
    return result


def numbers_of(image: Any) -> NDArray[np.float32]:
    """The values of a tensor or an array as float32 in numpy, sharing its memory where they can."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().as_subclass(torch.Tensor).numpy()
    return np.asarray(image, dtype=np.float32)


def is_moved(image: MetaTensor, start: tuple[int, int] = (0, 0)) -> bool:
    """Whether an image is no longer on the array indices it was read with, the first of its pixels being that at `start`: its affine
    (identity at first) has changed.
    """
    expected = torch.eye(4, dtype=image.affine.dtype)
    expected[:2, 3] = torch.tensor(start)
    return not torch.equal(image.affine, expected)
