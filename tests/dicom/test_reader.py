"""pipeline.dicom.reader: MONAI's LoadImaged with the meaning of read_pixels."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureChannelFirstd, Flipd, LoadImaged, Resized
from monai.utils import MetaKeys
from pydicom import dcmread, uid
from pydicom.encaps import encapsulate

from pipeline.dicom.phantom_objects import ct_slice, radiograph, save
from pipeline.dicom.pixels import read_pixels
from pipeline.dicom.reader import DicomReader
from pipeline.errors import Rejected
from tests.dicom.test_pixels import HU_RAMP, RANDOM_RGB, ct, write
from transforms.intensity import WINDOWS, Pixels, Scaled, UnitRanged, to_unit_range


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


def test_colour_comes_in_three_channels_where_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RANDOM_RGB, SamplesPerPixel=3, PixelAspectRatio=[2, 1])
    for color, channels in ((True, 3), (False, 1)):
        load = LoadImaged("image", reader=DicomReader(color=color))
        loaded = load({"image": path})["image"]
        assert loaded.shape == ((12, 16, 3) if color else (12, 16))
        assert loaded.meta[MetaKeys.ORIGINAL_CHANNEL_DIM] == (-1 if color else "no_channel")
        assert tuple(loaded.meta[MetaKeys.SPATIAL_SHAPE]) == (12, 16)
        chain = Compose([load, EnsureChannelFirstd("image"), UnitRanged("image", WINDOWS["lung"])])
        image = chain({"image": path})["image"]
        assert image.shape == (channels, 12, 16)
        assert image.meta["aspect"] == 2.0
        torch.testing.assert_close(image.affine, torch.eye(4, dtype=image.affine.dtype))
        if color:
            np.testing.assert_allclose(np.moveaxis(image.numpy(), 0, -1), RANDOM_RGB / 255, atol=1e-6)


def test_three_windows_of_a_ct_are_three_channels(tmp_path: Path) -> None:
    path = ct(tmp_path / "a.dcm", HU_RAMP)
    windows = [WINDOWS[name] for name in ("lung", "mediastinum", "bone")]
    chain = Compose(
        [LoadImaged("image", reader=DicomReader()), EnsureChannelFirstd("image"), UnitRanged("image", windows)]
    )
    image = chain({"image": path})["image"]
    for channel, window in zip(image.numpy(), windows, strict=True):
        np.testing.assert_array_equal(channel, to_unit_range(read_pixels(path), window))


def test_monais_loader_batches_what_unit_ranged_leaves(tmp_path: Path) -> None:
    """With padding in some files and none in others."""
    paths = [ct(tmp_path / "a.dcm"), ct(tmp_path / "b.dcm", PixelPaddingValue=int(HU_RAMP[0, 0]))]
    steps = [LoadImaged("image", reader=DicomReader()), EnsureChannelFirstd("image")]
    chain = Compose([*steps, UnitRanged("image", WINDOWS["lung"]), Scaled("image", "min_max")])
    (batch,) = DataLoader(Dataset([{"image": path} for path in paths], chain), batch_size=2)
    assert batch["image"].shape == (2, 1, 8, 8)


def test_meta_has_the_pixels_of_the_file(tmp_path: Path) -> None:
    path = ct(tmp_path / "a.dcm", WindowCenter=40, WindowWidth=400, PixelSpacing=[0.7, 0.7])
    carried = LoadImaged("image", reader=DicomReader())({"image": path})["image"].meta["pixels"]
    assert isinstance(carried.item(), Pixels)
    assert (carried.spacing_mm, carried.voi[0].center) == ((0.7, 0.7), 40)


def test_spatial_transforms_invert_to_source_pixels(tmp_path: Path) -> None:
    path = save(ct_slice(64), tmp_path / "a.dcm")
    load = Compose([LoadImaged("image", reader=DicomReader()), EnsureChannelFirstd("image")])
    spatial = Compose([Flipd("image", 1), Resized("image", (32, 32))])
    loaded = load({"image": path})
    back = spatial.inverse(spatial(loaded))["image"]
    assert back.shape == (1, 64, 64)
    assert torch.mean(torch.abs(back - loaded["image"])) < 60


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """And MONAI's own readers, which take a cut JPEG for whole and every frame for one, do not get it."""
    (tmp_path / "note.txt").write_text("no image")
    samples = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    whole = imagecodecs.jpeg8_encode(samples, level=90)
    cut = write(tmp_path / "cut.dcm", samples)
    dataset = dcmread(cut, force=True)
    dataset.PixelData = encapsulate([whole[: len(whole) * 6 // 10] + b"\xff\xd9"])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset.save_as(cut)
    for path in (tmp_path / "note.txt", cut, tmp_path / "gone"):
        with pytest.raises(Rejected):
            LoadImaged("image", reader=DicomReader())({"image": path})
    for frame in (3, -1):
        with pytest.raises(ValueError, match="frames 0 to 0"):
            LoadImaged("image", reader=DicomReader(frame))({"image": save(ct_slice(32), tmp_path / "a.dcm")})
