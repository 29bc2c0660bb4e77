"""The chains that radloop's stages use, from plain arguments; each also works inside anybody's MONAI `Compose`.

    prepare:  MetaTensor of modality values → 0-1 by window or VOI → cropped → scaled → (size, size) → enhanced    deterministic, cached
    train:    prepared → varied in place, sharpness, shades and noise → standardised
    evaluate: prepared → standardised
    back:     points and feature-map cells → source pixels (`transforms.spatial`)

The way to 0-1 comes before resizing, so that interpolation never mixes values beyond the window; scaling too, so that padding
and size do not change an image's statistics; cropping before both, so that what is cut off does not. Standardising comes after
augmentation, so that what a shift brings in is black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from monai.transforms import Compose, EnsureTyped, Transform

from transforms.augment import Augmentations, RandAugmentd
from transforms.enhance import enhance_transforms
from transforms.intensity import Scaled, Scaling, Standardized, UnitRanged, Voi
from transforms.region import RegionCropped
from transforms.spatial import ResizeMode, resize_chain

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRAY_MEAN = (sum(IMAGENET_MEAN) / 3,)
"""ImageNet's statistics for one gray channel: what folded weights (pipeline.networks.model) expect."""
GRAY_STD = (sum(IMAGENET_STD) / 3,)

Crop = Literal["none", "body", "lungs"]

KEY = "image"
NOTHING: Mapping[str, Any] = MappingProxyType({})
NO_AUGMENTATIONS = Augmentations()


def prepare_chain(
    *,
    windows: Voi | Sequence[Voi],
    voi: int | str = 0,
    crop: Crop = "none",
    size: int,
    resize: ResizeMode,
    scaling: Scaling = "none",
    percentiles: tuple[float, float] = (1, 99),
    enhancement: Mapping[str, Any] = NOTHING,
    keys: str = KEY,
) -> Compose:
    """From `to_metatensor` to a (k, size, size) MetaTensor in 0-1 whose affine leads back to source pixels; k windows or colours.

    `windows` and `voi` are `UnitRanged`'s, `crop` none or `RegionCropped`'s region, `scaling` and `percentiles` `Scaled`'s, `size` and
    `resize` `resize_chain`'s, and `enhancement` the arguments of `enhance_transforms`, each off where it is None.
    """
    cropped = [] if crop == "none" else [RegionCropped(keys, crop)]
    scaled = [] if scaling == "none" else [Scaled(keys, scaling, percentiles)]
    return Compose(
        [
            UnitRanged(keys, windows, voi=voi),
            *cropped,
            *scaled,
            *resize_chain(keys, size, resize),
            *enhance_transforms(keys, **enhancement),
        ]
    )


def train_chain(
    *,
    mean: Sequence[float],
    std: Sequence[float],
    augmentations: Augmentations = NO_AUGMENTATIONS,
    keys: str = KEY,
) -> Compose:
    """From one prepared (k, rows, columns) image in 0-1 to the network's input, at random; MONAI's `set_random_state` seeds it.

    For anybody's data loader; radloop itself varies whole batches on the device, which means the same (`augment_batch`).
    """
    return Compose([RandAugmentd(keys, augmentations), *_standardized(keys, mean, std)])


def evaluate_chain(*, mean: Sequence[float], std: Sequence[float], keys: str = KEY) -> Compose:
    """From one prepared image to the network's input."""
    return Compose(_standardized(keys, mean, std))


def _standardized(keys: str, mean: Sequence[float], std: Sequence[float]) -> list[Transform]:
    return [Standardized(keys, mean, std), EnsureTyped(keys, track_meta=False)]
