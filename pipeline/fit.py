"""Fitting a network with MONAI's engines: epochs of training, each followed by validation, recorded and resumable.

Events: MONAI's trainer runs the epochs; `ValidationHandler` runs the evaluator after each; then the learning rate is stepped,
a row goes to `history.csv` and TensorBoard, and `checkpoint.pt` is written whole. The rows decide what is best and when to
stop, so a resumed run decides alike.
"""

from __future__ import annotations

import math
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from ignite.metrics import Accuracy, Average, EpochMetric
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from monai.inferers import SimpleInferer
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from pipeline.config import Training
from pipeline.errors import RunError
from pipeline.feed import BatchSampler, LabelledImages
from pipeline.files import whole_file
from pipeline.model import Classifier
from pipeline.progress import say
from pipeline.run import CHECKPOINT_FILE, HISTORY_FILE, write_table

HISTORY_COLUMNS = [
    "epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_auroc", "learning_rate", "images_per_second", "seconds",
]  # fmt: skip
WAITING_SAID = 0.03
"""Share of an epoch's training spent waiting for images from which its line says so."""


@dataclass
class Fit:
    """A fit in progress: everything that a checkpoint holds."""

    network: Classifier
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.ReduceLROnPlateau | None
    settings: Training
    run: Path
    history: list[dict[str, float]] = field(default_factory=list)
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    waiting: list[float] = field(default_factory=list)
    """Of each epoch of this session, the share of its training that was spent waiting for images."""

    @property
    def best_epoch(self) -> int:
        """The first epoch with the best value of `select`; NaN is never best."""
        sign = -1.0 if self.settings.select == "val_loss" else 1.0
        values = [(sign * row[self.settings.select], row["epoch"]) for row in self.history]
        finite = [pair for pair in values if not math.isnan(pair[0])]
        return int(max(finite, key=lambda pair: (pair[0], -pair[1]))[1]) if finite else 1

    @property
    def ended(self) -> str:
        """Why no further epoch begins; '' if one does."""
        done = len(self.history)
        if done >= self.settings.epochs:
            return f"all {done} epochs"
        if done and self.settings.early_stopping and done - self.best_epoch >= self.settings.early_stopping:
            return f"early stopping after epoch {done}: epoch {self.best_epoch} was the best"
        if self.settings.max_minutes and sum(row["seconds"] for row in self.history) >= 60 * self.settings.max_minutes:
            return f"time limit of {self.settings.max_minutes:g} minutes after epoch {done}"
        return ""

    def save(self) -> None:
        """`checkpoint.pt`, whole: tensors and plain values only, so it loads with `weights_only`."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "history": self.history,
            "best_weights": self.best_weights,
        }
        with whole_file(self.run / CHECKPOINT_FILE) as file:
            torch.save(state, file)

    def resume(self) -> None:
        """Continues from `checkpoint.pt` if it is there."""
        path = self.run / CHECKPOINT_FILE
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule:
                self.schedule.load_state_dict(state["schedule"])
            self.history, self.best_weights = state["history"], state["best_weights"]
        except (RuntimeError, KeyError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise RunError(
                f"{path}: does not fit this configuration; train into another folder, or give the one it was begun with"
            ) from error


def fit(
    network: Classifier,
    training: LabelledImages,
    validation: LabelledImages,
    settings: Training,
    *,
    run: Path,
    seed: int,
    device: torch.device,
    progress: bool,
) -> Fit:
    """Trains `network` and returns the fit with the best epoch's weights; resumes from a checkpoint in `run`."""
    network.to(device).to(memory_format=torch.channels_last)
    state = _start(network, settings, run)
    state.resume()
    if not state.ended:
        _run_epochs(state, training, validation, seed, device, progress)
    if progress:
        say(f"training ended: {state.ended}")
    return state


def _start(network: Classifier, settings: Training, run: Path) -> Fit:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    optimizer = kind(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    plateau = settings.plateau
    schedule = None
    if plateau:
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=plateau.factor, patience=plateau.patience, min_lr=plateau.minimum
        )
    return Fit(network, optimizer, schedule, settings, run)


