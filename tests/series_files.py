"""Series that tests put together: classic files and one enhanced file, of slices whose every voxel can be told from its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian

from pipeline.dicom.phantom import ct_slice, phantom_uid, save

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
DOUBLE_OBLIQUE = (0.951251, 0.254887, -0.173648, -0.163683, 0.89442, 0.416198)  # turns of 15, 10 and 25 degrees
GANTRY_TILT = (1.0, 0.0, 0.0, 0.0, 0.939693, -0.342020)  # 20 degrees about the patient's left-right axis
CORNER_MM = (-31.5, -42.25, 17.0)


def unit_vectors(orientation: Sequence[float]) -> NDArray[np.float64]:
    """(2, 3) the row and the column direction, at right angles, to the last bit that the file's 6 decimals leave open."""
    row = np.array(orientation[:3]) / np.linalg.norm(orientation[:3])
    column = np.array(orientation[3:]) - (row @ orientation[3:]) * row
    return np.stack([row, column / np.linalg.norm(column)])


def positions(
    orientation: Sequence[float], places_mm: Sequence[float], along: Sequence[float] | None = None
) -> list[tuple[float, float, float]]:
    """A position for each place along the normal, or along another direction (which a tilted gantry's table has)."""
    row, column = unit_vectors(orientation)
    step = np.cross(row, column) if along is None else np.array(along)
    return [tuple(np.array(CORNER_MM) + place * step) for place in places_mm]  # type: ignore[misc]


def values_hu(number: int, shape: tuple[int, int] = (10, 14)) -> NDArray[np.float64]:
    """(rows, columns) whole HU between -1000 and 1500, of slice `number`: noise, so that no shift or turn goes unseen."""
    return np.random.default_rng([7, number]).integers(-1000, 1500, shape).astype(np.float64)


def write_series(
    folder: Path,
    at: Sequence[tuple[float, float, float]],
    orientation: Sequence[float] = AXIAL,
    *,
    shape: tuple[int, int] = (10, 14),
    spacing_mm: tuple[float, float] = (0.7, 0.7),
    syntax: str = ExplicitVRLittleEndian,
    each: Sequence[dict[str, Any]] | None = None,
    **attributes: Any,
) -> list[Path]:
    """A file for each position, in names and instance numbers that say nothing of their order. `each`: more attributes of one."""
    shuffled = np.random.default_rng(3).permutation(len(at))
    paths = []
    for number, position in enumerate(at):
        own = {"hu": values_hu(number, shape), **attributes, **(each[number] if each else {})}
        own |= {"PixelSpacing": [f"{value:.6f}" for value in spacing_mm]}
        own |= {"ImagePositionPatient": [f"{value:.7f}"[:16] for value in position]}
        dataset = ct_slice(orientation=tuple(orientation), instance_number=int(shuffled[number]) + 1, **own)
        paths.append(save(dataset, folder / f"IM{shuffled[number]:04d}", syntax))
    return paths


def write_enhanced(
    path: Path,
    at: Sequence[tuple[float, float, float]],
    orientation: Sequence[float] = AXIAL,
    *,
    shape: tuple[int, int] = (10, 14),
    spacing_mm: tuple[float, float] = (0.7, 0.7),
    content: Sequence[dict[str, Any]] | None = None,
    **attributes: Any,
) -> Path:
    """One Enhanced CT (PS3.3 A.38) with a frame for each position. `content`: attributes of each frame's FrameContentSequence."""
    slices = [ct_slice(hu=values_hu(number, shape)) for number in range(len(at))]
    dataset = slices[0]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, keyword)
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth"):
        delattr(dataset, keyword)
    dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedCTImageStorage, phantom_uid("enhanced", path.name)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = len(at)
    dataset.PixelData = b"".join(one.PixelData for one in slices)
    shared = Dataset()
    shared.PlaneOrientationSequence = Items([_item(ImageOrientationPatient=list(orientation))])
    shared.PixelMeasuresSequence = Items([_item(PixelSpacing=list(spacing_mm), SliceThickness=2.5)])
    shared.PixelValueTransformationSequence = Items([_item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for number, position in enumerate(at):
        frame = Dataset()
        frame.PlanePositionSequence = Items([_item(ImagePositionPatient=[f"{value:.7f}"[:16] for value in position])])
        frame.FrameContentSequence = Items([_item(**(content[number] if content else {}))])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return save(dataset, path)


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item
