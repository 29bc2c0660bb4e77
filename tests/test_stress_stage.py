"""The stress test of a run: what each stress costs, paired, and what is said of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluate import evaluate, summary_lines
from pipeline.evaluation.scoring import predict_subject
from pipeline.evaluation.stress import LARGEST_DROP, compared, costs_much, stress_table, stress_test, stress_warnings
from pipeline.evaluation.subject import Subject, own_split
from pipeline.prediction.predict import TrainedModel, load_model
from transforms.stress import STRESSES

pytest_plugins = ["tests.tiny_fixtures"]
pytestmark = pytest.mark.slow

RESAMPLES = 100


@pytest.fixture(scope="module")
def model(two_classes: Path) -> TrainedModel:
    return load_model(two_classes)


@pytest.fixture(scope="module")
def subject(two_classes: Path, model: TrainedModel) -> Subject:
    return own_split(two_classes, "test", model.facts)


def _predictions(subject: Subject, right: np.ndarray) -> pd.DataFrame:
    """Predictions of the subject's cases that are right where `right` is true."""
    opacity = (subject.cases["label"] == "opacity").to_numpy() == right
    probability = np.where(opacity, 0.9, 0.1)
    return pd.DataFrame(
        {
            "case_id": subject.cases["case_id"],
            "label": subject.cases["label"],
            "predicted": np.where(opacity, "opacity", "normal"),
            "p_normal": 1 - probability,
            "p_opacity": probability,
            "status": "ok",
        }
    )


def test_a_drop_is_what_was_right_before(model: TrainedModel, subject: Subject) -> None:
    count = len(subject.cases)
    plain = _predictions(subject, np.ones(count, dtype=bool))
    half = np.arange(count) % 4 < 2
    told = compared(plain, _predictions(subject, half), subject, model, RESAMPLES, 0)
    assert told["metrics"]["accuracy"]["value"] == pytest.approx(half.mean())
    assert told["drop"]["accuracy"]["value"] == pytest.approx(1 - half.mean())
    assert told["drop"]["accuracy"]["low"] > 0
    same = compared(plain, plain, subject, model, RESAMPLES, 0)
    assert set(same["drop"]["auroc"].values()) == {0.0}


def test_what_fails_under_a_stress_is_left_out_of_both(model: TrainedModel, subject: Subject) -> None:
    count = len(subject.cases)
    right = np.arange(count) > 2
    plain, stressed = _predictions(subject, right), _predictions(subject, right)
    stressed.loc[:2, ["status", "predicted", "p_normal", "p_opacity"]] = ["failed", "", np.nan, np.nan]
    told = compared(plain, stressed, subject, model, RESAMPLES, 0)
    assert (told["cases"], told["failed"]) == (count - 3, 3)
    assert told["drop"]["accuracy"]["value"] == 0
    nothing = compared(plain, stressed.assign(status="failed"), subject, model, RESAMPLES, 0)
    assert nothing == {"cases": 0, "failed": count, "metrics": {}, "drop": {}}
    row = {"name": "noise", "words": "more noise", **nothing}
    assert stress_warnings([row]) == [f"Stress (more noise): {count} cases could not be predicted under it."]
    assert stress_table([row]).empty


@pytest.mark.parametrize(("drop", "warned"), [(LARGEST_DROP + 0.01, True), (LARGEST_DROP - 0.01, False), (None, False)])
def test_a_large_drop_is_warned_about(drop: float | None, warned: bool) -> None:
    metrics = {"auroc": {"value": None if drop is None else 0.9 - drop, "low": 0.5, "high": 1.0}}
    row = {"name": "blur", "words": "softer images", "failed": 0, "metrics": metrics}
    row["drop"] = {"auroc": {"value": drop, "low": None, "high": None}}
    warnings = stress_warnings([row])
    assert len(warnings) == warned
    assert not warned or "Stress (softer images): AUROC falls by 0.060 to 0.840." in warnings


def test_calls_that_all_turn_are_warned_about_though_the_ranking_stays() -> None:
    row = {"name": "dark", "words": "a darker image", "failed": 0}
    row["metrics"] = {
        name: {"value": value} for name, value in (("auroc", 1.0), ("sensitivity", 0.0), ("specificity", 1.0))
    }
    row["drop"] = {
        name: {"value": value} for name, value in (("auroc", 0.0), ("sensitivity", 1.0), ("specificity", 0.0))
    }
    assert costs_much(row) == ["sensitivity"]
    assert stress_warnings([row]) == ["Stress (a darker image): sensitivity falls by 1.000 to 0.000."]


def test_every_stress_is_evaluated_and_kept_only_while_it_holds(two_classes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_classes, run)
    record = evaluate(run, stress=True, progress=False)
    plain = evaluate(two_classes, progress=False)
    assert record["metrics"] == plain["metrics"]
    assert [row["name"] for row in record["stress"]] == [stress.name for stress in STRESSES.values()]
    for row in record["stress"]:
        for name, drop in row["drop"].items():
            if drop["value"] is not None and row["failed"] == 0:
                assert drop["value"] == pytest.approx(record["metrics"][name]["value"] - row["metrics"][name]["value"])
    assert any(row["drop"]["brier"]["value"] != 0 for row in record["stress"])
    table = pd.read_csv(run / "evaluation/stress.csv")
    assert set(table["stress"]) == set(STRESSES)
    assert len(summary_lines(record)) == len(summary_lines(plain)) + len(STRESSES)
    assert json.loads((run / "evaluation/metrics.json").read_text())["stress"] == record["stress"]
    again = evaluate(run, progress=False)
    assert "stress" not in again
    assert not (run / "evaluation/stress.csv").exists()


def test_a_stress_changes_the_image_and_not_the_plain_one(model: TrainedModel, subject: Subject) -> None:
    few = subject.part("few", pd.Series(np.arange(len(subject.cases)) < 4))
    plain = predict_subject(model, few, progress=False).cases["p_opacity"]
    one = next(iter(STRESSES))
    stressed = predict_subject(model, few, stress=one, progress=False).cases["p_opacity"]
    again = predict_subject(model, few, progress=False).cases["p_opacity"]
    assert (plain == again).all()
    assert (plain != stressed).any()


def test_one_stress_after_the_other_by_name(
    model: TrainedModel, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the pixels: each stress is asked for by its name and compared with the plain predictions."""
    right = np.ones(len(subject.cases), dtype=bool)
    asked = []

    def predict(model: TrainedModel, subject: Subject, *, stress: str, progress: bool) -> SimpleNamespace:
        asked.append(stress)
        return SimpleNamespace(cases=_predictions(subject, ~right if stress == "upside" else right))

    stresses = {name: SimpleNamespace(name=name, words=f"{name} down") for name in ("upside", "none")}
    monkeypatch.setattr("pipeline.evaluation.stress.STRESSES", stresses)
    monkeypatch.setattr("pipeline.evaluation.stress.predict_subject", predict)
    rows = stress_test(model, subject, _predictions(subject, right), resamples=RESAMPLES, seed=0, progress=False)
    assert asked == ["upside", "none"]
    assert [row["drop"]["accuracy"]["value"] for row in rows] == [1.0, 0.0]
    falls = ", ".join(f"{name} falls by 1.000 to 0.000" for name in ("AUROC", "sensitivity", "specificity"))
    assert stress_warnings(rows) == [f"Stress (upside down): {falls}."]
    table = stress_table(rows).set_index(["stress", "metric"])
    assert table.loc[("upside", "auroc"), ["value", "drop", "drop_low"]].tolist() == [0.0, 1.0, 1.0]
