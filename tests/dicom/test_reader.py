"""pipeline.dicom.reader: MONAI's LoadImaged with the meaning of read_pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, Flipd, LoadImaged, Resized

from pipeline.dicom.phantom_objects import ct_slice, radiograph, save
from pipeline.dicom.pixels import read_pixels
from pipeline.dicom.reader import DicomReader
from pipeline.errors import Rejected
from transforms.intensity import WINDOWS, UnitRanged, to_unit_range


@pytest.mark.parametrize("make", [ct_slice, radiograph])
def test_load_image_gives_what_read_pixels_gives(tmp_path: Path, make: object) -> None:
    path = save(make(64), tmp_path / "IM0001")  # type: ignore[operator]
    chain = Compose(
        [LoadImaged("image", reader=DicomReader()), EnsureChannelFirstd("image"), UnitRanged("image", WINDOWS["lung"])]
    )
    image = chain({"image": str(path)})["image"]
    assert image.shape == (1, 64, 64)
    np.testing.assert_array_equal(image[0].numpy(), to_unit_range(read_pixels(path), WINDOWS["lung"]))
    torch.testing.assert_close(image.affine, torch.eye(4, dtype=image.affine.dtype))


def test_spatial_transforms_invert_to_source_pixels(tmp_path: Path) -> None:
    path = save(ct_slice(64), tmp_path / "a.dcm")
    load = Compose([LoadImaged("image", reader=DicomReader()), EnsureChannelFirstd("image")])
    spatial = Compose([Flipd("image", 1), Resized("image", (32, 32))])
    loaded = load({"image": path})
    back = spatial.inverse(spatial(loaded))["image"]
    assert back.shape == (1, 64, 64)
    assert torch.mean(torch.abs(back - loaded["image"])) < 60


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("no image")
    with pytest.raises(Rejected):
        DicomReader().read(path)
    with pytest.raises(ValueError, match="frames 0 to 0"):
        DicomReader(frame=3).read(save(ct_slice(32), tmp_path / "a.dcm"))
