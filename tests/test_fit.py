"""Fitting: it learns, it stops and resumes as one uninterrupted training would, and says so when it diverges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config import Network, Training
from pipeline.errors import RunError
from pipeline.feed import BatchSampler, LabelledImages, standardised
from pipeline.fit import HISTORY_COLUMNS, Bfloat16Inferer, Fit, fit
from pipeline.model import Classifier
from transforms.augment import Augmentations, augment_batch, draw, noise_seed, uniforms
from transforms.chains import KEY, evaluate_chain
from transforms.intensity import from_levels, to_levels

CPU = torch.device("cpu")
TIMING = ["images_per_second", "seconds"]
ALL = Augmentations(
    flip_horizontal=0.5, flip_vertical=0.5, zoom=0.2, shift=0.2, rotate=20, contrast=0.2, noise=0.1, cutout=0.3
)


@dataclass(frozen=True)
class InMemory:
    """Levels where `PreparedImages` would read them."""

    levels: NDArray[np.uint16]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        return self.levels[rows]


def _images(count: int, seed: int) -> tuple[InMemory, np.ndarray, np.ndarray]:
    """Squares on noise: class 1 has one, class 0 has none."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = random.uniform(0, 0.4, (count, 1, 64, 64)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        if label:
            row, column = random.integers(8, 40, 2)
            image[0, row : row + 16, column : column + 16] += 0.6
    return InMemory(to_levels(images)), np.arange(count), labels.astype(np.int64)


def _labelled(count: int, seed: int, augmentation: Augmentations = ALL) -> LabelledImages:
    return LabelledImages(*_images(count, seed), mean=(0.3,), std=(0.2,), augmentation=augmentation, seed=seed)


def _fit(run: Path, *, epochs: int, seed: int = 0, **settings: object) -> Fit:
    run.mkdir(exist_ok=True)
    torch.manual_seed(0)
    network = Classifier(Network(architecture="resnet18", dropout=0.2), 2)
    training = replace(_labelled(33, 1, Augmentations(flip_horizontal=0.5, shift=0.1, noise=0.02)), seed=seed)
    validation = _labelled(16, 2, Augmentations())
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
    assert len(fitted.waiting) == 6
    assert all(0 < share < 0.5 for share in fitted.waiting)


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


class FedByWorkers(LabelledImages):
    """As on a GPU: processes gather batches ahead."""

    def loader(self, batches: BatchSampler, *, on_gpu: bool, workers: int | None = None):  # type: ignore[no-untyped-def]
        return super().loader(batches, on_gpu=False, workers=2)


@pytest.mark.slow
def test_loader_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Over several epochs, whose batches workers gather before they are asked for."""
    columns = [name for name in HISTORY_COLUMNS if name not in TIMING]
    _fit(tmp_path / "here", epochs=3)
    monkeypatch.setattr("tests.test_fit.LabelledImages", FedByWorkers)
    _fit(tmp_path / "there", epochs=3)
    histories = [pd.read_csv(tmp_path / name / "history.csv")[columns] for name in ("here", "there")]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def test_half_precision_comes_back_as_float32():
    inferred = Bfloat16Inferer()(torch.rand(2, 4), torch.nn.Linear(4, 3))
    assert inferred.dtype == torch.float32
    assert torch.equal(inferred, inferred.bfloat16().float())  # computed with fewer digits


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


def _epoch(images: LabelledImages, epoch: int, workers: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches = BatchSampler(len(images), 8, seed=images.seed, epoch=lambda: epoch, drop_single=True)
    return [images.input(batch, CPU) for batch in images.loader(batches, on_gpu=False, workers=workers)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_seed_gives_the_same_batches_whatever_the_workers(workers: int):
    images = _labelled(33, 5)
    for (inputs, labels), (expected, expected_labels) in zip(
        _epoch(images, 3, workers), _epoch(images, 3), strict=True
    ):
        torch.testing.assert_close(inputs, expected, rtol=0, atol=0)
        assert labels.tolist() == expected_labels.tolist()


def test_another_seed_or_epoch_gives_others():
    images = _labelled(32, 5)
    first = torch.cat([inputs for inputs, _ in _epoch(images, 1)])
    for other in (_epoch(images, 2), _epoch(replace(images, seed=6), 1)):
        assert not torch.equal(torch.cat([inputs for inputs, _ in other]), first)


def test_an_epoch_is_every_image_once_but_for_a_single_one_left_over():
    for count, batches in ((33, 4), (32, 4), (34, 5)):
        seen = [pair for batch in BatchSampler(count, 8, seed=1, epoch=lambda: 2, drop_single=True) for pair in batch]
        assert len({item for _, item in seen}) == len(seen) == (count - 1 if count % 8 == 1 else count)
        assert {epoch for epoch, _ in seen} == {2}
        assert len(BatchSampler(count, 8, seed=1, drop_single=True)) == batches
    in_order = [item for batch in BatchSampler(17, 8) for _, item in batch]
    assert in_order == list(range(17))


def test_each_image_draws_its_own_variant_whatever_its_batch():
    images = replace(
        _labelled(8, 5, Augmentations(shift=0.3, rotate=30, zoom=0.1)), rows=np.zeros(8, np.int64)
    )  # all the same image
    one, another, alone, later = (
        images.input(images[pairs], CPU)[0]
        for pairs in ([(1, 0), (1, 1)], [(1, 1), (1, 2), (1, 0)], [(1, 0)], [(2, 0)])
    )
    torch.testing.assert_close(one[0], alone[0], rtol=0, atol=0)
    torch.testing.assert_close(one[0], another[2], rtol=0, atol=0)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(alone, later)


def test_a_batch_is_its_levels_varied_then_standardised():
    images = _labelled(6, 3)
    items = np.array([4, 1, 5])
    inputs, labels = images.input(images[[(2, item) for item in items.tolist()]], CPU)
    drawn = draw(ALL, uniforms(3, 2, items))
    levels = torch.from_numpy(_images(6, 3)[0].levels[items])
    varied = augment_batch(from_levels(levels), drawn, noise_seed=noise_seed(3, 2, items))
    torch.testing.assert_close(inputs, (varied - 0.3) / 0.2)
    assert labels.tolist() == [0, 1, 1]
    assert inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("channels", "statistics"), [(1, 1), (1, 3), (3, 3)])
def test_standardising_a_batch_is_the_evaluation_chain_image_by_image(channels: int, statistics: int):
    images = torch.rand(4, channels, 16, 16)
    before = images.clone()
    mean, std = (0.485, 0.456, 0.406)[:statistics], (0.229, 0.224, 0.225)[:statistics]
    chain = evaluate_chain(mean=mean, std=std)
    expected = torch.stack([chain({KEY: image})[KEY] for image in images])
    torch.testing.assert_close(standardised(images, mean, std), expected, rtol=0, atol=0)
    torch.testing.assert_close(images, before, rtol=0, atol=0)


def test_batches_are_half_the_bytes_until_they_are_on_the_device():
    batch = _labelled(4, 1)[[(1, 0), (1, 3)]]
    assert batch["levels"].dtype == torch.uint16
    assert batch["levels"].shape == (2, 1, 64, 64)
