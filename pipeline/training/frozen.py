"""Frozen features and a new head: what comes before the head is computed once, and the head is then trained in seconds.

Through the trunk, batch norm in evaluation mode, go the images as they are, or K varied copies of each: those that `training.feed` would
give in epochs 1 to K; epoch e of the training takes copy (e - 1) mod K + 1. For a linear head the vectors (images, d) are kept that it
pools, in float32; for a conv head the maps (images, d, rows, columns), in float16. `FrozenHead` trains the classifier's own
parameters, under the classifier's own names.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.errors import RunError
from pipeline.networks.model import Classifier
from pipeline.prepared.cache_folder import size_text
from pipeline.progress import track
from pipeline.training.feed import EPOCHS_APART, Batch, LabelledImages, Labels, Pairs
from pipeline.wording import counted
from transforms.augment import Augmentations

IN_MEMORY_BYTES = 2 * 2**30
"""Of a split's features; more are kept in a file. 260,000 images' vectors of a ResNet50, or 10,000 images' maps at 224 pixels."""
VECTORS_TYPE, MAPS_TYPE = np.dtype(np.float32), np.dtype(np.float16)
"""float16 rounds a value by 1/2048 at most. It changed the loss after 12 epochs of a conv head by 0.8 %, another number of threads by 4.5 %
(benchmarks/frozen_speed.py); bfloat16, in which a GPU computes the maps, rounds by 1/256."""
_NO_AUGMENTATION = Augmentations()
_FULL = (errno.ENOSPC, errno.EDQUOT)

