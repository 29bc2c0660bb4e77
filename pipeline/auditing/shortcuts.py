"""The shortcut audit: how well the label can be told without looking at the anatomy.

In: `facts` (pipeline.auditing.features, `case_facts`), one row a case: label, patient, and the index's columns of the middle one of its
images. Out: plain values for `audit.json`: for each group of features (image size, bytes, colour, border pixels, scanner, ...),
for all of them together and for each feature alone, the AUROC of `shortcut_scores`, with a 95 % interval over patients; of more than two
classes, and of several findings, the mean and each one's. Missing values are values: that a header is silent may tell the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.auditing.features import (
    BORDER_FEATURES,
    GROUPS,
    TOGETHER,
    TOGETHER_GROUP,
    Group,
    border_features,
    case_features,
)
from pipeline.auditing.shortcut_scores import (
    FEWEST_PATIENTS_A_LEVEL,
    SEED,
    WARN_OVER,
    Areas,
    Floats,
    Subjects,
    areas_for,
    areas_of,
    encode,
    folds_by_patient,
    held_out_scores,
    reached_by_chance,
)  # fmt: skip
from pipeline.columns import snake_case
from pipeline.label_arrays import label_array, presence
from pipeline.manifest import Manifest
from pipeline.progress import track

FEWEST_PATIENTS = 2
"""Of a class (of a finding also: without it): one to learn from and one to try."""
COUNTED_LEVELS = 12
"""A number of at most so many different values is told by counts, another by medians."""
NAMED_CLASSES = 3
"""With more the words about a feature tell the class that is told best from all others."""


@dataclass(frozen=True)
class Effort:
    """How much is tried. `features`: whether each feature is judged alone, or only those of groups that are warned about."""

    cases: int = 20_000
    """Of a larger dataset so many are drawn: an interval is then 0.02 wide, and the forests take minutes on two cores."""
    decoded: int = 5_000
    """Cases of which an image is decoded for its border: minutes on two cores, where all of a large archive would be days."""
    folds: int = 5
    trees: int = 100
    resamples: int = 1000
    careless: bool = True
    """Whether it is also tried how a split that ignores patients would look."""
    features: bool = True


THOROUGH = Effort()
QUICK = Effort(cases=1_000, decoded=100, folds=3, trees=25, resamples=200, careless=False, features=False)
"""Seconds, for a report on a run: enough to see what a network would find at once; intervals are rougher."""


@dataclass(frozen=True)
class Sample:
    """Cases with their features; `subjects` is None where there is nothing to cross-validate."""

    features: pd.DataFrame
    subjects: Subjects | None

    def varying(self, names: Sequence[str]) -> list[str]:
        """Those of the features that are not the same for every case."""
        return [name for name in names if self.features[name].nunique(dropna=False) > 1]


@dataclass(frozen=True)
class _Trial:
    """What is tried: on all that was drawn, and on those cases of which the border was decoded."""

    everybody: Sample
    decoded: Sample
    effort: Effort

    def sample_for(self, names: Sequence[str]) -> Sample:
        """The cases that have these features."""
        return self.decoded if any(name in BORDER_FEATURES for name in names) else self.everybody

    def scores(self, encoded: Floats, subjects: Subjects) -> Areas:
        return areas_of(held_out_scores(encoded, subjects, self.effort.trees), subjects, self.effort.resamples)


def audit_shortcuts(
    facts: pd.DataFrame,
    manifest: Manifest,
    roots: Mapping[str, Path],
    *,
    effort: Effort = THOROUGH,
    workers: int | None = None,
    progress: bool,
) -> dict[str, Any]:
    """The audit's part `shortcuts`: plain values. `auroc` is None with a `reason` where it cannot be computed."""
    several = manifest.labels.several
    patients = patients_of_classes(facts, manifest.classes)
    judged = _judged(facts, manifest, patients)
    testable = len(judged) >= (1 if several else 2)
    drawn = draw_cases(facts if several else facts[facts["label"].isin(judged)], effort.cases)
    decoded = draw_cases(drawn, effort.decoded if testable else 0)
    borders, failures = border_features(decoded, roots, workers=workers, progress=progress)
    features = case_features(drawn).join(borders)
    told = _told(manifest)
    rest = features.drop(columns=told, errors="ignore")
    whole, bordered = (_sample(rest, rows, manifest, judged if testable else [], effort) for rows in (drawn, decoded))
    trial = _Trial(whole, bordered, effort)
    groups = [
        _judge_group(group, trial)
        for group in track((*GROUPS, TOGETHER_GROUP), "shortcuts", len(GROUPS) + 1, show=progress)
    ]
    alone = _judge_features(_features_to_judge(groups, effort), trial, progress)
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
        "folds": None if whole.subjects is None else int(whole.subjects.fold.max()) + 1,
        "groups": [group | {"trap": _trap_of(group["features"], alone)} for group in groups],
        "features": alone,
    }


