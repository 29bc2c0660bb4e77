"""DeLong's test against its definition, and what clusters change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pipeline.metrics.delong import auroc_difference_p


def _by_definition(positive: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """DeLong, DeLong and Clarke-Pearson 1988, equations 4 to 7, every pair of cases looked at."""
    parts: list[list[np.ndarray]] = [[], []]
    for score in (first, second):
        ours, others = score[positive][:, None], score[~positive][None]
        higher = (ours > others) + 0.5 * (ours == others)
        parts[0].append(higher.mean(axis=1))
        parts[1].append(higher.mean(axis=0))
    spread = sum(np.cov(part) / len(part[0]) for part in parts)
    difference = parts[0][1].mean() - parts[0][0].mean()
    return 2 * norm.sf(abs(difference) / np.sqrt(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1]))


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=50)
def test_the_p_of_single_cases_is_delongs(seed: int, tied: bool) -> None:
    random = np.random.default_rng(seed)
    positive = np.concatenate([[True, True, False, False], random.random(30) < 0.5])
    first, second = random.normal(positive, 1), random.normal(positive * 0.5, 1)
    if tied:
        first, second = np.round(first), np.round(second)
    found = auroc_difference_p(positive, first, second, np.arange(len(positive)))
    expected = _by_definition(positive, first, second)
    assert found == pytest.approx(expected, rel=1e-9) or not np.isfinite(expected)


def test_ten_images_of_each_patient_prove_no_more_than_one() -> None:
    random = np.random.default_rng(0)
    positive = random.random(80) < 0.5
    first, second = random.normal(positive, 1), random.normal(positive * 1.4, 1)
    once = auroc_difference_p(positive, first, second, np.arange(80))
    tenfold = auroc_difference_p(*(np.repeat(part, 10) for part in (positive, first, second, np.arange(80))))
    alone = auroc_difference_p(*(np.repeat(part, 10) for part in (positive, first, second)), np.arange(800))
    assert tenfold == pytest.approx(once)
    assert norm.isf(alone / 2) == pytest.approx(np.sqrt(10) * norm.isf(once / 2), rel=0.02)  # n - 1 is not n


def test_without_a_difference_p_is_spread_evenly() -> None:
    """Clusters of five cases with effects of their own, equal models: p below 0.05 in about one of twenty."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(300):
        who = np.repeat(np.arange(60), 5)
        effect = random.normal(size=(60, 2))
        positive = np.where(random.random(300) < 0.2, who % 2 == 0, who % 2 == 1)
        first, second = (random.normal(positive * 1.0, 1) + effect[who, model] for model in (0, 1))
        found.append(auroc_difference_p(positive, first, second, who))
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.10  # a binomial of 300 at 0.05 lies here in 99.6 %


@pytest.mark.parametrize(("positive", "patients"), [([1, 1, 1], "abc"), ([1, 0, 0], "abc"), ([1, 1, 0, 0], "aabb")])
def test_what_cannot_be_tested_is_not(positive: list[int], patients: str) -> None:
    scores = np.linspace(0, 1, len(positive))
    assert auroc_difference_p(positive, scores, scores[::-1], list(patients)) is None


def test_a_model_does_not_differ_from_itself() -> None:
    scores = np.linspace(0, 1, 8)
    assert auroc_difference_p([0, 1] * 4, scores, scores, np.arange(8)) == 1.0