def _run_epochs(
    state: Fit, training: LabelledImages, validation: LabelledImages, seed: int, device: torch.device, progress: bool
) -> None:
    settings, on_gpu = state.settings, device.type == "cuda"
    classes = state.network.head.out_features
    loss = nn.CrossEntropyLoss(weight=_class_weights(training.labels, classes, settings.class_weights)).to(device)
    options: dict[str, Any] = {
        "device": device,
        "non_blocking": on_gpu,
        "decollate": False,
        "inferer": Bfloat16Inferer() if on_gpu else SimpleInferer(),
        "to_kwargs": {},
    }
    evaluator = SupervisedEvaluator(
        val_data_loader=validation.loader(BatchSampler(len(validation), settings.batch_size), on_gpu=on_gpu),
        network=state.network,
        prepare_batch=validation.input,
        key_val_metric={"val_accuracy": Accuracy(output_transform=_pred_and_label, device=device)},
        additional_metrics={
            "val_loss": Average(output_transform=lambda output: _losses(loss, output), device=device),
            "val_auroc": EpochMetric(_auroc, output_transform=_pred_and_label, check_compute_fn=False, device=device),
        },
        **options,
    )
    batches = BatchSampler(
        len(training), settings.batch_size, seed=seed, epoch=lambda: trainer.state.epoch, drop_single=True
    )
    trainer = SupervisedTrainer(
        max_epochs=settings.epochs,
        train_data_loader=training.loader(batches, on_gpu=on_gpu),
        network=state.network,
        optimizer=state.optimizer,
        loss_function=loss,
        optim_set_to_none=True,
        prepare_batch=training.input,
        # On the device: metrics on the CPU would make each step wait for the GPU.
        key_train_metric={"train_accuracy": Accuracy(output_transform=_pred_and_label, device=device)},
        additional_metrics={
            "train_loss": Average(output_transform=lambda output: _losses(loss, output), device=device)
        },
        **options,
    )
    _attach(trainer, evaluator, state, batches.images, seed, progress)
    with SummaryWriter(state.run / "tensorboard", purge_step=len(state.history) + 1) as writer:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: _to_tensorboard(writer, state.history[-1]))
        trainer.load_state_dict(
            {"epoch": len(state.history), "max_epochs": settings.epochs, "epoch_length": len(batches)}
        )
        trainer.run()


class Bfloat16Inferer(SimpleInferer):
    """The forward pass in bfloat16, its result in float32.

    MONAI's own `amp` scales gradients, which bfloat16 does not need, and asks the GPU in each step whether they are finite.
    """

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs).float()


def _attach(
    trainer: SupervisedTrainer, evaluator: SupervisedEvaluator, state: Fit, images: int, seed: int, progress: bool
) -> None:
    """Handlers in the order in which they run at the end of an epoch of `images`."""
    began, trained = [0.0], [0.0]
    waiting = _Waiting()

    def begin(engine: Engine) -> None:
        began[0] = time.monotonic()
        torch.manual_seed(
            seed * 100_003 + engine.state.epoch
        )  # dropout; a resumed epoch draws what it would have drawn

    def stop_watch(_: Engine) -> None:
        trained[0] = time.monotonic()

    def record(engine: Engine) -> None:
        row = _history_row(engine, evaluator, state.optimizer)
        row["images_per_second"] = images / (trained[0] - began[0])
        state.waiting.append(waiting.share_of(trained[0] - began[0]))
        row["seconds"] = time.monotonic() - began[0]
        state.history.append(row)
        if not math.isfinite(row["train_loss"]):
            kept = f"the last good state is in {state.run / CHECKPOINT_FILE}: " if len(state.history) > 1 else ""
            raise RunError(
                f"the training loss is {row['train_loss']} in epoch {int(row['epoch'])}; {kept}"
                "lower training.learning_rate and train again"
            )
        if state.schedule:
            state.schedule.step(row["val_loss"])
        if state.best_epoch == row["epoch"]:
            state.best_weights = {
                name: tensor.detach().cpu().clone() for name, tensor in state.network.state_dict().items()
            }
        state.save()
        write_table(
            state.run / HISTORY_FILE, pd.DataFrame(state.history, columns=HISTORY_COLUMNS).astype({"epoch": int})
        )
        if progress:
            say(_line(row, state.settings.epochs, state.waiting[-1]))
        if state.ended:
            engine.terminate()

    trainer.add_event_handler(Events.EPOCH_STARTED, begin)
    waiting.attach(trainer)
    if progress and sys.stderr.isatty():
        bar = ProgressBar(desc="epoch", file=sys.stderr)
        bar.attach(trainer)  # without the loss, which would make each step wait for the GPU
    trainer.add_event_handler(Events.EPOCH_COMPLETED, stop_watch)
    ValidationHandler(interval=1, validator=evaluator).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, record)


