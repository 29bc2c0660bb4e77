"""Where the pixels of a slice lie in the patient (PS3.3 C.7.6.2.1.1), and affines from voxels to millimetres; pure numpy.

Spaces: LPS is DICOM's and ITK's (x to the patient's left, y to posterior, z to the head), RAS is NIfTI's (x to the right, y to
anterior, z to the head); both in mm. Voxel indices are (slice, row, column), as arrays are indexed, of voxel centres; NIfTI and ITK
count (column, row, slice), for which there is `column_first`. Affines are (4, 4) float64 and act on columns (index, 1).
The row direction is that of increasing column index, along a row; the column direction that of increasing row index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]  # (4, 4)
Points = NDArray[np.float64]  # (n, 3) mm, or (n, 2) indices

UNIT_TOLERANCE = 0.02
"""Of the squared length of direction cosines and of their product, as in pipeline.indexing.positions: some devices round to 2 decimals."""
MAX_POSITION_MM = 1e6
"""A kilometre from the origin is no position in a patient."""
OBLIQUE_BELOW = 0.8
"""A normal whose largest cosine is smaller belongs to no plane: 37 degrees off, more than any gantry's tilt."""

LPS_FROM_RAS: Matrix = np.diag([-1.0, -1.0, 1.0, 1.0])
"""And RAS from LPS: it is its own inverse."""


class NoPlane(ValueError):
    """The attributes do not say where a slice lies; the text says which, and never a value."""


@dataclass(frozen=True, order=True)
class Plane:
    """Where a frame's pixels lie, in LPS. Ordered by all its numbers, so that a choice among planes can be free of chance.

    The two directions are unit vectors at right angles: rounding of the file's cosines is taken out.
    """

    row_direction: tuple[float, float, float]
    column_direction: tuple[float, float, float]
    spacing_mm: tuple[float, float]
    """Between the centres of rows, and of columns (PixelSpacing)."""
    position_mm: tuple[float, float, float]
    """Of the centre of pixel (0, 0) (ImagePositionPatient)."""

    @property
    def normal(self) -> tuple[float, float, float]:
        """Unit vector of increasing slice index: the row direction crossed with the column direction."""
        x, y, z = np.cross(self.row_direction, self.column_direction)
        return float(x), float(y), float(z)

    def to_lps_mm(self, pixels: Points) -> Points:
        """(n, 2) places (row, column) in pixels → (n, 3) LPS mm; equation C.7.6.2.1-1."""
        down, along = np.asarray(self.column_direction), np.asarray(self.row_direction)
        rows, columns = pixels[:, :1] * self.spacing_mm[0], pixels[:, 1:] * self.spacing_mm[1]
        return np.asarray(self.position_mm) + rows * down + columns * along

    def to_pixels(self, points_mm: Points) -> Points:
        """(n, 3) LPS mm → (n, 2) places (row, column) in pixels, of the points' feet on the plane."""
        offset = points_mm - np.asarray(self.position_mm)
        axes = np.stack([self.column_direction, self.row_direction], axis=1)
        return np.asarray(offset @ axes / np.asarray(self.spacing_mm))


def plane_of(position_mm: Sequence[float], orientation: Sequence[float], spacing_mm: Sequence[float]) -> Plane:
    """From ImagePositionPatient (3), ImageOrientationPatient (6) and PixelSpacing (2: between rows, between columns).

    Raises NoPlane where one of them is missing (empty), not finite, or cannot be what it is called.
    """
    position = _checked("ImagePositionPatient", position_mm, 3)
    cosines = _checked("ImageOrientationPatient", orientation, 6)
    spacing = _checked("PixelSpacing", spacing_mm, 2)
    if np.abs(position).max() > MAX_POSITION_MM:
        raise NoPlane("ImagePositionPatient is farther than a kilometre away")
    if spacing.min() <= 0:
        raise NoPlane("PixelSpacing is not positive")
    row, column = cosines[:3], cosines[3:]
    off = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
    if off > UNIT_TOLERANCE:
        raise NoPlane("ImageOrientationPatient is no pair of unit vectors at right angles")
    row = row / np.linalg.norm(row)
    column = column - (row @ column) * row
    column = column / np.linalg.norm(column)
    return Plane(_triple(row), _triple(column), (float(spacing[0]), float(spacing[1])), _triple(position))


