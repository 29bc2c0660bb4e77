"""Random variation of place, sharpness, values and noise: of a batch on the device, or of one image in a MONAI `Compose`.

    numbers = uniforms(seed, epoch, items)                  each image its own, whatever the batch or the workers
    drawn = draw(Augmentations(flip_horizontal=0.5, zoom=0.1), numbers)
    images = augment_batch(images, drawn, noise_seed=noise_seed(seed, epoch, items))

`RandAugmentd` does the same to (channels, rows, columns) MetaTensors of a dictionary, with MONAI's random state and a way back.
Drawing is in `transforms.drawing`, applying in `transforms.batch`; all of it can be imported from here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Affine, InvertibleTransform, MapTransform, Randomizable
from monai.transforms.spatial.functional import affine_func
from monai.utils import convert_to_tensor

from transforms.batch import adjust_, augment_batch, device_parameters
from transforms.carry import with_values
from transforms.drawing import (
    DRAWS,
    Augmentations,
    Drawn,
    centred_affines,
    composed_affines,
    draw,
    noise_seed,
    uniforms,
)

__all__ = [
    "DRAWS",
    "Augmentations",
    "Drawn",
    "RandAugmentd",
    "augment_batch",
    "composed_affines",
    "draw",
    "noise_seed",
    "uniforms",
]


class RandAugmentd(Randomizable, MapTransform, InvertibleTransform):
    """Draws once for all keys and applies it to each key's (channels, rows, columns) image in 0-1, as `augment_batch` would.

    What moves is one resampling by MONAI's `Affine`: the image's affine leads to the pixels of before, and `inverse` moves it back
    (what left the image is the edge drawn out; what changed values stays). Several keys are several images of one thing: the same geometry,
    sharpness, curve and hole, each its own noise. For label maps it is not meant: it interpolates.
    """

    def __init__(self, keys: KeysCollection, settings: Augmentations, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.settings = settings
        self.drawn = draw(Augmentations(), np.zeros((1, DRAWS)))
        self.noise_seed = 0
        self.affine = Affine(mode="bilinear", padding_mode="border", image_only=True)

    def randomize(self, data: Any = None) -> None:
        """Draws anew from `self.R`: `self.drawn` (one row) and `self.noise_seed`."""
        self.drawn = draw(self.settings, self.R.random_sample((1, DRAWS)))
        self.noise_seed = int(self.R.randint(2**31))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        self.randomize()
        for number, key in enumerate(self.key_iterator(result)):
            moved = self._moved(convert_to_tensor(result[key], track_meta=get_track_meta()))
            result[key] = self._adjusted(moved, self.noise_seed + number)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Moves each image back; its affine is then again that of before."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.affine.inverse(result[key])
        return result

    def _moved(self, image: torch.Tensor) -> torch.Tensor:
        shape = (image.shape[1], image.shape[2])
        affine = torch.from_numpy(centred_affines(self.drawn, shape)[0])
        self.affine.affine_grid.affine = affine
        resample = bool(self.drawn.moved[0])
        grid = self.affine.affine_grid(shape)[0] if resample else None
        return affine_func(
            image,
            affine,
            grid,
            self.affine.resampler,
            shape,
            self.affine.mode,
            self.affine.padding_mode,
            resample,
            image_only=True,
            lazy=False,
            transform_info=self.affine.get_transform_info(),
        )

    def _adjusted(self, image: torch.Tensor, noise_seed: int) -> torch.Tensor:
        values = image.as_tensor() if isinstance(image, MetaTensor) else image
        parameters = device_parameters(self.drawn, (image.shape[1], image.shape[2]), image.device)
        return with_values(
            image, adjust_(values[None].to(torch.float32, copy=True), self.drawn, parameters, noise_seed)[0]
        )
