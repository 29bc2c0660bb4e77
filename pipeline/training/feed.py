"""Prepared images to batches of network input: gathered as levels, moved to the device, and only there varied and standardised.

A batch is asked for as (epoch, position) pairs, which alone decide it: a resumed run, any number of loader workers and any number of
processes that share the same parts of a step give the same (noise and mixup are drawn by part). `TrainingData` is all that a fit knows
of its data. Images are (batch, channels, rows, columns); levels uint16, half the bytes of what the network gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
Labels = NDArray[np.int64] | NDArray[np.float32]
"""(n,) class numbers, or (n, k) of 0 and 1 where an image may have several."""

GPU_LOADER_WORKERS, GPU_BATCHES_AHEAD = 4, 3
"""For a GPU: gathering a batch of 32 takes a worker a millisecond or two from memory. Twelve batches ahead ride over a slow disk, and
fit the 64 MB of shared memory that a container has by default."""
_NO_AUGMENTATION = Augmentations()


EPOCHS_APART = 1_000_000
"""Between the epoch numbers of an image that is drawn more than once in an epoch: each time it is varied otherwise."""


class TrainingData(Protocol):
    """What a fit knows of the images, bags of images or kept features that it trains on."""

    @property
    def labels(self) -> Labels:
        """One row an item."""

    def __len__(self) -> int:
        """Items."""

    def __getitem__(self, pairs: Pairs) -> Batch:
        """The batch of these (epoch, item) pairs."""

    def input(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's input and the labels, on the device."""

    def loader(self, batches: Sampler[Pairs], *, on_gpu: bool) -> Iterable[Batch]:
        """One batch for each list of pairs that `batches` gives."""


class Levels(Protocol):
    """Where images come from: `pipeline.prepared.cache.PreparedImages`."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        """(len(rows), channels, size, size) levels."""


@dataclass(frozen=True, eq=False)
class LabelledImages(Dataset[Batch]):
    """One split: positions `rows` (n,) of `images` with their labels, (n,) or (n, k), and how they become network input.

    With `augmentation` each (seed, epoch, item) has its own variant; from the epoch `plain_from` on it is at most mirrored.
    """

    images: Levels
    rows: NDArray[np.int64]
    labels: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentations = _NO_AUGMENTATION
    seed: int = 0
    plain_from: int | None = None

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
        return batch | {
            "numbers": _numbers(self.seed, epochs, items),
            "noise_seed": noise_seed(self.seed, int(epochs[0]), items),
            "plain": is_plain(int(epochs[0]), self.plain_from),
        }

    def input(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """MONAI's `prepare_batch`: the network's input, channels last, and the labels, on the device."""
        images = from_levels(batch["levels"].to(device, non_blocking=non_blocking))
        if "numbers" in batch:
            drawn = draw(varied_in(self.augmentation, batch["plain"]), np.asarray(batch["numbers"]))
            images = augment_batch(images, drawn, noise_seed=batch["noise_seed"])
        return standardised(images, self.mean, self.std), batch["label"].to(device, non_blocking=non_blocking)

    def loader(self, batches: Sampler[Pairs], *, on_gpu: bool, workers: int | None = None) -> DataLoader[Batch]:
        """Batches in the order of `batches`.

        On the CPU this process gathers them itself: that takes a thousandth of a step, and a worker would take a core from the network.
        """
        count = workers if workers is not None else min(default_workers(), GPU_LOADER_WORKERS) if on_gpu else 0
        ahead: dict[str, Any] = {"prefetch_factor": GPU_BATCHES_AHEAD, "persistent_workers": True} if count else {}
        # Without a generator of its own it draws from torch's, and how often depends on the workers: dropout would draw other numbers.
        ahead["generator"] = torch.Generator()
        return DataLoader(self, batch_size=None, sampler=batches, num_workers=count, pin_memory=on_gpu, **ahead)


def is_plain(epoch: int, plain_from: int | None) -> bool:
    """Whether `epoch` of a pair (from 1, more where an item comes again) is one in which images are at most mirrored."""
    return plain_from is not None and epoch % EPOCHS_APART >= plain_from


def varied_in(augmentation: Augmentations, plain: bool) -> Augmentations:
    """What varies an image; in a plain epoch mirrors alone, as whatever moves it by less than a pixel softens it."""
    if not plain:
        return augmentation
    return Augmentations(flip_horizontal=augmentation.flip_horizontal, flip_vertical=augmentation.flip_vertical)


@dataclass(frozen=True)
class Place:
    """Where a batch stands in its epoch."""

    step: int
    """Of the epoch, from 0."""
    part: int
    """Of the step, from 0, over all processes."""
    images: int
    """Of the step, over all processes and parts."""
    first: bool
    """Of this process's parts of the step."""
    last: bool
    """Of this process's parts of the step."""


