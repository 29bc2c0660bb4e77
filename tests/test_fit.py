"""Fitting: it learns, it stops and resumes as one uninterrupted training would, and says so when it diverges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.config import Network, Training
from pipeline.dataset import TrainingImages
from pipeline.errors import RunError
from pipeline.fit import HISTORY_COLUMNS, Fit, fit
from pipeline.model import Classifier
from transforms.chains import evaluate_chain, train_chain

CPU = torch.device("cpu")
TIMING = ["images_per_second", "seconds"]


def _images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squares on noise: class 1 has one, class 0 has none."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = random.uniform(0, 0.4, (count, 1, 64, 64)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        if label:
            row, column = random.integers(8, 40, 2)
            image[0, row : row + 16, column : column + 16] += 0.6
    return images, np.arange(count), labels.astype(np.int64)


def _fit(run: Path, *, epochs: int, seed: int = 0, **settings: object) -> Fit:
    run.mkdir(exist_ok=True)
    torch.manual_seed(0)
    network = Classifier(Network(architecture="resnet18", dropout=0.2), 2)
    training = TrainingImages(
        *_images(33, 1), train_chain(size=64, mean=(0.3,), std=(0.2,), flip_horizontal=0.5, shift=0.1), seed=seed
    )
    validation = TrainingImages(*_images(16, 2), evaluate_chain(mean=(0.3,), std=(0.2,)))
    options = Training(epochs=epochs, batch_size=16, **{"learning_rate": 0.001, **settings})  # type: ignore[arg-type]
    return fit(network, training, validation, options, run=run, seed=seed, device=CPU, progress=False)


@pytest.mark.slow
def test_it_learns_and_leaves_its_history(tmp_path: Path):
    fitted = _fit(tmp_path, epochs=6)
    history = pd.read_csv(tmp_path / "history.csv")
    assert list(history.columns) == HISTORY_COLUMNS
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    assert fitted.best_epoch == int(history.loc[history["val_loss"].idxmin(), "epoch"])
    assert any((tmp_path / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path: Path):
    """Same history to the last digit, same weights, but for how long it took."""
    whole = _fit(tmp_path / "whole", epochs=4)
    _fit(tmp_path / "parts", epochs=2)
    resumed = _fit(tmp_path / "parts", epochs=4)
    columns = [name for name in HISTORY_COLUMNS if name not in TIMING]
    histories = [pd.read_csv(tmp_path / name / "history.csv")[columns] for name in ("whole", "parts")]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    torch.testing.assert_close(resumed.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)


def _with_history(values: list[float], **settings: object) -> Fit:
    fitted = Fit(Classifier(Network(architecture="resnet18"), 2), None, None, Training(**settings), Path())  # type: ignore[arg-type]
    name = fitted.settings.select
    fitted.history = [{"epoch": number, name: value, "seconds": 30.0} for number, value in enumerate(values, start=1)]
    return fitted


def test_the_best_epoch_and_the_end():
    assert _with_history([3.0, 1.0, 2.0, 1.0]).best_epoch == 2
    assert _with_history([0.1, 0.9, 0.8], select="val_auroc").best_epoch == 2
    assert _with_history([float("nan"), 2.0], select="val_auroc").best_epoch == 2
    assert _with_history([1.0, 2.0], epochs=2).ended.startswith("all 2 epochs")
    assert _with_history([1.0, 2.0, 3.0], early_stopping=2).ended.startswith("early stopping")
    assert _with_history([3.0, 2.0, 1.0], max_minutes=1.5).ended.startswith("time limit")
    assert _with_history([3.0, 2.0, 1.0], early_stopping=2).ended == ""


@pytest.mark.slow
def test_a_diverging_training_keeps_its_last_good_state(tmp_path: Path):
    _fit(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["optimizer"]["param_groups"][0]["lr"] = 1e30
    torch.save(state, path)
    with pytest.raises(
        RunError, match=r"training loss is (nan|inf) in epoch 2; the last good state is in .*learning_rate"
    ):
        _fit(tmp_path, epochs=4)
    assert [row["epoch"] for row in torch.load(path, weights_only=True)["history"]] == [1]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path):
    torch.save(
        {"network": {}, "optimizer": {}, "schedule": {}, "history": [], "best_weights": {}}, tmp_path / "checkpoint.pt"
    )
    with pytest.raises(RunError, match="does not fit this configuration"):
        _fit(tmp_path, epochs=1)


def test_each_image_draws_its_own_variant_and_the_same_one_again():
    images = np.tile(_images(1, 0)[0], (2, 1, 1, 1)) + np.linspace(0, 1, 64, dtype=np.float32)
    dataset = TrainingImages(
        images, np.arange(2), np.zeros(2, np.int64), train_chain(size=64, mean=(0.0,), std=(1.0,), shift=0.3), seed=5
    )
    first, again, other, later = (dataset[key]["image"] for key in ((1, 0), (1, 0), (1, 1), (2, 0)))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    assert not torch.equal(first, later)
