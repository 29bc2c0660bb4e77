"""Temperature and thresholds from a validation split: what is found, and what happens where nothing can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from pipeline.config import Wanted
from pipeline.metrics.calibration import (
    FEWEST_EACH,
    NO_TEMPERATURE,
    NO_THRESHOLD,
    TEMPERATURES,
    choose_threshold,
    fit_temperature,
    negative_log_likelihood,
)

FOUND = 0.15
"""Of log T, from 4,000 cases: the estimate's standard error is about 0.03."""
BEST = 1e-6
"""Of the mean negative log-likelihood at the temperature found, against a fine grid: flat there, to second order."""


def _drawn(logits: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Labels (n,) that are as probable as softmax says."""
    return np.array([random.choice(logits.shape[1], p=row) for row in softmax(logits, axis=1)])


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_that_logits_were_sharpened_by_is_found(true: float, classes: int) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, classes))
    found = fit_temperature(lambda value: softmax(logits * true / value, axis=1), _drawn(logits, random))
    assert np.log(found.value) == pytest.approx(np.log(true), abs=FOUND)
    assert found.warning == ""


def test_several_labels_share_one_temperature() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (2000, 3))
    labels = (random.random(logits.shape) < expit(logits)).astype(np.float32)
    found = fit_temperature(lambda value: expit(3 * logits / value), labels)
    assert np.log(found.value) == pytest.approx(np.log(3), abs=FOUND)


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5))
@settings(deadline=None, max_examples=20)
def test_no_other_temperature_is_likelier(seed: int, sharp: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (300, 2))
    labels = _drawn(logits, random)

    def at(value: float) -> np.ndarray:
        return softmax(logits * sharp / value, axis=1)

    found = fit_temperature(at, labels)
    best = min(negative_log_likelihood(at(value), labels) for value in np.geomspace(*TEMPERATURES, 400))
    assert negative_log_likelihood(at(found.value), labels) <= best + BEST


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros((3, 2)), [0, 1, 0], "it takes 10"),
        (np.zeros((0, 2)), [], "it takes 10"),
        (np.tile([1.0, -1.0], (20, 1)), [0] * 20, "the same label"),
        (np.zeros((20, 2)), [0, 1] * 10, "the same probabilities"),
        (np.tile([[3.0, -3.0], [-3.0, 3.0]], (10, 1)), [0, 1] * 10, "right on all"),
    ],
)
def test_without_evidence_the_temperature_stays(logits: np.ndarray, labels: list[int], said: str) -> None:
    found = fit_temperature(lambda value: softmax(logits / value, axis=1), np.array(labels, dtype=np.int64))
    assert found.value == NO_TEMPERATURE
    assert said in found.warning


def test_a_model_that_is_always_wrong_is_not_believed() -> None:
    logits = np.tile([[3.0, -3.0], [-3.0, 3.0]], (10, 1))
    found = fit_temperature(lambda value: softmax(logits / value, axis=1), np.array([1, 0] * 10))
    assert found.value == TEMPERATURES[1]
    assert "say nothing" in found.warning


@st.composite
def _scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 0-1 (often tied, 0 and 1 among them) and which are positive, enough of each."""
    count = draw(st.integers(2 * FEWEST_EACH, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score = random.random(count)
    if draw(st.booleans()):
        score = np.round(score * 4) / 4
    positive = random.random(count) < 0.5
    positive[:FEWEST_EACH], positive[FEWEST_EACH : 2 * FEWEST_EACH] = True, False
    return score, positive


def _rates(score: np.ndarray, positive: np.ndarray, threshold: float) -> tuple[float, float]:
    return float((score[positive] >= threshold).mean()), float((score[~positive] < threshold).mean())


@given(_scores(), st.floats(0.05, 0.99))
@settings(deadline=None)
def test_a_wanted_sensitivity_is_reached_with_the_fewest_false_alarms(
    data: tuple[np.ndarray, np.ndarray], wanted: float
) -> None:
    score, positive = data
    if np.ptp(score) == 0:
        return
    found = choose_threshold(score, positive, Wanted(sensitivity=wanted))
    sensitivity, specificity = _rates(score, positive, found.value)
    assert sensitivity >= wanted - 1e-9
    for other in np.unique(score):
        rates = _rates(score, positive, other)
        assert rates[0] < wanted - 1e-9 or rates[1] <= specificity


@given(_scores(), st.floats(0.05, 0.99))
@settings(deadline=None)
def test_a_wanted_specificity_is_reached_with_the_fewest_misses(
    data: tuple[np.ndarray, np.ndarray], wanted: float
) -> None:
    score, positive = data
    if np.ptp(score) == 0:
        return
    found = choose_threshold(score, positive, Wanted(specificity=wanted))
    sensitivity, specificity = _rates(score, positive, found.value)
    assert specificity >= wanted - 1e-9
    for other in np.unique(score):
        rates = _rates(score, positive, other)
        assert rates[1] < wanted - 1e-9 or rates[0] <= sensitivity


@given(_scores())
@settings(deadline=None)
def test_no_threshold_beats_youdens(data: tuple[np.ndarray, np.ndarray]) -> None:
    score, positive = data
    found = choose_threshold(score, positive, "youden")
    best = max(sum(_rates(score, positive, value)) for value in np.unique(score))
    if found.warning:
        assert found.value == NO_THRESHOLD
        assert best <= 1 + 1e-9
    else:
        assert sum(_rates(score, positive, found.value)) == pytest.approx(best)


def test_a_threshold_stands_halfway_between_scores() -> None:
    score, positive = np.repeat([0.2, 0.8], 5), np.repeat([False, True], 5)
    for rule in ("youden", Wanted(sensitivity=0.9), Wanted(specificity=0.9)):
        assert choose_threshold(score, positive, rule).value == pytest.approx(0.5)


def test_a_number_goes_through_whatever_the_data() -> None:
    assert choose_threshold(np.empty(0), np.empty(0, dtype=bool), 0.3).value == 0.3


@pytest.mark.parametrize(
    ("score", "positive", "said"),
    [
        ([], [], "0 cases with the finding"),
        ([0.1, 0.9] * 6, [True] * 12, "0 without"),
        ([0.1, 0.9, 0.4], [True, False, True], "it takes 5 of each"),
        ([0.4] * 12, [True, False] * 6, "the same probability"),
        ([0.1] * 6 + [0.9] * 6, [True] * 6 + [False] * 6, "better than chance"),
    ],
)
def test_without_evidence_the_threshold_stays(score: list[float], positive: list[bool], said: str) -> None:
    found = choose_threshold(score, positive, "youden")
    assert found.value == NO_THRESHOLD
    assert said in found.warning
