"""MONAI transforms of radloop. They read no disk and know no DICOM; usable alone in anybody's MONAI `Compose`.

Everything public can be imported from here; docs/transforms.md has an example of each. Modules: `intensity` (what a value means; with
`voi`, `scaling` and `levels`), `region` (crop to the body or the lungs; with `anatomy_search`), `spatial` (resize and the way back),
`enhance` (filters), `augment` (random variation; with `drawing`, `batch` and `sharpness`), `stress` (what others would have made of
a picture), `chains` (all of it in order).
"""

from transforms.augment import (
    Augmentations,
    Drawn,
    RandAugmentd,
    augment_batch,
    composed_affines,
    draw,
    noise_seed,
    uniforms,
)
from transforms.chains import (
    GRAY_MEAN,
    GRAY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    evaluate_chain,
    prepare_chain,
    train_chain,
)
from transforms.enhance import enhance_transforms
from transforms.intensity import (
    Pixels,
    PixelUnit,
    Scaled,
    Standardized,
    UnitRanged,
    to_metatensor,
    to_unit_range,
    unit_channels,
)
from transforms.levels import from_levels, to_levels
from transforms.region import RegionCropped
from transforms.spatial import (
    SquareResized,
    combined,
    flip_affine,
    index_affine,
    map_back,
    resize_chain,
    to_input,
    to_source,
)
from transforms.stress import STRESSES, Stress
from transforms.voi import WINDOWS, Voi, VoiFunction

__all__ = [
    "GRAY_MEAN",
    "GRAY_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "STRESSES",
    "WINDOWS",
    "Augmentations",
    "Drawn",
    "PixelUnit",
    "Pixels",
    "RandAugmentd",
    "RegionCropped",
    "Scaled",
    "SquareResized",
    "Standardized",
    "Stress",
    "UnitRanged",
    "Voi",
    "VoiFunction",
    "augment_batch",
    "combined",
    "composed_affines",
    "draw",
    "enhance_transforms",
    "evaluate_chain",
    "flip_affine",
    "from_levels",
    "index_affine",
    "map_back",
    "noise_seed",
    "prepare_chain",
    "resize_chain",
    "to_input",
    "to_levels",
    "to_metatensor",
    "to_source",
    "to_unit_range",
    "train_chain",
    "uniforms",
    "unit_channels",
]
