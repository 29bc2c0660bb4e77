"""The shortcut audit: how well the class can be told without looking at the anatomy.

In: `facts` (pipeline.features, `case_facts`), one row a case: label, patient, and the index's columns of the middle one of its
images. Out: plain values for `audit.json`: for each group of features (image size, bytes, colour, border pixels, scanner, ...),
for all of them together and for each feature alone, the AUROC of a random forest that is cross-validated by patient, with a 95 %
interval over patients. Only cases of the same fold are compared with each other, as each fold has a model of its own; of more
than two classes it is the mean over each against the rest. Missing values are values: that a header is silent may tell the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.columns import snake_case
from pipeline.features import BORDER_FEATURES, GROUPS, TOGETHER_GROUP, Group, border_features, case_features
from pipeline.manifest import Manifest
from pipeline.progress import track
from pipeline.roc import PERCENTILES, Floats, Ints, auroc, patient_draws, share
from pipeline.work import default_workers

WARN_OVER = 0.65
"""AUROC from which a group is warned about: 0.5 is chance, and a network finds whatever a forest on five numbers finds."""
MOST_CASES = 20_000
"""Of a larger dataset so many are drawn: an interval is then 0.02 wide, and the forests take minutes on two cores."""
MOST_DECODED = 5_000
"""Cases of which an image is decoded for its border: minutes on two cores, where all of a large archive would be days."""
FEWEST_PATIENTS = 2
"""Of a class: one to learn from and one to try."""
MOST_FOLDS = 5
TREES = 100
ROWS_A_TREE = 5_000
"""At most: keeps a forest on many cases at seconds."""
CASES_A_LEAF = 3
"""At least: leaves of one case make scores that are mostly ties of 0 and 1."""
RESAMPLES = 1000
SEED = 0
MOST_LEVELS = 30
"""Of a feature in words, the most frequent values; the rest are pooled."""
FEWEST_PATIENTS_A_LEVEL = 2
"""A value that one patient has alone cannot be learned across patients, and might say who it is."""
COUNTED_LEVELS = 12
"""A number of at most so many different values is told by counts, another by medians."""

Bounds = dict[str, float | None]
"""value, and the low and high end of its 95 % interval."""


@dataclass(frozen=True)
class Subjects:
    """Cases to predict: class number, patient number and fold of each, (n,) all."""

    label: Ints
    patient: Ints
    fold: Ints
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Areas:
    """AUROC with its interval, mean over the classes, and of more than two classes each one's against the rest."""

    mean: Bounds | None = None
    of_class: Mapping[str, Bounds] = field(default_factory=dict)

    def told(self) -> bool:
        """Whether to warn: the mean is over the limit, or one class of several surely is, which the mean may hide."""
        sure = any((one["low"] or 0.0) > WARN_OVER for one in self.of_class.values())
        return self.mean is not None and ((self.mean["value"] or 0.0) > WARN_OVER or sure)


@dataclass(frozen=True)
class Sample:
    """Cases with their features and labels; `subjects` is None where there is nothing to cross-validate."""

    features: pd.DataFrame
    label: pd.Series
    subjects: Subjects | None

    def varying(self, names: Sequence[str]) -> list[str]:
        """Those of the features that are not the same for every case."""
        return [name for name in names if self.features[name].nunique(dropna=False) > 1]


