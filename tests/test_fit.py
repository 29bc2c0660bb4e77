"""Fitting: it learns, it stops and resumes as one uninterrupted training would, and says so when it diverges."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pipeline.config import Cosine, Plateau, Training
from pipeline.errors import ConfigError, RunError
from pipeline.training import checkpoint, watch
from pipeline.training.checkpoint import Fit
from pipeline.training.feed import BatchSampler, LabelledImages
from pipeline.training.fit import HISTORY_COLUMNS, fit
from pipeline.training.step import Bfloat16Inferer
from pipeline.training.validation import ranking
from pipeline.training.watch import duration
from tests.tiny_fit import CPU, Tiny, history, labelled, same_fit, tiny_fit
from transforms.augment import Augmentations

PARTS_TOLERANCE = 1e-5
"""float32 gradients added up in another order, over a dozen steps."""

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "adamw, cosine, clipping, depth": {
        "optimizer": "adamw", "weight_decay": 0.05, "plateau": None, "cosine": Cosine(warmup_epochs=0.5), "clip_gradient": 0.5,
        "layer_decay": 0.7,
    },
    "sgd, average, mixup, smoothing": {"optimizer": "sgd", "ema": 0.9, "mixup": 0.4, "label_smoothing": 0.1},
    "unfreezing, parts": {"unfreeze_every": 1, "accumulate": 3, "plateau": Plateau(patience=0)},
    "balanced, focal, several": {"sampling": "balanced", "class_weights": "none", "focal_gamma": 2.0, "several": True},
    "last, three classes": {"select": "last", "early_stopping": None, "classes": 3},
}  # fmt: skip


def test_it_learns_and_leaves_its_history(tmp_path: Path):
    fitted = tiny_fit(tmp_path, epochs=12, dropout=0.0, learning_rate=0.03)
    table = pd.read_csv(tmp_path / "history.csv")
    assert list(table.columns) == HISTORY_COLUMNS
    assert table["epoch"].tolist() == list(range(1, len(table) + 1))
    assert table["train_loss"].iloc[-1] < 0.5 * table["train_loss"].iloc[0]
    assert table["val_auroc"].max() > 0.9
    assert fitted.best_epoch == int(table.loc[table["val_loss"].idxmin(), "epoch"])
    assert len(fitted.waiting) == len(table)
    assert all(0 < share < 0.9 for share in fitted.waiting)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path: Path, recipe: dict[str, Any]):
    """Same history to the last digit, same weights, whatever the recipe. Stopped by the clock, so that the settings are the same."""
    whole = tiny_fit(tmp_path / "whole", epochs=4, **recipe)
    parts = tmp_path / "parts"
    tiny_fit(parts, epochs=4, max_minutes=1e-9, **recipe)
    assert len(history(parts)) == 1
    resumed = tiny_fit(parts, epochs=4, **recipe)
    same_fit(parts, tmp_path / "whole", resumed, whole)
    assert all(torch.isfinite(tensor).all() for tensor in resumed.best_weights.values())


class FedByWorkers(LabelledImages):
    """As on a GPU: processes gather batches ahead."""

    def loader(self, batches: BatchSampler, *, on_gpu: bool, workers: int | None = None):  # type: ignore[no-untyped-def]
        return super().loader(batches, on_gpu=False, workers=2)


@pytest.mark.slow
def test_loader_workers_change_nothing(tmp_path: Path):
    """Over several epochs, whose batches workers gather before they are asked for."""
    here = tiny_fit(tmp_path / "here", accumulate=2)
    there = tiny_fit(tmp_path / "there", accumulate=2, feed=FedByWorkers)
    same_fit(tmp_path / "there", tmp_path / "here", there, here)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_step_in_parts_is_the_step(tmp_path: Path, accumulate: int):
    """Batch norm aside, whose statistics are each part's own, and noise; also where 33 images in steps of 9 leave 6 over."""
    options: dict[str, Any] = {
        "norm": False, "dropout": 0.0, "batch_size": 9, "clip_gradient": 0.5,
        "augmentation": Augmentations(flip_horizontal=0.5, shift=0.1),
    }  # fmt: skip
    once = tiny_fit(tmp_path / "once", **options)
    parts = tiny_fit(tmp_path / "parts", accumulate=accumulate, **options)
    torch.testing.assert_close(
        parts.network.state_dict(), once.network.state_dict(), rtol=PARTS_TOLERANCE, atol=PARTS_TOLERANCE
    )
    pd.testing.assert_frame_equal(
        history(tmp_path / "parts"), history(tmp_path / "once"), rtol=PARTS_TOLERANCE, atol=PARTS_TOLERANCE
    )


