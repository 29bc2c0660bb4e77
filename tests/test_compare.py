"""Two runs compared: pairs of cases, the differences and their intervals, folds together, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.compare import COMPARE_FILE, CROSS_VALIDATION, compare, compare_lines
from pipeline.errors import ConfigError, RunError
from pipeline.evaluate import evaluate
from pipeline.run import read_model

pytest_plugins = ["tests.tiny_fixtures"]
pytestmark = pytest.mark.slow


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def evaluated(two_classes: Path) -> Path:
    evaluate(two_classes, progress=False)
    return two_classes


def _better(run: Path, target: Path, name: str = "predictions.csv") -> Path:
    """A copy of an evaluated run whose predictions are right in three of four cases."""
    shutil.copytree(run, target)
    path = target / "evaluation" / name
    table = _table(path)
    right = np.arange(len(table)) % 4 > 0
    opacity = (table["label"] == "opacity").to_numpy() == right
    table["p_opacity"] = np.where(opacity, 0.9, 0.1) + np.linspace(0, 0.05, len(table))
    table["p_normal"] = 1 - table["p_opacity"].astype(float)
    table["predicted"] = np.where(opacity, "opacity", "normal")
    table.to_csv(path, index=False)
    return target


def test_the_difference_is_that_of_the_two_runs(evaluated: Path, tmp_path: Path) -> None:
    other = _better(evaluated, tmp_path / "other")
    found = compare(evaluated, other, out=tmp_path / "out", progress=False)
    assert json.loads((tmp_path / "out" / COMPARE_FILE).read_text()) == found
    tables = [_table(run / "evaluation/predictions.csv") for run in (evaluated, other)]
    accuracy = [(table["label"] == table["predicted"]).mean() for table in tables]
    told = found["metrics"]["accuracy"]
    assert [told[name]["value"] for name in ("first", "second")] == pytest.approx(accuracy)
    assert told["difference"]["value"] == pytest.approx(accuracy[1] - accuracy[0])
    assert told["difference"]["low"] <= told["difference"]["value"] <= told["difference"]["high"]
    assert 0 <= found["auroc_p"]["opacity"] <= 1
    back = compare(other, evaluated, progress=False)["metrics"]["accuracy"]["difference"]
    assert (back["low"], back["high"]) == pytest.approx((-told["difference"]["high"], -told["difference"]["low"]))
    lines = "\n".join(compare_lines(found))
    assert f"{accuracy[0]:.3f} → {accuracy[1]:.3f}  {accuracy[1] - accuracy[0]:+.3f}" in lines
    assert "below 20" in lines


def test_a_run_does_not_differ_from_itself_in_any_order(evaluated: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(evaluated, other)
    path = other / "evaluation/predictions.csv"
    _table(path).iloc[::-1].to_csv(path, index=False)
    found = compare(evaluated, other, progress=False)
    assert {tuple(one["difference"].values()) for one in found["metrics"].values()} <= {(0, 0, 0), (None, None, None)}
    assert found["auroc_p"] == {"opacity": 1.0}


def test_a_run_that_was_not_evaluated_or_is_another_now_is_evaluated(evaluated: Path, tmp_path: Path) -> None:
    new, stale = tmp_path / "new", tmp_path / "stale"
    shutil.copytree(evaluated, new)
    shutil.rmtree(new / "evaluation")
    _better(evaluated, stale)
    metrics = stale / "evaluation/metrics.json"
    metrics.write_text(metrics.read_text().replace('"model_digest": "', '"model_digest": "0'))
    for run in (new, stale):
        found = compare(evaluated, run, progress=False)
        assert found["metrics"]["brier"]["difference"]["value"] == 0
        assert (run / "evaluation/predictions.csv").read_bytes() == (
            evaluated / "evaluation/predictions.csv"
        ).read_bytes()


def test_cases_that_failed_in_one_are_left_out_of_both(evaluated: Path, tmp_path: Path) -> None:
    other = _better(evaluated, tmp_path / "other")
    path = other / "evaluation/predictions.csv"
    table = _table(path)
    table.loc[0, ["status", "predicted", "p_normal", "p_opacity"]] = ["failed", "", "", ""]
    table.to_csv(path, index=False)
    found = compare(evaluated, other, progress=False)
    assert (found["left_out"], found["cases"]) == (1, len(table) - 1)
    assert "1 not predicted by both are left out" in compare_lines(found)[0]
    table["status"] = "failed"
    table.to_csv(path, index=False)
    with pytest.raises(RunError, match="not one case was predicted by both"):
        compare(evaluated, other, progress=False)


def test_other_cases_and_other_labels_are_refused(evaluated: Path, tmp_path: Path) -> None:
    other = _better(evaluated, tmp_path / "other")
    path = other / "evaluation/predictions.csv"
    whole = _table(path)
    whole.iloc[3:].to_csv(path, index=False)
    with pytest.raises(RunError, match=r"3 only in the first, 0 only in the second and 21 in both.*split\.file"):
        compare(evaluated, other, progress=False)
    whole.assign(label=["normal", "normal", *whole["label"][2:]]).to_csv(path, index=False)
    changed = int((whole["label"][:2] != "normal").sum())
    with pytest.raises(RunError, match=f"{changed} case"):
        compare(evaluated, other, progress=False)


def test_runs_of_other_tasks_are_refused(evaluated: Path, several_findings: Path) -> None:
    with pytest.raises(ConfigError, match="its classes is"):
        compare(evaluated, several_findings, progress=False)
    with pytest.raises(ConfigError, match="no ensemble of folds"):
        compare(evaluated, evaluated, split=CROSS_VALIDATION, progress=False)


def test_folds_are_compared_all_together(two_folds: Path, tmp_path: Path) -> None:
    other = _better(two_folds, tmp_path / "other", "cross_validation.csv")
    found = compare(two_folds, other, progress=False)
    assert (found["split"], found["cases"]) == (CROSS_VALIDATION, 96)
    tables = [_table(run / "evaluation/cross_validation.csv") for run in (two_folds, other)]
    accuracy = [(table["label"] == table["predicted"]).mean() for table in tables]
    assert found["metrics"]["accuracy"]["difference"]["value"] == pytest.approx(accuracy[1] - accuracy[0])
    within = found["within_networks"]["auroc"]
    own = json.loads((two_folds / "evaluation/metrics.json").read_text())["cross_validation"]["within_folds"]["auroc"]
    assert within["first"]["value"] == pytest.approx(own["value"])
    assert any("the thresholds" in warning for warning in found["warnings"])
    assert "within the cases of each network" in "\n".join(compare_lines(found))
    assert compare(two_folds, other, split="test", progress=False)["cases"] == 24


def test_several_pairs_are_pooled(evaluated: Path, two_folds: Path, tmp_path: Path) -> None:
    """Folds that were trained one by one: each pair has test cases of its own."""
    runs = []
    for part in range(2):
        pair = (tmp_path / f"first-{part}", _better(evaluated, tmp_path / f"second-{part}"))
        shutil.copytree(evaluated, pair[0])
        for run in pair:
            path = run / "evaluation/predictions.csv"
            _table(path).iloc[part::2].to_csv(path, index=False)
        runs.append(pair)
    found = compare(*runs[0], also=runs[1:], progress=False)
    whole = compare(evaluated, _better(evaluated, tmp_path / "whole"), progress=False)
    change, expected = (one["metrics"]["brier"]["difference"]["value"] for one in (found, whole))
    assert found["cases"] == 24
    assert change == pytest.approx(expected)
    with pytest.raises(RunError, match="12 cases in more than one pair of runs by the same model"):
        compare(*runs[0], also=[runs[0]], progress=False)


def _as_if_trained_again(run: Path, target: Path) -> Path:
    """A copy by another model, with the same predictions."""
    shutil.copytree(run, target)
    for path, change in (
        (target / "model.json", lambda facts: {"best_epoch": facts["best_epoch"] + 1}),
        (target / "evaluation/metrics.json", lambda _: {"model_digest": read_model(target).digest}),
    ):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | change(content)))
    return target


def test_the_same_cases_by_several_trainings_count_once_each(evaluated: Path, tmp_path: Path) -> None:
    better = _better(evaluated, tmp_path / "better")
    again = [_as_if_trained_again(run, tmp_path / f"{run.name}-again") for run in (evaluated, better)]
    once = compare(evaluated, better, progress=False)
    found = compare(evaluated, better, also=[(again[0], again[1])], progress=False)
    assert (found["cases"], found["predictions"], found["patients"]) == (24, 48, once["patients"])
    assert (once["cases"], once["predictions"]) == (24, 24)
    for name in ("accuracy", "brier"):
        expected, change = (one["metrics"][name]["difference"] for one in (once, found))
        assert change == pytest.approx(expected)  # no narrower for being asked twice
    assert any("Several trainings" in warning for warning in found["warnings"])
    assert not any("Several trainings" in warning for warning in once["warnings"])
    assert "48 predictions" in compare_lines(found)[0]
