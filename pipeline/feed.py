"""Prepared images to batches of network input: gathered as levels, moved to the device, and only there varied and standardised.

A batch is asked for as (epoch, position) pairs, which alone decide it: a resumed run and any number of loader workers give the same. Images
are (batch, channels, rows, columns); levels uint16, half the bytes of what the network gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.work import default_workers
from transforms.augment import Augmentations, augment_batch, draw, noise_seed, uniforms
from transforms.intensity import from_levels

Pairs = Sequence[tuple[int, int]]
Batch = dict[str, Any]

GPU_LOADER_WORKERS, GPU_BATCHES_AHEAD = 4, 3
"""For a GPU: gathering a batch of 32 takes a worker a millisecond or two from memory. Twelve batches ahead ride over a slow disk, and
fit the 64 MB of shared memory that a container has by default."""
_NO_AUGMENTATION = Augmentations()


class Levels(Protocol):
    """Where images come from: `pipeline.cache.PreparedImages`."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        """(len(rows), channels, size, size) levels."""


@dataclass(frozen=True, eq=False)
class LabelledImages(Dataset[Batch]):
    """One split: positions `rows` (n,) of `images` with their class indices `labels` (n,), and how they become network input.

    With `augmentation` each (seed, epoch, item) has its own variant.
    """

    images: Levels
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentations = _NO_AUGMENTATION
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, pairs: Pairs) -> Batch:
        """A whole batch, in the order of `pairs`: levels, labels and, to be varied, what `augment_batch` needs."""
        epochs, items = np.array(pairs, dtype=np.int64).T
        batch = {
            "levels": torch.from_numpy(self.images.take(self.rows[items])),
            "label": torch.from_numpy(self.labels[items]),
        }
        if self.augmentation == _NO_AUGMENTATION:
            return batch
        epoch = int(epochs[0])
        return batch | {
            "numbers": uniforms(self.seed, epoch, items),
            "noise_seed": noise_seed(self.seed, epoch, items),
        }

    def input(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """MONAI's `prepare_batch`: the network's input, channels last, and the labels, on the device."""
        images = from_levels(batch["levels"].to(device, non_blocking=non_blocking))
        if "numbers" in batch:
            drawn = draw(self.augmentation, np.asarray(batch["numbers"]))
            images = augment_batch(images, drawn, noise_seed=batch["noise_seed"])
        return standardised(images, self.mean, self.std), batch["label"].to(device, non_blocking=non_blocking)

    def loader(self, batches: BatchSampler, *, on_gpu: bool, workers: int | None = None) -> DataLoader[Batch]:
        """Batches in the order of `batches`.

        On the CPU this process gathers them itself: that takes a thousandth of a step, and a worker would take a core from the network.
        """
        count = workers if workers is not None else min(default_workers(), GPU_LOADER_WORKERS) if on_gpu else 0
        ahead: dict[str, Any] = {"prefetch_factor": GPU_BATCHES_AHEAD, "persistent_workers": True} if count else {}
        # Without a generator of its own it draws from torch's, and how often depends on the workers: dropout would draw other numbers.
        ahead["generator"] = torch.Generator()
        return DataLoader(self, batch_size=None, sampler=batches, num_workers=count, pin_memory=on_gpu, **ahead)


class BatchSampler(Sampler[Pairs]):
    """Batches of (epoch, position) pairs: shuffled by seed and epoch alone, or all in their order where there is no seed.

    `drop_single` leaves out a last batch of one image: batch norm cannot be trained on it.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
        drop_single: bool = False,
    ) -> None:
        self.images = size - 1 if drop_single and size % batch_size == 1 else size
        self._size, self._batch_size, self._seed, self._epoch = size, batch_size, seed, epoch

    def __len__(self) -> int:
        return -(-self.images // self._batch_size)

    def __iter__(self) -> Iterator[Pairs]:
        epoch = self._epoch()
        order = np.arange(self._size)
        if self._seed is not None:
            order = np.random.default_rng((self._seed, epoch)).permutation(self._size)
        for begin in range(0, self.images, self._batch_size):
            yield [(epoch, item) for item in order[begin : min(begin + self._batch_size, self.images)].tolist()]


def standardised(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """`transforms.intensity.Standardized` for a batch, channels last: (n, 1 or c, rows, columns) in 0-1 to (n, c, rows, columns)."""
    expanded = images.expand(-1, len(mean), -1, -1)
    means, stds = (_on_device(tuple(values), images.device) for values in (mean, std))
    return expanded.sub(means).div_(stds).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Copied once: a copy from ordinary memory in each step would wait for all that the device still has to do."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).to(device)
