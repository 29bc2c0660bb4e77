"""Whether two models' AUROCs on the same cases differ: the test of DeLong, DeLong and Clarke-Pearson (1988), with patients as clusters as
in Obuchowski (1997), of which it is the case of one image a patient. n cases.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from pipeline.metrics.roc import Floats


def auroc_difference_p(positive: ArrayLike, first: ArrayLike, second: ArrayLike, patient: ArrayLike) -> float | None:
    """The two-sided p of no difference between the AUROCs of two scores (n,) for the same `positive` (n,), patients drawn whole.

    None where it is not defined: without both kinds of cases, or of fewer than two patients of either.
    """
    truth, who = np.asarray(positive).astype(bool), np.unique(np.asarray(patient), return_inverse=True)[1]
    one, other = (_placements(truth, np.asarray(score, dtype=float)) for score in (first, second))
    if min(np.unique(who[truth]).size, np.unique(who[~truth]).size) < 2:
        return None
    placements = other - one  # of each case: how much better the second places it among those of the other kind
    difference = float(placements[truth].mean())
    variance = _variance(truth, placements, who, difference)
    if variance <= 0:
        return 1.0 if difference == 0 else None
    return float(2 * norm.sf(abs(difference) / math.sqrt(variance)))


def _placements(truth: NDArray[np.bool_], score: Floats) -> Floats:
    """(n,): of a positive the share of negatives below it, of a negative the share of positives above it, ties half."""
    placed = np.full(len(truth), np.nan)
    ours, others = np.sort(score[truth]), np.sort(score[~truth])
    if len(ours) and len(others):
        placed[truth] = _below(others, score[truth])
        placed[~truth] = 1 - _below(ours, score[~truth])
    return placed


def _below(ordered: Floats, values: Floats) -> Floats:
    return np.asarray(
        (np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right"))
        / (2 * len(ordered))
    )


def _variance(truth: NDArray[np.bool_], placements: Floats, who: NDArray[np.int64], difference: float) -> float:
    """Of the difference (Obuchowski 1997, section 2): sums within patients of what their cases contribute."""
    patients = int(who.max()) + 1
    sums = []
    for kind in (truth, ~truth):
        centred = np.where(kind, placements - difference, 0.0)
        sums.append(np.bincount(who, weights=centred, minlength=patients) / kind.sum())
    there = [np.unique(who[kind]).size for kind in (truth, ~truth)]
    own = sum(count / (count - 1) * float(side @ side) for count, side in zip(there, sums, strict=True))
    return own + 2 * patients / (patients - 1) * float(sums[0] @ sums[1])
