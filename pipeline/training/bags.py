"""Cases of many images to batches of network input: bags that a network with attention weighs, or volumes for a 3-D network.

Axes: levels of a bag (batch, n, k, rows, columns), of a volume (batch, k, depth, rows, columns); network input has channels c for k. A
training bag is a sample of the case's images, drawn anew each epoch; a validation bag is the whole case, one a batch, since cases
differ in their number of images. A volume is the whole case resampled to its depth, always. As in `training.feed`, (seed, epoch, item)
alone decide a sample and its variant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from pipeline.prediction.volume_evidence import resampled_slices
from pipeline.training.feed import Batch, Labels, Levels, Pairs, is_plain, standardised, varied_in
from transforms.augment import Augmentations, augment_batch, draw, noise_seed, uniforms
from transforms.intensity import from_levels

GPU_BAGS_AHEAD = 2
"""Batches that a thread reads ahead for a GPU. No processes as `training.feed` has them: a batch of 16 bags of 24 images is 39 MB, and a
container has 64 MB of shared memory by default; reading lets go of Python's lock."""
CHUNK, DEVICE_BYTES = 64, 2**30
"""Images of a whole bag that are standardised at once; the size up to which it goes to a GPU: 5,000 images of 224 x 224 pixels."""
_NO_AUGMENTATION = Augmentations()


