"""A MONAI `ImageReader` for DICOM images: `LoadImaged(keys, reader=DicomReader())` gives what `read_pixels` gives.

MONAI's own readers leave out VOI and MONOCHROME1 and stack whatever lies in a folder; this one reads one frame of one file. The
array is (rows, columns) float32 modality values, its meta holds the `Pixels` under "pixels", as `transforms.intensity.UnitRanged`
wants them. The affine is the identity of 4 × 4: index space of the array, (row, column), is the space that
transforms act in, so that their inverse ends in source pixels; where the slice lies in the patient is the series' matter.
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


class DicomReader(ImageReader):
    """Reads frame `frame` (from 0) of a DICOM file. `read` raises Rejected, with its reason, for a file that it cannot decode."""

    def __init__(self, frame: int = 0) -> None:
        super().__init__()
        self.frame = frame

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Any file: those of a PACS export have no suffix."""
        return isinstance(filename, (str, Path)) or len(filename) == 1

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Pixels:
        """The frame of one file (or of a sequence of one)."""
        path = data if isinstance(data, (str, Path)) else data[0]
        return read_pixels(Path(path), self.frame)

    def get_data(self, img: Pixels) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """(rows, columns) modality values and their meta."""
        meta: dict[str, Any] = {
            "pixels": img,
            MetaKeys.AFFINE: np.eye(4),
            MetaKeys.ORIGINAL_AFFINE: np.eye(4),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.values.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
        }
        return img.values, meta