Features = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class LabelledFeatures(Dataset[Batch]):
    """One split's features (copies, images, d) or (copies, images, d, rows, columns), of which each epoch takes one copy, with their
    labels (images,) or (images, classes).
    """

    features: Features
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, pairs: Pairs) -> Batch:
        """A whole batch, in the order of `pairs`: features and labels."""
        epochs, items = np.array(pairs, dtype=np.int64).T
        repetition, epoch = np.divmod(epochs, EPOCHS_APART)  # an item drawn again in an epoch is another copy
        copies = (epoch - 1 + repetition) % len(self.features)
        return {
            "features": torch.from_numpy(self.features[copies, items]),
            "label": torch.from_numpy(self.labels[items]),
        }

    def input(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """MONAI's `prepare_batch`: float32 features and labels, on the device."""
        features = batch["features"].to(device, non_blocking=non_blocking).float()
        return features, batch["label"].to(device, non_blocking=non_blocking)

    def loader(self, batches: Sampler[Pairs], *, on_gpu: bool) -> DataLoader[Batch]:
        """Batches in the order of `batches`, gathered in this process: that takes a fraction of a millisecond."""
        # A generator of its own: from torch's it would take numbers that are dropout's.
        return DataLoader(
            self, batch_size=None, sampler=batches, num_workers=0, pin_memory=on_gpu, generator=torch.Generator()
        )


class FrozenHead(nn.Module):
    """The head of a classifier as a network of its own: features (batch, d) or (batch, d, rows, columns) to logits (batch, k).

    Its modules are the classifier's, under the classifier's names; its state is that part of the classifier's which training changes:
    `classifier.load_state_dict({**classifier.state_dict(), **state})` puts it back, and a checkpoint is small.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.block, self.dropout, self.head = classifier.block, classifier.dropout, classifier.head

    @property
    def groups(self) -> list[list[nn.Parameter]]:
        """The head is the only stage."""
        return [list(self.parameters())]

    def set_trainable(self, _: int | None) -> None:
        """It learns, always."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = features if features.ndim == 2 else self.block(features).mean(dim=(2, 3))
        return self.head(self.dropout(pooled))


def frozen_features(
    classifier: Classifier,
    training: LabelledImages,
    validation: LabelledImages,
    copies: int,
    batch_size: int,
    device: torch.device,
    progress: bool,
    folder: Path | None = None,
) -> tuple[LabelledFeatures, LabelledFeatures, FrozenHead]:
    """Features of both splits, and the head to be trained on them. `copies` 0, or images that are not varied: as they are.

    What exceeds `IN_MEMORY_BYTES` goes to a file in `folder` (None: that of temporary files) that has no name there, and is gone with
    the features or with the process.
    Raises RunError where the disk is full, or a feature is no number.
    """
    classifier.to(device).to(memory_format=torch.channels_last)
    classifier.eval()
    place = Path(tempfile.gettempdir()) if folder is None else folder
    varied = copies > 0 and training.augmentation != _NO_AUGMENTATION
    training = training if varied else replace(training, augmentation=_NO_AUGMENTATION)
    kept = []
    for images, count, what in ((training, copies if varied else 1, "training"), (validation, 1, "validation")):
        batches = _Copies(len(images), count, batch_size)
        features = _features(classifier, images, batches, device)
        shown = track(features, f"features of {what} images", len(images) * count, show=progress, size=len)
        table = _kept(shown, len(images) * count, place, what)
        kept.append(LabelledFeatures(table.reshape(count, len(images), *table.shape[1:]), images.labels))
    return kept[0], kept[1], FrozenHead(classifier)


class _Copies(Sampler[Pairs]):
    """All images in their order, in batches, as in epochs 1 to `copies`."""

    def __init__(self, size: int, copies: int, batch_size: int) -> None:
        self._size, self._copies, self._batch_size = size, copies, batch_size

    def __len__(self) -> int:
        return self._copies * -(-self._size // self._batch_size)

    def __iter__(self) -> Iterator[Pairs]:
        for epoch in range(1, self._copies + 1):
            for begin in range(0, self._size, self._batch_size):
                yield [(epoch, item) for item in range(begin, min(begin + self._batch_size, self._size))]


def _features(
    classifier: Classifier, images: LabelledImages, batches: _Copies, device: torch.device
) -> Iterator[NDArray[np.float32]]:
    """(batch, d, rows, columns) of each batch; (batch, d) where nothing but their mean goes to the head."""
    on_gpu = device.type == "cuda"
    for batch in images.loader(batches, on_gpu=on_gpu):
        inputs, _ = images.input(batch, device, on_gpu)
        with torch.inference_mode():
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=on_gpu):
                maps = classifier.trunk(inputs)
            maps = maps.float()
            if isinstance(classifier.block, nn.Identity):
                maps = classifier.pooled(maps)
        yield maps.contiguous().cpu().numpy()


def _kept(features: Iterator[NDArray[np.float32]], count: int, folder: Path, what: str) -> NDArray[np.floating[Any]]:
    """All batches one after the other, in memory or in a file."""
    first = next(features)
    shape = (count, *first.shape[1:])
    dtype = VECTORS_TYPE if len(shape) == 2 else MAPS_TYPE
    parts = (_as(dtype, part) for part in chain([first], features))
    if int(np.prod(shape)) * dtype.itemsize > IN_MEMORY_BYTES:
        return _in_file(parts, shape, dtype, folder, what)
    table = np.empty(shape, dtype=dtype)
    begin = 0
    for part in parts:
        table[begin : begin + len(part)] = part
        begin += len(part)
    return table


def _as(dtype: np.dtype[Any], part: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    with np.errstate(over="ignore"):
        converted = cast(NDArray[np.floating[Any]], part.astype(dtype, copy=False))
    if not np.isfinite(converted).all():
        raise RunError(
            f"the network's features are expected to be numbers up to {np.finfo(dtype).max:g}, found {np.abs(part).max():g}; "
            "its weights do not fit these images: look at network.weights and preprocessing.normalization"
        )
    return converted


def _in_file(
    parts: Iterator[NDArray[np.floating[Any]]], shape: tuple[int, ...], dtype: np.dtype[Any], folder: Path, what: str
) -> NDArray[np.floating[Any]]:
    """Written, not mapped, while it grows: a full disk is then an error, and not the end of the process (SIGBUS)."""
    needed = int(np.prod(shape)) * dtype.itemsize
    folder.mkdir(parents=True, exist_ok=True)
    if needed > shutil.disk_usage(folder).free:
        raise _no_room(folder, shape[0], needed, what)
    with tempfile.TemporaryFile(dir=folder, prefix=".features.") as file:
        try:
            for part in parts:
                file.write(np.ascontiguousarray(part).data)
            file.flush()
        except OSError as error:
            if error.errno in _FULL:
                raise _no_room(folder, shape[0], needed, what) from error
            raise
        return np.memmap(file, dtype=dtype, mode="r", shape=shape)


def _no_room(folder: Path, count: int, needed: int, what: str) -> RunError:
    free = size_text(shutil.disk_usage(folder).free)
    return RunError(
        f"{folder}: the features of {counted(count, f'{what} image')} need {size_text(needed)}, and {free} are free there; "
        "make room, lower training.feature_copies or preprocessing.size, or set network.head: linear"
    )
