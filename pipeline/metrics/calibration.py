"""What the validation split decides once the weights stand: the temperature of the logits, and the threshold of each finding.

In: case probabilities and labels of the validation split. Out: a `Chosen`: the number, and why it is not the one that was asked for, or
''. Data that cannot decide (one class only, equal scores, few cases) leave the temperature at 1 and the threshold at 0.5; they never raise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from pipeline.config import Wanted

Floats = NDArray[np.float64]

NO_TEMPERATURE, NO_THRESHOLD = 1.0, 0.5
"""What stands where the data cannot decide."""
TEMPERATURES = (0.05, 20.0)
"""Limits of the search: a network whose logits are wrong by more than this factor is not calibrated but broken."""
GRID_POINTS = 31
"""Temperatures tried first, by equal factors of 1.22: with several images a case the likelihood may have more than one minimum."""
FEWEST_CASES = 10
"""Below, one number from so few cases is worse than none: the standard error of log T is then about 0.5."""
FEWEST_EACH = 5
"""Cases with the finding, and without it, below which no threshold is chosen: one case would move sensitivity by 20 points."""
SMALLEST_PROBABILITY = 1e-12
"""A probability of 0 given to what is true would cost infinitely much, and decide alone."""
FLAT = 1e-9
"""Of the mean negative log-likelihood, whose own rounding is about 1e-15 of a value near 1: what differs by less does not differ."""


@dataclass(frozen=True)
class Chosen:
    """A number from the validation split; `warning` says in words why it is the neutral one, or rough."""

    value: float
    warning: str = ""


def fit_temperature(probabilities_at: Callable[[float], Floats], labels: ArrayLike) -> Chosen:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, section 4.2), within `TEMPERATURES`.

    `probabilities_at(temperature)` gives the cases' probabilities (n, k), pooled as at inference; `labels` are class numbers (n,), or 0/1
    (n, k) where there are several labels at once, each of which then counts alike.
    """
    from scipy.optimize import minimize_scalar

    truth = np.asarray(labels)
    reason = _undecided(truth)
    if reason:
        return Chosen(NO_TEMPERATURE, f"no temperature is chosen: {reason}")

    def cost(log_temperature: float) -> float:
        return negative_log_likelihood(probabilities_at(math.exp(log_temperature)), truth)

    grid = np.linspace(math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]), GRID_POINTS)
    costs = np.array([cost(point) for point in grid])
    if np.ptp(costs) < FLAT:
        return Chosen(NO_TEMPERATURE, "no temperature is chosen: all validation cases have the same probabilities")
    best = int(costs.argmin())
    if best == 0:
        return Chosen(
            NO_TEMPERATURE,
            "no temperature is chosen: the model is right on all of the validation split, so nothing says how sure it may be",
        )
    if best == GRID_POINTS - 1:
        return Chosen(TEMPERATURES[1], "on the validation split the model's probabilities say nothing about the labels")
    found = minimize_scalar(cost, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-4})
    return Chosen(float(math.exp(found.x if found.fun <= costs[best] else grid[best])))


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The mean over cases, and over labels where there are several: `labels` (n,) class numbers, or (n, k) 0/1."""
    given, truth = np.asarray(probabilities, dtype=float), np.asarray(labels)
    if truth.ndim == 1:
        told = np.take_along_axis(given, truth.astype(np.int64)[:, None], axis=1)
    else:
        told = np.where(truth > 0.5, given, 1 - given)
    return float(-np.log(np.maximum(told, SMALLEST_PROBABILITY)).mean())


def choose_threshold(probability: ArrayLike, positive: ArrayLike, rule: float | Literal["youden"] | Wanted) -> Chosen:
    """From which `probability` (n,) on a finding is called, by `rule` for the cases whose truth is `positive` (n,) bool.

    A number goes through. `youden`: the largest sensitivity + specificity (Youden 1950), of equals that with the widest gap. A wanted
    sensitivity: as few false alarms as possible with at least this; a wanted specificity: as few misses. The threshold stands halfway
    between the last score called and the first that is not, so that no decision hangs on rounding; it may lie just above 1.
    """
    if isinstance(rule, float | int):
        return Chosen(float(rule))
    score, truth = np.asarray(probability, dtype=float), np.asarray(positive).astype(bool)
    reason = _not_divided(score, truth)
    if reason:
        return Chosen(NO_THRESHOLD, f"no threshold is chosen, {NO_THRESHOLD} stands: {reason}")
    thresholds, gaps, sensitivity, specificity = _operating_points(score, truth)
    if rule == "youden":
        best = sensitivity + specificity
        if best.max() <= 1:
            return Chosen(
                NO_THRESHOLD,
                f"no threshold is chosen, {NO_THRESHOLD} stands: on the validation split none is better than chance",
            )
        at = np.flatnonzero(best >= best.max() - FLAT)
        return Chosen(float(thresholds[at[gaps[at].argmax()]]))
    if rule.sensitivity is not None:  # from the highest threshold down: the first that reaches it
        return Chosen(float(thresholds[np.flatnonzero(sensitivity >= rule.sensitivity - FLAT)[0]]))
    reaches = np.flatnonzero(specificity >= (rule.specificity or 0.0) - FLAT)
    return Chosen(float(thresholds[reaches[-1]]))


def _operating_points(score: Floats, truth: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats, Floats]:
    """Thresholds from the highest down, the gap that each stands in, sensitivity and specificity there; from none called to all."""
    values = np.unique(score)[::-1]
    above = np.concatenate([[max(2.0, 2 * values[0])], values])
    below = np.concatenate([values, [min(0.0, 2 * values[-1])]])
    thresholds = (above + below) / 2
    # Nothing called: above every score, which may be 1; all called: not above the lowest, which may be 0.
    thresholds[0] = (1 + values[0]) / 2 if values[0] < 1 else math.nextafter(values[0], math.inf)
    called = np.searchsorted(np.sort(score[truth]), thresholds, side="left")
    rejected = np.searchsorted(np.sort(score[~truth]), thresholds, side="left")
    return thresholds, above - below, 1 - called / truth.sum(), rejected / (~truth).sum()


def _undecided(truth: NDArray[np.float64] | NDArray[np.int64]) -> str:
    """Why these labels cannot choose a temperature; '' where they can."""
    if len(truth) < FEWEST_CASES:
        return f"the validation split has {len(truth)} cases, it takes {FEWEST_CASES}"
    if (truth == truth[0]).all():
        return "all validation cases have the same label"
    return ""


def _not_divided(score: Floats, truth: NDArray[np.bool_]) -> str:
    """Why these cases cannot choose a threshold; '' where they can."""
    have, have_not = int(truth.sum()), int((~truth).sum())
    if min(have, have_not) < FEWEST_EACH:
        return f"the validation split has {have} cases with the finding and {have_not} without, it takes {FEWEST_EACH} of each"
    if np.ptp(score) == 0:
        return "all validation cases have the same probability"
    return ""
