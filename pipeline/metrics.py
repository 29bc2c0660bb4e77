"""How good predictions are: numbers with 95 % intervals from a bootstrap over patients.

In: `label` (n,) int class numbers, `probabilities` (n, classes) 0-1, `patients` (n,) str keys, one row a case. Out: an
`Evaluation`. Axes inside: r resamples, n cases, k classes; `weights` (r, n) say how often each case counts.
Patients, not cases, are drawn with replacement, as many as there are (a cluster bootstrap: images of one patient are
not independent). A resample enters as case weights, so that every metric is computed for many at once; weights of 1
give the metric itself. What cannot be computed is NaN inside and None in the `Evaluation`, with a sentence in
`warnings`; it is never replaced by a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.roc import PERCENTILES, Floats, Ints, auroc, average_precision, patient_draws, share

FEW_PATIENTS = 20
"""Patients in a class below which bootstrap intervals are rough and too narrow; said in a warning."""
WIDE_INTERVAL = 0.2
"""An interval wider than this says little about a share between 0 and 1; said in a warning."""
ECE_EDGES: Floats = np.arange(1, 10) / 10
"""Inner edges of ten bins of equal width, each closed on the right, as in Guo et al. 2017, On Calibration of Modern
Neural Networks, section 2."""
ROUNDING = 1e-6
"""What float32 sums and means may lie outside 0-1 (a few of its steps of 6e-8 to 1.2e-7); such values are clipped."""
REFLECTED = frozenset({"ece"})
"""Metrics whose interval is reflected about the value (the basic bootstrap: 2·value - percentiles, not below 0).
Resamples overstate a sum of absolute gaps: in a simulation of a model with a true error of 0.04 and 200 cases,
percentiles held the truth never, the reflected interval in 91 % (with 0.15: 89 and 94 %). Without any error it still
fails in about half."""


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval, value included; None where undefined, no bounds where no resample defines it."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one split.

    `confusion` counts cases, rows actual, columns predicted, in the order of `classes`. `positive` and `threshold` are
    None for more than two classes, where the most probable class is predicted.
    """

    metrics: dict[str, Interval]
    confusion: list[list[int]]
    cases: int
    patients: int
    threshold: float | None
    warnings: list[str]
    classes: tuple[str, ...]
    positive: str | None

    def to_json(self) -> dict[str, Any]:
        """Content of `metrics.json` but for `split`, which the caller knows; undefined values are null, never NaN."""
        return {
            "classes": list(self.classes),
            "positive": self.positive,
            "cases": self.cases,
            "patients": self.patients,
            "metrics": {
                name: {"value": one.value, "low": one.low, "high": one.high} for name, one in self.metrics.items()
            },
            "confusion": [list(row) for row in self.confusion],
            "threshold": self.threshold,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _Cases:
    """The cases as the metrics need them; `positive` is None for more than two classes."""

    label: Ints  # (n,)
    predicted: Ints  # (n,)
    probabilities: Floats  # (n, k)
    patient: Ints  # (n,) number of the patient
    classes: tuple[str, ...]
    positive: int | None


def evaluate_predictions(
    label: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    *,
    classes: Sequence[str],
    positive: int | None = None,
    threshold: float = 0.5,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Metrics of `probabilities` (n, classes) against `label` (n,), with intervals over `patients` (n,).

    Two classes: a case is predicted `positive` (its number; the second class unless given) where p >= `threshold`.
    accuracy, balanced_accuracy, sensitivity, specificity, ppv, npv, f1, auroc, average_precision, brier and ece are
    about the positive class and its probability.

    More classes (`positive` and `threshold` do not apply): the most probable class is predicted, the first of equals.
    sensitivity, specificity, f1, auroc and average_precision are means over the classes that the split has, each
    against the rest, and stand there for each class too, as in `auroc_<class>`; brier is the sum over the classes (0 to
    2), ece is about the predicted class's probability.

    Intervals are the 2.5 to 97.5 percentiles of the resamples; for `REFLECTED` their mirror image. A case whose
    probability is unknown is no case: leave it out before. Raises ValueError for arrays that do not fit each other,
    labels outside the classes, and probabilities outside 0-1; never for few, equal or no cases.
    """
    cases = _cases(label, probabilities, patients, tuple(classes), positive, threshold)
    values = {name: float(value[0]) for name, value in _metrics(cases, np.ones((1, len(cases.label)))).items()}
    draws = _bootstrap(cases, resamples, seed)
    metrics = {name: _interval(name, value, draws[name]) for name, value in values.items()}
    count = int(cases.patient.max(initial=-1)) + 1
    return Evaluation(
        metrics=metrics,
        confusion=_confusion(cases, np.ones((1, len(cases.label))))[0].astype(int).tolist(),
        cases=len(cases.label),
        patients=count,
        threshold=None if cases.positive is None else float(threshold),
        warnings=_warnings(cases, count, metrics, draws),
        classes=cases.classes,
        positive=None if cases.positive is None else cases.classes[cases.positive],
    )


def _cases(
    label: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    classes: tuple[str, ...],
    positive: int | None,
    threshold: float,
) -> _Cases:
    """The arguments checked, brought to one type, and with the predicted class of each case."""
    given = np.asarray(probabilities)
    given = given if given.dtype.kind == "f" else given.astype(float)
    truth = np.asarray(label)
    names = np.asarray(patients).astype(str)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"expected two or more different classes, found {list(classes)}")
    if given.shape != (len(truth), len(classes)) or names.shape != (len(truth),):
        raise ValueError(
            f"expected {len(truth)} labels, probabilities ({len(truth)}, {len(classes)}) and as many patients, "
            f"found probabilities {given.shape} and patients {names.shape}"
        )
    if len(truth) and not (truth == np.clip(truth.astype(np.int64), 0, len(classes) - 1)).all():
        raise ValueError(f"expected labels 0 to {len(classes) - 1}, found {truth.min()} to {truth.max()}")
    if not ((given >= -ROUNDING) & (given <= 1 + ROUNDING)).all():
        raise ValueError("expected probabilities from 0 to 1, found others or NaN; leave out cases that failed")
    if len(classes) > 2:
        positive, predicted = None, given.argmax(axis=1)
    else:
        positive = 1 if positive is None else positive
        if positive not in (0, 1):
            raise ValueError(f"expected the positive class's number, 0 or 1, found {positive}")
        # In the probabilities' own type: a float32 that was saved as the threshold must equal itself here.
        called = given[:, positive] >= np.asarray(threshold).astype(given.dtype)
        predicted = np.where(called, positive, 1 - positive)
    _, patient = np.unique(names, return_inverse=True)
    return _Cases(
        label=truth.astype(np.int64),
        predicted=predicted.astype(np.int64),
        probabilities=np.clip(given.astype(float), 0, 1),
        patient=patient.astype(np.int64),
        classes=classes,
        positive=positive,
    )


def _bootstrap(cases: _Cases, resamples: int, seed: int) -> dict[str, Floats]:
    """Each metric over the resamples, (resamples,); empty where there are fewer than two patients to draw from."""
    blocks = [_metrics(cases, weights) for weights in patient_draws(cases.patient, resamples, seed)]
    if cases.patient.max(initial=-1) < 1 or not blocks:
        return {name: np.empty(0) for name in _metrics(cases, np.ones((1, len(cases.label))))}
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _metrics(cases: _Cases, weights: Floats) -> dict[str, Floats]:
    """Every metric for each row of `weights` (r, n), each (r,), NaN where undefined."""
    confusion = _confusion(cases, weights)
    total = confusion.sum(axis=(1, 2))
    metrics = {"accuracy": share(np.trace(confusion, axis1=1, axis2=2), total)}
    if cases.positive is None:
        each = [_one_against_rest(cases, weights, confusion, number) for number in range(len(cases.classes))]
        names = ("sensitivity", "specificity", "f1", "auroc", "average_precision")
        there = [number for number in range(len(cases.classes)) if (cases.label == number).any()]
        metrics |= {name: _mean([each[number][name] for number in there], len(weights)) for name in names}
        squares = ((cases.probabilities - np.eye(len(cases.classes))[cases.label]) ** 2).sum(axis=1)
        top = np.take_along_axis(cases.probabilities, cases.predicted[:, None], axis=1)[:, 0]
        metrics["brier"] = share(weights @ squares, total)
        metrics["ece"] = _ece(cases.predicted == cases.label, top, weights)
        metrics |= {f"{name}_{one}": each[k][name] for name in names for k, one in enumerate(cases.classes)}
        return metrics
    metrics |= _one_against_rest(cases, weights, confusion, cases.positive)
    score, positive = cases.probabilities[:, cases.positive], cases.label == cases.positive
    metrics["brier"] = share(weights @ (score - positive) ** 2, total)
    metrics["ece"] = _ece(positive, score, weights)
    return metrics


def _confusion(cases: _Cases, weights: Floats) -> Floats:
    """Weight of each pair (actual, predicted), (r, k, k)."""
    size = len(cases.classes)
    cell = np.eye(size * size)[cases.label * size + cases.predicted]
    return (weights @ cell).reshape(len(weights), size, size)


def _one_against_rest(cases: _Cases, weights: Floats, confusion: Floats, number: int) -> dict[str, Floats]:
    """Metrics of one class against all others. f1 is undefined where the class has no case (0/0 in its recall)."""
    hit = confusion[:, number, number]
    actual, called = confusion[:, number].sum(axis=1), confusion[:, :, number].sum(axis=1)
    total = confusion.sum(axis=(1, 2))
    rejected = total - actual - called + hit
    sensitivity, specificity = share(hit, actual), share(rejected, total - actual)
    positive, score = cases.label == number, cases.probabilities[:, number]
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": share(hit, called),
        "npv": share(rejected, total - called),
        "f1": np.where(actual > 0, share(2 * hit, actual + called), np.nan),
        "auroc": auroc(positive, score, weights),
        "average_precision": average_precision(positive, score, weights),
    }


def _ece(correct: ArrayLike, confidence: Floats, weights: Floats) -> Floats:
    """Expected calibration error over the bins of `ECE_EDGES`, (r,): the weighted mean gap between confidence and share
    of correct cases. For few cases it is biased upwards, the more so in resamples."""
    member = np.eye(len(ECE_EDGES) + 1)[np.digitize(confidence, ECE_EDGES, right=True)]
    gap = np.asarray(correct).astype(float) - confidence
    return share(np.abs(weights @ (member * gap[:, None])).sum(axis=1), weights.sum(axis=1))


def _mean(each: Sequence[Floats], rows: int) -> Floats:
    """Mean over classes, (r,); NaN where one of them is NaN, so that all resamples average over the same classes."""
    return np.mean(each, axis=0) if each else np.full(rows, np.nan)


def _interval(name: str, value: float, draws: Floats) -> Interval:
    """The value with its interval over the resamples that define it, stretched to the value where it would miss it."""
    if np.isnan(value):
        return Interval(None, None, None)
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return Interval(value, None, None)
    low, high = (float(end) for end in np.percentile(defined, PERCENTILES))
    if name in REFLECTED:
        low, high = max(0.0, 2 * value - high), min(1.0, 2 * value - low)
    return Interval(value, min(low, value), max(high, value))


def _warnings(cases: _Cases, patients: int, metrics: Mapping[str, Interval], draws: Mapping[str, Floats]) -> list[str]:
    """What a reader must know before believing the numbers, in plain sentences."""
    if not patients:
        return ["The split has no case: nothing was measured."]
    warnings = _class_warnings(cases)
    if patients == 1:
        warnings.append("All cases are of one patient: no interval can be given.")
    undefined = [name for name, one in metrics.items() if one.value is None]
    if undefined:
        warnings.append(f"Undefined in this split: {', '.join(undefined)}.")
    lost: dict[int, list[str]] = {}
    for name, one in metrics.items():
        count = int(np.isnan(draws[name]).sum())
        if count and one.value is not None:
            lost.setdefault(count, []).append(name)
    for count, names in lost.items():
        share = f"{count} of {len(draws[names[0]])} resamples"
        warnings.append(f"Undefined in {share}, which their intervals leave out: {', '.join(names)}.")
    return warnings + _width_warnings(patients, metrics)


def _class_warnings(cases: _Cases) -> list[str]:
    """Classes without a case, or with few patients."""
    warnings = []
    members = {name: np.unique(cases.patient[cases.label == k]).size for k, name in enumerate(cases.classes)}
    there = [name for name, count in members.items() if count]
    if len(there) == 1:
        warnings.append(f"The split has only the class {there[0]!r}: it cannot show that classes are told apart.")
    elif len(there) < len(members):
        absent = ", ".join(repr(name) for name, count in members.items() if not count)
        warnings.append(f"No case of {absent} in the split: means over the classes leave them out.")
    for name in there:
        if members[name] < FEW_PATIENTS:
            who = f"{members[name]} {'patient' if members[name] == 1 else 'patients'}"
            warnings.append(
                f"Only {who} in the class {name!r}: below {FEW_PATIENTS}, intervals are rough and too narrow."
            )
    return warnings


def _width_warnings(patients: int, metrics: Mapping[str, Interval]) -> list[str]:
    """Intervals that are wide, and those without width: no resample holds an error that the split does not hold."""
    widths = {name: one.high - one.low for name, one in metrics.items() if one.low is not None and one.high is not None}
    wide = [name for name, width in widths.items() if width > WIDE_INTERVAL]
    none = [name for name, width in widths.items() if width == 0]
    warnings = []
    if wide:
        warnings.append(f"Intervals wider than {WIDE_INTERVAL}: {', '.join(wide)}.")
    if none:
        # The rule of three: no event in n independent trials leaves rates up to 3/n within the 95 % limit.
        rate = min(1.0, 3 / patients)
        warnings.append(
            f"The same in every resample, so their intervals have no width: {', '.join(none)}. "
            f"With {patients} patients, errors in up to {rate:.0%} of patients cannot be excluded."
        )
    return warnings
