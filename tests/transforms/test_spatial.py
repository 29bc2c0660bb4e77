"""How good the resize is, held against references that share nothing with it, and what it does with proportions and edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose
from PIL import Image
from torch.nn.functional import interpolate

from transforms.intensity import Pixels, PixelUnit, to_metatensor
from transforms.spatial import index_affine, map_back, resize_chain, resized_sides, to_input, to_source

MODES = ("stretch", "fit", "crop")
RAMP_TOLERANCE = 2e-6
"""Of a ramp from 0 to 1 in float32: a few roundings."""
FILTER_TOLERANCE = 0.03
"""Pillow's triangle filter is the same but for its rounding of the support: a contrast of 1 differs by so much at most."""
BRIGHTNESS_TOLERANCE = 2e-3
"""Of the mean of noise with standard deviation 0.29: what pixels at edges weigh more or less."""


def _image(values: np.ndarray, aspect: float = 1.0) -> MetaTensor:
    image = to_metatensor(Pixels(np.asarray(values, np.float32), PixelUnit.FRACTION))
    del image.meta["pixels"]
    image.meta["aspect"] = aspect
    return image


def _resized(values: np.ndarray, size: int, mode: Any, aspect: float = 1.0) -> MetaTensor:
    return Compose(resize_chain("image", size, mode))({"image": _image(values, aspect)})["image"]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 700), size=st.integers(1, 300))
def test_a_linear_ramp_stays_that_ramp(rows, size):
    """Half-pixel centres: output i lies at (i + 0.5) rows / size - 0.5. Growing holds the edge's value beyond the outer centres."""
    ramp = np.repeat(np.linspace(0, 1, rows, dtype=np.float64)[:, None], 3, axis=1)
    found = _resized(ramp, size, "stretch")[0, :, 0].double().numpy()
    place = np.clip((np.arange(size) + 0.5) * rows / size - 0.5, 0, rows - 1)
    np.testing.assert_allclose(found, place / max(rows - 1, 1), atol=RAMP_TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 400), columns=st.integers(1, 400), size=st.integers(1, 150))
def test_an_even_image_stays_even(rows, columns, size):
    found = _resized(np.full((rows, columns), 0.7), size, "stretch")
    np.testing.assert_allclose(found[0].numpy(), 0.7, atol=RAMP_TOLERANCE)


