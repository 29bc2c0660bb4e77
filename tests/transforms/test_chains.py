"""The chains as wholes: deterministic where they should be, random where they should be, and seeded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from transforms.augment import Augmentations
from transforms.chains import (
    GRAY_MEAN,
    GRAY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    evaluate_chain,
    prepare_chain,
    train_chain,
)
from transforms.intensity import WINDOWS, Pixels, PixelUnit, Voi, to_metatensor
from transforms.spatial import index_affine

SIZE = 64
PLAIN = {"mean": (0.0,), "std": (1.0,)}


def _disc(row: float = 31.5, column: float = 31.5, radius: float = 12) -> torch.Tensor:
    rows, columns = np.ogrid[:SIZE, :SIZE]
    return torch.from_numpy((((rows - row) ** 2 + (columns - column) ** 2) < radius**2).astype(np.float32))[None]


def _train(seed: int, image: torch.Tensor, **options: float) -> torch.Tensor:
    chain = train_chain(**PLAIN, augmentations=Augmentations(**options))
    chain.set_random_state(seed=seed)
    return chain({"image": image})["image"]


def test_prepare_brings_hounsfield_to_a_square_in_unit_range():
    values = np.linspace(-2000, 2000, 80 * 120, dtype=np.float32).reshape(80, 120)
    chain = prepare_chain(windows=WINDOWS["lung"], size=SIZE, resize="stretch")
    image = chain({"image": to_metatensor(Pixels(values, PixelUnit.HU))})["image"]
    assert image.shape == (1, SIZE, SIZE)
    assert float(image.min()) == pytest.approx(0, abs=1e-6)
    assert float(image.max()) == pytest.approx(1, abs=1e-6)


def _prepared(pixels: Pixels, **options: Any) -> torch.Tensor:
    return prepare_chain(size=SIZE, **({"windows": WINDOWS["wide"], "resize": "fit"} | options))(
        {"image": to_metatensor(pixels)}
    )["image"]


def test_three_windows_are_three_channels():
    values = np.linspace(-1000, 1000, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    windows = [WINDOWS["lung"], WINDOWS["mediastinum"], WINDOWS["bone"]]
    image = _prepared(Pixels(values, PixelUnit.HU), windows=windows)
    assert image.shape == (3, SIZE, SIZE)
    for channel, window in zip(image, windows, strict=True):
        torch.testing.assert_close(channel, _prepared(Pixels(values, PixelUnit.HU), windows=window)[0])


def test_colour_stays_colour():
    values = np.random.default_rng(0).random((40, 60, 3), dtype=np.float32)
    assert _prepared(Pixels(values, PixelUnit.FRACTION)).shape == (3, SIZE, SIZE)


def test_the_file_s_voi_is_chosen_by_its_word():
    values = np.linspace(0, 100, 50 * 50, dtype=np.float32).reshape(50, 50)
    vois = (Voi(center=1000, width=10, explanation="BONE"), Voi(center=50, width=100, explanation="SOFT TISSUE"))
    pixels = Pixels(values, PixelUnit.MODALITY, voi=vois)
    assert float(_prepared(pixels).max()) == 0
    assert float(_prepared(pixels, voi="soft").max()) > 0.9


def test_scaling_comes_before_padding_and_size():
    """Neither the black of `fit` nor what the resize smooths away takes part in an image's statistics."""
    values = np.full((40, 80), 0.5, np.float32)
    values[:, :40] = 0.25
    values[7, 5], values[7, 75] = 0.1, 0.9
    image = _prepared(Pixels(values, PixelUnit.FRACTION), scaling="min_max")
    assert float(image[0, 40, 50]) == pytest.approx((0.5 - 0.1) / 0.8, abs=1e-5)
    assert float(image[0, 40, 20]) == pytest.approx((0.25 - 0.1) / 0.8, abs=1e-5)
    assert float(image[0, :15].abs().max()) == 0


