"""What is drawn: numbers that depend on seed, epoch and item alone, and the affines they mean."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Augmentation
from tests.varied import EVERYTHING
from transforms.drawing import (
    DRAWS,
    PLAIN,
    Augmentations,
    Drawn,
    centred_affines,
    coarse_sides,
    composed_affines,
    cutout_bounds,
    draw,
    noise_seed,
    uniforms,
)

MANY = 20_000
SIGMAS = 5.0
"""A statistic of honest uniforms is beyond so many of its standard errors once in 1.7 million; seeds here are fixed, so never again."""

numbers_64 = st.integers(0, 2**63 - 1)


@settings(max_examples=50, deadline=None)
@given(seed=numbers_64, epoch=numbers_64, items=st.lists(numbers_64, max_size=6))
def test_the_numbers_are_those_of_numpys_philox(seed, epoch, items):
    """Bit for bit: the vectorised generator is the library's."""
    found = uniforms(seed, epoch, np.array(items, dtype=np.int64))
    assert found.shape == (len(items), DRAWS)
    for row, item in zip(found, items, strict=True):
        philox = np.random.Philox(
            key=np.array([seed, epoch], np.uint64), counter=np.array([0, item, 0, 0], dtype=np.uint64)
        )
        np.testing.assert_array_equal(row, np.random.Generator(philox).random(DRAWS))


def test_an_item_draws_the_same_in_any_batch_and_order():
    items = np.random.default_rng(0).permutation(500)
    together = uniforms(3, 7, items)
    np.testing.assert_array_equal(
        together, np.concatenate([uniforms(3, 7, part) for part in np.array_split(items, 13)])
    )
    np.testing.assert_array_equal(together[np.argsort(items)], uniforms(3, 7, np.arange(500)))


def test_the_numbers_are_uniform():
    numbers = uniforms(1, 2, np.arange(MANY))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.stack([np.histogram(column, bins=64, range=(0, 1))[0] for column in numbers.T])
    chi_squared = ((counts - MANY / 64) ** 2 / (MANY / 64)).sum(axis=1)
    assert np.abs(chi_squared - 63).max() < SIGMAS * np.sqrt(2 * 63)


@pytest.mark.parametrize("other", ["item", "epoch", "seed", "seed and epoch exchanged"])
def test_neighbours_have_nothing_in_common(other):
    """No column of an image is correlated with any column of its neighbour."""
    items = np.arange(MANY)
    mine = uniforms(4, 9, items)
    theirs = {
        "item": uniforms(4, 9, items + 1),
        "epoch": uniforms(4, 10, items),
        "seed": uniforms(5, 9, items),
        "seed and epoch exchanged": uniforms(9, 4, items),
    }[other]
    correlations = np.corrcoef(mine.T, theirs.T)
    np.fill_diagonal(correlations, 0.0)
    assert np.abs(correlations).max() < SIGMAS / np.sqrt(MANY)


@pytest.mark.parametrize("bad", [[-1], [0.5], [[1, 2]]])
def test_only_item_numbers_are_drawn_for(bad):
    with pytest.raises(ValueError, match="item numbers"):
        uniforms(0, 0, bad)
    with pytest.raises(ValueError, match="seed and an epoch"):
        uniforms(-1, 0, [0])


def test_the_noise_seed_is_the_batchs():
    seeds = {
        noise_seed(seed, epoch, items) for seed in (0, 1) for epoch in (0, 1) for items in ([0, 1], [1, 0], [2], [3])
    }
    assert len(seeds) == 16
    assert noise_seed(5, 6, np.array([7, 8])) == noise_seed(5, 6, [7, 8])
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_configuration_fits():
    """The same names, the same defaults, and what the configuration refuses is refused here."""
    assert Augmentations(**Augmentation().model_dump()) == Augmentations()
    chosen = Augmentation(flip_horizontal=0.5, zoom=0.2, rotate=15)
    assert Augmentations(**chosen.model_dump()) == Augmentations(flip_horizontal=0.5, zoom=0.2, rotate=15)


