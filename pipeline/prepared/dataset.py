"""Files to prepared images: each decoded and run through the deterministic chain, in worker processes.

A prepared image is (k, size, size) uint16, the levels of 0-1 (`transforms.levels`), k the windows or colours, with the (2, 3) affine from
its pixels to the file's; `shown` is the whole frame in gray at its own resolution, as 8 bits, for pictures. What is prepared is the
same whether it comes from the cache (`pipeline.prepared.cache`) or not; everything random happens later, in `pipeline.training.feed`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.transforms import Compose
from numpy.typing import NDArray

from pipeline.columns import text
from pipeline.config import CustomWindow, Preprocessing, Window
from pipeline.dicom.pixels import open_frames, read_pixels
from pipeline.errors import Rejected, RejectReason
from pipeline.files import file_digest, status_of
from pipeline.nifti import read_nifti
from pipeline.raster import luma, read_raster
from pipeline.work import Failure, default_workers, preload, run_each
from transforms.chains import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD, KEY, prepare_chain
from transforms.intensity import WINDOWS, Z_RANGE, Pixels, Voi, to_levels, to_metatensor, to_unit_range
from transforms.spatial import index_affine
from transforms.stress import STRESSES

DECODE_TIMEOUT_S = 120.0
"""A frame decodes in well under a second; one that takes this long is hostile, or its disk is gone."""
DECODE_MEMORY_BYTES = 6 * 2**30
"""Above a worker's own size: the largest radiograph needs some hundred MB."""
FILES_A_TURN = 4
"""Files that a worker takes at once."""
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

    image: NDArray[np.uint16]  # (k, size, size)
    affine: NDArray[np.float64]  # (2, 3)
    source_shape: tuple[int, int]
    shown: NDArray[np.uint8] | None
    spacing_mm: tuple[float, float] | None
    digest: str
    """sha256 of the whole file, where `shown` was asked for: what is written of an image names its content."""


@dataclass(frozen=True)
class Preparer:
    """Decodes a frame and runs the deterministic chain on it; picklable, for worker processes.

    `stress`: the name of one of `transforms.stress.STRESSES`, applied to what was read; the affine and the picture are then those of
    the changed frame.
    """

    preprocessing: Preprocessing
    keep_shown: bool = False
    stress: str = ""

    def __post_init__(self) -> None:
        if self.stress and self.stress not in STRESSES:
            raise ValueError(f"stress: expected one of {', '.join(STRESSES)}, found {self.stress!r}")

    def __call__(self, image: ImageFile) -> Prepared:
        """Raises Rejected with the reason for which a file cannot be decoded."""
        settings = self.preprocessing
        pixels = read_image(image, color=settings.color == "rgb")
        if self.stress:
            pixels = STRESSES[self.stress].apply(pixels)
        prepared = _prepare_chain(settings)({KEY: to_metatensor(pixels)})[KEY]
        values = prepared.as_tensor().numpy()
        if not np.isfinite(values).all():
            raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "some of its values are not finite numbers")
        return Prepared(
            image=_channels(to_levels(values), settings.channels),
            affine=index_affine(prepared),
            source_shape=(pixels.values.shape[0], pixels.values.shape[1]),
            shown=shown_gray(pixels, settings) if self.keep_shown else None,
            spacing_mm=pixels.spacing_mm,
            digest=_digest(image.location, image.bytes, image.mtime_ns) if self.keep_shown else "",
        )


def read_image(image: ImageFile, *, color: bool = False) -> Pixels:
    """The frame's pixels, RGB of a colour image where `color` asks for it; Rejected if it cannot be decoded or is no longer the
    file that was indexed.
    """
    check_unchanged(image)
    if image.format == "dicom":
        return _held.reader(image, color)(image.frame) if image.frame else read_pixels(image.location, color=color)
    if image.format == "nifti":
        return read_nifti(image.location, image.frame, hounsfield=image.modality == HOUNSFIELD_MODALITY)
    return read_raster(image.location, image.frame, color=color)


class _Held:
    """The multi-frame file that this process read last, kept open: to open one of 10,000 frames takes a quarter of a second."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._stack = ExitStack()
        self._read: Callable[[int], Pixels]

    def reader(self, image: ImageFile, color: bool) -> Callable[[int], Pixels]:
        """What reads a frame of the image's file."""
        key = (image.location, image.bytes, image.mtime_ns, color)
        if key != self._key:
            self._stack.close()
            self._key = ()
            self._read = self._stack.enter_context(open_frames(image.location, color=color))
            self._key = key
        return self._read


_held = _Held()


@lru_cache(maxsize=4)
def _digest(location: Path, size: int, mtime_ns: int) -> str:
    """sha256 of a file, once for all of its frames: `size` and `mtime_ns` say which state of it."""
    return file_digest(location)


def check_unchanged(image: ImageFile) -> None:
    """Rejected if the file is not the one that was indexed, by its size and time, or is gone."""
    if status_of(image.location) != (image.bytes, image.mtime_ns):
        raise Rejected(RejectReason.CHANGED, "its size or time is not the one in the index; index the source again")


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
) -> Generator[tuple[ImageFile, Prepared | Failure], None, None]:
    """Each file with its prepared image or its failure, in order, decoded in worker processes under a budget."""
    count = workers if workers is not None else default_workers()
    return run_each(
        preparer,
        files,
        workers=count,
        timeout_s=DECODE_TIMEOUT_S,
        memory_bytes=DECODE_MEMORY_BYTES,
        chunk=FILES_A_TURN,
    )


def windows_of(preprocessing: Preprocessing) -> tuple[Voi, ...]:
    """The windows in HU, named or custom: one, or one for each of three channels."""
    window = preprocessing.window
    return tuple(map(_voi_of, window if isinstance(window, tuple) else (window,)))


def input_statistics(preprocessing: Preprocessing, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the network's input, one a channel."""
    normalization = preprocessing.normalization
    if preprocessing.scaling == "z_score":  # which is in 0-1 as z / (2 Z_RANGE) + 1/2: this gives z back
        return (0.5,) * channels, (0.5 / Z_RANGE,) * channels
    if normalization == "none":
        return (0.0,) * channels, (1.0,) * channels
    if normalization == "imagenet":
        return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GRAY_MEAN, GRAY_STD)
    return normalization.mean, normalization.std


def _voi_of(window: Window) -> Voi:
    return Voi(center=window.center, width=window.width) if isinstance(window, CustomWindow) else WINDOWS[window]


def _channels(levels: NDArray[np.uint16], count: int) -> NDArray[np.uint16]:
    """A gray image among colours is three times the same."""
    return levels if len(levels) == count else np.repeat(levels, count, axis=0)


def shown_gray(pixels: Pixels, settings: Preprocessing) -> NDArray[np.uint8]:
    """(rows, columns) the frame as a reader should see it: through the first window or the file's VOI, 0 black to 255 white."""
    shown = to_unit_range(pixels, windows_of(settings)[0], voi=settings.voi)
    gray = luma(shown, 1.0) if shown.ndim == 3 else shown
    return np.rint(gray * 255.0).astype(np.uint8)


@lru_cache(maxsize=2)
def _prepare_chain(preprocessing: Preprocessing) -> Compose:
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # one worker a core: threads inside would only fight
    return prepare_chain(
        windows=windows_of(preprocessing),
        voi=preprocessing.voi,
        crop=preprocessing.crop,
        size=preprocessing.size,
        resize=preprocessing.resize,
        scaling=preprocessing.scaling,
        percentiles=preprocessing.percentiles,
        enhancement=preprocessing.enhancement.model_dump(),
    )