def audit_shortcuts(
    facts: pd.DataFrame, manifest: Manifest, roots: Mapping[str, Path], *, workers: int | None = None, progress: bool
) -> dict[str, Any]:
    """The audit's part `shortcuts`: plain values. `auroc` is None with a `reason` where it cannot be computed."""
    patients = patients_of_classes(facts, manifest.classes)
    judged = [name for name, count in patients.items() if count >= FEWEST_PATIENTS]
    drawn = draw_cases(facts[facts["label"].isin(judged)], MOST_CASES)
    decoded = draw_cases(drawn, MOST_DECODED if len(judged) >= 2 else 0)
    borders, failures = border_features(decoded, roots, workers=workers, progress=progress)
    features = case_features(drawn).join(borders)
    told = _told(manifest)
    samples = [_sample(features.drop(columns=told, errors="ignore"), rows, judged) for rows in (drawn, decoded)]
    everybody = samples[0].subjects
    groups = [
        _judge_group(group, samples)
        for group in track((*GROUPS, TOGETHER_GROUP), "shortcuts", len(GROUPS) + 1, show=progress)
    ]
    alone = _judge_features(samples, progress)
    return {
        "warn_over": WARN_OVER,
        "cases": len(drawn),
        "cases_of": len(facts),
        "cases_decoded": len(decoded) - sum(failures.values()),
        "cases_to_decode": len(decoded),
        "not_decoded": failures,
        "patients": int(drawn["patient_key"].nunique()),
        "classes": judged,
        "classes_left_out": {name: count for name, count in patients.items() if name not in judged},
        "features_left_out": sorted(told),
        "folds": None if everybody is None else int(everybody.fold.max()) + 1,
        "groups": [group | {"trap": _trap_of(group["features"], alone)} for group in groups],
        "features": alone,
    }


def patients_of_classes(facts: pd.DataFrame, classes: Sequence[str]) -> dict[str, int]:
    """How many patients have a case of each class."""
    counts = facts.groupby("label", observed=True)["patient_key"].nunique()
    return {name: int(counts.get(name, 0)) for name in classes}


def draw_cases(facts: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many cases, the same for the same dataset: whole patients (but for the last), as many of each class as there are.

    The share of a class does not matter for an AUROC; a rare class does.
    """
    if len(facts) <= most:
        return facts
    patients = facts.groupby("patient_key", sort=False, observed=True)["label"].first()
    shuffled = patients.iloc[np.random.default_rng(SEED).permutation(len(patients))]
    turn = (
        shuffled.groupby(shuffled).cumcount().sort_values(kind="stable")
    )  # the first of each class, the second of each, ...
    rank = pd.Series(np.arange(len(turn)), index=turn.index)
    order = np.argsort(rank.reindex(facts["patient_key"]).to_numpy(), kind="stable")
    return facts.iloc[np.sort(order[:most])]


def _told(manifest: Manifest) -> list[str]:
    """Features that are the label itself: the attribute, or the sheet's column, that it is read from."""
    columns = {snake_case(manifest.labels.attribute)}
    if manifest.sheet is not None and manifest.labels.source == "sheet":
        columns |= {name for name, heading in manifest.sheet.facts.items() if heading == manifest.labels.column}
    renamed = {"patient_age": "patient_age_years", "study_date": "study_year", "pixel_spacing": "pixel_spacing_mm"}
    known = {feature for group in GROUPS for feature in group.features}
    return sorted({renamed.get(name, name) for name in columns} & known)


def _sample(features: pd.DataFrame, rows: pd.DataFrame, classes: Sequence[str]) -> Sample:
    subjects = None
    if len(classes) >= 2:
        label = pd.Categorical(rows["label"], categories=list(classes)).codes.astype(np.int64)
        patient = pd.factorize(rows["patient_key"])[0].astype(np.int64)
        subjects = Subjects(label, patient, _folds(label, patient, len(classes)), tuple(classes))
    return Sample(features.loc[rows.index], rows["label"], subjects)


def _folds(label: Ints, patient: Ints, classes: int) -> Ints:
    """(n,) the fold of each case: by patient, stratified by class; as many as the rarest class has patients, at most `MOST_FOLDS`."""
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(np.unique(patient[label == number])) for number in range(classes))
    folds = StratifiedGroupKFold(max(2, min(MOST_FOLDS, fewest)), shuffle=True, random_state=SEED)
    fold = np.zeros(len(label), dtype=np.int64)
    for number, (_, held_out) in enumerate(folds.split(label[:, None], label, patient)):
        fold[held_out] = number
    return fold


