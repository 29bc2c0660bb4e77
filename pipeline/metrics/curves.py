"""The curves of an evaluation, `curves.json`: ROC and precision-recall with bands, and reliability with intervals.

In: the `Scored` of the cases. Out: one curve a class: of two classes the finding's, of more each against the rest, of several findings
each. A curve that is not defined (no case of a class, or none without it) is not there. Bands are pointwise 95 % over resampled patients.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from pipeline.metrics.measures import ECE_EDGES, Scored
from pipeline.metrics.metrics import affordable
from pipeline.metrics.roc import PERCENTILES, Floats, PrecisionRecall, RocPoints, precision_recall, roc_points

BAND_RESAMPLES = 1000
"""A band is drawn, not read off: its ends rest on 25 resamples."""
DECIMALS = 5
"""Of numbers in curves.json: a tenth of a pixel on the largest screen."""
EDGES: Floats = np.concatenate([[0.0], ECE_EDGES, [1.0]])


@dataclass(frozen=True)
class Curves:
    """By class."""

    roc: dict[str, RocPoints]
    precision_recall: dict[str, PrecisionRecall]
    reliability: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Content of curves.json. `low` and `high` are empty where there is no band, and null in `reliability` where no case is."""
        return {
            "roc": [{"class": name, **_roc_json(points)} for name, points in self.roc.items()],
            "precision_recall": [
                {
                    "class": name,
                    "recall": _plain(points.recall),
                    "precision": _plain(points.precision),
                    "low": _plain(points.low),
                    "high": _plain(points.high),
                }
                for name, points in self.precision_recall.items()
            ],
            "reliability": [{"class": name, **content} for name, content in self.reliability.items()],
        }


def curves(cases: Scored, *, resamples: int, seed: int) -> Curves:
    """The curves of each class that they are about."""
    draws = affordable(min(resamples, BAND_RESAMPLES), len(cases))
    numbers = range(len(cases.classes)) if cases.positive is None else (cases.positive,)
    roc, precision, reliable = {}, {}, {}
    for number in numbers:
        name, truth, score = cases.classes[number], cases.of_class(number), cases.ranking(number)
        points = roc_points(truth, score, cases.patient, resamples=draws, seed=seed)
        if len(points.sensitivity):
            roc[name] = points
            precision[name] = precision_recall(truth, score, cases.patient, resamples=draws, seed=seed)
        if len(cases):
            reliable[name] = reliability(cases, number)
    return Curves(roc, precision, reliable)


def reliability(cases: Scored, number: int) -> dict[str, Any]:
    """For each bin of a class's probability: its mean (`confidence`), the share of cases of the class (`observed`), how many there are.

    `low` and `high`: Wilson's 95 % interval of the share (1927), counting the bin's patients, not its cases: with ten images of one patient
    a share of 0 or 1 is no better known than with one.
    """
    score, truth = cases.probabilities[:, number], cases.of_class(number)
    place = np.digitize(score, ECE_EDGES, right=True)
    rows: list[tuple[float | None, float | None, int, float | None, float | None]] = []
    for bin_number in range(len(EDGES) - 1):
        inside = place == bin_number
        patients = int(np.unique(cases.patient[inside]).size)
        if not patients:
            rows.append((None, None, 0, None, None))
            continue
        observed = float(truth[inside].mean())
        rows.append((float(score[inside].mean()), observed, int(inside.sum()), *wilson(observed, patients)))
    confidence, observed_shares, counts, low, high = (list(column) for column in zip(*rows, strict=True))
    return {
        "edges": _plain(EDGES),
        "confidence": _rounded(confidence),
        "observed": _rounded(observed_shares),
        "cases": counts,
        "low": _rounded(low),
        "high": _rounded(high),
    }


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count`."""
    z = float(norm.ppf(PERCENTILES[1] / 100))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, min(share, float(centre - half))), min(1.0, max(share, float(centre + half)))


def _roc_json(points: RocPoints) -> dict[str, list[float]]:
    """The curve's corners, and the rates of its band: between them it is straight, so of a hundred thousand points some hundred stay."""
    rate, sensitivity = points.false_positive_rate, points.sensitivity
    kept = _thinned(rate, sensitivity)
    between = np.setdiff1d(points.grid, rate[kept])
    rates = np.concatenate([rate[kept], between])
    values = np.concatenate([sensitivity[kept], np.interp(between, rate, sensitivity)])
    order = np.lexsort((values, rates))
    rates, values = rates[order], values[order]
    band = [np.interp(rates, points.grid, side) if len(side) else side for side in (points.low, points.high)]
    return {"fpr": _plain(rates), "tpr": _plain(values), "low": _plain(band[0]), "high": _plain(band[1])}


MOST_CORNERS = 400


def _thinned(rate: Floats, sensitivity: Floats) -> np.ndarray:
    """Numbers of the points at which the curve bends; of very many, evenly chosen ones along it."""
    step = np.diff(np.column_stack([rate, sensitivity]), axis=0)
    bends = np.abs(step[:-1, 0] * step[1:, 1] - step[:-1, 1] * step[1:, 0]) > 0
    corners = np.concatenate([[0], np.flatnonzero(bends) + 1, [len(rate) - 1]])
    if len(corners) > MOST_CORNERS:
        along = (rate + sensitivity)[corners]
        wanted = np.searchsorted(along, np.linspace(0, 2, MOST_CORNERS))
        corners = corners[np.unique(np.clip(wanted, 0, len(corners) - 1))]
    return np.union1d(corners, [0, len(rate) - 1])


def _plain(values: Iterable[float]) -> list[float]:
    return [round(float(value), DECIMALS) for value in values]


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else round(value, DECIMALS) for value in values]
