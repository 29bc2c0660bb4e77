"""Images to network input: a file decoded and prepared in a worker, and prepared images to training batches.

A prepared image is (1, size, size) float32 in 0-1 with the (2, 3) affine from its pixels to the file's; `shown` is the whole
frame in 0-1 at its own resolution, as 8 bits, for pictures. Everything random happens later, in `TrainingImages`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.transforms import Compose
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from pipeline.columns import text
from pipeline.config import Augmentation, Config, CustomWindow, Preprocessing
from pipeline.dicom.pixels import read_pixels
from pipeline.errors import Rejected, RejectReason
from pipeline.files import file_digest, status_of
from pipeline.nifti import read_nifti
from pipeline.raster import read_raster
from pipeline.work import Failure, default_workers, preload, run_each
from transforms.chains import (
    GRAY_MEAN,
    GRAY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    KEY,
    evaluate_chain,
    prepare_chain,
    train_chain,
)
from transforms.intensity import WINDOWS, Pixels, Voi, to_metatensor, to_unit_range
from transforms.spatial import index_affine

DECODE_TIMEOUT_S = 120.0
"""A frame decodes in well under a second; one that takes this long is hostile, or its disk is gone."""
DECODE_MEMORY_BYTES = 6 * 2**30
"""Above a worker's own size: the largest radiograph needs some hundred MB."""
HOUNSFIELD_MODALITY = "CT"
"""Values of a NIfTI of this modality are HU, as every converter from DICOM leaves them; its header cannot say so itself."""

preload(
    __name__
)  # torch and MONAI take a worker seconds to import; whoever imports this module will start such workers


@dataclass(frozen=True)
class ImageFile:
    """One frame of one file, as the index found it. `modality`: as the header or the manifest's facts tell it, '' if neither does."""

    case_id: str
    source: str
    path: str
    location: Path
    format: str
    frame: int
    bytes: int
    mtime_ns: int
    modality: str = ""


@dataclass(frozen=True)
class Prepared:
    """The deterministic chain's result for one frame."""

    image: NDArray[np.float32]  # (1, size, size)
    affine: NDArray[np.float64]  # (2, 3)
    source_shape: tuple[int, int]
    shown: NDArray[np.uint8] | None
    spacing_mm: tuple[float, float] | None
    digest: str
    """sha256 of the whole file, where `shown` was asked for: what is written of an image names its content."""


@dataclass(frozen=True)
class Preparer:
    """Decodes a frame and runs the deterministic chain on it; picklable, for worker processes."""

    preprocessing: Preprocessing
    keep_shown: bool = False

    def __call__(self, image: ImageFile) -> Prepared:
        """Raises Rejected with the reason for which a file cannot be decoded."""
        pixels = read_image(image)
        chain = _prepare_chain(self.preprocessing)
        prepared = chain({KEY: to_metatensor(pixels)})[KEY]
        shown = to_unit_range(pixels, window_of(self.preprocessing)) if self.keep_shown else None
        return Prepared(
            image=np.ascontiguousarray(prepared.numpy(), dtype=np.float32),
            affine=index_affine(prepared),
            source_shape=(pixels.values.shape[0], pixels.values.shape[1]),
            shown=None if shown is None else np.rint(shown * 255.0).astype(np.uint8),
            spacing_mm=pixels.spacing_mm,
            digest=file_digest(image.location) if self.keep_shown else "",
        )


def read_image(image: ImageFile) -> Pixels:
    """The frame's pixels; Rejected if it cannot be decoded or is no longer the file that was indexed."""
    if status_of(image.location) != (image.bytes, image.mtime_ns):
        raise Rejected(RejectReason.CHANGED, "its size or time is not the one in the index; index the source again")
    if image.format == "dicom":
        return read_pixels(image.location, image.frame)
    if image.format == "nifti":
        return read_nifti(image.location, image.frame, hounsfield=image.modality == HOUNSFIELD_MODALITY)
    return read_raster(image.location, image.frame)


def image_files(images: pd.DataFrame, roots: dict[str, Path]) -> list[ImageFile]:
    """One ImageFile a row, in the table's order."""
    columns = ["case_id", "source", "path", "format", "frame", "bytes", "mtime_ns"]
    modalities = text(images["modality"]) if "modality" in images else [""] * len(images)
    return [
        ImageFile(case_id, source, path, roots[source] / path, file_format, int(frame), int(size), int(mtime), modality)
        for (case_id, source, path, file_format, frame, size, mtime), modality in zip(
            images[columns].itertuples(index=False, name=None), modalities, strict=True
        )
    ]


def prepare_all(
    files: Iterable[ImageFile], preparer: Preparer, workers: int | None = None
) -> Iterator[tuple[ImageFile, Prepared | Failure]]:
    """Each file with its prepared image or its failure, in order, decoded in worker processes under a budget."""
    count = workers if workers is not None else default_workers()
    return run_each(
        preparer, files, workers=count, timeout_s=DECODE_TIMEOUT_S, memory_bytes=DECODE_MEMORY_BYTES, chunk=4
    )


def window_of(preprocessing: Preprocessing) -> Voi:
    """The window in HU, named or custom."""
    window = preprocessing.window
    return Voi(center=window.center, width=window.width) if isinstance(window, CustomWindow) else WINDOWS[window]


def input_statistics(preprocessing: Preprocessing, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the network's input, one a channel."""
    normalization = preprocessing.normalization
    if normalization == "none":
        return (0.0,) * channels, (1.0,) * channels
    if normalization == "imagenet":
        return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GRAY_MEAN, GRAY_STD)
    return normalization.mean, normalization.std


def training_chain(config: Config) -> Compose:
    """From a prepared image to a random variant of it, standardised."""
    mean, std = input_statistics(config.preprocessing, config.network.channels)
    augmentation: Augmentation = config.augmentation
    return train_chain(size=config.preprocessing.size, mean=mean, std=std, **augmentation.model_dump())


def input_chain(mean: Sequence[float], std: Sequence[float]) -> Compose:
    """From a prepared image to the network's input."""
    return evaluate_chain(mean=mean, std=std)


@lru_cache(maxsize=2)
def _prepare_chain(preprocessing: Preprocessing) -> Compose:
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # one worker a core: threads inside would only fight
    return prepare_chain(
        window=window_of(preprocessing),
        size=preprocessing.size,
        resize=preprocessing.resize,
        min_max=preprocessing.scaling == "min_max",
    )


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, position) pairs in an order that depends on seed and epoch alone, so that a resumed run draws the same."""

    def __init__(self, size: int, seed: int, epoch: Callable[[], int]) -> None:
        self.size, self.seed, self.epoch = size, seed, epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch()
        order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
        return iter([(epoch, int(position)) for position in order])


class TrainingImages(Dataset):
    """Labelled images, rows `rows` of the prepared ones, through a chain.

    With a seed each (seed, epoch, item) gives the same variant, whatever the workers.
    """

    def __init__(
        self,
        images: NDArray[np.float32],
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        chain: Compose,
        seed: int | None = None,
    ) -> None:
        self.images, self.rows, self.labels, self.chain, self.seed = images, rows, labels, chain, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, item = key if isinstance(key, tuple) else (0, key)
        if self.seed is not None:
            state = np.random.SeedSequence((self.seed, epoch, item)).generate_state(1)[0]
            self.chain.set_random_state(seed=int(state))
        image = self.chain({KEY: torch.from_numpy(np.array(self.images[self.rows[item]]))})[KEY]
        return {"image": image, "label": torch.tensor(self.labels[item])}
