"""Every metric of labelled probabilities, for many weightings of the cases at once.

In: a `Scored`, and `weights` (r, n), how often each of n cases counts in each of r resamples. Out: each metric (r,), NaN where it is
undefined. Axes: r resamples, n cases, k classes. Three kinds of labels: two classes, one of which is the finding; more classes, each
against the rest; several findings at once, each for itself. Equal to scikit-learn's figures with sample weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.metrics.roc import Floats, Ints, areas, share

RATES = ("sensitivity", "specificity", "f1", "auroc", "average_precision")
"""Metrics of one class against the rest that are also averaged over classes (macro)."""
DEFAULT_THRESHOLD = 0.5
ECE_EDGES: Floats = np.arange(1, 10) / 10
"""Inner edges of ten bins of equal width, each closed on the right, as in Guo et al. 2017, On Calibration of Modern
Neural Networks, section 2."""
ROUNDING = 1e-6
"""What float32 sums and means may lie outside 0-1 (a few of its steps of 6e-8 to 1.2e-7); such values are clipped."""
NEARLY_CERTAIN = 1e-6
"""So far below 1 float64 has ten digits left for the rest."""


@dataclass(frozen=True)
class Scored:
    """Cases as the metrics need them. `label` and `predicted` are class numbers (n,), or 0/1 (n, k) where `several`.

    `positive` is the finding's number where there are two classes, else None. `patient` numbers the patients from 0.
    """

    label: Ints
    predicted: Ints
    probabilities: Floats  # (n, k)
    patient: Ints  # (n,)
    classes: tuple[str, ...]
    positive: int | None
    several: bool = False

    def __len__(self) -> int:
        return len(self.label)

    @property
    def patients(self) -> int:
        return int(self.patient.max(initial=-1)) + 1

    def of_class(self, number: int) -> NDArray[np.bool_]:
        """(n,) which cases are of a class, or have a finding."""
        return self.label[:, number] > 0 if self.several else self.label == number

    def called(self, number: int) -> NDArray[np.bool_]:
        """(n,) which cases are predicted so."""
        return self.predicted[:, number] > 0 if self.several else self.predicted == number

    def ranking(self, number: int) -> Floats:
        """(n,) by what cases are ranked for a class: its probability. Where that is all but 1, where float64 tells few values apart, what
        is left to the other classes decides: a temperature below 1 brings many cases there, and they are no ties."""
        own = self.probabilities[:, number]
        certain = own > 1 - NEARLY_CERTAIN
        if self.several or not certain.any():
            return own
        rest = np.delete(self.probabilities, number, axis=1).sum(axis=1)
        keys = np.column_stack([np.where(certain, 1.0, own), np.where(certain, -rest, 0.0)])
        _, rank = np.unique(keys, axis=0, return_inverse=True)
        return rank.reshape(-1).astype(float)

    def take(self, rows: ArrayLike) -> Scored:
        """Some of the cases, by position or as a mask."""
        chosen = np.asarray(rows)
        _, patient = np.unique(self.patient[chosen], return_inverse=True)
        return Scored(
            self.label[chosen],
            self.predicted[chosen],
            self.probabilities[chosen],
            patient.astype(np.int64),
            self.classes,
            self.positive,
            self.several,
        )


def score(
    label: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    *,
    classes: Sequence[str],
    positive: int | None = None,
    threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD,
    several: bool = False,
) -> Scored:
    """The arguments checked, brought to one type, and with what is predicted of each case.

    Several labels: each finding is called from its own threshold on. Two classes: `positive` (the second unless given) from the
    threshold on. More: the most probable class, the first of equals. Raises ValueError for what does not fit, never for few cases.
    """
    names = tuple(classes)
    truth, given, who = _checked(label, probabilities, patients, names, several)
    # In the probabilities' own type: a float32 that was saved as the threshold must equal itself here.
    limits = np.array([threshold_of(threshold, name) for name in names]).astype(given.dtype)
    if several:
        positive, predicted = None, given >= limits
    elif len(names) > 2:
        positive, predicted = None, given.argmax(axis=1)
    else:
        positive = 1 if positive is None else positive
        if positive not in (0, 1):
            raise ValueError(f"expected the positive class's number, 0 or 1, found {positive}")
        predicted = np.where(given[:, positive] >= limits[positive], positive, 1 - positive)
    _, patient = np.unique(who, return_inverse=True)
    return Scored(
        truth.astype(np.int64),
        predicted.astype(np.int64),
        np.clip(given.astype(float), 0, 1),
        patient.astype(np.int64),
        names,
        positive,
        several,
    )


def threshold_of(threshold: float | Mapping[str, float], name: str) -> float:
    """A class's threshold; where there are several and none for it, `DEFAULT_THRESHOLD`."""
    return float(threshold.get(name, DEFAULT_THRESHOLD) if isinstance(threshold, Mapping) else threshold)


def _checked(
    label: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, classes: tuple[str, ...], several: bool
) -> tuple[NDArray[np.generic], NDArray[np.floating], NDArray[np.str_]]:
    given, truth = np.asarray(probabilities), np.asarray(label)
    given = given if given.dtype.kind == "f" else given.astype(float)
    who = np.asarray(patients).astype(str)
    fewest = 1 if several else 2
    if len(classes) < fewest or len(set(classes)) < len(classes):
        raise ValueError(f"expected {'one' if several else 'two'} or more different classes, found {list(classes)}")
    count = len(truth)
    if given.shape != (count, len(classes)) or who.shape != (count,):
        raise ValueError(
            f"expected {count} labels, probabilities ({count}, {len(classes)}) and as many patients, "
            f"found probabilities {given.shape} and patients {who.shape}"
        )
    if several and (truth.shape != given.shape or not np.isin(truth, (0, 1)).all()):
        raise ValueError(f"expected labels {given.shape} of 0 and 1, found {truth.shape}, or other values")
    if not several and count and not (truth == np.clip(truth.astype(np.int64), 0, len(classes) - 1)).all():
        raise ValueError(f"expected labels 0 to {len(classes) - 1}, found {truth.min()} to {truth.max()}")
    if not ((given >= -ROUNDING) & (given <= 1 + ROUNDING)).all():
        raise ValueError("expected probabilities from 0 to 1, found others or NaN; leave out cases that failed")
    return truth, given, who