@pytest.mark.parametrize("name", list(Augmentation.model_fields))
@pytest.mark.parametrize("value", [-0.1, 0.0, 0.5, 1.0, 1.5, 180.0, 180.5, float("nan")])
def test_ranges_are_those_of_the_configuration(name, value):
    try:
        Augmentation(**{name: value})
    except ValueError:
        with pytest.raises(ValueError, match=name):
            Augmentations(**{name: value})
    else:
        assert getattr(Augmentations(**{name: value}), name) == value


def test_each_parameter_fills_its_range():
    drawn = draw(EVERYTHING, uniforms(0, 0, np.arange(MANY)))
    assert len(drawn) == MANY
    for found, low, high in [
        (drawn.zoom, 0.7, 1.3),
        (drawn.shift[:, 0], -0.2, 0.2),
        (drawn.shift[:, 1], -0.2, 0.2),
        (drawn.angle, -90, 90),
        (drawn.stretch, 0.8, 1.2),
        (drawn.coarse, 0.4, 1.0),
        (drawn.blur, 0, 1.5),
        (drawn.sharpen, 0, 1.0),
        (np.log(drawn.gamma), -0.3, 0.3),
        (drawn.window[:, 0], -0.1, 0.1),
        (drawn.window[:, 1], -0.1, 0.1),
        (drawn.contrast, 0.6, 1.4),
        (drawn.noise, 0, 0.1),
        (drawn.cutout, 0, 0.5),
    ]:
        assert low <= found.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < found.max() <= high
    np.testing.assert_allclose(drawn.flip.mean(axis=0), 0.5, atol=0.02)


def test_flips_come_with_their_own_probability():
    numbers = uniforms(0, 0, np.arange(MANY))
    drawn = draw(Augmentations(flip_horizontal=0.1, flip_vertical=0.8), numbers)
    np.testing.assert_allclose(drawn.flip.mean(axis=0), [0.8, 0.1], atol=0.02)
    assert draw(Augmentations(flip_horizontal=1.0), numbers).flip[:, 1].all()


@pytest.mark.parametrize("field", [field.name for field in fields(Augmentations)])
def test_an_option_leaves_the_draws_of_the_others(field):
    """Alone, each draws what it draws among all of them."""
    numbers = uniforms(0, 0, np.arange(10))
    alone = draw(Augmentations(**{field: getattr(EVERYTHING, field)}), numbers)
    neutral, together = draw(Augmentations(), numbers), draw(EVERYTHING, numbers)
    changed = [name for name in vars(alone) if not np.array_equal(vars(alone)[name], vars(neutral)[name])]
    assert len(changed) == (field != "plain")
    for name in changed:
        columns = slice(None)
        if name == "flip":
            columns = int(field == "flip_horizontal")
        np.testing.assert_array_equal(vars(alone)[name].T[columns], vars(together)[name].T[columns])


def test_a_share_of_the_images_only_moves():
    numbers = uniforms(0, 0, np.arange(MANY))
    drawn, before = draw(replace(EVERYTHING, plain=0.3), numbers), draw(EVERYTHING, numbers)
    neutral = draw(Augmentations(), numbers)
    still = numbers[:, PLAIN] < 0.3
    np.testing.assert_allclose(still.mean(), 0.3, atol=0.02)
    for name in vars(drawn):
        kept = before if name in ("flip", "zoom", "stretch", "shift", "angle", "cutout_at") else neutral
        np.testing.assert_array_equal(getattr(drawn, name)[still], getattr(kept, name)[still])
        np.testing.assert_array_equal(getattr(drawn, name)[~still], getattr(before, name)[~still])


def test_a_coarse_image_has_one_place_at_least():
    drawn = draw(Augmentations(coarse=0.99), uniforms(0, 0, np.arange(MANY)))
    assert coarse_sides(drawn, (3, 200)).min(axis=0).tolist() == [1, 2]


