"""Softer, coarser and harder images: what each strength means, and that the batch's matrices are the filters they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn.functional import interpolate

from transforms.augment import Augmentations, Drawn, augment_batch, draw
from transforms.drawing import DRAWS, coarse_sides
from transforms.sharpness import UNSHARP_DEVIATION, gaussian, resampling, softened

TOLERANCE = 2e-6
"""Of values in 0-1 in float32: sums of some hundred products."""
TAIL = 1e-4
"""scipy cuts its Gaussian four standard deviations away; beyond lies 6e-5 of it."""


def _drawn(count: int, **values: list[float] | list[list[float]]) -> Drawn:
    neutral = draw(Augmentations(), np.zeros((count, DRAWS)))
    return Drawn(**(vars(neutral) | {name: np.array(value, float) for name, value in values.items()}))


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _augmented(images: torch.Tensor, **values: list[float] | list[list[float]]) -> torch.Tensor:
    return augment_batch(images, _drawn(len(images), **values), noise_seed=0)


def test_blur_is_a_gaussian_of_each_images_own_deviation():
    images, deviations = _images(4, 2, 60, 80), [0.0, 0.7, 1.5, 3.0]
    found = _augmented(images, blur=deviations)
    assert torch.equal(found[0], images[0])
    for image, result, deviation in zip(images, found, deviations, strict=True):
        expected = ndimage.gaussian_filter(image.numpy(), (0, deviation, deviation), mode="constant")
        weight = ndimage.gaussian_filter(np.ones((60, 80), np.float32), deviation, mode="constant")
        np.testing.assert_allclose(result, expected / weight, atol=TAIL)


def test_coarse_is_anti_aliased_resizing_there_and_back():
    images, fractions = _images(4, 1, 48, 64), [1.0, 0.75, 0.5, 0.25]
    drawn = _drawn(4, coarse=fractions)
    found = augment_batch(images, drawn, noise_seed=0)
    assert torch.equal(found[0], images[0])
    for image, result, sides in zip(images, found, coarse_sides(drawn, (48, 64)).tolist(), strict=True):
        small = interpolate(image[None], sides, mode="bilinear", antialias=True)
        expected = interpolate(small, (48, 64), mode="bilinear")[0]
        np.testing.assert_allclose(result, expected, atol=TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70), columns=st.integers(1, 70), fraction=st.floats(0.01, 1.0), deviation=st.floats(0.0, 10.0)
)
def test_an_even_image_stays_even_and_nothing_is_moved(rows, columns, fraction, deviation):
    """No border darkens; mirrored comes out what came out, mirrored: no filter leans to a side."""
    even = torch.full((1, 1, rows, columns), 0.6)
    strengths = {"coarse": [fraction], "blur": [deviation]}
    np.testing.assert_allclose(_augmented(even, **strengths), even, atol=TOLERANCE)
    images = _images(1, 1, rows, columns)
    np.testing.assert_allclose(
        _augmented(images, **strengths).flip(2, 3), _augmented(images.flip(2, 3), **strengths), atol=1e-5
    )


def test_coarse_and_blur_together_are_one_after_the_other():
    images = _images(3, 2, 40, 56)
    sides, deviations = torch.tensor([[40.0, 56.0], [20.0, 28.0], [13.0, 19.0]]), torch.tensor([1.0, 0.0, 2.0])
    after = softened(softened(images, sides, None), None, deviations)
    np.testing.assert_allclose(softened(images, sides, deviations), after, atol=TOLERANCE)


def test_nothing_is_the_identity_to_the_last_bit():
    assert torch.equal(gaussian(33, torch.zeros(2)), torch.eye(33).expand(2, 33, 33))
    assert torch.equal(resampling(33, torch.full((2,), 33.0)), torch.eye(33).expand(2, 33, 33))


def test_sharpening_adds_the_difference_to_a_blurred_image():
    images = 0.3 + 0.4 * _images(3, 1, 50, 50)
    found = _augmented(images, sharpen=[0.0, 0.3, 0.6])
    assert torch.equal(found[0], images[0])
    blurred = _augmented(images, blur=[UNSHARP_DEVIATION] * 3)
    for number, factor in enumerate((0.0, 0.3, 0.6)):
        expected = (images[number] + factor * (images[number] - blurred[number])).clamp(0, 1)
        np.testing.assert_allclose(found[number], expected, atol=TOLERANCE)


def test_gamma_is_a_power():
    images = _images(3, 1, 20, 20)
    found = _augmented(images, gamma=[1.0, 0.5, 2.0])
    assert torch.equal(found[0], images[0])
    np.testing.assert_allclose(found[1], images[1].sqrt(), atol=TOLERANCE)
    np.testing.assert_allclose(found[2], images[2].square(), atol=TOLERANCE)


def test_the_window_goes_from_black_to_white():
    """The black point becomes 0, the white point 1, and what is beyond is cut."""
    images = torch.linspace(0, 1, 101).view(1, 1, 1, 101).repeat(3, 1, 1, 1)
    found = _augmented(images, window=[[0.0, 0.0], [0.1, -0.2], [-0.1, 0.3]])
    assert torch.equal(found[0], images[0])
    np.testing.assert_allclose(found[1], ((images[1] - 0.1) / 0.7).clamp(0, 1), atol=TOLERANCE)
    np.testing.assert_allclose(found[2], (images[2] + 0.1) / 1.4, atol=TOLERANCE)


def test_sharpness_comes_before_the_curve_and_the_curve_before_noise():
    """In the order of a device: optics, then display."""
    images = _images(1, 1, 40, 40)
    together = _augmented(images, blur=[1.0], gamma=[2.0], window=[[0.1, -0.1]], contrast=[1.2])
    steps = images
    for step in ({"blur": [1.0]}, {"gamma": [2.0]}, {"window": [[0.1, -0.1]]}, {"contrast": [1.2]}):
        steps = _augmented(steps, **step)  # type: ignore[arg-type]
    # Cut to 0-1 after each step, not once: only what is cut by the window differs, and then its mean.
    seen = (steps > 0.1) & (steps < 0.9)
    assert float((together - steps)[seen].abs().max()) < 0.05
    other = _augmented(_augmented(images, gamma=[2.0]), blur=[1.0])
    assert float((other - _augmented(images, blur=[1.0], gamma=[2.0])).abs().max()) > 0.05


@pytest.mark.parametrize("strength", [{"blur": [2.0] * 2}, {"coarse": [0.5] * 2}, {"sharpen": [1.0] * 2}])
def test_the_images_given_are_not_changed(strength):
    images = _images(2, 1, 24, 24)
    before = images.clone()
    _augmented(images, **strength)
    assert torch.equal(images, before)
