"""Windows, VOI functions, inversion and normalisation, against the formulas of PS3.3 C.11."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, Flipd, GaussianSmoothd, Resized, ScaleIntensityd

from transforms.intensity import (
    LEVELS,
    WINDOWS,
    Z_RANGE,
    Pixels,
    PixelUnit,
    Scaled,
    Standardized,
    UnitRanged,
    Voi,
    VoiFunction,
    apply_voi,
    choose_voi,
    describe_unit_range,
    from_levels,
    percentile_voi,
    to_levels,
    to_metatensor,
    to_unit_range,
    unit_channels,
)

LUNG, SOFT, BONE = WINDOWS["lung"], WINDOWS["mediastinum"], WINDOWS["bone"]
ROUNDING = 1e-6
"""Of a few float32 operations on values about 1."""


def _array(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def test_linear_is_the_standards_formula():
    """PS3.3 C.11.2.1.2.1, Note 2: c = 2048, w = 4096 maps 0 to the minimum and 4095 to the maximum."""
    shown = apply_voi(_array(-1, 0, 2047.5, 4095, 5000), Voi(center=2048, width=4096))
    np.testing.assert_allclose(shown[0], [0, 0, 0.5, 1, 1], atol=1e-6)


def test_linear_of_width_one_is_a_step():
    """Same note: c = 2048, w = 1 is a threshold at 2048."""
    np.testing.assert_array_equal(apply_voi(_array(2047, 2048), Voi(center=2048, width=1)), _array(0, 1))


def test_linear_exact_and_sigmoid():
    exact = Voi(VoiFunction.LINEAR_EXACT, center=10, width=4)
    np.testing.assert_allclose(apply_voi(_array(7, 8, 10, 12, 13), exact)[0], [0, 0, 0.5, 1, 1])
    sigmoid = Voi(VoiFunction.SIGMOID, center=10, width=4)
    np.testing.assert_allclose(apply_voi(_array(10, 12), sigmoid)[0], [0.5, 1 / (1 + np.exp(-2))], rtol=1e-6)
    assert np.isfinite(apply_voi(_array(-1e9, 1e9), sigmoid)).all()


def test_lut_holds_its_ends():
    lut = Voi(VoiFunction.LUT, first=100, lut=np.array([0, 0.25, 1], np.float32))
    np.testing.assert_allclose(apply_voi(_array(-5, 100, 101, 102, 900), lut)[0], [0, 0, 0.25, 1, 1])


@given(st.sampled_from(sorted(WINDOWS)), st.lists(st.floats(-3000, 3000), min_size=2, max_size=20))
def test_more_hounsfield_is_never_darker(name, values):
    shown = apply_voi(_array(*sorted(values)), WINDOWS[name])
    assert (np.diff(shown[0]) >= 0).all()
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_hounsfield_ignores_the_files_own_window():
    """The same tissue is the same number, whatever window the scanner suggested."""
    values = _array(-1000, -600, 40)
    shown = [
        to_unit_range(Pixels(values, PixelUnit.HU, voi=(Voi(center=c, width=50),)), WINDOWS["lung"]) for c in (0, 500)
    ]
    np.testing.assert_array_equal(*shown)


def test_other_units_go_by_the_files_first_window():
    pixels = Pixels(
        _array(0, 50, 100), PixelUnit.MODALITY, voi=(Voi(VoiFunction.LINEAR_EXACT, 50, 100), Voi(center=0, width=2))
    )
    np.testing.assert_allclose(to_unit_range(pixels, WINDOWS["lung"])[0], [0, 0.5, 1])


def test_inversion_is_last():
    window = (Voi(VoiFunction.LINEAR_EXACT, 50, 100),)
    plain = to_unit_range(Pixels(_array(0, 20, 100), PixelUnit.MODALITY, voi=window), WINDOWS["lung"])
    inverted = to_unit_range(Pixels(_array(0, 20, 100), PixelUnit.MODALITY, voi=window, inverted=True), WINDOWS["lung"])
    np.testing.assert_allclose(inverted, 1 - plain)


@pytest.mark.parametrize("inverted", [False, True])
def test_padding_is_black_and_does_not_count(inverted):
    values = np.linspace(100, 200, 200, dtype=np.float32)[None].repeat(2, axis=0)
    values[0, :50] = -30000
    padding = values < 0
    with_padding = to_unit_range(
        Pixels(values, PixelUnit.MODALITY, padding=padding, inverted=inverted), WINDOWS["lung"]
    )
    assert (with_padding[padding] == 0).all()
    assert with_padding[1].max() - with_padding[1].min() > 0.95  # the fallback's range is that of the real values


OWN = (
    Voi(VoiFunction.LUT, lut=np.array([0, 1], np.float32), explanation="NORMAL"),
    Voi(center=50, width=100, explanation="Soft Tissue"),
    Voi(center=300, width=900, explanation="BONE"),
)


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e-30, 1e30])
def test_without_a_voi_the_range_is_the_images_own_whatever_its_unit(unit):
    values = (np.linspace(0, 3, 1000, dtype=np.float32) * np.float32(unit)).reshape(25, 40)
    shown = to_unit_range(Pixels(values, PixelUnit.MODALITY), LUNG)
    np.testing.assert_allclose(
        shown, np.clip((np.linspace(0, 1, 1000) - 0.005) / 0.99, 0, 1).reshape(25, 40), atol=1e-5
    )


def test_without_a_voi_a_few_bright_pixels_leave_the_rest_black():
    values = np.zeros((30, 40), np.float32)
    values[7, 9:11] = 2.5, 5.0
    shown = to_unit_range(Pixels(values, PixelUnit.MODALITY), LUNG)
    assert (shown[7, 9], shown[7, 10], shown.sum()) == (0.5, 1.0, 1.5)
    assert np.unique(to_unit_range(Pixels(np.full((3, 4), 7.0, np.float32), PixelUnit.MODALITY), LUNG)) == 0.5


@pytest.mark.parametrize(
    ("voi", "number"),
    [(0, 0), (1, 1), (2, 2), (3, 0), (-1, 0), ("bone", 2), ("tissue", 1), (" SOFT ", 1), ("lung", 0), ("", 0)],
)
def test_a_voi_is_chosen_by_number_or_word(voi, number):
    pixels = Pixels(_array(0, 50, 100), PixelUnit.MODALITY, voi=OWN)
    assert choose_voi(pixels, voi) is OWN[number]
    np.testing.assert_array_equal(to_unit_range(pixels, LUNG, voi=voi), apply_voi(pixels.values, OWN[number]))
    hounsfield = Pixels(pixels.values, PixelUnit.HU, voi=OWN)
    np.testing.assert_array_equal(to_unit_range(hounsfield, LUNG, voi=voi), apply_voi(pixels.values, LUNG))


def test_without_a_voi_any_choice_is_the_percentiles():
    pixels = Pixels(np.arange(400, dtype=np.float32).reshape(20, 20), PixelUnit.MODALITY)
    assert choose_voi(pixels, "bone") == choose_voi(pixels, 1) == percentile_voi(pixels)


def _ramp(unit=PixelUnit.HU, **attributes):
    return Pixels(np.linspace(-1200, 1200, 96, dtype=np.float32).reshape(8, 12), unit, **attributes)


def test_one_channel_a_window_for_hounsfield_units():
    padding = np.zeros((8, 12), bool)
    padding[2] = True
    channels = unit_channels(_ramp(padding=padding, inverted=True), [LUNG, SOFT, BONE])
    assert channels.shape == (3, 8, 12)
    assert (channels[:, 2] == 0).all()
    for channel, window in zip(channels, (LUNG, SOFT, BONE), strict=True):
        np.testing.assert_array_equal(channel, to_unit_range(_ramp(padding=padding, inverted=True), window))
    assert np.abs(channels[0] - channels[1]).max() > 0.4


@pytest.mark.parametrize("unit", [PixelUnit.MODALITY, PixelUnit.FRACTION])
def test_other_gray_images_repeat(unit):
    channels = unit_channels(_ramp(unit, voi=OWN), [LUNG, SOFT, BONE], voi="bone")
    expected = to_unit_range(_ramp(unit, voi=OWN), LUNG, voi="bone")
    np.testing.assert_array_equal(channels, np.stack([expected] * 3))


@pytest.mark.parametrize("windows", [[LUNG], [LUNG, SOFT, BONE]])
def test_colour_has_its_own_three_channels(windows):
    rgb = np.random.default_rng(0).random((8, 12, 3), dtype=np.float32)
    padding = np.zeros((8, 12), bool)
    padding[0, 0] = True
    channels = unit_channels(Pixels(rgb, PixelUnit.FRACTION, padding=padding), windows)
    assert channels.shape == (3, 8, 12)
    np.testing.assert_array_equal(np.moveaxis(channels, 0, -1)[~padding], rgb[~padding])
    assert (channels[:, 0, 0] == 0).all()


def test_a_channel_needs_a_window():
    with pytest.raises(ValueError, match="one window at least"):
        unit_channels(_ramp(), [])


def test_unit_ranged_in_a_monai_compose():
    pixels = Pixels(np.linspace(-1000, 400, 64, dtype=np.float32).reshape(8, 8), PixelUnit.HU, aspect=1.5)
    image = Compose([UnitRanged("image", LUNG)])({"image": to_metatensor(pixels)})["image"]
    np.testing.assert_allclose(image[0].numpy(), to_unit_range(pixels, LUNG))
    assert (image.meta["aspect"], image.meta.get("padding"), image.meta.get("pixels")) == (1.5, None, None)
    with pytest.raises(ValueError, match="to_metatensor"):
        UnitRanged("image", LUNG)({"image": image})
    with pytest.raises(ValueError, match="to_metatensor"):
        UnitRanged("image", LUNG)({"image": torch.zeros(1, 8, 8)})


def test_unit_ranged_on_several_keys_and_windows():
    colored = Pixels(np.random.default_rng(1).random((8, 12, 3), dtype=np.float32), PixelUnit.FRACTION)
    padded = _ramp(padding=np.eye(8, 12, dtype=bool))
    data = {"ct": to_metatensor(padded), "photo": to_metatensor(colored), "label": 1}
    found = UnitRanged(["ct", "photo", "none"], [LUNG, SOFT, BONE], allow_missing_keys=True)(data)
    np.testing.assert_array_equal(found["ct"].numpy(), unit_channels(padded, [LUNG, SOFT, BONE]))
    np.testing.assert_array_equal(found["photo"].numpy(), np.moveaxis(colored.values, -1, 0))
    np.testing.assert_array_equal(found["ct"].meta["padding"], padded.padding)
    assert found["label"] == 1


def test_unit_ranged_sees_what_an_intensity_transform_did_before_it():
    pixels = _ramp()
    chain = Compose([GaussianSmoothd("image", sigma=1.0), UnitRanged("image", LUNG)])
    smooth = GaussianSmoothd("image", sigma=1.0)({"image": to_metatensor(pixels)})["image"][0].numpy()
    found = chain({"image": to_metatensor(pixels)})["image"][0].numpy()
    np.testing.assert_allclose(found, apply_voi(smooth, LUNG), atol=ROUNDING)
    assert np.abs(found - to_unit_range(pixels, LUNG)).max() > 0.01


@pytest.mark.parametrize("moved", [Flipd("image", 1), Resized("image", (4, 4))])
def test_unit_ranged_goes_before_what_moves_pixels(moved):
    """The padding and the shape are those of the file."""
    with pytest.raises(ValueError, match="before what moves pixels"):
        UnitRanged("image", LUNG)(moved({"image": to_metatensor(_ramp())}))


@pytest.mark.parametrize("moved", [Flipd("image", 1), Resized("image", (4, 4))])
def test_scaled_goes_before_what_moves_padding(moved):
    ranged = UnitRanged(["padded", "whole"], LUNG)(
        {"padded": to_metatensor(_ramp(padding=np.eye(8, 12, dtype=bool))), "whole": to_metatensor(_ramp())}
    )
    with pytest.raises(ValueError, match="before what moves pixels"):
        Scaled("image", "min_max")(moved({"image": ranged["padded"]}))
    assert float(Scaled("image", "min_max")(moved({"image": ranged["whole"]}))["image"].max()) == 1.0


def _unit_image(channels=1, padding=None):
    values = np.random.default_rng(3).uniform(0.2, 0.7, (channels, 30, 40)).astype(np.float32)
    image = MetaTensor(torch.from_numpy(values), affine=torch.eye(4))
    if padding is not None:
        image[:, padding] = 0.0
        image.meta["padding"] = padding
    return image


PADDING = np.zeros((30, 40), bool)
PADDING[:, :13] = True


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("scaling", ["min_max", "percentile", "z_score"])
def test_scaling_by_the_images_own_values(scaling, padding, channels):
    image = _unit_image(channels, padding)
    inside = slice(None) if padding is None else ~padding
    values = image.numpy()[:, inside].astype(np.float64)
    found = Scaled("image", scaling, (10, 80))({"image": image})["image"]
    if scaling == "min_max":
        expected = (values - values.min()) / (values.max() - values.min())
    elif scaling == "percentile":
        low, high = np.percentile(values, (10, 80))
        expected = np.clip((values - low) / (high - low), 0, 1)
    else:
        expected = np.clip((values - values.mean()) / values.std(), -Z_RANGE, Z_RANGE) / (2 * Z_RANGE) + 0.5
    np.testing.assert_allclose(found.numpy()[:, inside], expected, atol=ROUNDING)
    if padding is not None:
        assert (found.numpy()[:, padding] == 0).all()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.affine, image.affine)


def test_z_score_is_given_back_by_its_mean_and_standard_deviation():
    image = _unit_image(3)
    scaled = Scaled("image", "z_score")({"image": image})
    z = Standardized("image", (0.5,) * 3, (0.5 / Z_RANGE,) * 3)(scaled)["image"].numpy()
    assert abs(z.mean()) < 1e-4
    assert abs(z.std() - 1) < 1e-3


@pytest.mark.parametrize(("scaling", "constant"), [("none", 0.3), ("min_max", 0), ("percentile", 0), ("z_score", 0.5)])
def test_scaling_a_constant_or_a_padded_image(scaling, constant):
    image = MetaTensor(torch.full((1, 6, 5), 0.3), affine=torch.eye(4))
    np.testing.assert_allclose(Scaled("image", scaling)({"image": image})["image"].numpy(), constant, atol=ROUNDING)
    image.meta["padding"] = np.ones((6, 5), bool)
    nothing = Scaled("image", scaling)({"image": image})["image"].numpy()
    np.testing.assert_allclose(nothing, 0.3 if scaling == "none" else 0, atol=ROUNDING)


@given(
    arrays.arrays(np.float32, (2, 4, 5), elements=st.floats(0, 1, width=32)),
    arrays.arrays(bool, (4, 5)),
    st.sampled_from(["min_max", "percentile", "z_score"]),
)
def test_scaled_values_are_in_range_and_padding_counts_for_nothing(values, padding, scaling):
    def scaled(numbers):
        image = MetaTensor(torch.from_numpy(numbers.copy()), affine=torch.eye(4))
        image.meta["padding"] = padding
        return Scaled("image", scaling)({"image": image})["image"].numpy()

    other = np.where(padding, np.float32(1) - values, values)
    found = scaled(values)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_array_equal(found, scaled(other))


def test_scaling_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="expected one of none, min_max, percentile, z_score, tissue"):
        Scaled("image", "minmax")
    with pytest.raises(ValueError, match="the lower first"):
        Scaled("image", "percentile", (99, 1))


def test_standardize():
    image = Scaled("image", "min_max")({"image": to_metatensor(Pixels(_array(0.2, 0.6), PixelUnit.FRACTION))})["image"]
    three = Standardized("image", (0.1, 0.2, 0.3), (1, 2, 4))({"image": image})["image"]
    np.testing.assert_allclose(three.numpy()[:, 0], [[-0.1, 0.9], [-0.1, 0.4], [-0.075, 0.175]], rtol=1e-6)
    colored = Standardized("image", (0, 0, 0.5), (1, 2, 4))({"image": torch.ones(3, 1, 1)})["image"]
    np.testing.assert_allclose(colored.ravel(), [1, 0.5, 0.125])
    with pytest.raises(ValueError, match="do not fit an image of 3"):
        Standardized("image", (0.5,), (0.5,))({"image": torch.ones(3, 2, 2)})


CHAIN = [UnitRanged(["image", "other"], [LUNG, SOFT, BONE]), Scaled(["image", "other"], "percentile")]
CHAIN += [Standardized(["image", "other"], (0.5,) * 3, (0.25,) * 3)]


def test_transforms_leave_their_input_as_it_was():
    data = {"image": to_metatensor(_ramp(padding=np.eye(8, 12, dtype=bool))), "other": to_metatensor(_ramp())}
    for transform in CHAIN:
        before = copy.deepcopy(data)
        after = transform(data)
        for key, image in data.items():
            torch.testing.assert_close(image.as_tensor(), before[key].as_tensor(), rtol=0, atol=0)
            assert image.meta.keys() == before[key].meta.keys()
            assert image.applied_operations == before[key].applied_operations
            assert after[key] is not image
            torch.testing.assert_close(after[key].affine, image.affine)
        data = after


def test_transforms_go_with_monais_own_on_several_keys():
    steps = [*CHAIN[:2], Resized(["image", "other"], (6, 6)), ScaleIntensityd("image"), CHAIN[2]]
    chain = Compose([*steps, Flipd(["image", "other"], 0), EnsureTyped(["image", "other"])])
    found = chain({"image": to_metatensor(_ramp()), "other": to_metatensor(_ramp())})
    assert found["image"].shape == found["other"].shape == (3, 6, 6)
    assert [step["class"] for step in found["image"].applied_operations] == ["Resize", "Flip"]
    assert float(found["image"].affine[1, 1]) == pytest.approx(2.0)


def test_every_level_comes_back():
    levels = np.arange(LEVELS + 1, dtype=np.uint16)
    fractions = from_levels(levels)
    assert (fractions.dtype, fractions[0], fractions[-1]) == (np.float32, 0, 1)
    assert (np.diff(fractions) > 0).all()
    np.testing.assert_array_equal(to_levels(fractions), levels)
    tensors = from_levels(torch.from_numpy(levels))
    np.testing.assert_array_equal(tensors.numpy(), fractions)
    np.testing.assert_array_equal(to_levels(tensors).numpy(), levels)
    assert to_levels(tensors).dtype == torch.uint16


@given(arrays.arrays(np.float32, 20, elements=st.floats(-2, 3, width=32)))
def test_rounding_is_half_a_level_and_the_same_in_arrays_and_tensors(values):
    levels = to_levels(values)
    assert np.abs(from_levels(levels) - np.clip(values, 0, 1)).max() <= 0.5 / LEVELS + 1e-7
    np.testing.assert_array_equal(levels, to_levels(torch.from_numpy(values)).numpy())


def test_levels_of_a_metatensor_are_plain():
    levels = to_levels(to_metatensor(Pixels(_array(0, 0.5, 1), PixelUnit.FRACTION)))
    assert type(levels) is torch.Tensor
    assert levels.tolist() == [[[0, 32768, 65535]]]


def test_the_path_is_said_for_each_kind_of_input():
    described = describe_unit_range(LUNG)
    assert set(described) == set(PixelUnit)
    assert "linear from -1350 to 150 HU" in described["HU"]
    assert "first VOI LUT or window" in described["modality"]
    assert "luma" in described["fraction"]
    assert not any("scaled" in words for words in described.values())


def test_the_path_says_what_is_chosen():
    described = describe_unit_range([LUNG, SOFT, BONE], voi="bone", scaling="percentile", percentiles=(2, 98))
    assert "channel 1: linear from -1350 to 150 HU" in described["HU"]
    assert "channel 3: linear from -500 to 1300 HU" in described["HU"]
    assert "'bone'" in described["modality"]
    assert all("every channel the same" in described[unit] for unit in ("modality", "fraction"))
    assert all("percentile 2 to 98" in words for words in described.values())
    colored = describe_unit_range([LUNG], voi=1, color="rgb", scaling="z_score")
    assert "red, green, blue" in colored["fraction"]
    assert "luma" not in colored["fraction"]
    assert "number 1" in colored["modality"]
    assert "mean" in colored["HU"]
    assert "minimum" in describe_unit_range(LUNG, scaling="min_max")["HU"]


@pytest.mark.parametrize("windows", ["lung", [], [WINDOWS["lung"], "bone"]])
def test_windows_are_vois(windows: object):
    with pytest.raises(ValueError, match="expected a Voi"):
        UnitRanged("image", windows)  # type: ignore[arg-type]


def test_a_window_has_a_width():
    with pytest.raises(ValueError, match="above 0"):
        Voi(center=1, width=0)