class Counted(LabelledImages):
    """Remembers which items it was asked for."""

    seen: list[tuple[int, int]] = []

    def __getitem__(self, pairs: Any) -> Any:
        self.seen += pairs
        return super().__getitem__(pairs)


def test_the_loss_is_that_of_the_epochs_images_before_each_step(tmp_path: Path):
    """At a rate that moves nothing: the mean over all images, in the network's own mode of training."""
    Counted.seen = []
    tiny_fit(tmp_path, epochs=1, learning_rate=1e-30, norm=False, dropout=0.0, feed=Counted, class_weights="balanced")
    data = labelled(33, 1)
    torch.manual_seed(0)
    network = Tiny(norm=False, dropout=0.0)
    data = LabelledImages(
        data.images, data.rows, data.labels, data.mean, data.std, augmentation=data.augmentation, seed=0
    )
    weights = torch.tensor([33 / 34, 33 / 32])
    losses = []
    for begin in range(0, 32, 8):
        inputs, labels = data.input(data[Counted.seen[begin : begin + 8]], CPU)
        losses.append(nn.functional.cross_entropy(network(inputs), labels, weight=weights, reduction="none"))
    assert len({item for _, item in Counted.seen}) == 32
    row = history(tmp_path).iloc[0]
    assert row["train_loss"] == pytest.approx(float(torch.cat(losses).detach().mean()), rel=1e-5)


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path):
    fitted = tiny_fit(tmp_path, epochs=2, ema=0.99, select="last", early_stopping=None)
    assert fitted.average is not None
    torch.testing.assert_close(fitted.best_weights, dict(fitted.average.network.state_dict()), rtol=0, atol=0)
    assert not torch.equal(fitted.best_weights["head.weight"], fitted.network.state_dict()["head.weight"])
    validation = labelled(12, 2, Augmentations())
    inputs, labels = validation.input(validation[[(0, item) for item in range(12)]], CPU)
    network = Tiny()
    network.load_state_dict(fitted.best_weights)
    with torch.no_grad():
        accuracy = float((network.eval()(inputs).argmax(1) == labels).float().mean())
    assert history(tmp_path)["val_accuracy"].iloc[-1] == pytest.approx(accuracy)


def test_the_last_epoch_is_kept_where_it_is_asked_for(tmp_path: Path):
    fitted = tiny_fit(tmp_path, epochs=4, select="last", early_stopping=None, learning_rate=0.2)
    assert fitted.best_epoch == 4
    torch.testing.assert_close(fitted.best_weights, dict(fitted.network.state_dict()), rtol=0, atol=0)


