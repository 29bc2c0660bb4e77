"""Decode once: prepared images as fixed-size arrays on disk, memory-mapped.

The folder's name is a digest of the files' identity (path, size, time, frame), the chain and radloop's version, so a changed file or
parameter never meets an old array. It is filled aside and renamed, so a cache that is there is complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import pipeline
from pipeline.config import digest
from pipeline.dataset import ImageFile, Preparer, prepare_all
from pipeline.progress import track
from pipeline.work import Failure

IMAGES_FILE = "images.npy"
FAILURES_FILE = "failures.csv"


@dataclass(frozen=True)
class PreparedImages:
    """`images` (n, 1, size, size) float32 in 0-1, memory-mapped; `failures` has position, reason, detail of those not decoded."""

    images: NDArray[np.float32]
    failures: pd.DataFrame

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(n,) whether the image was decoded."""
        usable = np.ones(len(self.images), dtype=bool)
        usable[self.failures["position"].to_numpy(dtype=int)] = False
        return usable


def prepared_images(
    folder: Path, files: Sequence[ImageFile], preparer: Preparer, *, what: str, progress: bool
) -> PreparedImages:
    """The prepared images of `files`, from `folder` if they are there, else decoded into it."""
    target = folder / _key(files, preparer)
    if not target.is_dir():
        aside = folder / f".{target.name}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _fill(aside, files, preparer, what, progress)
        try:
            aside.rename(target)
        except OSError:  # another process was first; its arrays are the same
            shutil.rmtree(aside)
    return PreparedImages(
        np.load(target / IMAGES_FILE, mmap_mode="r"), pd.read_csv(target / FAILURES_FILE, keep_default_na=False)
    )


def _fill(folder: Path, files: Sequence[ImageFile], preparer: Preparer, what: str, progress: bool) -> None:
    size = preparer.preprocessing.size
    images = np.lib.format.open_memmap(
        folder / IMAGES_FILE, mode="w+", dtype=np.float32, shape=(len(files), 1, size, size)
    )
    failures = []
    for position, (_, outcome) in enumerate(track(prepare_all(files, preparer), what, len(files), show=progress)):
        if isinstance(outcome, Failure):
            failures.append((position, outcome.reason.value, outcome.detail))
        else:
            images[position] = outcome.image
    images.flush()
    pd.DataFrame(failures, columns=["position", "reason", "detail"]).to_csv(folder / FAILURES_FILE, index=False)


def _key(files: Sequence[ImageFile], preparer: Preparer) -> str:
    state = hashlib.sha256(f"{pipeline.__version__}\x1f{digest(preparer.preprocessing)}".encode())
    for file in files:
        modality = file.modality if file.format == "nifti" else ""  # says what the numbers of a NIfTI count
        identity = (file.source, file.path, file.frame, file.bytes, file.mtime_ns, modality)
        state.update(("\x1e" + "\x1f".join(map(str, identity))).encode("utf-8", "surrogateescape"))
    return state.hexdigest()[:32]
