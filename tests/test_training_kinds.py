"""The whole loop for what is not "one label an image": several labels at once, bags with attention, volumes, kept features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.config import load_config
from pipeline.evaluate import evaluate
from pipeline.infer import infer
from pipeline.run import read_manifest, read_model
from pipeline.train import train
from pipeline.training.task import first_network
from tests.small_runs import CASES, make_dataset

pytestmark = pytest.mark.slow
PAGES = 3
ROUNDING = 1e-6
"""Tables hold 17 digits; what differs is the order of float32 sums in batches of other sizes."""


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def _looped(tmp_path: Path, config: Path, *overrides: str) -> tuple[Path, Path]:
    """A run, evaluated, and what it says of all of its images, with pictures."""
    run, out = tmp_path / "run", tmp_path / "out"
    train(load_config(str(config), overrides), run, progress=False)
    evaluate(run, progress=False)
    summary = infer(run, str(config.parent / "images"), out, progress=False)
    assert (summary.cases, summary.failed) == (CASES, 0)
    evaluated = _table(run / "evaluation/predictions.csv").set_index("case_id")
    told = _table(out / "predictions.csv").set_index("case_id").loc[evaluated.index]
    for column in [name for name in evaluated if name.startswith("p_")]:
        np.testing.assert_allclose(told[column], evaluated[column], rtol=0, atol=ROUNDING)
    assert (told["predicted"] == evaluated["predicted"]).all()
    return run, out


def test_several_labels_at_once(tmp_path: Path):
    classes = ("mass", "edema", "node")
    config = make_dataset(tmp_path / "data", classes=classes, several=True)
    run, out = _looped(tmp_path, config, "evaluation.threshold=youden", "evaluation.views=flip_horizontal")
    facts = read_model(run)
    assert list(facts.thresholds) == list(classes)
    assert len(set(facts.thresholds.values())) > 1
    predictions = _table(out / "predictions.csv")
    called = predictions[[f"p_{name}" for name in classes]].to_numpy() >= [facts.thresholds[name] for name in classes]
    expected = ["|".join(np.array(classes)[row]) or "(none)" for row in called]
    assert predictions["predicted"].tolist() == expected
    assert len(list((out / "overlays").rglob("*.png"))) == CASES


def test_attention_says_which_images_count(tmp_path: Path):
    settings = {
        "network": {"architecture": "resnet18", "pooling": "attention", "bag_size": 2},
        "output": {"key_images": 1},
    }
    config = make_dataset(tmp_path / "data", pages=PAGES, settings=settings)
    _, out = _looped(tmp_path, config)
    images = _table(out / "image_predictions.csv")
    assert len(images) == CASES * PAGES
    shares = images.groupby("case_id")["attention"]
    np.testing.assert_allclose(shares.sum(), 1)
    first = images.loc[shares.idxmax()]
    suffix = first["frame"].map(lambda frame: f".frame-{frame + 1}.png" if frame else ".png")
    shown = {path.name for path in (out / "overlays").rglob("*.png")}
    assert shown == set(first["path"] + suffix)


def test_a_volume_is_one_prediction_shown_on_its_slices(tmp_path: Path):
    settings = {
        "network": {"architecture": "resnet18", "pooling": "volume", "bag_size": 8},
        "output": {"key_images": 2},
    }
    config = make_dataset(tmp_path / "data", pages=PAGES, settings=settings)
    _, out = _looped(tmp_path, config)
    images = _table(out / "image_predictions.csv")
    assert images.groupby("case_id")["p_right"].nunique().eq(1).all()
    assert len(list((out / "overlays").rglob("*.png"))) == 2 * CASES


def test_kept_features_of_an_earlier_run_train_a_head(tmp_path: Path):
    config = make_dataset(tmp_path / "data")
    train(load_config(str(config), ["training.epochs=1"]), tmp_path / "first", progress=False)
    start = [f"network.weights={tmp_path / 'first'}", "network.trainable=head", "training.feature_copies=2"]
    run, _ = _looped(tmp_path, config, *start, "augmentation.flip_horizontal=0.5")
    assert read_model(run).initial_weights == "first/model.safetensors"


@pytest.mark.parametrize(("classes", "kept"), [(("left", "right"), True), (("right", "left"), False)])
def test_a_head_of_other_classes_is_not_taken(tmp_path: Path, classes: tuple[str, ...], kept: bool):
    """As many classes, but in another order: the earlier head would begin with the wrong answers."""
    config = load_config(str(make_dataset(tmp_path / "data", cases=16)), ["training.epochs=1"])
    train(config, tmp_path / "first", progress=False)
    before = load_file(tmp_path / "first/model.safetensors")
    for start in (tmp_path / "first", tmp_path / "first/model.safetensors"):
        now = config.model_copy(update={"network": config.network.model_copy(update={"weights": str(start)})})
        network, _ = first_network(now, read_manifest(tmp_path / "first").model_copy(update={"classes": list(classes)}))
        assert torch.equal(network.head.weight, before["head.weight"]) == kept
        assert torch.equal(network.backbone.conv1.weight, before["backbone.conv1.weight"])


def test_the_run_says_which_images_it_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same images, the same digest; one pixel of one training image, another, and --resume says so."""
    path = make_dataset(tmp_path / "data", cases=16)
    config = load_config(str(path), ["training.epochs=1"])
    records = []
    for name in ("one", "two"):
        train(config, tmp_path / name, progress=False)
        records.append(json.loads((tmp_path / name / "data.json").read_text()))
    assert records[0] == records[1]
    split = pd.read_csv(tmp_path / "one/split.csv")
    assert records[0]["train"]["images"] == (split["split"] == "train").sum()
    assert records[0]["train"]["sha256"] != records[0]["validation"]["sha256"]
    victim = path.parent / "images" / split.loc[split["split"] == "train", "case_id"].iloc[0]
    pixels = np.array(Image.open(victim))
    pixels[20, 20] ^= 255
    Image.fromarray(pixels).save(victim)
    train(config, tmp_path / "three", progress=False)
    other = json.loads((tmp_path / "three/data.json").read_text())
    assert other["train"]["sha256"] != records[0]["train"]["sha256"]
    assert other["validation"] == records[0]["validation"]
    (tmp_path / "three/data.json").write_text(json.dumps(records[0], indent=2) + "\n")
    train(config, tmp_path / "three", resume=True, progress=False)
    assert "not those that this training was begun with" in capsys.readouterr().err
