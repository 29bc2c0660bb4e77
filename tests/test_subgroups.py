"""Subgroups: how cases are put into them, when one falls behind, and when nothing is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.measures import Scored, score
from pipeline.metrics.metrics import evaluate_scored
from pipeline.metrics.subgroups import (
    MOST_VALUES,
    NOT_KNOWN,
    SEVERAL_VALUES,
    group_values,
    subgroups,
    unusable_columns,
    upper_end,
)

RESAMPLES = 200


def _cases(count: int = 400, *, bad: float = 0.0, each: int = 1, seed: int = 0) -> tuple[Scored, np.ndarray]:
    """Cases, and a mask of the fifth of them for which the model tells nothing with probability `bad`."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, count)
    group = np.arange(count) % 5 == 0
    lost = group & (random.random(count) < bad)
    value = 1 / (1 + np.exp(-np.where(lost, random.normal(0, 1, count), random.normal(label * 4 - 2, 1.5))))
    who = np.arange(count) // each
    return score(label, np.column_stack([1 - value, value]), who.astype(str), classes=("no", "yes")), group


def test_a_group_that_falls_behind_is_told() -> None:
    cases, group = _cases(bad=0.9)
    rows, sentences = subgroups(cases, {"patient_sex": np.where(group, "F", "M")}, resamples=RESAMPLES, seed=0)
    told = {row["value"]: row for row in rows}
    assert "falls behind: AUROC" in told["F"]["warning"]
    assert told["M"]["warning"] == ""
    assert len(sentences) == 1
    assert "Sex 'F' falls behind: AUROC" in sentences[0]
    assert told["F"]["cases"] + told["M"]["cases"] == len(cases)


def test_a_groups_figures_are_those_of_its_cases() -> None:
    cases, group = _cases()
    rows, _ = subgroups(cases, {"site": np.where(group, "x", "y")}, resamples=RESAMPLES, seed=3)
    own = evaluate_scored(cases.take(group), resamples=RESAMPLES, seed=3)
    [row] = [row for row in rows if row["value"] == "x"]
    assert row["metrics"] == {name: one.to_json() for name, one in own.metrics.items()}
    assert row["patients"] == own.patients


def test_chance_alone_accuses_nobody() -> None:
    """Twenty groups that are drawn by lot, forty times: the correction keeps false accusations near 1 in 40 data sets."""
    accused = 0
    for seed in range(40):
        cases, _ = _cases(600, seed=seed)
        lots = np.random.default_rng(seed).integers(0, 15, len(cases)).astype(str)
        _, sentences = subgroups(cases, {"site": lots}, resamples=RESAMPLES, seed=seed)
        accused += bool(sentences)
    assert accused <= 4  # by chance alone 2.5 % of them: more than 4 of 40 in 3 of 10,000 tries


def test_small_groups_are_said_and_not_judged() -> None:
    cases, _ = _cases(200, bad=1.0)
    few = np.where(np.arange(200) < 50, "few", "many")  # ten images of each of five patients
    clustered = Scored(
        cases.label, cases.predicted, 1 - cases.probabilities, np.arange(200) // 10, cases.classes, cases.positive
    )
    rows, sentences = subgroups(clustered, {"site": few}, resamples=RESAMPLES, seed=0)
    assert {row["value"]: row["warning"] for row in rows}["few"] == "too few patients to judge (5)"
    assert not [sentence for sentence in sentences if "'few'" in sentence]


def test_an_error_that_no_resample_lacks_is_not_taken_for_certain() -> None:
    """All of 12 wrong: the upper end is that of 12 patients, not 0."""
    assert upper_end(0.0, np.zeros(200), 12, 0.025) == pytest.approx(-np.log(0.025) / 12)
    assert upper_end(0.9, np.full(3, np.nan), 12, 0.025) == np.inf


@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 0.02))
@settings(deadline=None, max_examples=30)
def test_more_comparisons_never_lower_the_upper_end(seed: int, level: float) -> None:
    draws = np.clip(np.random.default_rng(seed).normal(0.7, 0.05, 200), 0, 1)
    assert upper_end(0.7, draws, 30, level) >= upper_end(0.7, draws, 30, 0.025)


def test_findings_and_classes_are_judged_only_where_all_are_there() -> None:
    random = np.random.default_rng(0)
    label = np.arange(300) % 3
    probabilities = random.dirichlet(np.ones(3), 300)
    cases = score(label, probabilities, np.arange(300), classes=("a", "b", "c"))
    without_c = np.where((label == 2) | (np.arange(300) < 150), "rest", "no c")
    rows, _ = subgroups(cases, {"site": without_c}, resamples=RESAMPLES, seed=0)
    assert "too few" in {row["value"]: row["warning"] for row in rows}["no c"]


def _images() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "case_id": ["a", "a", "b", "c", "c", "d", "gone"],
            "patient_age": pd.Categorical(["017Y", "017Y", "018M", "064Y", "064Y", None, "099Y"]),
            "patient_sex": ["female", "F", "m", "F", "M", "", "F"],
            "view_position": ["PA"] * 7,
            "path": list("1234567"),
        }
    )


def test_values_of_cases() -> None:
    columns = ["patient_age", "patient_sex", "view_position", "path", "no_column"]
    found = group_values(_images(), pd.Series(["d", "a", "b", "c"]), columns)
    assert found["patient_age"].tolist() == [NOT_KNOWN, "0-17", "0-17", "60-79"]
    assert found["patient_sex"].tolist() == [NOT_KNOWN, "F", "M", SEVERAL_VALUES]
    assert list(found) == ["patient_age", "patient_sex"]  # one value is no group, and a path may hold a name
    assert unusable_columns(columns) == ["path", "no_column"]


def test_ages_are_in_bands_and_in_order() -> None:
    ages = [0, 17, 18, 39, 40, 59, 60, 79, 80, 104]
    images = pd.DataFrame({"case_id": [str(age) for age in ages], "patient_age": [f"{age:03d}Y" for age in ages]})
    values = group_values(images, images["case_id"], ["patient_age"])
    assert values["patient_age"].tolist() == [band for band in ("0-17", "18-39", "40-59", "60-79", "80+") for _ in "12"]
    random = np.random.default_rng(0)
    cases = score(np.arange(10) % 2, random.dirichlet(np.ones(2), 10), np.arange(10), classes=("no", "yes"))
    rows, _ = subgroups(cases, values, resamples=RESAMPLES, seed=0)
    assert [row["value"] for row in rows] == ["0-17", "18-39", "40-59", "60-79", "80+"]


def test_of_very_many_values_the_rare_ones_are_only_counted() -> None:
    cases, _ = _cases(200)
    values = np.array([f"v{number % 50}" for number in range(200)])
    rows, sentences = subgroups(cases, {"station_name": values}, resamples=RESAMPLES, seed=0)
    assert len(rows) == MOST_VALUES
    assert "30 values" in sentences[0]
