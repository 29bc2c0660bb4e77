"""Counts and probabilities in sentences."""

from __future__ import annotations

PLURALS = {"study": "studies", "series": "series"}
"""Of nouns that do not just take an s."""


def counted(number: int, noun: str) -> str:
    """1 patient, 2,000 patients."""
    return f"{number:,} {noun if number == 1 else PLURALS.get(noun, noun + 's')}"


def probability_text(probability: float, digits: int) -> str:
    """'0.93'; '>0.99' and '<0.01' where rounding would say 1.00 and 0.00, which no model knows."""
    step = 10.0**-digits
    rounded = round(probability, digits)
    if rounded >= 1.0:
        return f">{1 - step:.{digits}f}"
    return f"<{step:.{digits}f}" if rounded <= 0.0 else f"{rounded:.{digits}f}"


def percent_text(probability: float) -> str:
    """'93 %'; '>99 %' and '<1 %' likewise."""
    rounded = round(100 * probability)
    return ">99 %" if rounded >= 100 else "<1 %" if rounded <= 0 else f"{rounded} %"