def test_percentiles_reach_scaled():
    values = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    image = _prepared(Pixels(values, PixelUnit.FRACTION), scaling="percentile", percentiles=(25, 75))
    assert float((image[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float((image[0] == 1).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_enhancements_are_on_the_resized_image_and_move_nothing():
    values = np.random.default_rng(0).random((90, 130), dtype=np.float32)
    pixels = Pixels(values, PixelUnit.FRACTION)
    off = dict.fromkeys(("median", "gaussian", "remove_low", "remove_high", "clahe"))
    plain, enhanced = _prepared(pixels, enhancement=off), _prepared(pixels, enhancement=off | {"gaussian": 1.0})
    torch.testing.assert_close(plain, _prepared(pixels), rtol=0, atol=0)
    inner = slice(25, 39)
    assert float(enhanced[0, inner, 8:-8].std()) < 0.6 * float(plain[0, inner, 8:-8].std())
    np.testing.assert_array_equal(index_affine(enhanced), index_affine(plain))


def test_the_whole_chain_is_undone_where_it_moved_pixels():
    """`Compose.inverse` goes back through all of it: a map on the network's input becomes one on the source."""
    values = np.random.default_rng(0).normal(0, 300, (70, 110)).astype(np.float32)
    padding = np.zeros((70, 110), bool)
    padding[:, :9] = True
    chain = prepare_chain(
        windows=WINDOWS["wide"], size=SIZE, resize="fit", scaling="z_score", enhancement={"gaussian": 1.0, "clahe": 2.0}
    )
    result = chain({"image": to_metatensor(Pixels(values, PixelUnit.HU, padding=padding, aspect=1.4))})
    back = chain.inverse(result)["image"]
    assert back.shape == (1, 70, 110)
    np.testing.assert_allclose(index_affine(back), np.eye(2, 3), atol=1e-9)


def test_without_augmentation_training_sees_what_evaluation_sees():
    image = torch.rand(1, SIZE, SIZE)
    trained = train_chain(mean=GRAY_MEAN, std=GRAY_STD)({"image": image})["image"]
    evaluated = evaluate_chain(mean=GRAY_MEAN, std=GRAY_STD)({"image": image})["image"]
    torch.testing.assert_close(trained, evaluated)


def test_three_channels_have_imagenets_statistics():
    image = evaluate_chain(mean=IMAGENET_MEAN, std=IMAGENET_STD)({"image": torch.full((1, 4, 4), 0.5)})["image"]
    assert image.shape == (3, 4, 4)
    torch.testing.assert_close(image[:, 0, 0], (0.5 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD))


def test_flips_mirror_the_axis_they_name():
    image = torch.rand(1, SIZE, SIZE)
    torch.testing.assert_close(_train(0, image, flip_horizontal=1.0), image.flip(2))
    torch.testing.assert_close(_train(0, image, flip_vertical=1.0), image.flip(1))


def test_shift_stays_within_its_reach_and_brings_in_black():
    for seed in range(10):
        shifted = _train(seed, torch.ones(1, SIZE, SIZE), shift=0.1)
        gone = (shifted[0] < 0.5).float()
        assert gone.mean(dim=1).eq(1).sum() <= 0.1 * SIZE + 1
        assert gone.mean(dim=0).eq(1).sum() <= 0.1 * SIZE + 1


def test_zoom_keeps_a_disc_round_and_within_its_range():
    areas = []
    for seed in range(20):
        zoomed = _train(seed, _disc(), zoom=0.25)[0] > 0.5
        rows, columns = zoomed.any(dim=1).sum(), zoomed.any(dim=0).sum()
        assert abs(int(rows) - int(columns)) <= 1
        areas.append(float(zoomed.sum()))
    area = float(_disc().sum())
    assert 0.5 * area < min(areas) < 0.9 * area
    assert 1.1 * area < max(areas) < 1.65 * area


def test_the_same_seed_draws_the_same():
    image, options = torch.rand(1, SIZE, SIZE), {"flip_horizontal": 0.5, "zoom": 0.2, "shift": 0.1}
    torch.testing.assert_close(_train(7, image, **options), _train(7, image, **options), rtol=0, atol=0)
    assert not torch.equal(_train(7, image, **options), _train(8, image, **options))


def test_arguments_are_not_changed():
    image = torch.rand(1, SIZE, SIZE)
    before = image.clone()
    _train(0, image, flip_horizontal=1.0, zoom=0.2, shift=0.2)
    torch.testing.assert_close(image, before, rtol=0, atol=0)
