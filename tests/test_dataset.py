"""From a file to a prepared image: levels of one or three channels, and the picture beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import CustomNormalization, CustomWindow, Preprocessing
from pipeline.dicom.phantom import ct_slice, radiograph, save
from pipeline.dicom.pixels import open_frames
from pipeline.prepared.dataset import ImageFile, Prepared, Preparer, input_statistics, read_image, windows_of
from pipeline.training.feed import standardised
from transforms.intensity import WINDOWS, from_levels
from transforms.spatial import to_source

ROUNDING = 0.5 / 65535
"""Of a level."""
CROPS = ("none", "body", "lungs")


def found(path: Path, kind: str) -> ImageFile:
    status = path.stat()
    return ImageFile("case", "s", path.name, path, kind, 0, status.st_size, status.st_mtime_ns)


@pytest.fixture
def slice_file(tmp_path: Path) -> ImageFile:
    save(ct_slice(64), tmp_path / "slice")
    return found(tmp_path / "slice", "dicom")


def prepared(file: ImageFile, keep_shown: bool = False, **settings: object) -> Prepared:
    return Preparer(Preprocessing(**{"size": 64, **settings}), keep_shown)(file)  # type: ignore[arg-type]


def test_a_prepared_image_is_levels(slice_file: ImageFile):
    """64 pixels stay 64, so each level is its own pixel's: HU by PS3.3 C.11.2.1.2, rounded."""
    image = prepared(slice_file, window="wide", resize="stretch").image
    hounsfield = read_image(slice_file).values
    expected = np.rint(np.clip((hounsfield + 0.5) / 1999 + 0.5, 0, 1) * 65535)
    assert (image.dtype, image.shape) == (np.uint16, (1, 64, 64))
    assert np.abs(image[0] - expected).max() <= 1  # where float32 rounds a half another way
    assert np.ptp(image.astype(int)) > 1000


def test_frames_of_a_file_are_its_own_and_its_header_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = ct_slice(64)
    one = dataset.PixelData
    dataset.NumberOfFrames, dataset.PixelData = (
        4,
        b"".join(bytes(np.frombuffer(one, "<u2") + 100 * n) for n in range(4)),
    )
    save(dataset, tmp_path / "frames")
    save(dataset, tmp_path / "others")
    opened: list[Path] = []

    def counted(path: Path, **options: bool):
        opened.append(path)
        return open_frames(path, **options)

    monkeypatch.setattr("pipeline.prepared.dataset.open_frames", counted)
    for name in ("frames", "others", "frames"):
        file = found(tmp_path / name, "dicom")
        images = [read_image(replace(file, frame=frame)).values for frame in range(4)]
        for frame, values in enumerate(images):
            np.testing.assert_array_equal(values, images[0] + 100 * frame)
    assert opened == [tmp_path / name for name in ("frames", "others", "frames")]


def test_three_windows_are_three_channels(slice_file: ImageFile):
    own = {"center": 40, "width": 300}
    image = prepared(slice_file, window=("lung", own, "bone")).image
    singles = [prepared(slice_file, window=window).image[0] for window in ("lung", own, "bone")]
    np.testing.assert_array_equal(image, np.stack(singles))
    assert not np.array_equal(singles[0], singles[2])


def test_colour_has_three_channels_gray_among_it_too(tmp_path: Path):
    gray = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    colored = np.stack([gray, 255 - gray, np.zeros_like(gray)], axis=-1)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(colored).save(tmp_path / "color.png")
    one = prepared(found(tmp_path / "gray.png", "png"), color="rgb").image
    assert one.shape == (3, 64, 64)
    assert (one == one[0]).all()
    three = prepared(found(tmp_path / "color.png", "png"), color="rgb", keep_shown=True)
    np.testing.assert_allclose(from_levels(three.image), np.moveaxis(colored / 255, -1, 0), atol=ROUNDING * 1.01)
    assert three.shown is not None
    luma = colored @ np.array([0.299, 0.587, 0.114])
    assert np.abs(three.shown.astype(float) - luma).max() <= 0.51  # rounded to whole gray values
    assert prepared(found(tmp_path / "color.png", "png")).image.shape == (1, 64, 64)


