"""Folds that speak as one: what is on disk, what the ensemble says, and that a killed training goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from pipeline import train as train_module
from pipeline.cohort.cases import group_images
from pipeline.cohort.rules import COLLISIONS
from pipeline.cohort.split import for_fold
from pipeline.config import Config, load_config
from pipeline.errors import RunError
from pipeline.evaluate import evaluate
from pipeline.files import file_digest
from pipeline.indexing.index import read_index
from pipeline.infer import infer
from pipeline.prediction.predict import load_model, predict_files
from pipeline.prepared.dataset import image_files
from pipeline.run import read_model
from pipeline.train import train
from pipeline.training.ensemble import mean_history
from tests.small_runs import make_dataset

FOLDS = 2
ROUNDING = 1e-6
"""Tables hold 17 digits; what differs is the order of float32 sums in batches of other sizes."""

pytestmark = pytest.mark.slow


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"fold": str}, keep_default_na=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    split = {"folds": FOLDS, "fold": "all"}
    return load_config(str(make_dataset(tmp_path_factory.mktemp("folds") / "data", split=split)))


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(config, out, progress=False)
    return out


def test_each_fold_is_a_complete_run_and_validates_its_own_cases(run: Path):
    facts = read_model(run)
    assert facts.members == ["fold-0", "fold-1"]
    whole = _table(run / "split.csv")
    assert set(whole["split"]) == {"train", "test"}
    for fold, member in enumerate(facts.members):
        record = evaluate(run / member, split="validation", progress=False)
        split = _table(run / member / "split.csv")
        assert ((split["split"] == "validation") == (split["fold"] == str(fold))).all()
        assert record["cases"] == (whole["fold"] == str(fold)).sum()
        assert (run / member / "index/index.parquet").is_file()
        assert json.loads((run / member / "data.json").read_text())["validation"]["images"] == record["cases"]
    assert not list(run.rglob("*.part"))


def test_the_ensemble_says_the_mean_of_its_members(run: Path, config: Config):
    facts = read_model(run)
    index = read_index(run / "index")
    images = group_images(index, facts.unit, facts.rules, collisions=COLLISIONS).images.head(7)
    files = image_files(images, index.roots)
    together = list(predict_files(load_model(run), files, workers=0))
    members = [list(predict_files(load_model(run / name), files, workers=0)) for name in facts.members]
    for place, result in enumerate(together):
        alone = [one[place] for one in members]
        expected = np.mean([softmax(one.logits[0] / facts.temperature) for one in alone], axis=0)
        np.testing.assert_allclose(result.probabilities, expected, rtol=0, atol=ROUNDING)
        evidence = np.mean([one.evidence for one in alone], axis=0)
        np.testing.assert_allclose(result.evidence, evidence, rtol=0, atol=1e-4 * abs(evidence).max())


def test_it_evaluates_and_infers_as_one_model(run: Path, config: Config, tmp_path: Path):
    record = evaluate(run, progress=False)
    assert record["cases"] == (_table(run / "split.csv")["split"] == "test").sum()
    summary = infer(run, str(Path(config.manifest).parent / "images"), tmp_path / "out", progress=False)
    assert summary.failed == 0
    told = _table(tmp_path / "out/predictions.csv").set_index("case_id")["p_right"]
    evaluated = _table(run / "evaluation/predictions.csv").set_index("case_id")["p_right"]
    np.testing.assert_allclose(told[evaluated.index], evaluated, rtol=0, atol=ROUNDING)


def test_temperature_and_threshold_are_of_all_folds_together(config: Config, run: Path, tmp_path: Path):
    """Of one fold alone there are too few cases to choose; of all folds there are enough."""
    few = make_dataset(tmp_path / "data", split={"folds": 3, "fold": "all"}, cases=30)
    chosen = load_config(str(few), ["evaluation.threshold=youden", "training.epochs=1"])
    facts = train(chosen, tmp_path / "run", progress=False)
    member = read_model(tmp_path / "run/fold-0")
    fitted = int((_table(tmp_path / "run/split.csv")["split"] == "train").sum())
    assert f"on the {fitted} cases of the validation split" in facts.threshold_rule
    assert "no threshold is chosen" in member.threshold_rule
    assert "no threshold is chosen" not in facts.threshold_rule


def test_a_killed_ensemble_goes_on_and_trains_no_fold_twice(
    config: Config, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    original = train_module._write_model

    def killed(task, *others):
        if task.out.name == "fold-1":
            raise KeyboardInterrupt
        return original(task, *others)

    monkeypatch.setattr(train_module, "_write_model", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=False)
    monkeypatch.undo()
    written = (out / "fold-0/model.safetensors").stat().st_mtime_ns
    with pytest.raises(RunError, match="training has not ended"):
        evaluate(out, progress=False)
    facts = train(config, out, resume=True, progress=False)
    assert (out / "fold-0/model.safetensors").stat().st_mtime_ns == written
    assert facts.weights_sha256 == read_model(run).weights_sha256
    assert facts.temperature == read_model(run).temperature


def test_more_epochs_train_every_fold_on(config: Config, run: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 3})})
    train(longer, out, resume=True, progress=False)
    assert [len(_table(out / name / "history.csv")) for name in ("fold-0", "fold-1", ".")] == [3, 3, 3]


def test_a_fold_that_was_killed_training_on_is_not_taken_for_trained(
    config: Config, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 3})})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "_write_model", killed)
    with pytest.raises(KeyboardInterrupt):
        train(longer, out, resume=True, progress=False)
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"fold-0: no model\.json"):
        load_model(out)
    train(longer, out, resume=True, progress=False)
    assert [len(_table(out / name / "history.csv")) for name in ("fold-0", "fold-1")] == [3, 3]


def test_members_that_are_others_are_refused(run: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    shutil.rmtree(out / "fold-1")
    shutil.copytree(out / "fold-0", out / "fold-1")
    with pytest.raises(RunError, match="members' weights are not those"):
        load_model(out)
    shutil.rmtree(out / "fold-1")
    with pytest.raises(RunError, match="fold-1"):
        load_model(out)


def test_a_member_elsewhere_is_refused(run: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    facts = json.loads((out / "model.json").read_text())
    (out / "model.json").write_text(json.dumps(facts | {"members": ["../run/fold-0", "fold-1"]}))
    with pytest.raises(RunError, match="folders below"):
        load_model(out)


def test_the_ensembles_digest_depends_on_all_members(run: Path):
    facts = read_model(run)
    assert facts.weights_sha256 not in [file_digest(run / name / "model.safetensors") for name in facts.members]
    assert facts.digest != read_model(run / "fold-0").digest


def test_a_history_is_the_mean_of_those_that_had_the_epoch():
    first = pd.DataFrame({"epoch": [1, 2], "val_loss": [1.0, 0.5]})
    second = pd.DataFrame({"epoch": [1, 2, 3], "val_loss": [3.0, 1.5, 1.0]})
    assert mean_history([first, second]).to_dict("list") == {"epoch": [1, 2, 3], "val_loss": [2.0, 1.0, 1.0]}


def test_a_folds_split_moves_only_its_own_cases():
    table = pd.DataFrame({"case_id": list("abc"), "split": ["train", "train", "test"], "fold": ["0", "1", ""]})
    assert for_fold(table, 1)["split"].tolist() == ["train", "validation", "test"]
