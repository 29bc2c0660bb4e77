"""Counts and probabilities as people read them."""

from __future__ import annotations

import pytest

from pipeline.wording import counted, percent_text, probability_text


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (1, "study", "1 study"),
        (0, "study", "0 studies"),
        (2000, "patient", "2,000 patients"),
        (3, "series", "3 series"),
    ],
)
def test_counts(number: int, noun: str, expected: str) -> None:
    assert counted(number, noun) == expected


@pytest.mark.parametrize(
    ("probability", "decimal", "percent"),
    [
        (0.0, "<0.01", "<1 %"),
        (0.004, "<0.01", "<1 %"),
        (0.006, "0.01", "1 %"),
        (0.934, "0.93", "93 %"),
        (0.994, "0.99", "99 %"),
        (0.996, ">0.99", ">99 %"),
        (1.0, ">0.99", ">99 %"),
    ],
)
def test_no_probability_is_certain(probability: float, decimal: str, percent: str) -> None:
    assert (probability_text(probability, 2), percent_text(probability)) == (decimal, percent)
