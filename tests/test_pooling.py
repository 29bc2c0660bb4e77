"""How a case's images become one prediction: against plain loops, and what must hold whatever the numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from pipeline.prediction.pooling import attention_shares, image_probabilities, pool_cases, pool_each

ROUNDING = 1e-12
"""Of float64 sums in another order."""


def _plain(logits, attention, temperatures, several, pooling):
    """The definition, one view and one image after the other."""
    link = expit if several else softmax
    by_view = []
    for view, temperature in enumerate(temperatures):
        images = logits[:, view]
        if pooling == "attention":
            weights = softmax(attention[:, view])
            by_view.append(link(sum(weight * row for weight, row in zip(weights, images, strict=True)) / temperature))
        else:
            by_view.append(np.mean([link(row / temperature) for row in images], axis=0))
    return np.mean(by_view, axis=0)


def _numbers(seed: int, n: int, v: int, k: int):
    random = np.random.default_rng(seed)
    return random.normal(0, 3, (n, v, k)), random.normal(0, 2, (n, v)), random.uniform(0.5, 3, v)


@pytest.mark.parametrize("pooling", ["mean", "attention", "volume"])
@pytest.mark.parametrize("several", [False, True])
@given(seed=st.integers(0, 2**20), n=st.integers(1, 6), v=st.integers(1, 4), k=st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_a_case_is_pooled_by_the_definition(pooling: str, several: bool, seed: int, n: int, v: int, k: int):
    logits, attention, temperatures = _numbers(seed, n, v, k)
    found = pool_cases(logits, attention, temperatures, several, pooling)
    np.testing.assert_allclose(found, _plain(logits, attention, temperatures, several, pooling), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@given(seed=st.integers(0, 2**20), counts=st.lists(st.integers(0, 4), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_all_cases_at_once_are_each_alone_in_any_order(pooling: str, seed: int, counts: list[int]):
    case = np.repeat(np.arange(len(counts)), counts)
    case = np.random.default_rng(seed).permutation(case)
    logits, attention, temperatures = _numbers(seed, len(case), 2, 3)
    found = pool_each(logits, attention, case, len(counts), temperatures, False, pooling)
    for number, count in enumerate(counts):
        mine = case == number
        if not count:
            assert np.isnan(found[number]).all()
            continue
        alone = pool_cases(logits[mine], attention[mine], temperatures, False, pooling)
        np.testing.assert_allclose(found[number], alone, rtol=0, atol=ROUNDING)
        assert found[number].sum() == pytest.approx(1)


def test_no_image_at_all_is_no_prediction():
    assert np.isnan(pool_cases(np.empty((0, 2, 3)), np.empty((0, 2)), np.ones(2), False, "attention")).all()
    assert np.isnan(pool_cases(np.empty((0, 2, 3)), np.empty((0, 2)), np.ones(2), True, "mean")).all()


@given(seed=st.integers(0, 2**20))
@settings(max_examples=20, deadline=None)
def test_shares_add_up_to_one_in_each_case_and_rank_as_attention_does(seed: int):
    case = np.random.default_rng(seed).integers(0, 3, 12)
    _, attention, _ = _numbers(seed, 12, 2, 2)
    shares = attention_shares(attention, case, 3)
    assert (shares > 0).all()
    for number in np.unique(case):
        mine = case == number
        assert shares[mine].sum() == pytest.approx(1)
        assert shares[mine].argmax() == attention[mine].mean(axis=1).argmax()


def test_large_attention_is_no_overflow():
    case = np.zeros(2, dtype=np.int64)
    assert attention_shares(np.array([[2000.0], [-2000.0]]), case, 1).tolist() == [1.0, 0.0]
    found = pool_cases(
        np.array([[[3.0, 0.0]], [[0.0, 3.0]]]), np.array([[2000.0], [-2000.0]]), [1.0], False, "attention"
    )
    np.testing.assert_allclose(found, softmax([3.0, 0.0]), atol=ROUNDING)


def test_one_temperature_calibrates_one_view():
    logits = np.array([[[2.0, 0.0], [4.0, 0.0]]])
    found = image_probabilities(logits, [1.0, 2.0], False)
    np.testing.assert_allclose(found[0], softmax([2.0, 0.0]), atol=ROUNDING)
    np.testing.assert_allclose(image_probabilities(logits, [1.0, 2.0], True)[0], expit([2.0, 0.0]), atol=ROUNDING)
