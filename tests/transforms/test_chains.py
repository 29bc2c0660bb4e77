"""The chains as wholes: deterministic where they should be, random where they should be, and seeded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transforms.chains import (
    GRAY_MEAN,
    GRAY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    evaluate_chain,
    prepare_chain,
    train_chain,
)
from transforms.intensity import WINDOWS, Pixels, PixelUnit, to_metatensor

SIZE = 64
PLAIN = {"mean": (0.0,), "std": (1.0,)}


def _disc(row: float = 31.5, column: float = 31.5, radius: float = 12) -> torch.Tensor:
    rows, columns = np.ogrid[:SIZE, :SIZE]
    return torch.from_numpy((((rows - row) ** 2 + (columns - column) ** 2) < radius**2).astype(np.float32))[None]


def _train(seed: int, image: torch.Tensor, **options: float) -> torch.Tensor:
    chain = train_chain(size=SIZE, **PLAIN, **options)
    chain.set_random_state(seed=seed)
    return chain({"image": image})["image"]


def test_prepare_brings_hounsfield_to_a_square_in_unit_range():
    values = np.linspace(-2000, 2000, 80 * 120, dtype=np.float32).reshape(80, 120)
    chain = prepare_chain(window=WINDOWS["lung"], size=SIZE, resize="stretch", min_max=False)
    image = chain({"image": to_metatensor(Pixels(values, PixelUnit.HU))})["image"]
    assert image.shape == (1, SIZE, SIZE)
    assert float(image.min()) == pytest.approx(0, abs=1e-6)
    assert float(image.max()) == pytest.approx(1, abs=1e-6)


def test_without_augmentation_training_sees_what_evaluation_sees():
    image = torch.rand(1, SIZE, SIZE)
    trained = train_chain(size=SIZE, mean=GRAY_MEAN, std=GRAY_STD)({"image": image})["image"]
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
