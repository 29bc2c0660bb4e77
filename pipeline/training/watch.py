"""What whoever trains sees of it: a bar on a terminal, lines elsewhere, TensorBoard's curves, and that a loss is still a number.

The device is asked now and then, and not waited for: what it is asked in one look is read in the next.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pipeline.progress import say
from pipeline.training import distributed

GPU_LOOK_EVERY = 20
"""Steps. On the CPU each one is looked at, which costs nothing there."""
LINE_EVERY_S = 60.0
"""Within an epoch, where there is no terminal."""
WAITING_SAID = 0.03
"""Share of an epoch's training spent waiting for images from which its line says so."""
TENSORBOARD_FOLDER = "tensorboard"


class Watch:
    """Counts an epoch's losses and hits on the device, its waiting and its time, and shows how it goes.

    The engine's output is (losses, hits), each (n,) on the device. `batches` an epoch here, `images` an epoch over all processes.
    """

    def __init__(
        self, *, epochs: int, batches: int, images: int, device: torch.device, show: bool, lost: Callable[[float], None]
    ) -> None:
        """`lost` is called with a loss that is not a number, and is to raise."""
        self._epochs, self._batches, self._images, self._lost = epochs, batches, images, lost
        self._every = GPU_LOOK_EVERY if device.type == "cuda" else 1
        self._totals = torch.zeros(3, dtype=torch.float64, device=device)
        self._asked: tuple[torch.Tensor, torch.cuda.Event | None] | None = None
        self._bar: tqdm | None = None
        self._show, self._terminal = show, sys.stderr.isatty()
        self._began = self._trained = self._said = self._wait_began = self._waited = 0.0
        self._past: list[float] = []

    def attach(self, trainer: Engine) -> None:
        """Counts from now on."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self._begin)
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._wait_begins)
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, self._wait_ends)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._stop_watch)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def figures(self) -> dict[str, float]:
        """Of the epoch's training, over all processes: train_loss, train_accuracy, images_per_second, and so far its seconds."""
        loss, hits, count = distributed.summed(self._totals).tolist()
        return {
            "train_loss": loss / count,
            "train_accuracy": hits / count,
            "images_per_second": self._images / (self._trained - self._began),
            "seconds": time.monotonic() - self._began,
        }

    def waited(self) -> float:
        """The share of the epoch's training that was spent waiting for batches."""
        return self._waited / (self._trained - self._began)

    def say_epoch(self, row: dict[str, float], waited: float) -> None:
        """The epoch's line, with how long the others will take at most."""
        self._past.append(row["seconds"])
        waiting = f", {waited:.0%} of it waiting for images" if waited >= WAITING_SAID else ""
        left = (self._epochs - row["epoch"]) * self._pace()
        if self._show:
            say(
                f"epoch {int(row['epoch'])}/{self._epochs}: loss {row['train_loss']:.3f}, validation loss {row['val_loss']:.3f}, "
                f"accuracy {row['val_accuracy']:.3f}, AUROC {row['val_auroc']:.3f}, {row['images_per_second']:.0f} images/s{waiting}, "
                f"{row['seconds']:.0f} s" + (f", at most {duration(left)} left" if left else "")
            )

    def _begin(self, engine: Engine) -> None:
        self._totals.zero_()
        self._asked, self._waited = None, 0.0
        self._began = self._said = time.monotonic()
        if self._show and self._terminal:
            words = f"epoch {engine.state.epoch}/{self._epochs}"
            self._bar = tqdm(desc=words, total=self._batches, unit="", dynamic_ncols=True, leave=False)

    def _wait_begins(self) -> None:
        self._wait_began = time.monotonic()

    def _wait_ends(self) -> None:
        self._waited += time.monotonic() - self._wait_began

    def _count(self, engine: Engine) -> None:
        losses, hits = engine.state.output
        self._totals[0].add_(losses.sum())
        self._totals[1].add_(hits.sum())
        self._totals[2].add_(len(losses))
        done = (engine.state.iteration - 1) % self._batches + 1
        if self._bar is not None:
            self._bar.update()
        if done % self._every == 0:
            self._look(engine.state.epoch, done)

    def _stop_watch(self) -> None:
        self._trained = time.monotonic()
        self.close()

    def _look(self, epoch: int, done: int) -> None:
        """Reads what was asked before, and asks anew; on the CPU what is asked is there at once."""
        if self._totals.is_cuda:
            read, self._asked = self._asked, _asked(distributed.summed(self._totals))
        else:
            read = (distributed.summed(self._totals), None)
        if read is None or (read[1] is not None and not read[1].query()):
            return
        loss, hits, count = read[0].tolist()
        if not math.isfinite(loss):
            self._lost(loss / count)
        self._tell(epoch, done, loss / count, hits / count)

    def _tell(self, epoch: int, done: int, loss: float, accuracy: float) -> None:
        if not self._show:
            return
        now = time.monotonic()
        speed = self._images * done / self._batches / (now - self._began)
        left = duration(self._left(epoch, done / self._batches, now - self._began))
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, accuracy {accuracy:.3f}, {speed:.0f} images/s, {left} to the last epoch",
                refresh=False,
            )
        elif not self._terminal and now - self._said >= LINE_EVERY_S:
            self._said = now
            say(
                f"epoch {epoch}/{self._epochs}: batch {done} of {self._batches}, loss {loss:.3f}, accuracy {accuracy:.3f}, "
                f"{speed:.0f} images/s, at most {left} left"
            )

    def _left(self, epoch: int, share: float, spent: float) -> float:
        """Seconds to the last epoch's end, when `share` of this one took `spent`."""
        whole = self._pace() if self._past else spent / share
        return max(whole - spent, 0.0) + (self._epochs - epoch) * whole

    def _pace(self) -> float:
        """Seconds an epoch: of the last ones, because unfreezing and other work beside change it."""
        recent = self._past[-3:]
        return sum(recent) / len(recent)


def _asked(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """A copy on its way from the GPU, and what tells that it has come."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3 h 05 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Curves:
    """TensorBoard's events: the rows of the history, each once.

    What an earlier session wrote is written anew, because it may have been killed before or after its last row.
    """

    def __init__(self, run: Path, history: list[dict[str, float]]) -> None:
        folder = run / TENSORBOARD_FOLDER
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink(missing_ok=True)
        self._writer = SummaryWriter(folder)
        for row in history:
            self.add(row)

    def add(self, row: dict[str, float]) -> None:
        """One epoch's."""
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """The last events are on the disk."""
        self._writer.close()
