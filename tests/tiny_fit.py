"""A fit of a tiny network on tiny images, in a fraction of a second, for tests of all that happens around its steps."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config import Training
from pipeline.training.feed import LabelledImages, Labels
from pipeline.training.fit import HISTORY_COLUMNS, Fit, fit
from transforms.augment import Augmentations
from transforms.intensity import to_levels

CPU = torch.device("cpu")
TIMING = ["images_per_second", "seconds"]
SIDE = 16
VARIED = Augmentations(flip_horizontal=0.5, shift=0.1, noise=0.02)


@dataclass(frozen=True)
class InMemory:
    """Levels where `PreparedImages` would read them."""

    levels: NDArray[np.uint16]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        return self.levels[rows]


class Tiny(nn.Module):
    """Two stages and a head, each learnt or frozen as a Classifier's; with or without batch norm and dropout."""

    def __init__(self, classes: int = 2, *, norm: bool = True, dropout: float = 0.2) -> None:
        super().__init__()
        widths = [1, 4, 8]
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.BatchNorm2d(after) if norm else nn.Identity(),
                nn.ReLU(),
            )
            for before, after in pairwise(widths)
        )
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(widths[-1], classes)

    @property
    def groups(self) -> list[list[nn.Module]]:
        return [[self.parts[0]], [self.parts[1]], [self.head]]

    def set_trainable(self, count: int | None) -> None:
        for number, (module,) in enumerate(self.groups):
            module.requires_grad_(count is None or number >= 3 - count)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            images = part(images)
        return self.head(self.dropout(images.mean(dim=(2, 3))))


def labelled(
    count: int, seed: int, augmentation: Augmentations = VARIED, *, classes: int = 2, several: bool = False
) -> LabelledImages:
    """Squares on noise: each class has its own brightness; of several labels the first is a square, the second a bright rim."""
    random = np.random.default_rng(seed)
    numbers = np.arange(count) % classes
    labels: Labels = numbers.astype(np.int64)
    images = random.uniform(0, 0.4, (count, 1, SIDE, SIDE)).astype(np.float32)
    if several:
        labels = np.stack([numbers & 1, (np.arange(count) // 2) & 1], axis=1).astype(np.float32)
        images[labels[:, 1] > 0, :, 0] += 0.6
    for image, number in zip(images, labels[:, 0] if several else numbers / max(classes - 1, 1), strict=True):
        row, column = random.integers(1, 8, 2)
        image[0, row : row + 6, column : column + 6] += 0.6 * number
    return LabelledImages(
        InMemory(to_levels(images)), np.arange(count), labels, (0.3,), (0.2,), augmentation=augmentation, seed=seed
    )


def tiny_fit(
    run: Path,
    *,
    epochs: int = 3,
    seed: int = 0,
    images: int = 33,
    norm: bool = True,
    dropout: float = 0.2,
    classes: int = 2,
    several: bool = False,
    progress: bool = False,
    augmentation: Augmentations = VARIED,
    feed: type[LabelledImages] = LabelledImages,
    **settings: Any,
) -> Fit:
    """A fit from the same weights on the same images each time."""
    run.mkdir(exist_ok=True, parents=True)
    torch.manual_seed(0)
    network = Tiny(2 if several else classes, norm=norm, dropout=dropout)
    training = replace(labelled(images, 1, augmentation, classes=classes, several=several), seed=seed)
    validation = labelled(12, 2, Augmentations(), classes=classes, several=several)
    training = feed(**{name: getattr(training, name) for name in training.__dataclass_fields__})
    options = Training(epochs=epochs, **{"learning_rate": 0.01, "batch_size": 8} | settings)
    return fit(network, training, validation, options, run=run, seed=seed, device=CPU, progress=progress)


def history(run: Path) -> pd.DataFrame:
    """What does not depend on how long it took."""
    return pd.read_csv(run / "history.csv")[[name for name in HISTORY_COLUMNS if name not in TIMING]]


def same_fit(run: Path, other: Path, fitted: Fit, expected: Fit) -> None:
    """To the last digit."""
    pd.testing.assert_frame_equal(history(run), history(other), check_exact=True)
    for state, wanted in (
        (fitted.network.state_dict(), expected.network.state_dict()),
        (fitted.best_weights, expected.best_weights),
    ):
        torch.testing.assert_close(state, wanted, rtol=0, atol=0)


def fork_server() -> ForkServerContext:
    """Processes that have everything imported: each starts in a tenth of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny_fit"])
    return context