@pytest.mark.parametrize("shape", [(40, 50), (97, 64), (127, 128)])
def test_growing_is_torchs_bilinear_without_any_smoothing(shape):
    values = np.random.default_rng(0).random(shape)
    expected = interpolate(torch.from_numpy(values)[None, None], (128, 128), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(_resized(values, 128, "stretch")[0], expected[0, 0], atol=RAMP_TOLERANCE)


@pytest.mark.parametrize("shape", [(512, 512), (301, 223), (1000, 130)])
def test_shrinking_is_as_pillow_does_it(shape):
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    pillow = np.asarray(Image.fromarray(values).resize((128, 128), Image.Resampling.BILINEAR))
    found = _resized(values, 128, "stretch")[0].numpy()
    inner = slice(3, -3)  # at its edges Pillow's filter is one-sided, which ours makes up for
    np.testing.assert_allclose(found[inner, inner], pillow[inner, inner], atol=FILTER_TOLERANCE)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_fine_grating_becomes_even_gray_along_the_axis_that_shrinks(axis):
    """A period of 2.6 pixels cannot be shown at a quarter: plainly interpolated it becomes a coarse false pattern."""
    lines = 0.5 + 0.5 * np.cos(2 * np.pi * np.arange(512) / 2.6)
    shape = (512, 100) if axis == 0 else (100, 512)  # the other axis grows to 128
    grating = np.broadcast_to(lines[:, None] if axis == 0 else lines, shape)
    aliased = interpolate(torch.from_numpy(grating.copy())[None, None], (128, 128), mode="bilinear")
    found = _resized(grating, 128, "stretch")
    assert float(aliased.std()) > 0.1
    assert float(found.std()) < 0.02


def test_what_grows_is_not_smoothed_because_the_other_axis_shrinks():
    lines = np.arange(64) % 2
    found = _resized(np.broadcast_to(lines, (512, 64)), 64, "stretch")
    np.testing.assert_allclose(found[0, 10], lines, atol=RAMP_TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(200, 600), columns=st.integers(200, 600), size=st.integers(64, 150), seed=st.integers(0, 99))
def test_mean_brightness_is_kept(rows, columns, size, seed):
    values = np.random.default_rng(seed).random((rows, columns), dtype=np.float32)
    found = _resized(values, size, "stretch")
    assert float(found.mean()) == pytest.approx(float(values.mean()), abs=BRIGHTNESS_TOLERANCE)


def test_several_channels_are_resized_alike():
    values = np.random.default_rng(0).random((3, 90, 60), dtype=np.float32)
    together = resize_chain("image", 64, "fit")[0]({"image": MetaTensor(torch.from_numpy(values))})["image"]
    for channel in range(3):
        torch.testing.assert_close(
            together[channel], _resized(values[channel], 64, "fit")[0], rtol=0, atol=RAMP_TOLERANCE
        )


@pytest.mark.parametrize("aspect", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("mode", ["fit", "crop"])
def test_a_round_thing_is_round(mode, aspect):
    """A disc of 60 pixel widths across, on pixels that are not square: as high as it is wide afterwards."""
    rows, columns = np.ogrid[: round(200 / aspect), :150]
    disc = ((rows - 100 / aspect) * aspect) ** 2 + (columns - 75) ** 2 < 30**2
    found = np.asarray(_resized(disc, 128, mode, aspect)[0], float)
    places = np.indices(found.shape)
    center = (places * found).sum((1, 2)) / found.sum()
    spread = np.sqrt((((places - center[:, None, None]) ** 2) * found).sum((1, 2)) / found.sum())
    assert spread[0] == pytest.approx(spread[1], rel=0.03)
    assert 2 * spread[1] == pytest.approx(30 * 128 / (200 if mode == "fit" else 150), rel=0.05)


def test_stretch_does_not_care_for_the_aspect():
    values = np.random.default_rng(0).random((50, 70))
    torch.testing.assert_close(_resized(values, 64, "stretch", 2.0), _resized(values, 64, "stretch"), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "aspect", "mode", "sides"),
    [
        ((100, 200), 1.0, "fit", (32, 64)),
        ((100, 200), 1.0, "crop", (64, 128)),
        ((100, 200), 2.0, "fit", (64, 64)),
        ((100, 200), 2.0, "crop", (64, 64)),
        ((100, 200), 3.0, "fit", (64, 43)),
        ((100, 200), 0.5, "crop", (64, 256)),
        ((1, 3000), 1.0, "fit", (1, 64)),
        ((3000, 1), 1.0, "fit", (64, 1)),
        ((7, 9), 1.0, "stretch", (64, 64)),
    ],
)
def test_sides(shape, aspect, mode, sides):
    assert resized_sides(shape, aspect, 64, mode) == sides


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_very_narrow_images_never_vanish(shape, mode):
    found = _resized(np.ones(shape), 32, mode, 0.3)
    assert found.shape == (1, 32, 32)
    assert float(found.max()) == pytest.approx(1)
    assert float(found.sum()) >= 31


def test_fit_pads_with_black_and_keeps_the_proportions():
    image = _resized(np.ones((50, 100)), 64, "fit")
    assert float(image[0, :16].max()) == 0
    assert float(image[0, -16:].max()) == 0
    np.testing.assert_allclose(image[0, 16:48], 1, atol=RAMP_TOLERANCE)  # up to its edges


def test_what_moved_is_told():
    """After resizing pixels are square, and a mask of the source's pixels is none of these: a second resizing is right."""
    image = _image(np.ones((40, 80)), aspect=2.0)
    image.meta["padding"] = np.zeros((40, 80), bool)
    once = resize_chain("image", 64, "fit")[0]({"image": image})["image"]
    assert once.meta["aspect"] == pytest.approx(1)
    assert "padding" not in once.meta
    twice = resize_chain("image", 32, "fit")[0]({"image": once})["image"]
    np.testing.assert_allclose(index_affine(twice), [[40 / 32, 0, 0.125], [0, 80 / 32, 0.75]], atol=1e-9)
    assert image.meta["aspect"] == 2.0  # the caller's image is as it was
    assert "padding" in image.meta


@pytest.mark.parametrize("mode", MODES)
def test_monais_inverse_brings_back_shape_affine_aspect_and_what_was_seen(mode):
    rows, columns = 90, 130
    smooth = 0.2 + 0.5 * np.outer(np.sin(np.arange(rows) / 20) ** 2, np.cos(np.arange(columns) / 25) ** 2)
    chain = Compose(resize_chain("image", 64, mode))
    resized = chain({"image": _image(smooth, 1.3)})
    back = chain.inverse(resized)["image"]
    assert back.shape == (1, rows, columns)
    assert back.meta["aspect"] == pytest.approx(1.3)
    assert not back.applied_operations
    np.testing.assert_allclose(index_affine(back), np.eye(2, 3), atol=1e-9)
    corners = to_source([[-0.5, -0.5], [63.5, 63.5]], index_affine(resized["image"]))
    places = np.indices((rows, columns)).transpose(1, 2, 0)
    seen = ((places >= corners[0] - 1e-6) & (places <= corners[1] + 1e-6)).all(-1)
    assert seen.mean() > (0.5 if mode == "crop" else 0.999)
    np.testing.assert_allclose(back[0].numpy()[seen], smooth[seen], atol=0.02)
    assert float(back[0][torch.from_numpy(~seen)].abs().sum()) == 0


def test_inverse_after_a_data_loader():
    chain = Compose(resize_chain("image", 32, "crop"))
    shapes = [(40, 60), (70, 50)]
    batch = list_data_collate([chain({"image": MetaTensor(torch.rand(1, *shape))}) for shape in shapes])
    assert batch["image"].shape == (2, 1, 32, 32)
    back = [chain.inverse(item)["image"].shape for item in decollate_batch(batch)]
    assert back == [(1, *shape) for shape in shapes]


def test_plain_tensors_and_arrays_become_tracked():
    for image in (torch.rand(1, 30, 40), np.random.default_rng(0).random((1, 30, 40))):
        found = resize_chain("image", 16, "fit")[0]({"image": image})["image"]
        assert isinstance(found, MetaTensor)
        np.testing.assert_allclose(np.diag(index_affine(found)), [30 / 12, 40 / 16])


@pytest.mark.parametrize("size_and_mode", [(0, "fit"), (32, "squeeze")])
def test_arguments_that_mean_nothing_are_refused(size_and_mode):
    with pytest.raises(ValueError, match="expected a size"):
        resize_chain("image", *size_and_mode)


def test_images_that_are_none_are_refused():
    chain = resize_chain("image", 32, "fit")[0]
    for shape in ((30, 40), (1, 0, 40), (1, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"expected an image \(channels, rows, columns\)"):
            chain({"image": torch.zeros(shape)})
    with pytest.raises(ValueError, match="aspect"):
        chain({"image": _image(np.zeros((3, 4)), aspect=-1.0)})


def test_points_there_and_back():
    affine = np.array([[0.5, -1.2, 3.0], [1.1, 0.4, -7.0]])
    points = np.array([[0.0, 0.0], [10.5, -3.0], [100.0, 41.0]])
    np.testing.assert_allclose(to_input(to_source(points, affine), affine), points, atol=1e-9)
    np.testing.assert_allclose(to_source([1.0, 2.0], affine), [[0.5 - 2.4 + 3.0, 1.1 + 0.8 - 7.0]])
    assert to_source(np.zeros((0, 2)), affine).shape == (0, 2)


def test_what_was_cropped_away_has_no_evidence():
    affine = index_affine(_resized(np.zeros((64, 192)), 64, "crop"))
    back = map_back(torch.ones(2, 2), affine, (64, 192), (64, 64), 32.0, 0.0)
    assert back[:, :60].max() == 0
    assert back[:, 132:].max() == 0
    assert back[:, 70:120].min() == 1