class BatchSampler(Sampler[Pairs]):
    """This process's batches of (epoch, item) pairs, in an order that seed and epoch alone decide.

    A step takes `batch_size` images in `accumulate` * `processes` parts of (nearly) one size; a batch is one part. What is left at an
    epoch's end is a step of as many parts as have two images at least, or is left out: batch norm cannot be trained on one image.
    With `strata`, each a list of items, an epoch draws from each alike, with replacement.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        epoch: Callable[[], int],
        accumulate: int = 1,
        processes: int = 1,
        rank: int = 0,
        strata: Sequence[NDArray[np.int64]] = (),
    ) -> None:
        self._size, self._batch_size, self._seed, self._epoch, self._strata = size, batch_size, seed, epoch, strata
        self._accumulate, self._processes, self._rank = accumulate, processes, rank
        whole, rest = divmod(size, batch_size)
        self._rest_parts = min(accumulate, rest // 2 // processes)
        """This process's parts of the last step."""
        self._whole = whole
        self.images = size if self._rest_parts else whole * batch_size
        """Of an epoch, over all processes."""
        self.steps = whole + (1 if self._rest_parts else 0)
        """Of an epoch."""

    def __len__(self) -> int:
        return self._whole * self._accumulate + self._rest_parts

    def __iter__(self) -> Iterator[Pairs]:
        epochs, items = self._drawn(self._epoch())
        pairs = list(zip(epochs.tolist(), items.tolist(), strict=True))
        for step in range(self.steps):
            parts = self._accumulate if step < self._whole else self._rest_parts
            begin, end = step * self._batch_size, min((step + 1) * self._batch_size, self.images)
            bounds = np.linspace(begin, end, parts * self._processes + 1).round().astype(int).tolist()
            for part in range(self._rank * parts, (self._rank + 1) * parts):
                yield pairs[bounds[part] : bounds[part + 1]]

    def place(self, number: int) -> Place:
        """Of this process's batch `number` of an epoch, from 0."""
        step = min(number // self._accumulate, self._whole)
        here = number - step * self._accumulate
        parts = self._accumulate if step < self._whole else self._rest_parts
        images = self._batch_size if step < self._whole else self.images - self._whole * self._batch_size
        return Place(step, self._rank * parts + here, images, here == 0, here == parts - 1)

    def _drawn(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(size,) epochs and items in the epoch's order; an item that comes again has another epoch, so another variant."""
        random = np.random.default_rng((self._seed, epoch))
        if not self._strata:
            return np.full(self._size, epoch), random.permutation(self._size)
        shares = np.array_split(np.arange(self._size), len(self._strata))
        draws = [random.choice(items, len(share)) for items, share in zip(self._strata, shares, strict=True)]
        items = random.permutation(np.concatenate(draws))
        return epoch + EPOCHS_APART * _repetition(items), items


class InOrder(Sampler[Pairs]):
    """This process's batches of all items in their order, for validation: items rank, rank + processes, ... of `size`.

    Every process has as many: the last ones begin again at the first item where the items do not come out even.
    """

    def __init__(self, size: int, batch_size: int, *, processes: int = 1, rank: int = 0) -> None:
        self._items = [item % size for item in range(rank, -(-size // processes) * processes, processes)]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._items) // self._batch_size)

    def __iter__(self) -> Iterator[Pairs]:
        for begin in range(0, len(self._items), self._batch_size):
            yield [(0, item) for item in self._items[begin : begin + self._batch_size]]


def strata(labels: Labels) -> list[NDArray[np.int64]]:
    """The items of each class; where an item may have several labels, those with each, and those with none."""
    if labels.ndim == 1:
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        members = [np.flatnonzero(column > 0) for column in labels.T] + [np.flatnonzero(labels.sum(axis=1) == 0)]
    return [items for items in members if len(items)]


def _repetition(items: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how often each item came before."""
    order = np.argsort(items, kind="stable")
    ordered = items[order]
    first = np.searchsorted(ordered, ordered)
    result = np.empty_like(items)
    result[order] = np.arange(len(items)) - first
    return result


def _numbers(seed: int, epochs: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float64]:
    """`uniforms` of each (epoch, item)."""
    if (epochs == epochs[0]).all():
        return uniforms(seed, int(epochs[0]), items)
    numbers: NDArray[np.float64] | None = None
    for epoch in np.unique(epochs).tolist():
        drawn = uniforms(seed, epoch, items[epochs == epoch])
        numbers = np.empty((len(items), drawn.shape[1])) if numbers is None else numbers
        numbers[epochs == epoch] = drawn
    assert numbers is not None
    return numbers


def standardised(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """`transforms.intensity.Standardized` for a batch, channels last: (n, 1 or c, rows, columns) in 0-1 to (n, c, rows, columns)."""
    expanded = images.expand(-1, len(mean), -1, -1)
    means, stds = (_on_device(tuple(values), images.device) for values in (mean, std))
    return expanded.sub(means).div_(stds).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Copied once: a copy from ordinary memory in each step would wait for all that the device still has to do."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).to(device)
