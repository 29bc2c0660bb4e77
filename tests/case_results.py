"""Results of cases that no network made: any sources with a smooth blob of evidence each, for tests of the objects' writers."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.dicom.case_result import CaseResult, Finding, ResultImage
from pipeline.dicom.derived import Algorithm
from pipeline.dicom.source import as_source, frame_count, read_source
from pipeline.profile_settings import Profile

ALGORITHM = Algorithm("radloop", "0.1.0", "ct_slices", "ab" * 32)
CREATED = datetime.datetime(2026, 3, 1, 8, 30, 15, 250, tzinfo=datetime.UTC)
SCALE = 4.0  # logit margins that have the full colour
STRIP_ROWS, STRIP_COLUMNS = 40, 160  # of a picture, below the image: room for what people read


def case_result(
    sources: Sequence[Dataset | Path],
    *,
    key_images: int = 2,
    peak: float = 1.25,
    profile: Profile | None = None,
    created: datetime.datetime = CREATED,
    algorithm: Algorithm = ALGORITHM,
    **changes: Any,
) -> CaseResult:
    """The result of a case: an image for each frame of `sources` (headers or files), the first `key_images` of them key images.

    Evidence is `blob(rows, columns)` times `peak` scales, moved a little from image to image; `peak=0` gives none. `changes` sets any
    other field of CaseResult.
    """
    headers = [read_source(source) if isinstance(source, Path) else as_source(source) for source in sources]
    frames = [(header, frame) for header in headers for frame in range(frame_count(header))]
    images = tuple(
        result_image(header, frame, peak=peak, key=place if place <= key_images else 0, shift=0.01 * (place - 1))
        for place, (header, frame) in enumerate(frames, start=1)
    )
    content = hashlib.sha256("|".join(str(header.get("SOPInstanceUID")) for header in headers).encode()).hexdigest()
    fields: dict[str, Any] = {
        "findings": (Finding("COVID", 0.932, True), Finding("non-COVID", 0.068, False)),
        "shown": "COVID",
        "said": "COVID, probability 0.932",
        "content": content,
        "method": "the classifier's evidence (Grad-CAM of a linear head)",
        "unit": "logit margin",
        "scale": SCALE,
        "notes": (),
        "cell": "32 pixels wide (22 mm)",
        "made_how": (
            "evidence for COVID: the classifier's evidence (Grad-CAM of a linear head); logit margin",
            "one feature cell is 32 pixels wide (22 mm); finer detail is interpolation",
        ),
        "algorithm": algorithm,
        "configuration_digest": "cd" * 32,
        "profile": profile or Profile(),
        "created": created,
        "images": images,
    }
    return CaseResult(**(fields | changes))


def result_image(source: Dataset, frame: int, *, peak: float = 1.25, key: int = 1, shift: float = 0.0) -> ResultImage:
    """One frame of `source` with a blob of evidence, its centre `shift` of the width to the right."""
    shape = int(source.Rows), int(source.Columns)
    return ResultImage(
        source=source,
        frame=frame,
        evidence_of=partial(_evidence, shape, peak, shift),
        picture_of=partial(_picture, shape, peak, shift),
        probability=0.9,
        key=key,
    )


def blob(rows: int, columns: int, shift: float = 0.0) -> NDArray[np.float32]:
    """(rows, columns): 1 in the upper right of the middle, falling smoothly below 0 far from it."""
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    distance = ((y[:, None] - 0.4) / 0.18) ** 2 + ((x[None, :] - 0.6 - shift) / 0.14) ** 2
    return (1.1 * np.exp(-distance / 2) - 0.1).astype(np.float32)


def _evidence(shape: tuple[int, int], peak: float, shift: float) -> NDArray[np.float32]:
    return np.asarray(blob(*shape, shift) * peak * SCALE, np.float32)


def _picture(shape: tuple[int, int], peak: float, shift: float) -> NDArray[np.uint8]:
    """A ramp with the evidence in warm colours at the top left, and a dark strip with a few bars where the texts would be."""
    rows, columns = shape
    picture = np.zeros((rows + STRIP_ROWS, max(columns, STRIP_COLUMNS), 3), np.uint8)
    ramp = np.linspace(30, 200, columns)[None, :, None]
    warm = np.clip(blob(rows, columns, shift) * peak, 0, 1)[..., None]
    picture[:rows, :columns] = np.rint(ramp * (1 - 0.5 * warm) + np.array([240, 130, 50]) * 0.5 * warm)
    picture[rows + 8 :: 8, 8:-8:2] = 200
    return picture
