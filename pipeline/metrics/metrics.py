"""How good predictions are: numbers with 95 % intervals from a bootstrap over patients.

In: labels, probabilities and patients, one row a case (metrics.measures, `score`). Out: an `Evaluation`, or the differences of two on
the same cases. Patients, not cases, are drawn with replacement, as many as there are (a cluster bootstrap: images of one patient are
not independent). A resample enters as case weights, so that every metric is computed for many at once; weights of 1
give the metric itself. What cannot be computed is NaN inside and None in the `Evaluation`, with a sentence in
`warnings`; it is never replaced by a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.metrics.measures import DEFAULT_THRESHOLD, Scored, confusion, measure, score, threshold_of
from pipeline.metrics.names import metric_words
from pipeline.metrics.roc import PERCENTILES, Floats, patient_draws

FEW_PATIENTS = 20
"""Patients in a class below which bootstrap intervals are rough and too narrow; said in a warning."""
WIDE_INTERVAL = 0.2
"""An interval wider than this says little about a share between 0 and 1; said in a warning."""
REFLECTED = "ece"
"""The metric, and each finding's, whose interval is reflected about the value (the basic bootstrap: 2·value - percentiles, not below 0).
Resamples overstate a sum of absolute gaps: in a simulation of a model with a true error of 0.04 and 200 cases,
percentiles held the truth never, the reflected interval in 91 % (with 0.15: 89 and 94 %). Without any error it still
fails in about half."""


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval, value included; None where undefined, no bounds where no resample defines it."""

    value: float | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one split.

    `confusion` counts cases, rows actual, columns predicted, in the order of `classes`; of several findings one table each, absent before
    present. `positive` and `threshold` are None unless there are two classes; `thresholds` are those of all findings. Of more classes,
    the most probable one is predicted.
    """

    metrics: dict[str, Interval]
    confusion: list[Any]
    cases: int
    patients: int
    threshold: float | None
    warnings: list[str]
    classes: tuple[str, ...]
    positive: str | None
    several: bool
    thresholds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Content of `metrics.json` but for `split`, which the caller knows; undefined values are null, never NaN."""
        return {
            "classes": list(self.classes),
            "several": self.several,
            "positive": self.positive,
            "cases": self.cases,
            "patients": self.patients,
            "metrics": {name: one.to_json() for name, one in self.metrics.items()},
            "confusion": self.confusion,
            "threshold": self.threshold,
            "thresholds": dict(self.thresholds),
            "warnings": list(self.warnings),
        }


WORK = 2e8
"""Case weights that a further figure (a subgroup's, a stress's) is worth: some 10 s a class. Larger data get fewer resamples."""
FEWEST_RESAMPLES = 200
"""With these, an end of a 95 % interval rests on five resamples, and is off by about a tenth of its width."""


def affordable(resamples: int, cases: int) -> int:
    """Resamples for a further figure of so many cases: as many as asked for, unless that took minutes."""
    return min(resamples, max(FEWEST_RESAMPLES, int(WORK / max(1, cases))))