def test_the_picture_is_the_first_window_at_the_files_own_size(tmp_path: Path):
    save(ct_slice(96), tmp_path / "slice")
    file = found(tmp_path / "slice", "dicom")
    of_three = prepared(file, keep_shown=True, window=("bone", "lung", "brain"))
    of_one = prepared(file, keep_shown=True, window="bone")
    assert of_three.shown is not None
    assert of_three.shown.shape == of_three.source_shape == (96, 96)
    np.testing.assert_array_equal(of_three.shown, of_one.shown)
    assert len(of_three.digest) == 64


def test_a_radiograph_goes_by_its_own_voi(tmp_path: Path):
    save(radiograph(64), tmp_path / "film")
    file = found(tmp_path / "film", "dicom")
    np.testing.assert_array_equal(prepared(file, window="lung").image, prepared(file, window="bone").image)


def test_windows():
    assert windows_of(Preprocessing()) == (WINDOWS["lung"],)
    three = windows_of(Preprocessing(window=("brain", CustomWindow(center=1, width=2), "bone")))
    assert [(voi.center, voi.width) for voi in three] == [(40, 80), (1, 2), (400, 1800)]


def test_statistics_of_the_networks_input():
    assert input_statistics(Preprocessing(normalization="none"), 3) == ((0.0,) * 3, (1.0,) * 3)
    own = CustomNormalization(mean=(0.3,), std=(0.2,))
    assert input_statistics(Preprocessing(normalization=own), 1) == ((0.3,), (0.2,))
    assert len(input_statistics(Preprocessing(), 3)[0]) == 3
    assert len(input_statistics(Preprocessing(), 1)[0]) == 1


def test_z_scores_reach_the_network_as_such(slice_file: ImageFile):
    """Through the cache's 0-1 and back: mean 0 and standard deviation 1 of the image, but for what is beyond four of them."""
    settings = Preprocessing(size=64, resize="stretch", window="wide", scaling="z_score", normalization="none")
    levels = torch.from_numpy(Preparer(settings)(slice_file).image[None])
    z = standardised(from_levels(levels), *input_statistics(settings, 1))
    assert abs(float(z.mean())) < 0.01
    assert float(z.std()) == pytest.approx(1.0, abs=0.02)


@pytest.fixture
def chest_file(tmp_path: Path) -> ImageFile:
    save(ct_slice(128), tmp_path / "chest")
    return found(tmp_path / "chest", "dicom")


def test_a_crop_is_of_the_region_and_leads_back(chest_file: ImageFile):
    """Less of the file in as many pixels, the table's rows among what is gone; the picture beside it stays whole."""
    images = {crop: prepared(chest_file, crop=crop, resize="stretch", keep_shown=True) for crop in CROPS}
    whole = images["none"]
    for crop in ("body", "lungs"):
        image = images[crop]
        assert image.source_shape == whole.source_shape
        np.testing.assert_array_equal(image.shown, whole.shown)
        assert 0.2 < np.linalg.det(image.affine[:, :2]) / np.linalg.det(whole.affine[:, :2]) < 0.95
    corners = {crop: to_source([[0, 0], [63, 63]], image.affine) for crop, image in images.items()}
    assert (corners["lungs"][0] > corners["body"][0]).all()
    assert (corners["lungs"][1] < corners["body"][1]).all()


def test_a_stress_is_put_on_what_was_read(tmp_path: Path):
    gray = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "plain.png")
    Image.fromarray(np.pad(gray, ((2, 2), (2, 2)), constant_values=255)).save(tmp_path / "framed.png")
    settings = Preprocessing(size=32)
    found_under = Preparer(settings, stress="frame_white")(found(tmp_path / "plain.png", "png"))
    expected = Preparer(settings)(found(tmp_path / "framed.png", "png"))
    np.testing.assert_array_equal(found_under.image, expected.image)
    assert found_under.source_shape == expected.source_shape
    assert not np.array_equal(found_under.image, Preparer(settings)(found(tmp_path / "plain.png", "png")).image)


def test_a_stress_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"expected one of .*frame_white.*, found 'frame'"):
        Preparer(Preprocessing(), stress="frame")
