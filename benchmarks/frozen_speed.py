"""How much faster a head trains on kept features than through the network, and what keeping feature maps in half precision changes.

python benchmarks/frozen_speed.py [--architecture resnet50] [--size 64] [--images 256] [--batch 32] [--threads 1]

The same training of a head on a frozen trunk, by `fit`, once through the network and once on kept features: seconds an epoch, validation,
history and checkpoint included, each the median of the epochs but the first. Images are noise and no part of the question. Then, for the
conv head, how far the training losses of the last epoch part from those on maps in float32: kept in float16, and with another number
of threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import Network, Training
from pipeline.networks.model import Classifier
from pipeline.training import frozen
from pipeline.training.feed import LabelledImages
from pipeline.training.fit import Fit, fit
from pipeline.training.frozen import frozen_features

EPOCHS_THROUGH, EPOCHS_KEPT = 3, 12
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class InMemory:
    """Levels as the cache has them."""

    levels: NDArray[np.uint16]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        return self.levels[rows]


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.architecture} at {options.size}, {options.images} images and a fifth to validate, batches of {options.batch}, "
        f"on {DEVICE.type}, {options.threads} threads"
    )
    print("| head | through the network | kept features | ratio | computing them once |")
    print("|---|---|---|---|---|")
    for head in ("linear", "conv"):
        compare(head, options)
    half_precision(options)
    return 0


def compare(head: str, options: argparse.Namespace) -> None:
    """A row of the table."""
    training, validation = data(options)
    through = trained(classifier(head, options), (training, validation), EPOCHS_THROUGH, options.batch)
    network = classifier(head, options)
    begun = time.perf_counter()
    *features, learner = frozen_features(network, training, validation, 0, options.batch, DEVICE, False)
    once = time.perf_counter() - begun
    kept = trained(learner, tuple(features), EPOCHS_KEPT, options.batch)
    slow, fast = (statistics.median(row["seconds"] for row in fitted.history[1:]) for fitted in (through, kept))
    print(f"| {head} | {slow:.2f} s | {fast:.3f} s | {slow / fast:.0f} | {once:.2f} s |", flush=True)


def half_precision(options: argparse.Namespace) -> None:
    """The differences that the third paragraph names."""
    losses = {}
    for name, dtype, threads in (
        ("float32", np.float32, options.threads),
        ("float16", np.float16, options.threads),
        ("threads", np.float32, 2 if options.threads == 1 else 1),
    ):
        torch.set_num_threads(threads)
        frozen.MAPS_TYPE = np.dtype(dtype)
        training, validation = data(options)
        *features, learner = frozen_features(
            classifier("conv", options), training, validation, 0, options.batch, DEVICE, False
        )
        losses[name] = trained(learner, tuple(features), EPOCHS_KEPT, options.batch).history[-1]["train_loss"]
    plain = losses.pop("float32")
    for name, loss in losses.items():
        print(f"{name}: training loss {loss:.6f} against {plain:.6f}: {abs(loss / plain - 1):.1e} apart")


def data(options: argparse.Namespace) -> tuple[LabelledImages, LabelledImages]:
    """The training and the validation split; class 1 is brighter."""
    random = np.random.default_rng(0)
    splits = []
    for count in (options.images, options.images // 5):
        labels = np.arange(count) % 2
        levels = random.integers(0, 50000, (count, 1, options.size, options.size)) + 2000 * labels[:, None, None, None]
        images = InMemory(levels.astype(np.uint16))
        splits.append(LabelledImages(images, np.arange(count), labels, (0.4,), (0.2,)))
    return splits[0], splits[1]


def classifier(head: str, options: argparse.Namespace) -> Classifier:
    torch.manual_seed(0)
    network = Network(architecture=options.architecture, head=head, trainable="head")  # type: ignore[arg-type]
    return Classifier(network, 2, options.size)


def trained(network: torch.nn.Module, splits: tuple, epochs: int, batch: int) -> Fit:
    settings = Training(epochs=epochs, batch_size=batch, early_stopping=None, plateau=None)
    with tempfile.TemporaryDirectory(prefix="radloop-benchmark-") as run:
        return fit(network, *splits, settings, run=Path(run), seed=0, device=DEVICE, progress=False)


if __name__ == "__main__":
    sys.exit(main())
