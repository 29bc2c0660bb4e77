"""Filters on prepared images: each removes what it says, keeps the rest, and moves no pixel."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd, MedianSmooth, RandFlipd, Resized
from numpy.typing import NDArray

from transforms.enhance import enhance_transforms

SIDE = 96
ALL = {"median": 3, "gaussian": 0.8, "remove_low": 0.01, "remove_high": 0.3, "clahe": 2.0}
OCTAVE = 0.06
"""What a Butterworth mask of order 2 lets through an octave beyond its cut-off, and takes away an octave before it: 1 / 17."""
OVERSHOOT = 0.035
"""Of a step, at that order."""

OPENCV_APART = 64 / 64**2 + 0.5 / 255 + 0.5 / 64 * 0.5
"""In tiles of 64 × 64. OpenCV spreads whole pixels, those that 256 does not divide over the darkest bins (at most 64 ahead of an even
spread); it gives whole levels; and its tiles' centres are half a pixel off (of curves that are no more than a half apart here)."""


def image_of(channel: NDArray[Any], channels: int = 1) -> MetaTensor:
    image = MetaTensor(torch.from_numpy(np.stack([channel.astype(np.float32)] * channels)), affine=torch.eye(4))
    image.affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
    image.meta["aspect"] = 1.5
    return image


def enhanced(channel: NDArray[Any], **filters: Any) -> NDArray[np.float32]:
    """One filter or several on one channel."""
    return Compose(enhance_transforms("image", **filters))({"image": image_of(channel)})["image"][0].numpy()


def wave(cycles_a_pixel: float, amplitude: float = 0.2, side: int = SIDE) -> NDArray[np.float64]:
    """About 0.5, along the columns; whole half-waves on the side, so that its mirror images go on with it."""
    return np.tile(0.5 + amplitude * np.cos(2 * np.pi * cycles_a_pixel * (np.arange(side) + 0.5)), (side, 1))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("filters", "cycles", "kept"),
    [
        ({"remove_low": 0.125}, 1 / 16, False),
        ({"remove_low": 0.125}, 1 / 4, True),
        ({"remove_high": 0.125}, 1 / 4, False),
        ({"remove_high": 0.125}, 1 / 16, True),
        ({"remove_low": 1 / 48, "remove_high": 1 / 6}, 1 / 16, True),
        ({"remove_low": 1 / 48, "remove_high": 1 / 6}, 1 / 96, False),
        ({"remove_low": 1 / 48, "remove_high": 1 / 6}, 1 / 3, False),
    ],
)
def test_frequencies_beyond_the_cut_off_go_and_others_stay(
    filters: dict[str, float], cycles: float, kept: bool, turned: bool
) -> None:
    image = wave(cycles).T if turned else wave(cycles)
    found = enhanced(image, **filters)
    left = (found - 0.5) / 0.2
    np.testing.assert_allclose(
        left, (image - 0.5) / 0.2 if kept else 0, atol=2 * OCTAVE if len(filters) > 1 else OCTAVE
    )


@pytest.mark.parametrize("cut", ["remove_low", "remove_high"])
def test_half_of_a_wave_at_the_cut_off_is_left(cut: str) -> None:
    np.testing.assert_allclose(enhanced(wave(1 / 12), **{cut: 1 / 12}) - 0.5, (wave(1 / 12) - 0.5) / 2, atol=1e-6)


@pytest.mark.parametrize(
    "filters", [{"remove_low": 0.02}, {"remove_high": 0.1}, {"remove_low": 0.02, "remove_high": 0.2}]
)
def test_the_mean_stays(filters: dict[str, float]) -> None:
    image = 0.4 + 0.15 * np.random.default_rng(0).random((SIDE, SIDE - 7))
    assert enhanced(image, **filters).mean() == pytest.approx(image.mean(), abs=1e-6)


def test_shading_goes_and_the_left_edge_never_meets_the_right_one() -> None:
    """A ramp is low frequencies; taken for periodic it would leave a bright and a dark rim."""
    ramp = np.tile(np.linspace(0.3, 0.7, SIDE), (SIDE, 1))
    detail = wave(0.25, 0.05) - 0.5
    found = enhanced(ramp + detail, remove_low=1 / 48)
    np.testing.assert_allclose(found - 0.5, detail, atol=0.06)
    np.testing.assert_allclose((found - 0.5)[:, 12:-12], detail[:, 12:-12], atol=0.01)