def test_nothing_asked_for_is_exactly_nothing():
    drawn = draw(Augmentations(), uniforms(0, 0, np.arange(100)))
    assert not drawn.moved.any()
    np.testing.assert_array_equal(composed_affines(drawn, (7, 10)), np.broadcast_to(np.eye(3), (100, 3, 3)))
    for factor in (drawn.coarse, drawn.gamma, drawn.contrast):
        assert (factor == 1).all()
    for amount in (drawn.blur, drawn.sharpen, drawn.window, drawn.noise):
        assert (amount == 0).all()
    assert (coarse_sides(drawn, (7, 10)) == (7, 10)).all()
    assert (cutout_bounds(drawn, (7, 10))[:, [1, 3]] == cutout_bounds(drawn, (7, 10))[:, [0, 2]]).all()


def _one(**values) -> Drawn:
    neutral = draw(Augmentations(), np.zeros((1, DRAWS)))
    return Drawn(**(vars(neutral) | {name: np.array([value]) for name, value in values.items()}))


ROWS, COLUMNS = 11, 21
CENTER = np.array([5.0, 10.0])


@pytest.mark.parametrize(
    ("drawn", "seen_at", "goes_to"),
    [
        (_one(flip=(False, True)), (2, 3), (2, 17)),  # left becomes right
        (_one(flip=(True, False)), (2, 3), (8, 3)),  # up becomes down
        (_one(zoom=2.0), (5, 12), (5, 14)),  # twice as far from the centre
        (_one(stretch=2.0), (6, 12), (7, 11)),  # twice as high, half as wide
        (_one(stretch=2.0, angle=90.0), (5, 12), (4, 10)),  # stretched first, then turned
        (_one(shift=(1 / 11, 0.0)), (5, 10), (6, 10)),  # down by one of 11 rows
        (_one(shift=(0.0, 2 / 21)), (5, 10), (5, 12)),  # right by two of 21 columns
        (_one(angle=90.0), (5, 13), (2, 10)),  # from right of the centre to above it: counter-clockwise
        (_one(flip=(False, True), angle=90.0), (5, 13), (8, 10)),  # mirrored first, then turned
        (_one(zoom=2.0, shift=(1 / 11, 0.0)), (5, 12), (6, 14)),  # the shift is not magnified
        (_one(angle=90.0, shift=(0.0, 1 / 21)), (5, 13), (2, 11)),  # nor turned
    ],
)
def test_what_is_seen_goes_where_it_is_said_to(drawn, seen_at, goes_to):
    found = composed_affines(drawn, (ROWS, COLUMNS))[0] @ (*goes_to, 1.0)
    np.testing.assert_allclose(found, (*seen_at, 1.0), atol=1e-12)


def test_the_centred_affine_is_the_same_seen_from_the_centre():
    drawn = draw(EVERYTHING, uniforms(0, 0, np.arange(20)))
    places = np.random.default_rng(0).uniform(0, 20, (20, 2))
    by_index = [
        affine[:2, :2] @ p + affine[:2, 2]
        for affine, p in zip(composed_affines(drawn, (ROWS, COLUMNS)), places, strict=True)
    ]
    centred = [
        affine[:2, :2] @ (p - CENTER) + affine[:2, 2] + CENTER
        for affine, p in zip(centred_affines(drawn, (ROWS, COLUMNS)), places, strict=True)
    ]
    np.testing.assert_allclose(by_index, centred, atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), seed=st.integers(0, 1000))
def test_a_cutout_is_a_square_inside(rows, columns, seed):
    bounds = cutout_bounds(draw(Augmentations(cutout=0.99), uniforms(seed, 0, np.arange(50))), (rows, columns))
    top, bottom, left, right = bounds.T
    assert (bottom - top == right - left).all()
    assert (bounds >= 0).all()
    assert (bottom <= rows).all()
    assert (right <= columns).all()


def test_a_cutout_reaches_every_pixel():
    bounds = cutout_bounds(draw(Augmentations(cutout=0.5), uniforms(0, 0, np.arange(MANY))), (8, 12))
    some = bounds[bounds[:, 1] > bounds[:, 0]]
    assert some.min(axis=0).tolist() == [0, 1, 0, 1]
    assert some.max(axis=0).tolist() == [7, 8, 11, 12]


def test_numbers_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="shape"):
        draw(Augmentations(), np.zeros((3, DRAWS - 1)))
