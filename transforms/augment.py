"""Random flips, zoom and shifts of one image, as MONAI dictionary transforms composed into a single resampling.

Images are (channels, rows, columns) in 0-1: what a zoom or a shift brings in from outside is black (0).
"""

from __future__ import annotations

from monai.config import KeysCollection
from monai.transforms import RandAffined, RandFlipd, RandZoomd, Transform


def augment_transforms(
    keys: KeysCollection,
    size: int,
    *,
    flip_horizontal: float = 0.0,
    flip_vertical: float = 0.0,
    zoom: float = 0.0,
    shift: float = 0.0,
) -> list[Transform]:
    """The random part of the chain.

    `flip_*`: probabilities (horizontal mirrors left and right, vertical up and down). `zoom`: magnification is drawn from
    1 - zoom to 1 + zoom, the same along both axes. `shift`: drawn along each axis from -shift to +shift, a fraction of `size`.
    """
    transforms: list[Transform] = []
    if flip_horizontal > 0:
        transforms.append(RandFlipd(keys, prob=flip_horizontal, spatial_axis=1))
    if flip_vertical > 0:
        transforms.append(RandFlipd(keys, prob=flip_vertical, spatial_axis=0))
    if zoom > 0:
        transforms.append(
            RandZoomd(
                keys,
                prob=1.0,
                min_zoom=1 - zoom,
                max_zoom=1 + zoom,
                mode="bilinear",
                padding_mode="constant",
                keep_size=True,
            )
        )
    if shift > 0:
        reach = shift * size
        transforms.append(
            RandAffined(keys, prob=1.0, translate_range=(reach, reach), mode="bilinear", padding_mode="zeros")
        )
    return transforms
