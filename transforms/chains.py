"""The chains that radloop's stages use, from plain arguments; each also works inside anybody's MONAI `Compose`.

    prepare:  MetaTensor of modality values → 0-1 by window or VOI → (min-max) → resized          deterministic, cached
    train:    prepared → flips, zoom, shift → standardised
    evaluate: prepared → standardised
    back:     feature-map cells → source pixels (`transforms.spatial.map_back`)

The way to 0-1 comes before resizing, so that interpolation never mixes values beyond the window; standardising comes after
augmentation, so that what a shift brings in is black.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms import Compose, EnsureTyped

from transforms.augment import augment_transforms
from transforms.intensity import MinMaxd, Standardized, UnitRanged, Voi
from transforms.spatial import ResizeMode, resize_chain

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRAY_MEAN = (sum(IMAGENET_MEAN) / 3,)
"""ImageNet's statistics for one gray channel: what folded weights (pipeline.model) expect."""
GRAY_STD = (sum(IMAGENET_STD) / 3,)

KEY = "image"


def prepare_chain(*, window: Voi, size: int, resize: ResizeMode, min_max: bool, keys: str = KEY) -> Compose:
    """From `to_metatensor` to a (1, size, size) MetaTensor in 0-1 whose affine leads back to source pixels."""
    scaling = [MinMaxd(keys)] if min_max else []
    return Compose([UnitRanged(keys, window), *scaling, *resize_chain(keys, size, resize)])


def train_chain(
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    flip_horizontal: float = 0.0,
    flip_vertical: float = 0.0,
    zoom: float = 0.0,
    shift: float = 0.0,
    keys: str = KEY,
) -> Compose:
    """From a prepared (1, size, size) tensor to the network's input, at random; the spatial steps are one resampling."""
    spatial = augment_transforms(
        keys, size, flip_horizontal=flip_horizontal, flip_vertical=flip_vertical, zoom=zoom, shift=shift
    )
    steps = [Compose(spatial, lazy=True)] if spatial else []
    return Compose(
        [EnsureTyped(keys, track_meta=True), *steps, Standardized(keys, mean, std), EnsureTyped(keys, track_meta=False)]
    )


def evaluate_chain(*, mean: Sequence[float], std: Sequence[float], keys: str = KEY) -> Compose:
    """From a prepared tensor to the network's input."""
    return Compose([Standardized(keys, mean, std), EnsureTyped(keys, track_meta=False)])