def _sample_for(names: Sequence[str], samples: Sequence[Sample]) -> Sample:
    """The cases that have these features: of the border only those that were drawn to be decoded."""
    return samples[1] if any(name in BORDER_FEATURES for name in names) else samples[0]


def _judge_group(group: Group, samples: Sequence[Sample]) -> dict[str, Any]:
    there = [name for name in group.features if name in samples[0].features.columns]
    sample = _sample_for(there, samples)
    varying = sample.varying(there)
    areas, by_case = Areas(), None
    if sample.subjects is not None and varying:
        encoded = encode(sample.features[varying], sample.subjects.patient)
        areas = areas_of(held_out_scores(encoded, sample.subjects), sample.subjects)
        by_case = _by_case(encoded, sample.subjects)
    return {
        "name": group.name,
        "title": group.title,
        "features": varying,
        "constant": [name for name in there if name not in varying],
        "cases": len(sample.label),
        "auroc": areas.mean,
        "auroc_of_class": areas.of_class,
        "auroc_by_case": by_case,
        "reason": _reason(sample.features[there], varying, sample.subjects, areas),
        "warned": areas.told(),
        "meaning": group.meaning,
        "advice": group.advice,
    }


def _reason(there: pd.DataFrame, varying: Sequence[str], subjects: Subjects | None, areas: Areas) -> str:
    """Why there is no AUROC, or ''."""
    if subjects is None:
        return f"too few patients: at least {FEWEST_PATIENTS} in each of two classes are needed"
    if there.empty:
        return "the label is read from it"
    if not varying:
        known = any((values.notna() & (values.astype("object") != "")).any() for _, values in there.items())
        return "the same for every case" if known else "not known for any case"
    return "" if areas.mean else "no fold holds two classes"


def _by_case(encoded: Floats, subjects: Subjects) -> float | None:
    """AUROC where a patient's cases stand on both sides, as in a careless split; None where each patient has one case."""
    alone = np.arange(len(subjects.label))
    if len(np.unique(subjects.patient)) == len(alone):
        return None
    careless = replace(subjects, patient=alone, fold=_folds(subjects.label, alone, len(subjects.classes)))
    area = _areas(held_out_scores(encoded, careless), careless, np.ones((1, len(alone))))
    return None if np.isnan(area).all() else float(np.nanmean(area))


def _judge_features(samples: Sequence[Sample], progress: bool) -> list[dict[str, Any]]:
    """Each feature that varies, alone, the strongest first; with the difference between the classes in words where it is warned about."""
    group_of = {name: group.name for group in reversed(GROUPS) for name in group.features}
    names = [name for name in group_of if name in samples[0].features.columns]
    judged = []
    for name in track(names, "features", len(names), show=progress):
        sample = _sample_for([name], samples)
        if sample.subjects is None or not sample.varying([name]):
            continue
        values = sample.features[name]
        scores = held_out_scores(encode(values.to_frame(), sample.subjects.patient), sample.subjects)
        areas = areas_of(scores, sample.subjects)
        trap = _trap(values, sample.label, sample.subjects.classes, sample.subjects.patient) if areas.told() else ""
        if areas.mean:
            judged.append({"name": name, "group": group_of[name], "auroc": areas.mean, "trap": trap})
    return sorted(judged, key=lambda one: (-one["auroc"]["value"], one["name"]))


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


def held_out_scores(encoded: Floats, subjects: Subjects) -> Floats:
    """(n, classes) each case's probabilities by a forest that saw none of its patient's cases."""
    from sklearn.ensemble import RandomForestClassifier

    scores = np.zeros((len(encoded), len(subjects.classes)))
    for number in np.unique(subjects.fold):
        seen, held_out = subjects.fold != number, subjects.fold == number
        forest = RandomForestClassifier(
            TREES,
            min_samples_leaf=CASES_A_LEAF,
            max_samples=min(int(seen.sum()), ROWS_A_TREE),
            class_weight="balanced",
            n_jobs=default_workers(),
            random_state=SEED,
        )
        forest.fit(encoded[seen].astype(np.float32), subjects.label[seen])
        scores[np.ix_(held_out, forest.classes_)] = forest.predict_proba(encoded[held_out].astype(np.float32))
    return scores