class _Waiting:
    """How long the trainer has waited for its batches since it was last asked."""

    def __init__(self) -> None:
        self._since, self._sum = 0.0, 0.0

    def attach(self, trainer: SupervisedTrainer) -> None:
        """Counts from the asking for a batch to its coming."""
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._start)
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, self._stop)

    def share_of(self, seconds: float) -> float:
        """Of so many seconds; counts anew."""
        share, self._sum = self._sum / seconds, 0.0
        return share

    def _start(self) -> None:
        self._since = time.monotonic()

    def _stop(self) -> None:
        self._sum += time.monotonic() - self._since


def _history_row(engine: Engine, evaluator: SupervisedEvaluator, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    row = {
        "epoch": engine.state.epoch,
        **{name: float(engine.state.metrics[name]) for name in ("train_loss", "train_accuracy")},
        **{name: float(evaluator.state.metrics[name]) for name in ("val_loss", "val_accuracy", "val_auroc")},
        "learning_rate": float(optimizer.param_groups[0]["lr"]),
        "images_per_second": 0.0,
        "seconds": 0.0,
    }
    return {name: row[name] for name in HISTORY_COLUMNS}


def _line(row: dict[str, float], epochs: int, waiting: float) -> str:
    waited = f", {waiting:.0%} of it waiting for images" if waiting >= WAITING_SAID else ""
    return (
        f"epoch {int(row['epoch'])}/{epochs}: loss {row['train_loss']:.3f}, validation loss {row['val_loss']:.3f}, "
        f"accuracy {row['val_accuracy']:.3f}, AUROC {row['val_auroc']:.3f}, {row['images_per_second']:.0f} images/s{waited}, "
        f"{row['seconds']:.0f} s"
    )


def _to_tensorboard(writer: SummaryWriter, row: dict[str, float]) -> None:
    for name, value in row.items():
        if name != "epoch":
            writer.add_scalar(name, value, int(row["epoch"]))


def _pred_and_label(output: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return output["pred"].float(), output["label"]


def _losses(loss: nn.CrossEntropyLoss, output: dict[str, torch.Tensor]) -> torch.Tensor:
    """(batch, 1) losses: Average takes the first of two axes for the batch, so the mean is over all images."""
    return nn.functional.cross_entropy(output["pred"].float(), output["label"], weight=loss.weight, reduction="none")[
        :, None
    ]


def _auroc(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Two classes: of the second; more: one against rest, macro. NaN where a class is absent."""
    probabilities, truth = torch.softmax(logits.double(), dim=1).cpu().numpy(), labels.cpu().numpy()
    if not np.isfinite(probabilities).all() or len(np.unique(truth)) < probabilities.shape[1]:
        return math.nan
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(truth, probabilities[:, 1]))
    return float(roc_auc_score(truth, probabilities, multi_class="ovr"))


def _class_weights(labels: np.ndarray, classes: int, kind: str) -> torch.Tensor | None:
    if kind == "none":
        return None
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)
    return torch.tensor(len(labels) / (classes * counts), dtype=torch.float32)
