"""Every augmentation turned on, for tests of drawing and of applying."""

from __future__ import annotations

from transforms.augment import Augmentations

EVERYTHING = Augmentations(
    flip_horizontal=0.5,
    flip_vertical=0.5,
    zoom=0.3,
    stretch=0.2,
    shift=0.2,
    rotate=90.0,
    contrast=0.4,
    window=0.1,
    gamma=0.3,
    blur=1.5,
    sharpen=1.0,
    coarse=0.6,
    noise=0.1,
    cutout=0.5,
)