def patients_of_classes(facts: pd.DataFrame, classes: Sequence[str]) -> dict[str, int]:
    """How many patients have a case of each class."""
    present = presence(facts["label"], classes)
    return {name: int(facts.loc[present[:, place], "patient_key"].nunique()) for place, name in enumerate(classes)}


def _judged(facts: pd.DataFrame, manifest: Manifest, patients: Mapping[str, int]) -> list[str]:
    """The classes that enough patients have; of several findings, also: that enough patients have cases without."""
    judged = [name for name, count in patients.items() if count >= FEWEST_PATIENTS]
    if not manifest.labels.several:
        return judged
    present = presence(facts["label"], manifest.classes)
    without = [facts.loc[~column, "patient_key"].nunique() for column in present.T]
    return [name for name in judged if without[manifest.classes.index(name)] >= FEWEST_PATIENTS]


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
        read = {manifest.labels.column, *manifest.labels.columns.values()}
        columns |= {name for name, heading in manifest.sheet.facts.items() if heading in read}
    renamed = {"patient_age": "patient_age_years", "study_date": "study_year", "pixel_spacing": "pixel_spacing_mm"}
    known = {feature for group in GROUPS for feature in group.features}
    return sorted({renamed.get(name, name) for name in columns} & known)


def _sample(
    features: pd.DataFrame, rows: pd.DataFrame, manifest: Manifest, classes: Sequence[str], effort: Effort
) -> Sample:
    subjects = None
    if classes and len(rows):
        patient = pd.factorize(rows["patient_key"])[0].astype(np.int64)
        if manifest.labels.several:
            present = presence(rows["label"], manifest.classes)
            label: NDArray[Any] = present[:, [manifest.classes.index(name) for name in classes]].astype(np.int64)
        else:
            label = label_array(rows["label"], classes, several=False)
        fold = folds_by_patient(label, patient, len(classes), effort.folds)
        subjects = Subjects(label, patient, fold, tuple(classes))
    return Sample(features.loc[rows.index], subjects)