def measure(cases: Scored, weights: Floats) -> dict[str, Floats]:
    """Every metric for each row of `weights` (r, n), each (r,)."""
    if cases.several:
        return _of_findings(cases, weights)
    if cases.positive is None:
        return _of_classes(cases, weights)
    right = {"accuracy": _mean_of(cases.predicted == cases.label, weights)}
    return right | _rates(cases, cases.positive, weights) | _calibration(cases, cases.positive, weights)


def confusion(cases: Scored, weights: Floats) -> Floats:
    """Weight of each pair (actual, predicted), (r, k, k); of several findings (r, k, 2, 2), each finding absent or present."""
    if cases.several:
        cell = np.eye(4)[cases.label * 2 + cases.predicted]  # (n, k, 4)
        flat = weights @ cell.reshape(len(cases), 4 * len(cases.classes))
        return flat.reshape(len(weights), len(cases.classes), 2, 2)
    size = len(cases.classes)
    cell = np.eye(size * size)[cases.label * size + cases.predicted]
    return (weights @ cell).reshape(len(weights), size, size)


def _of_classes(cases: Scored, weights: Floats) -> dict[str, Floats]:
    """More than two classes: means over the classes that there are, each against the rest, and each class's own."""
    each = [_rates(cases, number, weights) for number in range(len(cases.classes))]
    metrics = {"accuracy": _mean_of(cases.predicted == cases.label, weights)} | _macro(cases, each, len(weights))
    squares = ((cases.probabilities - np.eye(len(cases.classes))[cases.label]) ** 2).sum(axis=1)
    top = np.take_along_axis(cases.probabilities, cases.predicted[:, None], axis=1)[:, 0]
    metrics["brier"] = _mean_of(squares, weights)
    metrics["ece"] = _ece(cases.predicted == cases.label, top, weights)
    return metrics | {f"{name}_{one}": each[k][name] for name in RATES for k, one in enumerate(cases.classes)}


def _of_findings(cases: Scored, weights: Floats) -> dict[str, Floats]:
    """Several findings: of cases with every label right, of all labels, means over findings, and each finding's own."""
    numbers = range(len(cases.classes))
    agrees = cases.predicted == cases.label
    each = [_rates(cases, number, weights) for number in numbers]
    gaps = [_calibration(cases, number, weights) for number in numbers]
    metrics = {"exact_match": _mean_of(agrees.all(axis=1), weights), "accuracy": _mean_of(agrees.mean(axis=1), weights)}
    metrics |= _macro(cases, each, len(weights))
    metrics |= {name: np.mean([gap[name] for gap in gaps], axis=0) for name in ("brier", "ece")}
    own = {f"{name}_{one}": each[k][name] for name in RATES for k, one in enumerate(cases.classes)}
    return (
        metrics
        | own
        | {f"{name}_{one}": gaps[k][name] for name in ("brier", "ece") for k, one in enumerate(cases.classes)}
    )


def _macro(cases: Scored, each: Sequence[Mapping[str, Floats]], rows: int) -> dict[str, Floats]:
    """Means of `RATES` over the classes that the cases have; NaN where one of them is, so that all resamples average over the same."""
    there = [number for number in range(len(cases.classes)) if cases.of_class(number).any()]
    if not there:
        return {name: np.full(rows, np.nan) for name in RATES}
    return {name: np.mean([each[number][name] for number in there], axis=0) for name in RATES}


def _rates(cases: Scored, number: int, weights: Floats) -> dict[str, Floats]:
    """Metrics of one class against all others. f1 is undefined where the class has no case (0/0 in its recall)."""
    truth, called = cases.of_class(number), cases.called(number)
    counts = weights @ np.column_stack([truth & called, truth, called, np.ones(len(truth))]).astype(float)
    hit, actual, positives, total = counts.T
    rejected = total - actual - positives + hit
    sensitivity, specificity = share(hit, actual), share(rejected, total - actual)
    area, precision = areas(truth, cases.ranking(number), weights)
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": share(hit, positives),
        "npv": share(rejected, total - positives),
        "f1": np.where(actual > 0, share(2 * hit, actual + positives), np.nan),
        "auroc": area,
        "average_precision": precision,
    }


def _calibration(cases: Scored, number: int, weights: Floats) -> dict[str, Floats]:
    truth, value = cases.of_class(number), cases.probabilities[:, number]
    return {"brier": _mean_of((value - truth) ** 2, weights), "ece": _ece(truth, value, weights)}


def _mean_of(values: ArrayLike, weights: Floats) -> Floats:
    """The weighted mean over cases, (r,)."""
    return share(weights @ np.asarray(values, dtype=float), weights.sum(axis=1))


def _ece(correct: ArrayLike, confidence: Floats, weights: Floats) -> Floats:
    """Expected calibration error over the bins of `ECE_EDGES`, (r,): the weighted mean gap between confidence and share
    of correct cases. For few cases it is biased upwards, the more so in resamples."""
    member = np.eye(len(ECE_EDGES) + 1)[np.digitize(confidence, ECE_EDGES, right=True)]
    gap = np.asarray(correct).astype(float) - confidence
    return share(np.abs(weights @ (member * gap[:, None])).sum(axis=1), weights.sum(axis=1))