@dataclass(frozen=True, eq=False)
class LabelledBags(Dataset[Batch]):
    """One split: for each case the positions of its images in their order, and its label; `labels` (cases,) or (cases, classes).

    `pooling` attention: samples of `bag_size` images, or, where it is None, all of them; volume: all, resampled to `bag_size` slices.
    With `augmentation` each (seed, epoch, item) has its own variant, from the epoch `plain_from` on a mirror at most: one draw a case,
    alike for all of its images but for the noise itself. They are of one patient and one scanner, and so is what varies (place, window,
    sharpness); a draw for each image would average out over the bag, and the case would hardly vary at all.
    """

    images: Levels
    cases: Sequence[NDArray[np.int64]]
    labels: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pooling: Literal["attention", "volume"]
    bag_size: int | None
    augmentation: Augmentations = _NO_AUGMENTATION
    seed: int = 0
    plain_from: int | None = None

    def __post_init__(self) -> None:
        if len(self.cases) != len(self.labels) or any(len(case) == 0 for case in self.cases):
            raise ValueError("expected one label a case, and in each case one image at least")
        if self.bag_size is None and (self.pooling == "volume" or self.augmentation != _NO_AUGMENTATION):
            raise ValueError("whole bags are for attention, and are not varied: expected a bag_size")

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, pairs: Pairs) -> Batch:
        """A whole batch, in the order of `pairs`: levels, labels and, to be varied, what `augment_batch` needs."""
        items = np.array([item for _, item in pairs], dtype=np.int64)
        levels = [self._levels(epoch, item) for epoch, item in pairs]
        batch = {
            "levels": torch.from_numpy(np.stack(levels) if len(levels) > 1 else levels[0][None]),
            "label": torch.from_numpy(self.labels[items]),
        }
        if self.augmentation == _NO_AUGMENTATION:
            return batch
        return batch | {
            "numbers": np.concatenate([uniforms(self.seed, epoch, [item]) for epoch, item in pairs]),
            "noise_seed": noise_seed(self.seed, pairs[0][0], items),
            "plain": is_plain(pairs[0][0], self.plain_from),
        }

    def input(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """MONAI's `prepare_batch`: (batch, n, c, rows, columns) or (batch, c, depth, rows, columns), and the labels, on the device."""
        label = batch["label"].to(device, non_blocking=non_blocking)
        if self.bag_size is None:
            return self._whole(batch["levels"][0], device)[None], label
        images = from_levels(batch["levels"].to(device, non_blocking=non_blocking))
        if self.pooling == "volume":
            images = images.transpose(1, 2)
        cases, count, channels = images.shape[:3]
        if "numbers" in batch:
            drawn = draw(varied_in(self.augmentation, batch["plain"]), np.asarray(batch["numbers"]))
            # As channels of one image, all images of a case share its draw, its grid, and the mean that contrast keeps.
            images = augment_batch(images.flatten(1, 2), drawn, noise_seed=batch["noise_seed"])
        each = standardised(images.reshape(cases * count, channels, *images.shape[-2:]), self.mean, self.std)
        inputs = each.unflatten(0, (cases, count))
        if self.pooling == "volume":
            inputs = inputs.transpose(1, 2).contiguous()
        return inputs, label

    def _whole(self, levels: torch.Tensor, device: torch.device) -> torch.Tensor:
        """(n, c, rows, columns) of levels (n, k, rows, columns), a few at a time; beyond `DEVICE_BYTES` it stays in the host's memory,
        from which `Classifier.forward` takes it by chunks."""
        count, channels, sides = len(levels), len(self.mean), levels.shape[-2:]
        place = device if 4 * count * channels * sides.numel() <= DEVICE_BYTES else torch.device("cpu")
        shape = (count, channels, *sides)
        whole = torch.empty(shape, device=place, memory_format=torch.channels_last)
        for begin in range(0, count, CHUNK):
            chunk = from_levels(levels[begin : begin + CHUNK].to(place))
            whole[begin : begin + CHUNK] = standardised(chunk, self.mean, self.std)
        return whole

    def loader(self, batches: Sampler[Pairs], *, on_gpu: bool) -> BagLoader:
        """Batches in the order of `batches`; of whole bags one case each."""
        return BagLoader(self, batches, ahead=GPU_BAGS_AHEAD if on_gpu else 0, pinned=on_gpu)

    def _levels(self, epoch: int, item: int) -> NDArray[np.uint16]:
        case = self.cases[item]
        if self.pooling == "volume":
            assert self.bag_size is not None  # by __post_init__
            return resampled_slices(lambda places: self.images.take(case[places]), len(case), self.bag_size)
        if self.bag_size is None:
            return self.images.take(case)
        return self.images.take(case[sampled(len(case), self.bag_size, self.seed, epoch, item)])


class BagLoader:
    """Batches of bags, for as many epochs as it is iterated; of whole bags each case is a batch."""

    def __init__(self, bags: LabelledBags, batches: Sampler[Pairs], *, ahead: int, pinned: bool) -> None:
        self._bags, self._batches, self._ahead, self._pinned = bags, batches, ahead, pinned

    def __len__(self) -> int:
        return sum(1 for _ in self._wanted())

    def __iter__(self) -> Iterator[Batch]:
        if not self._ahead:
            yield from map(self._batch, self._wanted())
            return
        with ThreadPoolExecutor(1) as thread:  # one: a reader of blocks is no two threads' at once
            coming: deque[Future[Batch]] = deque()
            for pairs in self._wanted():
                coming.append(thread.submit(self._batch, pairs))
                if len(coming) > self._ahead:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _wanted(self) -> Iterator[Pairs]:
        for pairs in self._batches:
            yield from ([pair] for pair in pairs) if self._bags.bag_size is None else (pairs,)

    def _batch(self, pairs: Pairs) -> Batch:
        batch = self._bags[pairs]
        if self._pinned:
            return batch | {name: batch[name].pin_memory() for name in ("levels", "label")}
        return batch


def sampled(count: int, size: int, seed: int, epoch: int, item: int) -> NDArray[np.int64]:
    """(size,) places of a case's `count` images, in their order, decided by (seed, epoch, item).

    The case, taken as a ring, is cut into `size` stretches of equal length (to one image) from a random place on, and each gives one
    image at random: spread evenly, none twice, and each image comes as often as any other. Of fewer images than
    `size` each comes floor(size / count) times or once more.
    """
    random = np.random.default_rng((seed, epoch, item))
    if count < size:
        places = np.floor((np.arange(size) + random.random()) * (count / size)).astype(np.int64)
        return np.minimum(places, count - 1)  # rounding
    ends = random.integers(count) + np.arange(size + 1) * count // size
    chosen = random.integers(ends[:-1], ends[1:])
    return np.sort(chosen % count)


def positions_by_case(case_ids: Sequence[str], usable: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """For each case the positions of its usable images, in their order; cases of which none is usable are left out.

    `case_ids` (n,) is that of each image, those of a case one after the other, as `pipeline.cohort.cases` sorts them.
    """
    ids = np.asarray(case_ids, dtype=object)
    if len(ids) == 0:
        return {}
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    parts = {
        str(ids[start]): start + np.flatnonzero(usable[start:end])
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)
    }
    if len(parts) != len(starts):
        raise ValueError("expected the images of a case one after the other")
    return {case: positions for case, positions in parts.items() if len(positions)}
