"""How well labels are told from features: forests that are cross-validated by patient, and the AUROC of what they say.

n cases, k classes, m numbers a case. Only cases of the same fold are compared with each other, as each fold has a model of its own. Of two
classes the second is judged, of more each against the rest, of several findings at once each by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.cohort.stratify import NOWHERE, place_by_findings
from pipeline.metrics.roc import PERCENTILES, Floats, Ints, auroc, patient_draws, share
from pipeline.work import default_workers

WARN_OVER = 0.65
"""AUROC from which a group is warned about: 0.5 is chance, and a network finds whatever a forest on five numbers finds."""
ROWS_A_TREE = 5_000
"""At most: keeps a forest on many cases at seconds."""
CASES_A_LEAF = 3
"""At least: leaves of one case make scores that are mostly ties of 0 and 1."""
TREE_ROWS_A_THREAD = 500_000
"""Trees times cases from which a forest is worth several threads; smaller ones are slower with them (measured on two busy cores: 0.08 s
instead of 0.04 s for 25 trees on 50 cases). The forest is the same."""
SEED = 0
MOST_LEVELS = 30
"""Of a feature in words, the most frequent values; the rest are pooled."""
FEWEST_PATIENTS_A_LEVEL = 2
"""A value that one patient has alone cannot be learned across patients, and might say who it is."""

Bounds = dict[str, float | None]
"""value, and the low and high end of its 95 % interval."""
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Subjects:
    """Cases to predict: `label` (n,) class numbers, or (n, k) 0 and 1 of several findings; patient number and fold of each (n,)."""

    label: NDArray[Any]
    patient: Ints
    fold: Ints
    classes: tuple[str, ...]

    @property
    def several(self) -> bool:
        return self.label.ndim == 2

    @property
    def judged(self) -> list[int]:
        """The classes that have an AUROC of their own: of two the second, as the other's is the same."""
        return [1] if len(self.classes) == 2 and not self.several else list(range(len(self.classes)))

    def positive(self, number: int) -> Flags:
        """(n,) which cases have a class."""
        return self.label[:, number] > 0 if self.several else self.label == number


@dataclass(frozen=True)
class Areas:
    """AUROC with its interval, mean over the classes judged, and where there are several each one's."""

    mean: Bounds | None = None
    of_class: Mapping[str, Bounds] = field(default_factory=dict)

    def told(self) -> bool:
        """Whether to warn: the mean is over the limit, or one class of several surely is, which the mean may hide."""
        sure = any((one["low"] or 0.0) > WARN_OVER for one in self.of_class.values())
        return self.mean is not None and ((self.mean["value"] or 0.0) > WARN_OVER or sure)

    @property
    def worst(self) -> str:
        """The class that is told best; '' where one alone is judged."""
        return max(self.of_class, key=lambda name: self.of_class[name]["value"] or 0.0, default="")


def folds_by_patient(label: NDArray[Any], patient: Ints, classes: int, most: int) -> Ints:
    """(n,) the fold of each case: by patient, each class spread over the folds; as many folds as the rarest class (of several findings
    also: as the rarest lack of one) has patients, from 2 to `most`."""
    from sklearn.model_selection import StratifiedGroupKFold

    if label.ndim == 2:
        return _folds_of_findings(label > 0, patient, most)
    fewest = min(len(np.unique(patient[label == number])) for number in range(classes))
    folds = StratifiedGroupKFold(max(2, min(most, fewest)), shuffle=True, random_state=SEED)
    fold = np.zeros(len(label), dtype=np.int64)
    for number, (_, held_out) in enumerate(folds.split(label[:, None], label, patient)):
        fold[held_out] = number
    return fold


def _folds_of_findings(present: Flags, patient: Ints, most: int) -> Ints:
    """`patient` (n,) from 0 on."""
    kinds = np.column_stack([present, ~present])
    sets = np.zeros((int(patient.max()) + 1, kinds.shape[1]), dtype=bool)
    for kind in range(kinds.shape[1]):
        sets[patient[kinds[:, kind]], kind] = True
    folds = max(2, min(most, int(sets.sum(axis=0).min())))
    place = np.full(len(sets), NOWHERE, dtype=np.int8)
    order = np.random.default_rng(SEED).permutation(len(sets))
    place_by_findings(place, sets, order, [1 / folds] * folds, even=True)
    return place[patient].astype(np.int64)