def evaluate_predictions(
    label: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    *,
    classes: Sequence[str],
    positive: int | None = None,
    threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD,
    several: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Metrics of `probabilities` (n, classes) against `label` (n,), or (n, classes) where there are `several`, with intervals over
    `patients` (n,).

    Two classes: a case is predicted `positive` (its number; the second class unless given) where p >= `threshold`.
    accuracy, balanced_accuracy, sensitivity, specificity, ppv, npv, f1, auroc, average_precision, brier and ece are
    about the positive class and its probability.

    More classes (`positive` and `threshold` do not apply): the most probable class is predicted, the first of equals.
    sensitivity, specificity, f1, auroc and average_precision are means over the classes that the split has, each
    against the rest, and stand there for each class too, as in `auroc_<class>`; brier is the sum over the classes (0 to
    2), ece is about the predicted class's probability.

    Several findings at once, each called from its own threshold on: exact_match is the share of cases whose every label is right,
    accuracy that of labels; the same five are means over the findings that the split has, brier and ece over all; each stands
    there for each finding too.

    Intervals are the 2.5 to 97.5 percentiles of the resamples; for `REFLECTED` their mirror image. A case whose
    probability is unknown is no case: leave it out before. Raises ValueError for arrays that do not fit each other,
    labels outside the classes, and probabilities outside 0-1; never for few, equal or no cases.
    """
    cases = score(
        label, probabilities, patients, classes=classes, positive=positive, threshold=threshold, several=several
    )
    return evaluate_scored(cases, threshold=threshold, resamples=resamples, seed=seed)


def evaluate_scored(
    cases: Scored, *, threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD, resamples: int = 2000, seed: int = 0
) -> Evaluation:
    """`evaluate_predictions` of cases that are scored already, with the `threshold` that they were called by."""
    metrics, draws = intervals(cases, resamples, seed)
    positive = None if cases.positive is None else cases.classes[cases.positive]
    decided = cases.classes if cases.several else () if positive is None else (positive,)
    return Evaluation(
        metrics=metrics,
        confusion=confusion(cases, np.ones((1, len(cases))))[0].astype(int).tolist(),
        cases=len(cases),
        patients=cases.patients,
        threshold=None if positive is None else threshold_of(threshold, positive),
        warnings=_warnings(cases, metrics, draws),
        classes=cases.classes,
        positive=positive,
        several=cases.several,
        thresholds={name: threshold_of(threshold, name) for name in decided},
    )


def intervals(cases: Scored, resamples: int, seed: int) -> tuple[dict[str, Interval], dict[str, Floats]]:
    """Each metric with its interval, and what it is in each resample (resamples,), NaN where undefined."""
    values, draws = values_of(cases), bootstrap(cases, resamples, seed)
    return {name: _interval(name, value, draws[name]) for name, value in values.items()}, draws


def values_of(cases: Scored) -> dict[str, float]:
    """Each metric of the cases as they are, NaN where undefined."""
    return {name: float(value[0]) for name, value in measure(cases, np.ones((1, len(cases)))).items()}


def bootstrap(cases: Scored, resamples: int, seed: int) -> dict[str, Floats]:
    """Each metric over the resamples, (resamples,); empty where there are fewer than two patients to draw from."""
    if cases.patients < 2:
        return {name: np.empty(0) for name in values_of(cases)}
    blocks = [measure(cases, weights) for weights in patient_draws(cases.patient, resamples, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


@dataclass(frozen=True)
class Paired:
    """Each metric of two predictions of the same cases, and `difference`: that of the second minus that of the first."""

    first: dict[str, Interval]
    second: dict[str, Interval]
    difference: dict[str, Interval]


def paired(first: Scored, second: Scored, resamples: int, seed: int) -> Paired:
    """Two predictions of the same cases in the same order, measured on the same resamples, so that what is hard for both cancels.

    ValueError where cases, labels or patients are not the same.
    """
    if not (np.array_equal(first.label, second.label) and np.array_equal(first.patient, second.patient)):
        raise ValueError("expected the same cases, labels and patients in the same order")
    (one, draws), (other, others) = (intervals(cases, resamples, seed) for cases in (first, second))
    values, further = values_of(first), values_of(second)
    differences = {
        name: percentile_interval(further[name] - values[name], others[name] - draws[name]) for name in values
    }
    return Paired(one, other, differences)


@dataclass(frozen=True)
class Drawn:
    """Metrics of some cases, and what they are in each resample."""

    values: dict[str, float]
    draws: dict[str, Floats]


RANKED = ("auroc", "average_precision")
"""Metrics that compare cases with one another: between cases of different networks they mean little."""


def within(cases: Scored, group: ArrayLike, resamples: int, seed: int) -> Drawn:
    """Means over groups of cases (folds, each with a network of its own) of the `RANKED` metrics within each.

    `group` (n,); groups have no patient in common, so each is resampled by itself.
    """
    of_case = np.asarray(group)
    each = [cases.take(of_case == one) for one in np.unique(of_case)]
    drawn = [(values_of(part), bootstrap(part, resamples, seed + place)) for place, part in enumerate(each)]
    complete = all(part.patients > 1 for part in each)
    return Drawn(
        {name: float(np.mean([values[name] for values, _ in drawn])) for name in RANKED},
        {name: np.mean([draws[name] for _, draws in drawn], axis=0) if complete else np.empty(0) for name in RANKED},
    )


def percentile_interval(value: float, draws: Floats) -> Interval:
    """The value with its 95 % interval over the resamples that define it, stretched to the value where it would miss it."""
    if np.isnan(value):
        return Interval(None, None, None)
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return Interval(float(value), None, None)
    low, high = (float(end) for end in np.percentile(defined, PERCENTILES))
    return Interval(float(value), min(low, value), max(high, value))


def _interval(name: str, value: float, draws: Floats) -> Interval:
    one = percentile_interval(value, draws)
    if one.low is None or one.high is None or not (name == REFLECTED or name.startswith(f"{REFLECTED}_")):
        return one
    low, high = (float(end) for end in np.percentile(draws[~np.isnan(draws)], PERCENTILES))
    return Interval(value, min(max(0.0, 2 * value - high), value), max(min(1.0, 2 * value - low), value))


def _warnings(cases: Scored, metrics: Mapping[str, Interval], draws: Mapping[str, Floats]) -> list[str]:
    """What a reader must know before believing the numbers, in plain sentences."""
    if not cases.patients:
        return ["The split has no case: nothing was measured."]
    warnings = _finding_warnings(cases) if cases.several else _class_warnings(cases)
    if cases.patients == 1:
        warnings.append("All cases are of one patient: no interval can be given.")
    if cases.several:  # of dozens of findings' own figures, the tables show which are undefined or wide
        own = {f"{name}_{one}" for name in metrics for one in cases.classes}
        metrics = {name: one for name, one in metrics.items() if name not in own}
    undefined = [name for name, one in metrics.items() if one.value is None]
    if undefined:
        warnings.append(f"Undefined in this split: {_words(undefined)}.")
    lost: dict[int, list[str]] = {}
    for name, one in metrics.items():
        count = int(np.isnan(draws[name]).sum())
        if count and one.value is not None:
            lost.setdefault(count, []).append(name)
    for count, names in lost.items():
        part = f"{count} of {len(draws[names[0]])} resamples"
        warnings.append(f"Undefined in {part}, which their intervals leave out: {_words(names)}.")
    return warnings + _width_warnings(cases.patients, metrics)


def _words(names: Sequence[str]) -> str:
    return ", ".join(map(metric_words, names))


def _members(cases: Scored) -> dict[str, int]:
    """Patients of each class, or with each finding."""
    return {name: np.unique(cases.patient[cases.of_class(number)]).size for number, name in enumerate(cases.classes)}


def _class_warnings(cases: Scored) -> list[str]:
    """Classes without a case, or with few patients."""
    warnings = []
    members = _members(cases)
    there = [name for name, count in members.items() if count]
    if len(there) == 1:
        warnings.append(f"The split has only the class {there[0]!r}: it cannot show that classes are told apart.")
    elif len(there) < len(members):
        absent = ", ".join(repr(name) for name, count in members.items() if not count)
        warnings.append(f"No case of {absent} in the split: means over the classes leave them out.")
    few = [f"{name!r} ({members[name]})" for name in there if members[name] < FEW_PATIENTS]
    if few:
        classes = "class" if len(few) == 1 else "classes"
        warnings.append(
            f"Few patients in the {classes} {', '.join(few)}: below {FEW_PATIENTS}, intervals are rough and too narrow."
        )
    return warnings


def _finding_warnings(cases: Scored) -> list[str]:
    """Findings that no case has, or that all have, or few patients: each kind in one sentence, as there may be dozens."""
    members = _members(cases)
    absent = [repr(name) for name, count in members.items() if not count]
    always = [repr(name) for number, name in enumerate(cases.classes) if cases.of_class(number).all()]
    few = [f"{name!r} ({count})" for name, count in members.items() if 0 < count < FEW_PATIENTS]
    warnings = []
    if absent:
        warnings.append(f"No case with {', '.join(absent)} in the split: means over the findings leave them out.")
    if always:
        warnings.append(f"All cases have {', '.join(always)}: the split cannot show that they are told apart.")
    if few:
        warnings.append(
            f"Few patients with {', '.join(few)}: below {FEW_PATIENTS}, intervals are rough and too narrow."
        )
    return warnings


def _width_warnings(patients: int, metrics: Mapping[str, Interval]) -> list[str]:
    """Intervals that are wide, and those without width: no resample holds an error that the split does not hold."""
    widths = {name: one.high - one.low for name, one in metrics.items() if one.low is not None and one.high is not None}
    wide = [name for name, width in widths.items() if width > WIDE_INTERVAL]
    none = [name for name, width in widths.items() if width == 0]
    warnings = []
    if wide:
        warnings.append(f"Intervals wider than {WIDE_INTERVAL}: {_words(wide)}.")
    if none:
        # The rule of three: no event in n independent trials leaves rates up to 3/n within the 95 % limit.
        rate = min(1.0, 3 / patients)
        warnings.append(
            f"The same in every resample, so their intervals have no width: {_words(none)}. "
            f"With {patients} patients, errors in up to {rate:.0%} of patients cannot be excluded."
        )
    return warnings
