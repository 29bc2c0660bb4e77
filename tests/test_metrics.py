"""Numbers against scikit-learn's, what must not change them, and what they say when they cannot be had."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from pipeline.metrics.measures import ECE_EDGES, Scored, score
from pipeline.metrics.metrics import FEWEST_RESAMPLES, Evaluation, Interval, affordable, evaluate_predictions, paired
from pipeline.metrics.names import metric_words
from pipeline.metrics.roc import auroc, average_precision, patient_draws, roc_points

TWO = ("no", "yes")
THREE = ("a", "b", "c")


@st.composite
def _scored(draw: st.DrawFn, classes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels with every class, probabilities (often tied) and patients with one to several cases."""
    count = draw(st.integers(2 * classes, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = np.concatenate([np.arange(classes), random.integers(0, classes, count - classes)])
    probabilities = random.dirichlet(np.full(classes, 0.7), size=count)
    if draw(st.booleans()):  # coarse values, so that scores tie
        steps = np.round(probabilities[:, :-1] * 4) / 4 / (classes - 1)
        probabilities = np.column_stack([steps, 1 - steps.sum(axis=1)])
    return label, probabilities, np.array([f"p{one}" for one in random.integers(0, count, count)])


def _two(score: list[float]) -> np.ndarray:
    return np.column_stack([1 - np.asarray(score), score])


def _value(evaluation: Evaluation, name: str) -> float | None:
    return evaluation.metrics[name].value


@given(_scored(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_ranking_equals_scikit_learn_under_weights(data: tuple[np.ndarray, ...], seed: int) -> None:
    label, probabilities, _ = data
    score = probabilities[:, 1]
    weights = np.random.default_rng(seed).integers(0, 4, size=(8, len(label))).astype(float)
    areas, precisions = auroc(label == 1, score, weights), average_precision(label == 1, score, weights)
    for row, area, precision in zip(weights, areas, precisions, strict=True):
        if row[label == 1].sum() and row[label == 0].sum():
            assert area == pytest.approx(reference.roc_auc_score(label, score, sample_weight=row), abs=1e-12)
            expected = reference.average_precision_score(label, score, sample_weight=row)
            assert precision == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(area)


@given(_scored())
@settings(deadline=None)
def test_two_classes_equal_scikit_learn(data: tuple[np.ndarray, ...]) -> None:
    label, probabilities, patients = data
    score = probabilities[:, 1]
    found = evaluate_predictions(label, probabilities, patients, classes=TWO, resamples=5)
    predicted = (score >= 0.5).astype(int)
    expected = {
        "accuracy": reference.accuracy_score(label, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(label, predicted),
        "sensitivity": reference.recall_score(label, predicted),
        "specificity": reference.recall_score(label, predicted, pos_label=0),
        "f1": reference.f1_score(label, predicted, zero_division=0),
        "auroc": reference.roc_auc_score(label, score),
        "average_precision": reference.average_precision_score(label, score),
        "brier": reference.brier_score_loss(label, score),
    }
    for name, value in expected.items():
        assert _value(found, name) == pytest.approx(value, abs=1e-12), name
    for name, actual in (("ppv", 1), ("npv", 0)):
        if (predicted == actual).any():
            value = reference.precision_score(label, predicted, pos_label=actual)
            assert _value(found, name) == pytest.approx(value, abs=1e-12)
        else:
            assert _value(found, name) is None
    assert found.confusion == reference.confusion_matrix(label, predicted).tolist()


@given(_scored(classes=3))
@settings(deadline=None)
def test_many_classes_equal_scikit_learn(data: tuple[np.ndarray, ...]) -> None:
    label, probabilities, patients = data
    found = evaluate_predictions(label, probabilities, patients, classes=THREE, resamples=5)
    predicted = probabilities.argmax(axis=1)
    expected = {
        "accuracy": reference.accuracy_score(label, predicted),
        "sensitivity": reference.recall_score(label, predicted, average="macro", zero_division=0),
        "f1": reference.f1_score(label, predicted, average="macro", zero_division=0),
        "auroc": reference.roc_auc_score(label, probabilities, multi_class="ovr"),
        "average_precision": reference.average_precision_score(np.eye(3)[label], probabilities),
        "brier": ((probabilities - np.eye(3)[label]) ** 2).sum(axis=1).mean(),
        "sensitivity_b": reference.recall_score(label == 1, predicted == 1),
        "specificity_c": reference.recall_score(label != 2, predicted != 2),
        "auroc_a": reference.roc_auc_score(label == 0, probabilities[:, 0]),
    }
    for name, value in expected.items():
        assert _value(found, name) == pytest.approx(value, abs=1e-12), name
    assert found.threshold is None
    assert found.positive is None


@given(_scored(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_order_of_cases_changes_nothing(data: tuple[np.ndarray, ...], random: object) -> None:
    label, probabilities, patients = data
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(label))  # type: ignore[attr-defined]
    first = evaluate_predictions(label, probabilities, patients, classes=TWO, resamples=50)
    second = evaluate_predictions(label[order], probabilities[order], patients[order], classes=TWO, resamples=50)
    assert first.confusion == second.confusion
    assert first.warnings == second.warnings
    for name, one in first.metrics.items():
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(second.metrics[name]), abs=1e-12), name


@given(_scored(classes=3))
@settings(deadline=None, max_examples=30)
def test_each_patient_twice_keeps_values(data: tuple[np.ndarray, ...]) -> None:
    label, probabilities, patients = data
    once = evaluate_predictions(label, probabilities, patients, classes=THREE, resamples=5)
    twice = evaluate_predictions(
        np.tile(label, 2),
        np.tile(probabilities, (2, 1)),
        np.concatenate([patients, np.char.add(patients, "-again")]),
        classes=THREE,
        resamples=5,
    )
    assert twice.patients == 2 * once.patients
    for name, one in once.metrics.items():
        assert one.value == pytest.approx(twice.metrics[name].value, abs=1e-12), name


@given(_scored(), st.floats(0.3, 4))
@settings(deadline=None, max_examples=30)
def test_ranking_ignores_monotone_maps(data: tuple[np.ndarray, ...], power: float) -> None:
    label, probabilities, _ = data
    _, score = np.unique(probabilities[:, 1], return_inverse=True)  # ranks, so that the map stays strictly monotone
    weights = np.ones((1, len(label)))
    for area in (auroc, average_precision):
        assert area(label, score, weights) == area(label, (score + 1.0) ** power, weights)
    assert auroc(label, -score, weights) == pytest.approx(1 - auroc(label, score, weights), abs=1e-12)


@given(_scored(), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_intervals_are_ordered_and_hold_their_value(data: tuple[np.ndarray, ...], seed: int) -> None:
    found = evaluate_predictions(*data, classes=TWO, resamples=100, seed=seed)
    for one in found.metrics.values():
        if one.low is not None and one.value is not None and one.high is not None:
            assert 0 <= one.low <= one.value <= one.high <= 1


def test_probabilities_that_round_to_one_are_no_ties() -> None:
    """A temperature of 0.1 brings logits of 5 and 6 to 1.0 both; what the other class has left tells them apart."""
    odds = np.array([60.0, 50.0, 55.0, 40.0, 0.5, -45.0])
    rest = np.exp(-np.logaddexp(0, odds))
    probabilities = np.column_stack([rest, np.exp(-np.logaddexp(0, -odds))])
    assert (probabilities[:4, 1] == 1.0).sum() >= 3
    label = np.array([1, 1, 0, 0, 1, 0])
    cases = score(label, probabilities, np.arange(6), classes=("a", "b"))
    found = evaluate_predictions(label, probabilities, np.arange(6), classes=("a", "b"), resamples=50).metrics
    assert found["auroc"].value == pytest.approx(reference.roc_auc_score(label, odds))
    assert found["average_precision"].value == pytest.approx(reference.average_precision_score(label, odds))
    assert list(np.argsort(cases.ranking(1))) == list(np.argsort(odds))


def test_known_example() -> None:
    label = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    probabilities = _two([0.9, 0.8, 0.3, 0.4, 0.2, 0.1, 0.6, 0.5])
    found = evaluate_predictions(label, probabilities, np.arange(8).astype(str), classes=TWO)
    assert found.confusion == [[3, 1], [1, 3]]
    expected = {"accuracy": 0.75, "sensitivity": 0.75, "specificity": 0.75, "ppv": 0.75, "npv": 0.75, "f1": 0.75}
    assert {name: _value(found, name) for name in expected} == pytest.approx(expected)
    assert _value(found, "auroc") == pytest.approx(13 / 16)  # 0.3 loses to 0.4 and 0.6, 0.5 to 0.6
    squares = 0.01 + 0.04 + 0.49 + 0.16 + 0.04 + 0.01 + 0.36 + 0.25
    assert _value(found, "brier") == pytest.approx(squares / 8)
    assert (found.cases, found.patients, found.positive) == (8, 8, "yes")


def test_first_class_may_be_positive() -> None:
    label, probabilities = np.array([0, 0, 1, 1]), _two([0.1, 0.7, 0.8, 0.9])
    found = evaluate_predictions(label, probabilities, ["a", "b", "c", "d"], classes=TWO, positive=0, threshold=0.25)
    assert found.confusion == [[2, 0], [0, 2]]
    assert found.positive == "no"
    assert _value(found, "sensitivity") == 1


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_threshold_itself_is_positive(kind: type) -> None:
    score = kind(0.7)
    probabilities = np.array([[1 - score, score], [1 - score, score]], dtype=kind)
    found = evaluate_predictions([0, 1], probabilities, ["a", "b"], classes=TWO, threshold=0.7)
    assert found.confusion == [[0, 1], [0, 1]]


def test_calibration_error_by_hand() -> None:
    # Bins (0.2, 0.3], (0.8, 0.9] and (0.9, 1]: gaps |1/2 - 0.275|, |1 - 0.9| and |0 - 1| with 2, 1 and 1 of 4 cases.
    found = evaluate_predictions([0, 1, 1, 0], _two([0.25, 0.3, 0.9, 1.0]), list("abcd"), classes=TWO)
    assert _value(found, "ece") == pytest.approx((2 * 0.225 + 0.1 + 1) / 4)
    assert len(ECE_EDGES) == 9


def test_calibration_error_of_the_predicted_class() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    found = evaluate_predictions([0, 1], probabilities, ["a", "b"], classes=THREE)
    assert _value(found, "ece") == pytest.approx((0.4 + 0.7) / 2)


def test_calibration_interval_reaches_below_its_value() -> None:
    random = np.random.default_rng(0)
    score = random.random(200)
    label = (random.random(200) < score).astype(int)
    ece = evaluate_predictions(label, _two(list(score)), np.arange(200).astype(str), classes=TWO).metrics["ece"]
    assert ece.low is not None
    assert ece.value is not None
    assert ece.low < 0.5 * ece.value  # percentiles of resamples alone would start above the value


def test_patients_are_drawn_whole() -> None:
    patient = np.array([0, 1, 1, 2, 0, 2, 2])
    weights = np.concatenate(list(patient_draws(patient, 300, 0)))
    assert weights.shape == (300, 7)
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    for one in range(3):
        assert np.ptp(weights[:, patient == one], axis=1).max() == 0


def test_images_of_one_patient_do_not_narrow_the_interval() -> None:
    random = np.random.default_rng(1)
    label = random.integers(0, 2, 60)
    score = np.clip(random.normal(0.35 + 0.3 * label, 0.25), 0, 1)
    patients = np.arange(60).astype(str)
    once = evaluate_predictions(label, _two(list(score)), patients, classes=TWO).metrics["auroc"]
    tenfold = evaluate_predictions(
        np.repeat(label, 10), _two(list(np.repeat(score, 10))), np.repeat(patients, 10), classes=TWO
    ).metrics["auroc"]
    assert dataclasses.astuple(once) == pytest.approx(dataclasses.astuple(tenfold), abs=1e-12)


def test_interval_matches_the_binomial_one() -> None:
    label = np.ones(400, dtype=int)
    label[:200] = 0
    score = np.where(np.arange(400) % 5 == 0, 1 - label, label).astype(float)
    one = evaluate_predictions(label, _two(list(score)), np.arange(400).astype(str), classes=TWO).metrics["accuracy"]
    half = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert dataclasses.astuple(one) == pytest.approx((0.8, 0.8 - half, 0.8 + half), abs=0.006)


def test_same_seed_same_numbers() -> None:
    label, probabilities = np.arange(30) % 2, _two(list(np.linspace(0, 1, 30)))
    patients = np.arange(30).astype(str)
    first, second, third = (
        evaluate_predictions(label, probabilities, patients, classes=TWO, seed=seed) for seed in (3, 3, 4)
    )
    assert first == second
    assert first.metrics != third.metrics


def test_one_class_is_said_not_raised() -> None:
    found = evaluate_predictions([1, 1, 1], _two([0.9, 0.4, 0.6]), list("abc"), classes=TWO)
    for name in ("specificity", "auroc", "balanced_accuracy"):
        assert found.metrics[name] == Interval(None, None, None)
    assert _value(found, "accuracy") == pytest.approx(2 / 3)
    assert any("only the class 'yes'" in sentence for sentence in found.warnings)
    assert any("Undefined in this split" in sentence and "AUROC" in sentence for sentence in found.warnings)
    assert _value(evaluate_predictions([0, 0], _two([0.9, 0.1]), list("ab"), classes=TWO), "f1") is None


def test_undefined_resamples_are_counted() -> None:
    found = evaluate_predictions([1, 0, 0, 0], _two([0.9, 0.1, 0.2, 0.95]), list("abcd"), classes=TWO)
    assert any("of 2000 resamples" in sentence and "AUROC" in sentence for sentence in found.warnings)
    assert any("Few patients in the classes 'no' (3), 'yes' (1): below 20" in sentence for sentence in found.warnings)
    assert any("wider than 0.2" in sentence for sentence in found.warnings)
    assert not any("_" in sentence for sentence in found.warnings)


def test_metrics_have_words_within_a_sentence() -> None:
    names = ("average_precision", "auroc", "f1", "ece", "auroc_left lung", "average_precision_f1", "npv")
    assert [metric_words(name) for name in names] == [
        "average precision",
        "AUROC",
        "F1 score",
        "calibration error (ECE)",
        "AUROC of left lung",
        "average precision of f1",
        "negative predictive value",
    ]


def test_perfect_predictions_say_what_they_do_not_prove() -> None:
    label = np.arange(60) % 2
    found = evaluate_predictions(label, _two(list(label.astype(float))), np.arange(60).astype(str), classes=TWO)
    assert found.metrics["auroc"] == Interval(1, 1, 1)
    assert found.warnings == [sentence for sentence in found.warnings if "no width" in sentence]
    assert "up to 5%" in found.warnings[0]


def test_absent_class_is_left_out_of_means() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1]])
    found = evaluate_predictions([0, 1, 0, 0], probabilities, list("abcd"), classes=THREE)
    assert _value(found, "sensitivity") == pytest.approx((2 / 3 + 1) / 2)
    assert _value(found, "auroc_c") is None
    assert any("No case of 'c'" in sentence for sentence in found.warnings)


def test_one_patient_and_no_case() -> None:
    one = evaluate_predictions([0, 1], _two([0.2, 0.8]), ["a", "a"], classes=TWO)
    assert one.metrics["auroc"] == Interval(1, None, None)
    assert any("one patient" in sentence for sentence in one.warnings)
    for classes in (TWO, THREE):
        none = evaluate_predictions(np.empty(0, int), np.empty((0, len(classes))), np.empty(0, str), classes=classes)
        assert {value.value for value in none.metrics.values()} == {None}
        assert (none.cases, none.patients, len(none.warnings)) == (0, 0, 1)
        assert np.sum(none.confusion) == 0


def test_json_is_the_metrics_file() -> None:
    found = evaluate_predictions([1, 1], _two([0.9, 0.4]), ["a", "b"], classes=TWO)
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["metrics"]["auroc"] == {"value": None, "low": None, "high": None}
    least = {"accuracy", "sensitivity", "specificity", "f1", "auroc", "average_precision", "brier", "ece"}
    assert least <= set(read["metrics"])
    assert {"classes", "cases", "patients", "confusion", "threshold", "warnings"} <= set(read)


@pytest.mark.parametrize(
    ("label", "probabilities", "patients", "classes", "said"),
    [
        ([0, 2], [[0.5, 0.5]] * 2, ["a", "b"], TWO, "labels 0 to 1"),
        ([0, -1], [[0.5, 0.5]] * 2, ["a", "b"], TWO, "labels 0 to 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, np.nan]], ["a", "b"], TWO, "probabilities from 0 to 1"),
        ([0, 1], [[0.5, 0.5], [-2.0, 3.0]], ["a", "b"], TWO, "probabilities from 0 to 1"),
        ([0, 1], [[0.5, 0.5]] * 2, ["a"], TWO, "as many patients"),
        ([0, 1], [[0.5, 0.5]] * 2, ["a", "b"], THREE, r"\(2, 3\)"),
        ([0, 0], [[1.0]] * 2, ["a", "b"], ("only",), "two or more"),
    ],
)
def test_arrays_that_do_not_fit(
    label: list[int], probabilities: list, patients: list[str], classes: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate_predictions(label, probabilities, patients, classes=classes)


@given(_scored())
@settings(deadline=None, max_examples=40)
def test_roc_points_equal_scikit_learn(data: tuple[np.ndarray, ...]) -> None:
    label, probabilities, patients = data
    points = roc_points(label, probabilities[:, 1], patients, resamples=20)
    rate, sensitivity, threshold = reference.roc_curve(label, probabilities[:, 1], drop_intermediate=False)
    assert points.false_positive_rate == pytest.approx(rate)
    assert points.sensitivity == pytest.approx(sensitivity)
    assert points.threshold[1:] == pytest.approx(threshold[1:])
    assert (points.low <= points.high).all()


def test_roc_band() -> None:
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 200)
    score = random.normal(label, 1)
    points = roc_points(label, score, np.arange(200).astype(str), resamples=300)
    curve = np.interp(points.grid, points.false_positive_rate, points.sensitivity)
    assert ((points.low <= curve + 0.02) & (curve <= points.high + 0.02)).all()
    assert (np.diff(points.low) >= 0).all()
    assert points.high[-1] == 1
    assert len(roc_points(label, score).grid) == 0
    assert len(roc_points(np.ones(3), [0.1, 0.2, 0.3], list("abc")).sensitivity) == 0


def test_two_thousand_resamples_of_a_thousand_cases_are_quick() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(3), 1000)
    began = time.perf_counter()
    evaluate_predictions(random.integers(0, 3, 1000), probabilities, np.arange(1000).astype(str), classes=THREE)
    assert time.perf_counter() - began < 10  # about 0.5 s alone on a core


@st.composite
def _findings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n, 3) of 0 and 1 in which each finding is there and is not, probabilities (often tied), patients."""
    count = draw(st.integers(4, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = random.integers(0, 2, (count, 3))
    label[0], label[1] = 1, 0
    probabilities = random.random((count, 3))
    if draw(st.booleans()):
        probabilities = np.round(probabilities * 4) / 4
    return label, probabilities, random.integers(0, count, count).astype(str)


@given(_findings())
@settings(deadline=None)
def test_several_findings_equal_scikit_learn(data: tuple[np.ndarray, ...]) -> None:
    label, probabilities, patients = data
    limits = {"a": 0.5, "b": 0.25, "c": 0.9}
    found = evaluate_predictions(
        label, probabilities, patients, classes=THREE, several=True, threshold=limits, resamples=5
    )
    predicted = (probabilities >= list(limits.values())).astype(int)
    macro = {"average": "macro", "zero_division": 0}
    expected = {
        "exact_match": reference.accuracy_score(label, predicted),
        "accuracy": 1 - reference.hamming_loss(label, predicted),
        "sensitivity": reference.recall_score(label, predicted, **macro),
        "specificity": reference.recall_score(1 - label, 1 - predicted, **macro),
        "f1": reference.f1_score(label, predicted, **macro),
        "auroc": reference.roc_auc_score(label, probabilities),
        "average_precision": reference.average_precision_score(label, probabilities),
        "brier": ((label - probabilities) ** 2).mean(),
        "sensitivity_b": reference.recall_score(label[:, 1], predicted[:, 1]),
        "auroc_c": reference.roc_auc_score(label[:, 2], probabilities[:, 2]),
        "brier_a": reference.brier_score_loss(label[:, 0], probabilities[:, 0]),
    }
    for name, value in expected.items():
        assert _value(found, name) == pytest.approx(value, abs=1e-12), name
    assert _value(found, "ece") == pytest.approx(np.mean([_value(found, f"ece_{name}") for name in THREE]))
    assert found.confusion == reference.multilabel_confusion_matrix(label, predicted).tolist()
    assert found.thresholds == limits
    assert (found.threshold, found.positive) == (None, None)


def test_one_finding_of_several_is_that_of_two_classes() -> None:
    random = np.random.default_rng(0)
    label, score_of, patients = random.integers(0, 2, 80), random.random(80), (np.arange(80) // 2).astype(str)
    two = evaluate_predictions(label, _two(list(score_of)), patients, classes=TWO)
    both = evaluate_predictions(
        np.column_stack([label, label]), np.column_stack([score_of] * 2), patients, classes=TWO, several=True
    )
    for name in ("accuracy", "sensitivity", "specificity", "f1", "auroc", "average_precision", "brier", "ece"):
        assert dataclasses.astuple(both.metrics[name]) == pytest.approx(dataclasses.astuple(two.metrics[name])), name
    assert both.metrics["ece_yes"] == both.metrics["ece_no"]


def test_findings_that_nobody_has_are_left_out_and_said() -> None:
    label = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    found = evaluate_predictions(label, np.full((4, 3), 0.5), list("abcd"), classes=THREE, several=True)
    assert _value(found, "sensitivity") == 1.0
    assert _value(found, "auroc_b") is None
    assert any("No case with 'b'" in sentence for sentence in found.warnings)
    assert any("All cases have 'c'" in sentence for sentence in found.warnings)
    assert any("Few patients with 'a' (2), 'c' (4)" in sentence for sentence in found.warnings)
    assert not any("AUROC of b" in sentence for sentence in found.warnings)
    json.dumps(found.to_json(), allow_nan=False)


def test_several_findings_of_no_case() -> None:
    none = evaluate_predictions(np.empty((0, 3), int), np.empty((0, 3)), [], classes=THREE, several=True)
    assert {value.value for value in none.metrics.values()} == {None}
    assert len(none.warnings) == 1


@pytest.mark.parametrize("label", [np.zeros(2), np.full((2, 3), 2), np.full((2, 3), -1), np.full((2, 3), np.nan)])
def test_labels_that_are_no_findings(label: np.ndarray) -> None:
    with pytest.raises(ValueError, match="of 0 and 1"):
        evaluate_predictions(label, np.full((2, 3), 0.5), ["a", "b"], classes=THREE, several=True)


def _scores(label: np.ndarray, values: np.ndarray, patients: np.ndarray) -> Scored:
    return score(label, _two(list(values)), patients, classes=TWO)


@given(_scored(), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_a_difference_turns_its_sign_and_to_itself_is_none(data: tuple[np.ndarray, ...], seed: int) -> None:
    label, probabilities, patients = data
    one = score(label, probabilities, patients, classes=TWO)
    other = score(label, probabilities[:, ::-1], patients, classes=TWO)
    there, back, same = (paired(a, b, 50, seed).difference for a, b in ((one, other), (other, one), (one, one)))
    for name, change in there.items():
        if change.value is None:
            assert back[name].value is None
            continue
        assert change.value == pytest.approx(-back[name].value)
        if change.low is not None:
            assert (change.low, change.high) == pytest.approx((-back[name].high, -back[name].low), abs=1e-12)
            assert dataclasses.astuple(same[name]) == (0, 0, 0)


def test_pairing_narrows_what_two_models_share() -> None:
    """Two models that err on the same cases differ more surely than their own intervals say."""
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 300)
    shared, patients = random.normal(0, 1, 300), np.arange(300).astype(str)
    first = _scores(label, 1 / (1 + np.exp(-(label * 1.5 + shared))), patients)
    second = _scores(label, 1 / (1 + np.exp(-(label * 1.9 + shared))), patients)
    found = paired(first, second, 1000, 0)
    change, own = found.difference["auroc"], found.first["auroc"]
    assert change.low > 0
    assert change.high - change.low < 0.5 * (own.high - own.low)
    assert found.second["auroc"].low < own.high  # the intervals themselves overlap


def test_other_cases_cannot_be_paired() -> None:
    label, patients = np.array([0, 1, 0]), np.array(list("abc"))
    one, other = (_scores(np.roll(label, turn), np.array([0.1, 0.2, 0.3]), patients) for turn in (0, 1))
    with pytest.raises(ValueError, match="the same cases"):
        paired(one, other, 10, 0)


def test_a_hundred_thousand_cases_get_fewer_resamples_for_further_figures() -> None:
    assert affordable(2000, 1000) == 2000
    assert 200 <= affordable(2000, 400_000) < 2000
    assert affordable(2000, 10**7) == FEWEST_RESAMPLES
