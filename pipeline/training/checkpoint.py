"""A fit in progress: what its checkpoint holds, what is best so far, and whether another epoch begins.

`checkpoint.pt` and `history.csv` appear whole. Everything random is drawn from (seed, epoch, step), so who resumes from a checkpoint,
however old, goes through the same epochs again to the last digit; `history.csv` and TensorBoard's events are then written anew from it.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from pipeline.config import Training
from pipeline.errors import RunError
from pipeline.files import left_behind, whole_file
from pipeline.run import CHECKPOINT_FILE, HISTORY_FILE, write_table
from pipeline.training.optimization import MovingAverage, Schedule

HISTORY_COLUMNS = [
    "epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_auroc", "val_average_precision", "learning_rate",
    "images_per_second", "seconds",
]  # fmt: skip
CHECKPOINT_EVERY_S = 10.0
"""Epochs of a second (a head on kept features) are not each written to the disk: at most so much is computed again."""

TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container")
"""torch's writer turns some of the system's errors into its own, which say so."""


@dataclass
class Fit:
    """A fit in progress: everything that a checkpoint holds."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    settings: Training
    run: Path
    average: MovingAverage | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    waiting: list[float] = field(default_factory=list)
    """Of each epoch of this session, the share of its training that was spent waiting for images."""
    saved: int = 0
    """The epoch whose end the checkpoint holds."""
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def validated(self) -> nn.Module:
        """The network that is validated and kept: with `ema`, the moving average."""
        return self.average.network if self.average else self.network

    @property
    def best_epoch(self) -> int:
        """The first epoch with the best value of `select`; NaN is never best."""
        if self.settings.select == "last":
            return len(self.history)
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

    def add(self, row: dict[str, float]) -> None:
        """An epoch has ended, of which the history says `row`: sets the next one's rate, and keeps the weights if they are the best."""
        self.history.append(row)
        self.schedule.after_epoch(row["val_loss"])
        if self.best_epoch == row["epoch"]:
            state = self.validated.state_dict()
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def write(self) -> None:
        """`checkpoint.pt`, unless the last one is seconds old and another epoch begins, and `history.csv`."""
        if self.ended or time.monotonic() - self._saved_at >= CHECKPOINT_EVERY_S:
            self.save()
        self.write_history()

    def save(self) -> None:
        """`checkpoint.pt`, whole: tensors and plain values only, so it loads with `weights_only`."""
        average = self.average
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": {"network": average.network.state_dict(), "steps": average.steps} if average else {},
            "history": self.history,
            "best_weights": self.best_weights,
        }
        path = self.run / CHECKPOINT_FILE
        with self.written(path), whole_file(path) as file:
            torch.save(state, file)
        self.saved, self._saved_at = len(self.history), time.monotonic()

    def write_history(self) -> None:
        """`history.csv`, a row an epoch."""
        table = pd.DataFrame(self.history, columns=HISTORY_COLUMNS).astype({"epoch": int})
        with self.written(self.run / HISTORY_FILE):
            write_table(self.run / HISTORY_FILE, table)

    @contextmanager
    def written(self, path: Path) -> Iterator[None]:
        """RunError, with what is kept, where the disk does not take what the block writes to `path`."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and not any(words in str(error) for words in TORCH_CANNOT_WRITE):
                raise
            what = error.strerror if isinstance(error, OSError) else "is the disk full?"
            raise RunError(
                f"{path}: cannot be written: {what}; {self.kept}make room, then go on with radloop train --resume"
            ) from error

    @property
    def kept(self) -> str:
        """What of this training is on the disk, for an error's message."""
        return f"the state after epoch {self.saved} is kept in {self.run / CHECKPOINT_FILE}; " if self.saved else ""

    def resume(self, *, clean: bool) -> None:
        """Continues from `checkpoint.pt` if it is there; `clean` removes what killed writers left. RunError where it does not fit."""
        path = self.run / CHECKPOINT_FILE
        for file in left_behind(path) if clean else ():
            file.unlink(missing_ok=True)
        if not path.is_file():
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if self.average:
                self.average.network.load_state_dict(state["average"]["network"])
                self.average.steps = state["average"]["steps"]
            self.history, self.best_weights = state["history"], state["best_weights"]
        except (RuntimeError, KeyError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise RunError(
                f"{path}: does not fit this configuration; train into another folder, or give the one it was begun with"
            ) from error
        self.saved = len(self.history)
