"""Scores against truth: the ROC curve, the areas that rank cases, and the draws of patients that intervals come from.

In: `score` (n,), `positive` (n,) bool, `weights` (r, n), how often each case counts in each of r resamples. Areas come
for all resamples from one sort, exact, equal to scikit-learn's with sample weights. Equal scores are one step of the
curve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PERCENTILES = (2.5, 97.5)
"""Ends of a 95 % interval over resamples."""
GRID: Floats = np.linspace(0, 1, 101)
"""False positive rates at which a curve's band is given."""
ROUNDED = 1e-9
"""By which a recall may miss its grid point: 0.29 · 100 is not 29 in floating point."""
WEIGHTS_PER_BLOCK = 500_000
"""Resamples are worked through in blocks of about this many weights: 4 MB an array however many cases there are."""


@dataclass(frozen=True)
class RocPoints:
    """A receiver operating characteristic, from (0, 0) to (1, 1), with a pointwise 95 % band where patients were given.

    `threshold` (points,) falls from infinity: a case counts as positive from it on. `grid` are the false positive rates
    of `low` and `high` (sensitivity); all three are empty without a band. All are empty where one class is missing.
    """

    false_positive_rate: Floats
    sensitivity: Floats
    threshold: Floats
    grid: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision at each `recall` with its 95 % band, (101,) each; the band is empty with one patient, all are without a positive."""

    recall: Floats
    precision: Floats
    low: Floats
    high: Floats


def auroc(positive: ArrayLike, score: ArrayLike, weights: ArrayLike) -> Floats:
    """Area under the ROC curve for each row of `weights` (r, n) → (r,); NaN where one side has no weight.

    The weighted share of pairs (positive, negative) in which the positive has the higher score, ties counting half: the
    trapezoid area that scikit-learn's roc_auc_score gives, here for all resamples after one sort.
    """
    return areas(positive, score, weights)[0]


def average_precision(positive: ArrayLike, score: ArrayLike, weights: ArrayLike) -> Floats:
    """Precision averaged over the steps of recall, for each row of `weights` (r, n) → (r,).

    What scikit-learn's average_precision_score gives, but NaN where no positive has weight (scikit-learn says 0).
    """
    return areas(positive, score, weights)[1]


def areas(positive: ArrayLike, score: ArrayLike, weights: ArrayLike) -> tuple[Floats, Floats]:
    """`auroc` and `average_precision` after one sort."""
    ours, others, _ = by_score(positive, score, weights)
    if not ours.shape[1]:
        return np.full(len(ours), np.nan), np.full(len(ours), np.nan)
    found = np.cumsum(ours, axis=1)  # weight of positives ranked here or above
    called = found + np.cumsum(others, axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    ranked = (others * (found - ours / 2)).sum(axis=1)
    total = found[:, -1]
    return share(ranked, total * others.sum(axis=1)), share((ours * precision).sum(axis=1), total)


def roc_points(
    label: ArrayLike, score: ArrayLike, patients: ArrayLike | None = None, *, resamples: int = 1000, seed: int = 0
) -> RocPoints:
    """The ROC curve of `score` (n,) for `label` (n,), true where positive; with a band if `patients` (n,) are given.

    The band holds, at each false positive rate, the middle 95 % of the sensitivities over resampled patients.
    """
    positive = np.asarray(label).astype(bool)
    ours, others, threshold = by_score(positive, score, np.ones((1, len(positive))))
    empty = np.empty(0)
    if not ours.sum() or not others.sum():
        return RocPoints(empty, empty, empty, empty, empty, empty)
    rate, sensitivity = _curve(ours[0], others[0])
    points = (rate, sensitivity, np.concatenate([[np.inf], threshold]))
    if patients is None:
        return RocPoints(*points, empty, empty, empty)
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    curves = [
        _at(GRID, *_curve(one, rest))
        for weights in patient_draws(patient.astype(np.int64), resamples, seed)
        for one, rest in zip(*by_score(positive, score, weights)[:2], strict=True)
        if one.sum() and rest.sum()
    ]
    if not curves or patient.max() == 0:
        return RocPoints(*points, empty, empty, empty)
    low, high = np.percentile(np.stack(curves), PERCENTILES, axis=0)
    return RocPoints(*points, GRID, low, high)


def precision_recall(
    label: ArrayLike, score: ArrayLike, patients: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> PrecisionRecall:
    """Precision at each recall of `GRID`, with a pointwise 95 % band over resampled patients.

    At a recall stands the precision of the highest threshold that reaches it: between two thresholds there is nothing, a straight line
    there would promise too much (Davis and Goadrich 2006). The area under these steps is the average precision.
    """
    positive = np.asarray(label).astype(bool)
    empty = np.empty(0)
    if not positive.any():
        return PrecisionRecall(empty, empty, empty, empty)
    ours, others, _ = by_score(positive, score, np.ones((1, len(positive))))
    precision = _precision_at(GRID, ours[0], others[0])
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    curves = [
        _precision_at(GRID, one, rest)
        for weights in patient_draws(patient.astype(np.int64), resamples, seed)
        for one, rest in zip(*by_score(positive, score, weights)[:2], strict=True)
        if one.sum()
    ]
    if not curves or patient.max() == 0:
        return PrecisionRecall(GRID, precision, empty, empty)
    low, high = np.percentile(np.stack(curves), PERCENTILES, axis=0)
    return PrecisionRecall(GRID, precision, np.minimum(low, precision), np.maximum(high, precision))


def _precision_at(grid: Floats, ours: Floats, others: Floats) -> Floats:
    found = np.cumsum(ours)
    called = found + np.cumsum(others)
    reached = np.searchsorted(found, grid * found[-1] * (1 - ROUNDED), side="left")
    # At recall 0 a positive must be among those called: scores of negatives alone, and resamples without some case, are passed over.
    first = np.maximum(reached, np.flatnonzero(ours)[0])
    return found[first] / called[first]


def patient_draws(patient: Ints, resamples: int, seed: int) -> Iterator[Floats]:
    """Case weights (r, n) of `resamples` draws with replacement from all patients, in blocks.

    `patient` (n,) holds each case's number of patient, 0 to patients - 1; as long as numbers keep to their patients,
    the order of cases does not matter.
    """
    count = int(patient.max(initial=-1)) + 1
    if not count:
        return
    generator = np.random.default_rng(seed)
    block = max(1, WEIGHTS_PER_BLOCK // len(patient))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        times = generator.multinomial(count, np.full(count, 1 / count), size=rows)
        yield times[:, patient].astype(float)


def share(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def by_score(positive: ArrayLike, score: ArrayLike, weights: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Weight of positives and of negatives at each different score, (r, scores) each, and the scores, highest first."""
    scores, is_positive = np.asarray(score, dtype=float), np.asarray(positive).astype(bool)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(ranked)), dtype=bool), ranked[1:] != ranked[:-1]]))
    sorted_weights = np.asarray(weights, dtype=float)[:, order]
    ours = sorted_weights * is_positive[order]
    others = sorted_weights - ours
    if len(starts) < len(ranked):
        ours, others = (np.add.reduceat(side, starts, axis=1) for side in (ours, others))
    return ours, others, ranked[starts]


def _curve(ours: Floats, others: Floats) -> tuple[Floats, Floats]:
    """False positive rate and sensitivity, from (0, 0), of weights ordered from the highest score on."""
    rate, sensitivity = (np.concatenate([[0.0], np.cumsum(side) / side.sum()]) for side in (others, ours))
    return rate, sensitivity


def _at(grid: Floats, rate: Floats, sensitivity: Floats) -> Floats:
    """The curve's sensitivity at each rate of `grid`; the upper end where it rises straight up."""
    left = np.searchsorted(rate, grid, side="right") - 1
    right = np.minimum(left + 1, len(rate) - 1)
    step = rate[right] - rate[left]
    part = np.divide(grid - rate[left], step, out=np.zeros_like(grid), where=step > 0)
    return sensitivity[left] + part * (sensitivity[right] - sensitivity[left])
