"""Curves against scikit-learn's, and that what is drawn is small and whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from pipeline.metrics.curves import MOST_CORNERS, curves, reliability, wilson
from pipeline.metrics.measures import Scored, score
from pipeline.metrics.roc import GRID, precision_recall

DRAWN = 0.01
"""How far the thinned curve of thousands of cases may lie from the whole one."""


def _two(count: int, seed: int = 0) -> Scored:
    random = np.random.default_rng(seed)
    label = np.arange(count) % 2
    value = 1 / (1 + np.exp(-random.normal(label * 2 - 1, 1.5)))
    who = np.arange(count) // 2
    return score(label, np.column_stack([1 - value, value]), who.astype(str), classes=("no", "yes"))


def test_the_drawn_roc_is_the_curve() -> None:
    cases = _two(60)
    [drawn] = curves(cases, resamples=100, seed=0).to_json()["roc"]
    rate, sensitivity, _ = reference.roc_curve(cases.label, cases.probabilities[:, 1])
    area = np.trapezoid(drawn["tpr"], drawn["fpr"])
    assert drawn["class"] == "yes"
    assert area == pytest.approx(reference.auc(rate, sensitivity), abs=1e-4)
    assert len(drawn["fpr"]) == len(drawn["tpr"]) == len(drawn["low"]) == len(drawn["high"])
    assert (np.diff(drawn["fpr"]) >= 0).all()
    assert (np.diff(drawn["tpr"]) >= 0).all()


def test_many_cases_are_drawn_by_few_points() -> None:
    cases = _two(20_000)
    content = curves(cases, resamples=100, seed=0).to_json()
    [drawn] = content["roc"]
    assert len(drawn["fpr"]) <= MOST_CORNERS + len(GRID) + 2
    rate, sensitivity, _ = reference.roc_curve(cases.label, cases.probabilities[:, 1])
    assert np.interp(GRID, drawn["fpr"], drawn["tpr"]) == pytest.approx(np.interp(GRID, rate, sensitivity), abs=DRAWN)
    assert len(json.dumps(content, allow_nan=False)) < 60_000


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=40)
def test_precision_at_a_recall_is_the_highest_thresholds_that_reaches_it(seed: int, tied: bool) -> None:
    random = np.random.default_rng(seed)
    label = np.concatenate([[1, 0], random.integers(0, 2, 30)])
    value = np.round(random.random(32), 1 if tied else 6)
    found = precision_recall(label, value, np.arange(32), resamples=10)
    thresholds = np.unique(value)[::-1]
    for at, precision in zip(found.recall[1:], found.precision[1:], strict=True):
        reaching = next(one for one in thresholds if (value[label == 1] >= one).mean() >= at - 1e-9)
        assert precision == pytest.approx(label[value >= reaching].mean())
    assert (found.low <= found.precision).all()
    assert (found.precision <= found.high).all()


def test_the_area_under_the_steps_is_the_average_precision() -> None:
    cases = _two(2000)
    found = precision_recall(cases.label, cases.probabilities[:, 1], cases.patient, resamples=10)
    expected = reference.average_precision_score(cases.label, cases.probabilities[:, 1])
    assert found.precision[1:].mean() == pytest.approx(expected, abs=DRAWN)


def test_reliability_by_hand() -> None:
    value = np.array([0.05, 0.05, 0.95, 0.95, 0.95, 0.95])
    cases = score([0, 1, 1, 1, 1, 0], np.column_stack([1 - value, value]), list("aabbcd"), classes=("no", "yes"))
    found = reliability(cases, 1)
    assert found["cases"] == [2, *[0] * 8, 4]
    assert found["confidence"][0] == pytest.approx(0.05)
    assert found["observed"] == [0.5, *[None] * 8, 0.75]
    assert len(found["edges"]) == 11
    assert (found["low"][0], found["high"][0]) == pytest.approx(wilson(0.5, 1), abs=1e-5)  # two images, one patient
    assert (found["low"][-1], found["high"][-1]) == pytest.approx(wilson(0.75, 3), abs=1e-5)


def test_wilsons_interval() -> None:
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)  # as in Brown, Cai and DasGupta 2001
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_each_class_and_each_finding_has_its_curves() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(3), 60)
    many = score(np.arange(60) % 2, probabilities, np.arange(60), classes=("a", "b", "c"))
    found = curves(many, resamples=100, seed=0)
    assert list(found.roc) == ["a", "b"]  # nobody has c: no curve is defined
    assert list(found.reliability) == ["a", "b", "c"]
    labels = (random.random((60, 3)) < 0.4).astype(int)
    findings = score(labels, random.random((60, 3)), np.arange(60), classes=("a", "b", "c"), several=True)
    content = curves(findings, resamples=100, seed=0).to_json()
    assert [one["class"] for one in content["precision_recall"]] == ["a", "b", "c"]


def test_one_patient_has_curves_without_a_band() -> None:
    value = np.array([0.2, 0.8])
    cases = score([0, 1], np.column_stack([1 - value, value]), ["a", "a"], classes=("no", "yes"))
    content = curves(cases, resamples=100, seed=0).to_json()
    assert content["roc"][0]["low"] == []
    assert content["precision_recall"][0]["high"] == []
    json.dumps(content, allow_nan=False)
