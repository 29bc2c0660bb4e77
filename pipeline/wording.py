"""Counts in sentences."""

from __future__ import annotations

PLURALS = {"study": "studies", "series": "series"}
"""Of nouns that do not just take an s."""


def counted(number: int, noun: str) -> str:
    """1 patient, 2,000 patients."""
    return f"{number:,} {noun if number == 1 else PLURALS.get(noun, noun + 's')}"