def test_a_step_hardly_rings() -> None:
    step = np.full((SIDE, SIDE), 0.25)
    step[:, SIDE // 2 :] = 0.75
    found = (enhanced(step, remove_high=0.1) - 0.25) / 0.5
    assert found.max() <= 1 + OVERSHOOT
    assert found.min() >= -OVERSHOOT
    ringing = found[0] - step[0] / 0.5 + 0.5
    assert np.abs(ringing[: SIDE // 2 - 16]).max() < 0.005  # 16 pixels off nothing is left of it


@pytest.mark.parametrize("side", [3, 5])
def test_the_median_removes_speckle_and_keeps_edges(side: int) -> None:
    clean = np.full((SIDE, SIDE), 0.3)
    clean[:, SIDE // 2 :] = 0.8
    rng = np.random.default_rng(1)
    speckle = np.where(rng.random(clean.shape) < 0.03, rng.integers(0, 2, clean.shape), clean)
    found = enhanced(speckle, median=side)
    assert np.abs(speckle - clean).max() > 0.5
    assert np.mean(np.abs(found - clean) > 1e-6) < 0.002


@pytest.mark.parametrize("side", [3, 7])
def test_the_median_is_monais(side: int) -> None:
    image = np.random.default_rng(2).random((40, 33)).astype(np.float32)
    expected = MedianSmooth(radius=side // 2)(torch.from_numpy(image)[None])[0]
    np.testing.assert_array_equal(enhanced(image, median=side), np.asarray(expected))


def test_the_gaussian_reduces_noise_and_not_the_border() -> None:
    noise = np.random.default_rng(3).normal(0.5, 0.1, (SIDE, SIDE)).clip(0, 1)
    found = enhanced(noise, gaussian=2.0)
    assert found.std() < 0.2 * noise.std()  # 1 / (2 √π σ) = 0.14 of independent noise
    np.testing.assert_allclose(enhanced(np.full((SIDE, SIDE), 0.6), gaussian=2.0), 0.6, atol=1e-6)


def local_contrast(image: NDArray[Any]) -> float:
    """Mean over 8 × 8 blocks of their standard deviation."""
    blocks = image.reshape(SIDE // 8, 8, SIDE // 8, 8).swapaxes(1, 2)
    return float(blocks.std(axis=(2, 3)).mean())


def faint() -> NDArray[np.float64]:
    return np.clip(np.tile(np.linspace(0.2, 0.7, SIDE), (SIDE, 1)) + wave(1 / 8, 0.02).T - 0.5, 0, 1)


def test_clahe_raises_local_contrast_as_far_as_its_limit() -> None:
    contrast = [local_contrast(faint())] + [local_contrast(enhanced(faint(), clahe=limit)) for limit in (1.5, 3, 8)]
    assert (np.diff(contrast) > 0.2 * contrast[0]).all()
    # a bin of `limit` times the mean is a slope of that, and what is spread adds less than one
    assert contrast[1] < 2.5 * contrast[0]


@pytest.mark.parametrize("limit", [2.0, 4.0])
def test_clahe_is_opencvs_where_that_has_8_bits(limit: float) -> None:
    """OpenCV gives each bin the curve's value at its upper end, so that is asked for; and whole levels."""
    cv2 = pytest.importorskip("cv2")
    rows, columns = np.mgrid[:512, :512]
    image = 0.5 + 0.2 * np.sin(rows / 40) * np.cos(columns / 60) + np.random.default_rng(4).normal(0, 0.03, (512, 512))
    levels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    expected = cv2.createCLAHE(limit, (8, 8)).apply(levels) / 255
    apart = np.abs(enhanced((levels + 0.999) / 256, clahe=limit) - expected)
    assert apart.max() < OPENCV_APART
    assert apart.mean() < 1.5 / 255
    within_a_bin = np.abs(enhanced(levels / 255, clahe=limit) - expected).max()
    assert within_a_bin < OPENCV_APART + (limit + 1) / 256


def test_clahe_keeps_black_white_and_order_within_a_tile() -> None:
    image = faint()
    image[:24] = 0.0
    image[-24:] = 1.0
    found = enhanced(image, clahe=3.0)
    assert (found[image == 0] == 0).all()
    np.testing.assert_allclose(found[image == 1], 1, atol=1e-6)
    column = np.tile(np.linspace(0, 1, SIDE)[:, None], (1, SIDE))
    assert (np.diff(enhanced(column, clahe=3.0), axis=0) >= -1e-6).all()


def test_clahe_favours_no_side_and_no_last_tile() -> None:
    """Mirrored it is the mirror image; and rows that are all alike stay so where the last tile goes on beyond the image."""
    image = np.random.default_rng(5).random((SIDE, SIDE)) * np.linspace(0.2, 1, SIDE)
    np.testing.assert_allclose(
        enhanced(image[::-1, ::-1], clahe=3.0), enhanced(image, clahe=3.0)[::-1, ::-1], atol=1e-6
    )
    found = enhanced(np.tile(image[:1], (SIDE - 11, 1)), clahe=3.0)
    np.testing.assert_allclose(found, np.tile(found[:1], (SIDE - 11, 1)), atol=1e-6)


def test_no_filter_no_transform() -> None:
    assert enhance_transforms("image") == []
    assert len(enhance_transforms("image", **ALL)) == 4  # both frequencies in one


def test_filters_run_in_the_order_of_the_arguments() -> None:
    image = faint()
    step_by_step = image
    for filters in ({"median": 3}, {"gaussian": 0.8}, {"remove_low": 0.01, "remove_high": 0.3}, {"clahe": 2.0}):
        step_by_step = enhanced(step_by_step, **filters)
    np.testing.assert_array_equal(enhanced(image, **dict(reversed(ALL.items()))), step_by_step)


@pytest.mark.parametrize(("name", "value"), ALL.items())
@given(
    image=arrays.arrays(
        np.float32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.floats(0, 1, width=32)
    )
)
@settings(max_examples=25, deadline=None)
def test_results_stay_in_range_and_are_the_same_again(name: str, value: float, image: NDArray[np.float32]) -> None:
    found = enhanced(image, **{name: value})
    assert found.shape == image.shape
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_array_equal(enhanced(image, **{name: value}), found)


@pytest.mark.parametrize(("name", "value"), ALL.items())
def test_each_filter_keeps_the_metatensor_and_its_input(name: str, value: float) -> None:
    """On several keys, several channels, each by itself; also of a plain tensor or array."""
    (transform,) = enhance_transforms(["image", "other"], **{name: value})
    image = Flipd("image", 1)({"image": image_of(faint(), channels=3)})["image"]
    image[1] = 1 - image[1]
    data = {"image": image, "other": np.asarray(image), "label": 4}
    before = copy.deepcopy(data)
    found = pickle.loads(pickle.dumps(transform))(data)
    torch.testing.assert_close(image.as_tensor(), before["image"].as_tensor(), rtol=0, atol=0)
    np.testing.assert_array_equal(data["other"], before["other"])
    assert found["label"] == 4
    assert isinstance(found["image"], MetaTensor)
    assert found["image"].meta["aspect"] == 1.5
    assert [step["class"] for step in found["image"].applied_operations] == ["Flip"]
    torch.testing.assert_close(found["image"].affine, image.affine)
    for channel in range(3):
        expected = enhanced(np.asarray(image[channel]), **{name: value})
        np.testing.assert_array_equal(np.asarray(found["image"][channel]), expected)
        np.testing.assert_array_equal(np.asarray(found["other"][channel]), expected)
    assert not np.array_equal(np.asarray(found["image"]), np.asarray(image))


def test_in_a_compose_with_monais_own_and_back() -> None:
    chain = Compose([Resized("image", (48, 48)), *enhance_transforms("image", **ALL), RandFlipd("image", prob=1.0)])
    found = chain({"image": image_of(faint())})
    assert found["image"].shape == (1, 48, 48)
    assert chain.inverse(found)["image"].shape == (1, SIDE, SIDE)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"median": 4}, "odd number"),
        ({"gaussian": 0.0}, "above 0"),
        ({"remove_low": -0.1}, "remove_low: expected a number above 0"),
        ({"remove_high": 0.0}, "remove_high: expected a number above 0"),
        ({"clahe": 0.0}, "above 0"),
    ],
)
def test_filters_that_cannot_be(filters: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        enhance_transforms("image", **filters)
