"""No patient in two splits, whatever the cases: as a property, and as a refusal where a split says otherwise."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, RunError
from pipeline.manifest import SplitRule
from pipeline.split import check_split, split_cases

cases_of_patients = st.dictionaries(
    st.integers(0, 10_000), st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4), min_size=6, max_size=60
)


def _cases(patients: dict[int, list[str]]) -> pd.DataFrame:
    rows = [
        (f"{patient}-{n}", f"p{patient}", label)
        for patient, labels in patients.items()
        for n, label in enumerate(labels)
    ]
    return pd.DataFrame(rows, columns=["case_id", "patient_key", "label"])


def _with_enough(patients: dict[int, list[str]]) -> dict[int, list[str]]:
    """Three patients of each class on top, which a split needs."""
    return {**patients, **{20_000 + n: ["a"] for n in range(3)}, **{30_000 + n: ["b"] for n in range(3)}}


@settings(max_examples=100, deadline=None)
@given(patients=cases_of_patients, seed=st.integers(0, 5), shuffle=st.randoms())
def test_no_patient_in_two_splits_and_order_does_not_matter(patients, seed, shuffle):
    table = _cases(_with_enough(patients))
    split = split_cases(table, SplitRule(seed=seed), ["a", "b"])
    assert split.groupby("patient_key")["split"].nunique().eq(1).all()
    assert sorted(split["case_id"]) == sorted(table["case_id"])
    order = list(range(len(table)))
    shuffle.shuffle(order)
    pd.testing.assert_frame_equal(
        split_cases(table.iloc[order].reset_index(drop=True), SplitRule(seed=seed), ["a", "b"]), split
    )


def test_fractions_hold_in_each_class():
    table = _cases({**{n: ["a"] for n in range(100)}, **{100 + n: ["b"] for n in range(50)}})
    split = split_cases(table, SplitRule(train=0.6, validation=0.2, test=0.2), ["a", "b"])
    counts = split.groupby(["label", "split"]).size().to_dict()
    assert counts == {
        ("a", "train"): 60, ("a", "validation"): 20, ("a", "test"): 20,
        ("b", "train"): 30, ("b", "validation"): 10, ("b", "test"): 10,
    }  # fmt: skip
    assert not split.equals(split_cases(table, SplitRule(seed=1), ["a", "b"]))


def test_too_few_patients_are_an_error():
    with pytest.raises(ConfigError, match="at least 3 are needed"):
        split_cases(_cases({1: ["a"], 2: ["a"], 3: ["a"], 4: ["b"], 5: ["b"]}), SplitRule(), ["a", "b"])


def test_a_class_that_nobody_has_is_named():
    with pytest.raises(ConfigError, match="no case of class c: 0 patients have it"):
        split_cases(_cases(_with_enough({})), SplitRule(), ["a", "b", "c"])


def test_a_patient_in_two_splits_is_refused():
    rows = [("1", "p", "a", "train"), ("2", "p", "a", "test")]
    with pytest.raises(RunError, match="more than one split"):
        check_split(pd.DataFrame(rows, columns=["case_id", "patient_key", "label", "split"]))
    with pytest.raises(RunError, match="is no split"):
        check_split(pd.DataFrame([("1", "p", "a", "holdout")], columns=["case_id", "patient_key", "label", "split"]))
