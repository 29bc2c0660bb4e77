"""A MONAI `ImageReader` for DICOM images: `LoadImaged(keys, reader=DicomReader())` gives what `read_pixels` gives.

MONAI's own readers leave out VOI and MONOCHROME1 and stack whatever lies in a folder; this one reads one frame of one
file. The array is (rows, columns) float32 modality values, or (rows, columns, 3) RGB fractions of a colour image where
colour is asked for; `EnsureChannelFirstd` makes (1 or 3, rows, columns) of either. Its meta holds the `Pixels` under
"pixels" for `transforms.intensity.UnitRanged`, which has to come before images are batched. The affine is the identity
of 4 × 4: the space that transforms act in is that of array indices (row, column), so that their inverse ends in source
pixels; where the slice lies in the patient is a matter of its series.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from pipeline.dicom.pixels import read_pixels
from transforms.intensity import Pixels


class CarriedPixels(np.ndarray[Any, Any]):
    """A `Pixels` in an array of no dimensions, with the attributes of what it carries.

    LoadImaged lets nothing but numbers, text, containers and arrays through in meta (its `switch_endianness`).
    """

    @classmethod
    def of(cls, pixels: Pixels) -> CarriedPixels:
        """The array that carries `pixels`."""
        return np.array(pixels, dtype=object).view(cls)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # numpy and copy look for protocols, which are the array's
            raise AttributeError(name)
        return getattr(self.item(), name)


class DicomReader(ImageReader):
    """Reads frame `frame` (from 0) of a DICOM file, in RGB if `color` and the file has it.

    `LoadImaged` then raises Rejected, with its reason, where the file has no such image; ValueError where it has no such frame.
    """

    def __init__(self, frame: int = 0, color: bool = False) -> None:
        super().__init__()
        self.frame, self.color = frame, color

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Any file: those of a PACS export have no suffix."""
        return isinstance(filename, (str, Path)) or len(filename) == 1

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Path:
        """Which file `get_data` is to read (of a sequence the only one).

        Nothing is opened yet: LoadImaged takes an exception in here for "not my format" and goes on to MONAI's own readers, which
        show a cut JPEG as if it were whole.
        """
        return Path(data if isinstance(data, (str, Path)) else data[0])

    def get_data(self, img: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The file's values, (rows, columns) or (rows, columns, 3), and their meta. Raises Rejected; ValueError without such a frame."""
        pixels = read_pixels(img, self.frame, color=self.color)
        meta: dict[str, Any] = {
            "pixels": CarriedPixels.of(pixels),
            MetaKeys.AFFINE: np.eye(4),
            MetaKeys.ORIGINAL_AFFINE: np.eye(4),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(pixels.values.shape[:2]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel" if pixels.values.ndim == 2 else -1,
        }
        return pixels.values, meta