class Vectors:
    """Kept features: neither levels nor images."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, pairs: Any) -> dict[str, Any]:
        items = [item for _, item in pairs]
        labels = torch.from_numpy(self.labels[items])
        return {"features": torch.nn.functional.one_hot(labels, 5).float(), "label": labels}

    def input(self, batch: Any, device: torch.device, non_blocking: bool = False, **_: Any) -> Any:
        return batch["features"].to(device), batch["label"].to(device)

    def loader(self, batches: Any, *, on_gpu: bool) -> Any:
        return torch.utils.data.DataLoader(self, batch_size=None, sampler=batches)  # type: ignore[type-var]


def test_other_inputs_pass_through(tmp_path: Path):
    """Kept features (batch, d), and bags (batch, n, c, rows, columns)."""
    data = Vectors(np.arange(20) % 2)
    options = Training(epochs=20, batch_size=4, learning_rate=0.1, mixup=0.2)
    fitted = fit(nn.Linear(5, 2), data, data, options, run=tmp_path, seed=0, device=CPU, progress=False)
    assert fitted.history[-1]["val_accuracy"] == 1.0

    class Bags(LabelledImages):
        def input(self, *arguments: Any, **options: Any) -> Any:
            inputs, labels = super().input(*arguments, **options)
            return inputs[:, None].expand(-1, 3, -1, -1, -1).contiguous(), labels

    class OfBags(Tiny):
        def forward(self, bags: torch.Tensor) -> torch.Tensor:
            return super().forward(bags.flatten(0, 1)).unflatten(0, bags.shape[:2]).mean(dim=1)

    images = labelled(9, 1)
    bags = Bags(images.images, images.rows, images.labels, images.mean, images.std)
    options = Training(epochs=1, batch_size=4, mixup=0.2)
    (tmp_path / "bags").mkdir()
    fit(OfBags(), bags, bags, options, run=tmp_path / "bags", seed=0, device=CPU, progress=False)


def test_half_precision_comes_back_as_float32_and_is_not_for_kept_vectors():
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    images, vectors = torch.rand(2, 2, 2, 2), torch.rand(2, 8, 1, 1)
    inferred = Bfloat16Inferer("cpu")(images, network)
    assert inferred.dtype == torch.float32
    assert torch.equal(inferred, inferred.bfloat16().float())  # computed with fewer digits
    assert torch.equal(Bfloat16Inferer("cpu")(vectors, network), network(vectors))


def _with_history(values: list[float], **settings: Any) -> Fit:
    fitted = Fit(Tiny(), None, None, Training(**settings), Path())  # type: ignore[arg-type]
    name = fitted.settings.select
    fitted.history = [{"epoch": number, name: value, "seconds": 30.0} for number, value in enumerate(values, start=1)]
    return fitted


def test_the_best_epoch_and_the_end():
    assert _with_history([3.0, 1.0, 2.0, 1.0]).best_epoch == 2
    assert _with_history([0.1, 0.9, 0.8], select="val_auroc").best_epoch == 2
    assert _with_history([float("nan"), 2.0], select="val_auroc").best_epoch == 2
    assert _with_history([1.0, 2.0], select="last", early_stopping=None).best_epoch == 2
    assert _with_history([1.0, 2.0], epochs=2).ended.startswith("all 2 epochs")
    assert _with_history([1.0, 2.0, 3.0], early_stopping=2).ended.startswith("early stopping")
    assert _with_history([3.0, 2.0, 1.0], max_minutes=1.5).ended.startswith("time limit")
    assert _with_history([3.0, 2.0, 1.0], early_stopping=2).ended == ""


class Broken(LabelledImages):
    """One image of the second epoch is no number."""

    def input(self, batch: Any, *arguments: Any, **options: Any) -> Any:
        inputs, labels = super().input(batch, *arguments, **options)
        if batch["epoch"] == 2:
            inputs[0, 0, 0, 0] = math.nan
        return inputs, labels

    def __getitem__(self, pairs: Any) -> Any:
        return super().__getitem__(pairs) | {"epoch": pairs[0][0]}


@pytest.mark.parametrize("look_every", [1, 1000])
def test_a_diverging_training_keeps_its_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_every: int
):
    """Noticed within the epoch, or, where it is not looked at there, at its end."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_EVERY_S", 0.0)
    init = watch.Watch.__init__

    def slower(self: watch.Watch, **options: Any) -> None:
        init(self, **options)
        self._every = look_every

    monkeypatch.setattr(watch.Watch, "__init__", slower)
    with pytest.raises(
        RunError, match=r"training loss is nan in epoch 2; the state after epoch 1 is kept in .*learning_rate"
    ):
        tiny_fit(tmp_path, epochs=4, feed=Broken)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert [row["epoch"] for row in state["history"]] == [1]
    assert all(torch.isfinite(tensor).all() for tensor in state["network"].values())
    assert len(history(tmp_path)) == 1
    good = tiny_fit(tmp_path, epochs=2)
    whole = tiny_fit(tmp_path / "whole", epochs=2)
    same_fit(tmp_path, tmp_path / "whole", good, whole)