def encode(features: pd.DataFrame, patient: Ints) -> Floats:
    """(n, m): numbers as they are, NaN for missing; words as one column a value, those that are rare pooled."""
    parts: list[NDArray[Any]] = []
    for name in features.columns:
        column = features[name]
        if pd.api.types.is_numeric_dtype(column):
            parts.append(column.to_numpy(dtype=float)[:, None])
            continue
        codes, levels = pd.factorize(column)
        patients = pd.DataFrame({"level": codes, "patient": patient}).drop_duplicates()["level"].value_counts()
        kept = patients[patients >= FEWEST_PATIENTS_A_LEVEL].index[:MOST_LEVELS].to_numpy()
        pooled = np.full(len(levels), len(kept))
        pooled[kept] = np.arange(len(kept))
        parts.append(np.eye(len(kept) + 1)[pooled[codes]])
    return np.concatenate(parts, axis=1)


def held_out_scores(encoded: Floats, subjects: Subjects, trees: int) -> Floats:
    """(n, k) each case's probabilities by a forest that saw none of its patient's cases; of several findings one forest tells all."""
    from sklearn.ensemble import RandomForestClassifier

    scores = np.zeros((len(encoded), len(subjects.classes)))
    for number in np.unique(subjects.fold):
        seen, held_out = subjects.fold != number, subjects.fold == number
        forest = RandomForestClassifier(
            trees,
            min_samples_leaf=CASES_A_LEAF,
            max_samples=min(int(seen.sum()), ROWS_A_TREE),
            class_weight=None
            if subjects.several
            else "balanced",  # of several findings the weights would be multiplied
            n_jobs=default_workers() if trees * int(seen.sum()) >= TREE_ROWS_A_THREAD else 1,
            random_state=SEED,
        )
        label = subjects.label[seen]
        forest.fit(encoded[seen].astype(np.float32), label.ravel() if label.shape[1:] == (1,) else label)
        told, values = forest.predict_proba(encoded[held_out].astype(np.float32)), forest.classes_
        if not subjects.several:
            scores[np.ix_(held_out, values)] = told
            continue
        of_finding = (
            zip(told, values, strict=True) if isinstance(told, list) else [(told, values)]
        )  # of one finding no list
        scores[held_out] = np.column_stack([one[:, those == 1].sum(axis=1) for one, those in of_finding])
    return scores


def areas_of(scores: Floats, subjects: Subjects, resamples: int) -> Areas:
    """AUROC with 95 % intervals over resampled patients, the forests as they are; empty where no fold has two classes."""
    values = areas_for(scores, subjects, np.ones((1, len(scores))))[:, 0]
    there = np.flatnonzero(~np.isnan(values))
    if not len(there):
        return Areas()
    blocks = [areas_for(scores, subjects, weights) for weights in patient_draws(subjects.patient, resamples, SEED)]
    draws = np.concatenate(blocks, axis=1)
    names = [subjects.classes[number] for number in subjects.judged]
    each = {names[number]: _interval(values[number], draws[number]) for number in there}
    mean = _interval(float(values[there].mean()), draws[there].mean(axis=0))
    return Areas(mean, each if len(names) > 1 else {})


def reached_by_chance(subjects: Subjects) -> float:
    """The AUROC that 1 in 40 features which know nothing of the label reach, with so many patients in these folds: 0.5 and 1.96 standard
    deviations of Mann and Whitney's statistic (1947), each patient counted once. An interval over resampled patients keeps the forests as
    they are, and with few patients is too narrow.
    """
    deviations = []
    for number in subjects.judged:
        positive, variance, pairs = subjects.positive(number), 0.0, 0.0
        for fold in np.unique(subjects.fold):
            rows = subjects.fold == fold
            having, lacking = (len(np.unique(subjects.patient[rows & side])) for side in (positive, ~positive))
            of_fold = float((rows & positive).sum() * (rows & ~positive).sum())
            if of_fold:
                variance += of_fold**2 * (having + lacking + 1) / (12 * having * lacking)
                pairs += of_fold
        if pairs:
            deviations.append(variance**0.5 / pairs)
    return min(1.0, 0.5 + 1.96 * float(np.mean(deviations))) if deviations else 1.0


def _interval(value: float, draws: Floats) -> Bounds:
    """The value with its percentiles, stretched to the value where they would miss it."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return {"value": float(value), "low": None, "high": None}
    low, high = (float(end) for end in np.percentile(defined, PERCENTILES))
    return {"value": float(value), "low": min(low, float(value)), "high": max(high, float(value))}


def areas_for(scores: Floats, subjects: Subjects, weights: Floats) -> Floats:
    """(judged, r) for `weights` (r, n)."""
    areas = []
    for number in subjects.judged:
        positive, score = subjects.positive(number), scores[:, number]
        ranked_right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for fold in np.unique(subjects.fold):
            rows = subjects.fold == fold
            ours = weights[:, rows]
            of_fold = (ours @ positive[rows]) * (ours @ ~positive[rows])
            ranked_right += np.where(of_fold > 0, auroc(positive[rows], score[rows], ours) * of_fold, 0.0)
            pairs += of_fold
        areas.append(share(ranked_right, pairs))
    return np.stack(areas)