def _judge_group(group: Group, trial: _Trial) -> dict[str, Any]:
    there = [name for name in group.features if name in trial.everybody.features.columns]
    sample = trial.sample_for(there)
    varying = sample.varying(there)
    areas, by_case = Areas(), None
    if sample.subjects is not None and varying:
        encoded = encode(sample.features[varying], sample.subjects.patient)
        areas = trial.scores(encoded, sample.subjects)
        by_case = _by_case(encoded, sample.subjects, trial.effort) if trial.effort.careless else None
    return {
        "name": group.name,
        "title": group.title,
        "features": varying,
        "constant": [name for name in there if name not in varying],
        "cases": len(sample.features),
        "auroc": areas.mean,
        "auroc_of_class": areas.of_class,
        "told_best": areas.worst,
        "auroc_by_case": by_case,
        "auroc_by_chance": reached_by_chance(sample.subjects) if areas.mean and sample.subjects else None,
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


def _by_case(encoded: Floats, subjects: Subjects, effort: Effort) -> float | None:
    """AUROC where a patient's cases stand on both sides, as in a careless split; None where each patient has one case."""
    alone = np.arange(len(subjects.label))
    if len(np.unique(subjects.patient)) == len(alone):
        return None
    fold = folds_by_patient(subjects.label, alone, len(subjects.classes), effort.folds)
    careless = replace(subjects, patient=alone, fold=fold)
    area = areas_for(held_out_scores(encoded, careless, effort.trees), careless, np.ones((1, len(alone))))
    return None if np.isnan(area).all() else float(np.nanmean(area))


def _features_to_judge(groups: Sequence[Mapping[str, Any]], effort: Effort) -> list[str]:
    """Each feature of all groups, or of those that are warned about."""
    warned = {group["name"] for group in groups if group["warned"]} - {TOGETHER}
    wanted = [group for group in GROUPS if effort.features or group.name in warned]
    return list(dict.fromkeys(name for group in wanted for name in group.features))


def _judge_features(wanted: Sequence[str], trial: _Trial, progress: bool) -> list[dict[str, Any]]:
    """Each of the features that varies, alone, the strongest first; with the difference between the classes in words where it is
    warned about."""
    group_of = {name: group.name for group in reversed(GROUPS) for name in group.features}
    names = [name for name in group_of if name in wanted and name in trial.everybody.features.columns]
    judged = []
    for name in track(names, "features", len(names), show=progress):
        sample = trial.sample_for([name])
        if sample.subjects is None or not sample.varying([name]):
            continue
        values = sample.features[name]
        areas = trial.scores(encode(values.to_frame(), sample.subjects.patient), sample.subjects)
        trap = _trap(values, *_sides(sample.subjects, areas), sample.subjects.patient) if areas.told() else ""
        if areas.mean:
            judged.append({"name": name, "group": group_of[name], "auroc": areas.mean, "trap": trap})
    return sorted(judged, key=lambda one: (-one["auroc"]["value"], one["name"]))


def _sides(subjects: Subjects, areas: Areas) -> tuple[NDArray[np.object_], Sequence[str]]:
    """(n,) what the words about a feature tell apart, and its names: the classes, or of many the one that is told best from the rest."""
    if not subjects.several and len(subjects.classes) <= NAMED_CLASSES:
        return np.array(subjects.classes, dtype=object)[subjects.label], subjects.classes
    name = areas.worst or subjects.classes[0]
    sides = (name, f"not {name}")
    return np.where(subjects.positive(subjects.classes.index(name)), *np.array(sides, dtype=object)), sides


def _trap(values: pd.Series, sides: NDArray[np.object_], names: Sequence[str], patient: Any) -> str:
    """`color_mode RGBA: 479 of 479 non-COVID, 67 of 480 COVID`, or medians; never a value that one patient has alone."""
    label = pd.Series(sides, index=values.index)
    numeric = pd.api.types.is_numeric_dtype(values)
    whole = numeric and bool((values.dropna() % 1 == 0).all())
    if numeric and (not whole or values.nunique() > COUNTED_LEVELS or values.name == "patient_age_years"):
        medians = values.groupby(label, observed=True).median()
        shown = ", ".join(f"{_short(medians.get(name, np.nan))} in {name}" for name in names)
        return f"{values.name}: median {shown}"
    words = values.map(_short) if numeric else values
    having = pd.Series(np.asarray(patient), index=words.index).groupby(words.astype("object"), observed=True).nunique()
    rare = having.index[having < FEWEST_PATIENTS_A_LEVEL]
    words = words.astype("object").where(~words.isin(rare), "(rare)")
    counts = pd.crosstab(words, label).reindex(columns=list(names), fill_value=0)
    totals = {name: int((label == name).sum()) for name in names}
    shares = counts / [max(total, 1) for total in totals.values()]
    level = str((shares.max(axis=1) - shares.min(axis=1)).idxmax())
    shown = ", ".join(f"{counts[name][level]:,} of {totals[name]:,} {name}" for name in names)
    return f"{values.name} {level or '(none)'}: {shown}"


def _short(value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _trap_of(features: Sequence[str], judged: Sequence[Mapping[str, Any]]) -> str:
    """That of the strongest of the group's features."""
    return next((one["trap"] for one in judged if one["name"] in features and one["trap"]), "")