def _no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _torch_save_on_a_full_disk(_: Any, file: Any) -> None:
    file.write(b"PK half of it")
    _no_space()


def _streaming_failure(_: Any, file: Any) -> None:
    """What torch makes of a short write."""
    raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")


@pytest.mark.parametrize(
    ("place", "failing", "file"),
    [
        ("torch.save", _torch_save_on_a_full_disk, "checkpoint.pt"),
        ("torch.save", _streaming_failure, "checkpoint.pt"),
        ("pipeline.files.os.fsync", _no_space, "checkpoint.pt"),
        ("pipeline.training.checkpoint.write_table", _no_space, "history.csv"),
        ("pipeline.training.watch.Curves.add", _no_space, "tensorboard"),
    ],
)
def test_a_full_disk_ends_with_one_message_and_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, failing: Callable[..., None], file: str
):
    tiny_fit(tmp_path, epochs=4, max_minutes=1e-9)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_EVERY_S", 0.0)
    with monkeypatch.context() as full:
        full.setattr(place, failing)
        with pytest.raises(RunError, match=rf"{file}: cannot be written: .*--resume") as said:
            tiny_fit(tmp_path, epochs=4)
    assert re.search(r"the state after epoch [12] is kept in .*checkpoint\.pt", str(said.value))
    assert "\n" not in str(said.value)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    resumed = tiny_fit(tmp_path, epochs=4)
    whole = tiny_fit(tmp_path / "whole", epochs=4)
    same_fit(tmp_path, tmp_path / "whole", resumed, whole)


def test_other_failures_while_writing_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("torch.save", out_of_memory)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        tiny_fit(tmp_path, epochs=1)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path):
    torch.save(
        {"network": {}, "optimizer": {}, "schedule": {}, "history": [], "best_weights": {}}, tmp_path / "checkpoint.pt"
    )
    with pytest.raises(RunError, match="does not fit this configuration"):
        tiny_fit(tmp_path, epochs=1)


def test_too_few_images_are_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="two for each process, found 1"):
        tiny_fit(tmp_path, images=1)


def test_ranking_is_of_the_second_class_or_the_mean_over_all():
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.0, 3.0]])
    assert ranking(logits, np.array([0, 0, 1, 1])) == {"val_auroc": 1.0, "val_average_precision": 1.0}
    assert ranking(logits, np.array([0, 1, 0, 1]))["val_auroc"] == 0.75
    assert all(math.isnan(value) for value in ranking(logits, np.zeros(4)).values())
    several = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], dtype=np.float32)
    assert ranking(logits, several)["val_auroc"] == 1.0  # of the label that is there
    assert math.isnan(ranking(torch.full((4, 2), math.nan), np.array([0, 0, 1, 1]))["val_auroc"])
    three = torch.eye(3).repeat(2, 1) * 5
    assert ranking(three, np.array([0, 1, 2, 0, 1, 2]))["val_auroc"] == 1.0
    assert math.isnan(ranking(three, np.array([0, 1, 1, 0, 1, 0]))["val_auroc"])


def test_lines_say_how_it_goes_and_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(watch, "LINE_EVERY_S", 0.0)
    tiny_fit(tmp_path, epochs=2, progress=True)
    said = capsys.readouterr().err
    assert re.search(
        r"epoch 1/2: batch 3 of 4, loss \d\.\d{3}, accuracy \d\.\d{3}, \d+ images/s, at most \d+ s left", said
    )
    assert re.search(r"epoch 1/2: loss .*, validation loss .*, AUROC .*, \d+ images/s.*, 0 s, at most \d+ s left", said)
    assert "training ended: all 2 epochs" in said


def test_a_terminal_has_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("pipeline.training.watch.tqdm.mininterval", 0, raising=False)
    tiny_fit(tmp_path, epochs=2, progress=True)
    said = capsys.readouterr().err
    assert "epoch 1/2:   0%" in said
    assert "batch 3 of 4" not in said


def test_durations():
    assert [duration(seconds) for seconds in (3, 89, 90, 3600, 6000)] == [
        "3 s", "89 s", "2 min", "60 min", "1 h 40 min",
    ]  # fmt: skip