def areas_of(scores: Floats, subjects: Subjects) -> Areas:
    """AUROC with 95 % intervals over resampled patients, the forests as they are; empty where no fold has two classes."""
    values = _areas(scores, subjects, np.ones((1, len(scores))))[:, 0]
    there = np.flatnonzero(~np.isnan(values))
    if not len(there):
        return Areas()
    blocks = [_areas(scores, subjects, weights) for weights in patient_draws(subjects.patient, RESAMPLES, SEED)]
    draws = np.concatenate(blocks, axis=1)
    names = [subjects.classes[-1]] if len(subjects.classes) == 2 else subjects.classes
    each = {names[number]: _interval(values[number], draws[number]) for number in there}
    mean = _interval(float(values[there].mean()), draws[there].mean(axis=0))
    return Areas(mean, each if len(subjects.classes) > 2 else {})


def _interval(value: float, draws: Floats) -> Bounds:
    """The value with its percentiles, stretched to the value where they would miss it."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return {"value": float(value), "low": None, "high": None}
    low, high = (float(end) for end in np.percentile(defined, PERCENTILES))
    return {"value": float(value), "low": min(low, float(value)), "high": max(high, float(value))}


def _areas(scores: Floats, subjects: Subjects, weights: Floats) -> Floats:
    """(classes, r) for `weights` (r, n): each class against the rest; of two classes the second's alone, as the other is the same."""
    numbers = [1] if len(subjects.classes) == 2 else range(len(subjects.classes))
    areas = []
    for number in numbers:
        positive, score = subjects.label == number, scores[:, number]
        ranked_right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for fold in np.unique(subjects.fold):
            rows = subjects.fold == fold
            ours = weights[:, rows]
            of_fold = (ours @ positive[rows]) * (ours @ ~positive[rows])
            ranked_right += np.where(of_fold > 0, auroc(positive[rows], score[rows], ours) * of_fold, 0.0)
            pairs += of_fold
        areas.append(share(ranked_right, pairs))
    return np.stack(areas)


def _trap(values: pd.Series, label: pd.Series, classes: Sequence[str], patient: Any) -> str:
    """`color_mode RGBA: 479 of 479 non-COVID, 67 of 480 COVID`, or medians; never a value that one patient has alone."""
    numeric = pd.api.types.is_numeric_dtype(values)
    whole = numeric and bool((values.dropna() % 1 == 0).all())
    if numeric and (not whole or values.nunique() > COUNTED_LEVELS or values.name == "patient_age_years"):
        medians = values.groupby(label, observed=True).median()
        shown = ", ".join(f"{_short(medians.get(name, np.nan))} in {name}" for name in classes)
        return f"{values.name}: median {shown}"
    words = values.map(_short) if numeric else values
    having = pd.Series(np.asarray(patient), index=words.index).groupby(words.astype("object"), observed=True).nunique()
    rare = having.index[having < FEWEST_PATIENTS_A_LEVEL]
    words = words.astype("object").where(~words.isin(rare), "(rare)")
    counts = pd.crosstab(words, label).reindex(columns=list(classes), fill_value=0)
    totals = {name: int((label == name).sum()) for name in classes}
    shares = counts / [max(total, 1) for total in totals.values()]
    level = str((shares.max(axis=1) - shares.min(axis=1)).idxmax())
    shown = ", ".join(f"{counts[name][level]:,} of {totals[name]:,} {name}" for name in classes)
    return f"{values.name} {level or '(none)'}: {shown}"


def _short(value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _trap_of(features: Sequence[str], judged: Sequence[Mapping[str, Any]]) -> str:
    """That of the strongest of the group's features."""
    return next((one["trap"] for one in judged if one["name"] in features and one["trap"]), "")