def frame_group(dataset: Any, frame: int, keyword: str) -> Any:
    """The first item of a functional group of frame `frame` (from 0): its own, else the shared one (PS3.3 C.7.6.16), else {}.

    `dataset`: a pydicom Dataset, or whatever has its `get`.
    """
    own = dataset.get("PerFrameFunctionalGroupsSequence")
    shared = dataset.get("SharedFunctionalGroupsSequence")
    for groups, number in ((own, frame), (shared, 0)):
        if groups and number < len(groups):
            items = groups[number].get(keyword)
            if items:
                return items[0]
    return {}


def frame_plane(dataset: Any, frame: int = 0) -> Plane:
    """The plane of a frame: from its functional groups (PS3.3 C.7.6.16.2.1, .3, .4), else from the top level.

    Several frames never share the top level's position: without one of its own a frame raises NoPlane, as `plane_of` does.
    """
    position = _numbers(frame_group(dataset, frame, "PlanePositionSequence"), "ImagePositionPatient")
    if not position and not dataset.get("PerFrameFunctionalGroupsSequence"):
        position = _numbers(dataset, "ImagePositionPatient")
    orientation = _numbers(frame_group(dataset, frame, "PlaneOrientationSequence"), "ImageOrientationPatient")
    spacing = _numbers(frame_group(dataset, frame, "PixelMeasuresSequence"), "PixelSpacing")
    return plane_of(
        position,
        orientation or _numbers(dataset, "ImageOrientationPatient"),
        spacing or _numbers(dataset, "PixelSpacing"),
    )


def plane_name(normal: Sequence[float] | NDArray[np.float64]) -> str:
    """axial, coronal or sagittal by the axis that a normal (3, any length) is nearest to, or oblique."""
    size = np.abs(normal) / np.linalg.norm(normal)
    return ("sagittal", "coronal", "axial")[int(size.argmax())] if size.max() >= OBLIQUE_BELOW else "oblique"


def lps_from_voxel(plane: Plane, step_mm: Sequence[float] | NDArray[np.float64]) -> Matrix:
    """Affine from (slice, row, column) to LPS mm of slices that repeat `plane` every `step_mm` (3, LPS), which may be oblique to it."""
    affine = np.eye(4)
    affine[:3, 0] = step_mm
    affine[:3, 1] = np.asarray(plane.column_direction) * plane.spacing_mm[0]
    affine[:3, 2] = np.asarray(plane.row_direction) * plane.spacing_mm[1]
    affine[:3, 3] = plane.position_mm
    return affine


def ras_from_lps(affine_lps: Matrix) -> Matrix:
    """The affine to LPS turned into one to RAS, or back; the voxel indices stay."""
    return LPS_FROM_RAS @ affine_lps


def column_first(affine: Matrix) -> Matrix:
    """The affine from (slice, row, column) turned into one from (column, row, slice), or back."""
    return affine[:, [2, 1, 0, 3]]


def places_mm(planes: Sequence[Plane], reference: Plane) -> Points:
    """(n, 3) where the planes' first pixels are along the normal, the column direction and the row direction of the reference, in mm
    from its own."""
    axes = np.stack([reference.normal, reference.column_direction, reference.row_direction], axis=1)
    offset = np.array([plane.position_mm for plane in planes]) - np.asarray(reference.position_mm)
    return np.asarray(offset @ axes)


def tilt_degrees(affine: Matrix) -> float:
    """Angle between the slice step and the normal of the slices; 0 is a volume with axes at right angles."""
    step = affine[:3, 0]
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    across = np.linalg.norm(np.cross(step, normal))
    return float(np.degrees(np.arctan2(across, abs(step @ normal))))


def _checked(keyword: str, numbers: Sequence[float], count: int) -> NDArray[np.float64]:
    values = np.array(numbers, dtype=np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        found = "it is missing" if values.size == 0 else f"found {values.size}, or one that is none"
        raise NoPlane(f"{keyword}: expected {count} numbers, {found}")
    return values


def _numbers(dataset: Any, keyword: str) -> tuple[float, ...]:
    """An attribute's numbers, () where it is absent or holds anything else."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, str):
        return ()
    try:
        return tuple(float(part) for part in value)
    except (TypeError, ValueError):
        return ()


def _triple(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(part) + 0.0 for part in vector)
    return x, y, z
