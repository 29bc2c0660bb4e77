"""Stresses: each does what its words say, to values of any unit, and to nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from transforms.intensity import WINDOWS, Pixels, PixelUnit, Voi, to_unit_range, unit_channels
from transforms.stress import STRESSES, blurred, compressed, curved, cut, framed, noisy, resized, shades, windowed

SHAPE = (60, 80)
ROUNDING = 1e-5
"""Of the range, in float32."""
UNITS = st.sampled_from(["fraction", "hu", "inverted", "color", "padded"])


def _pixels(kind: str = "fraction", shape: tuple[int, int] = SHAPE) -> Pixels:
    """Smooth, with noise on it."""
    rows, columns = np.indices(shape, np.float32) / 20.0
    noise = np.random.default_rng(0).random(shape, np.float32)
    values = (0.4 + 0.25 * np.sin(rows) * np.cos(columns) + 0.1 * noise).astype(np.float32)
    if kind == "color":
        return Pixels(np.stack([values, 1 - values, values**2], axis=-1), PixelUnit.FRACTION)
    if kind == "fraction":
        return Pixels(values, PixelUnit.FRACTION)
    hu = -1000 + 1400 * values
    if kind == "inverted":
        return Pixels(hu, PixelUnit.MODALITY, (Voi(center=-300, width=1400),), inverted=True)
    padding = np.zeros(shape, bool)
    padding[:5] = True
    hu[:5] = -3000
    return Pixels(hu, PixelUnit.HU, padding=padding if kind == "padded" else None, spacing_mm=(0.8, 0.6), aspect=4 / 3)


@pytest.mark.parametrize("name", STRESSES)
@pytest.mark.parametrize("kind", ["fraction", "hu", "inverted", "color", "padded"])
def test_every_stress_gives_an_image_of_the_same_kind_twice_the_same(name, kind):
    pixels = _pixels(kind)
    before = pixels.values.copy()
    found, again = STRESSES[name].apply(pixels), STRESSES[name].apply(pixels)
    np.testing.assert_array_equal(pixels.values, before)
    np.testing.assert_array_equal(found.values, again.values)
    assert found.values.dtype == np.float32
    assert found.values.ndim == pixels.values.ndim
    assert np.isfinite(found.values).all()
    assert (found.unit, found.voi, found.inverted, found.aspect) == (
        pixels.unit,
        pixels.voi,
        pixels.inverted,
        pixels.aspect,
    )
    if pixels.padding is not None:
        assert found.padding is not None
        assert found.padding.shape == found.values.shape[:2]
    shown = unit_channels(found, [WINDOWS["wide"]])
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert found.values.shape != pixels.values.shape or np.abs(found.values - pixels.values).max() > 0


def test_names_are_in_snake_case_and_words_say_something():
    for name, stress in STRESSES.items():
        assert stress.name == name == name.lower().replace(" ", "_")
        assert len(stress.words) > 10
    assert len({stress.words for stress in STRESSES.values()}) == len(STRESSES)


@settings(max_examples=40, deadline=None)
@given(center=st.floats(0.2, 0.8), width=st.floats(0.4, 2.0))
def test_a_window_is_what_it_would_have_been_at_the_console(center, width):
    """Of fractions: a LINEAR_EXACT window over 0-1. Of HU: whatever window follows shows what a moved one showed before."""
    pixels = _pixels()
    expected = np.clip((pixels.values - center) / width + 0.5, 0, 1)
    np.testing.assert_allclose(windowed(pixels, center, width).values, expected, atol=ROUNDING)
    hu = _pixels("hu")
    black, span = shades(hu).black, shades(hu).range
    shown = to_unit_range(windowed(hu, center, width), WINDOWS["lung"])
    window = WINDOWS["lung"]
    # The lung window's ends, in parts of the range, lie so in the window that was asked for.
    moved = Voi(
        center=black + span * (((window.center - black) / span - 0.5) * width + center),
        width=(window.width - 1) * width + 1,
    )
    np.testing.assert_allclose(shown, to_unit_range(hu, moved), atol=2e-3)


def test_brighter_and_darker_are_so_in_monochrome1_too():
    for kind in ("fraction", "hu", "inverted"):
        pixels = _pixels(kind)
        mean = {name: float(unit_channels(STRESSES[name].apply(pixels), [WINDOWS["lung"]]).mean()) for name in STRESSES}
        plain = float(unit_channels(pixels, [WINDOWS["lung"]]).mean())
        assert mean["window_lower"] > plain > mean["window_higher"]
        assert mean["gamma_low"] > plain > mean["gamma_high"]
        assert mean["frame_white"] > plain > mean["frame_black"]


def test_gamma_is_a_power_of_what_is_shown():
    pixels = _pixels()
    np.testing.assert_allclose(curved(pixels, 1.4).values, pixels.values**1.4, atol=ROUNDING)
    hu = _pixels("hu")
    ends = shades(hu)
    beyond = (hu.values < ends.black) | (hu.values > ends.white)
    assert beyond.any()
    np.testing.assert_allclose(curved(hu, 1.4).values[beyond], hu.values[beyond], atol=0.1)


def test_padding_counts_for_no_shade():
    assert shades(_pixels("padded")).black > -1100


@pytest.mark.parametrize("kind", ["fraction", "hu", "inverted", "color", "padded"])
def test_a_frame_goes_around_and_a_cut_takes_it_off(kind):
    pixels, widths = _pixels(kind), (0.1, 0.05, 0.2, 0.0)
    found = framed(pixels, 1.0, widths)
    assert found.values.shape[:2] == (60 + 6 + 3, 80 + 16)
    shown = to_unit_range(found, WINDOWS["lung"])
    assert (shown[:6] == 1).all()
    assert (to_unit_range(framed(pixels, 0.0, widths), WINDOWS["lung"])[-3:] == 0).all()
    np.testing.assert_array_equal(found.values[6:-3, 16:], pixels.values)
    back = cut(found, (6 / 69, 3 / 69, 16 / 96, 0.0))
    np.testing.assert_array_equal(back.values, pixels.values)
    if pixels.padding is not None:
        np.testing.assert_array_equal(back.padding, pixels.padding)


def test_a_cut_leaves_a_pixel():
    assert cut(_pixels(shape=(1, 3)), (0.5, 0.5, 0.9, 0.9)).values.shape == (1, 1)


@pytest.mark.parametrize("factor", [1 / 3, 0.5, 2.0])
def test_resizing_keeps_places_and_spacing(factor):
    """A slope stays that slope, in the middles of pixels."""
    rows = np.repeat(np.arange(60, dtype=np.float32)[:, None], 80, axis=1) / 60
    found = resized(replace(_pixels(), values=rows, spacing_mm=(0.8, 0.6)), factor)
    assert found.values.shape == (round(60 * factor), round(80 * factor))
    places = (np.arange(len(found.values)) + 0.5) / factor - 0.5
    inner = slice(3, -3)
    np.testing.assert_allclose(found.values[inner, 5], places[inner] / 60, atol=2e-3)
    assert found.spacing_mm == pytest.approx((0.8 / factor, 0.6 / factor))


def test_blur_is_of_the_longer_side():
    values = _pixels().values
    expected = ndimage.gaussian_filter(values, 0.02 * 80, mode="nearest")
    np.testing.assert_allclose(blurred(_pixels(), 0.02).values, expected, atol=ROUNDING)
    color = blurred(_pixels("color"), 0.02).values
    np.testing.assert_allclose(color[..., 0], expected, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["fraction", "hu"])
def test_noise_has_its_deviation_and_is_each_images_own(kind):
    pixels = _pixels(kind)
    noise = (noisy(pixels, 0.05).values - pixels.values) / shades(pixels).range
    assert float(noise.std()) == pytest.approx(0.05, rel=0.05)
    other = replace(pixels, values=pixels.values + np.float32(1e-3))
    correlation = np.corrcoef(noise.ravel(), (noisy(other, 0.05).values - other.values).ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(noise.size)


@pytest.mark.parametrize("kind", ["fraction", "hu", "color"])
def test_jpeg_leaves_the_errors_of_its_quality(kind):
    pixels = _pixels(kind)
    errors = {
        quality: float(np.abs(compressed(pixels, quality).values - pixels.values).mean() / shades(pixels).range)
        for quality in (10, 30, 95)
    }
    assert errors[10] > errors[30] > errors[95] > 0
    assert errors[10] < 0.1
