"""A volume: voxels with one affine, what was found when it was put together, and the way from each slice back to its file.

Voxels are (slices, rows, columns) of modality values (HU for CT), slices ascending along the normal; affines (4, 4) are from the index
(slice, row, column) of voxel centres to mm (pipeline.dicom.geometry). It becomes a SimpleITK image or a NIfTI file, with nothing of
the patient but the voxels.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pipeline
from pipeline.dicom.geometry import Matrix, column_first, plane_name, ras_from_lps, tilt_degrees
from pipeline.files import whole_file
from transforms.intensity import PixelUnit

if TYPE_CHECKING:
    import SimpleITK

TILT_TOLERANCE_PIXELS = 0.1
"""Slices whose corners shift by less than this from the first to the last are not tilted: positions are rounded to about 0.01 mm."""
DESCRIPTION = f"radloop {pipeline.__version__} research use only"
"""All that a NIfTI says in words; its field holds 79 letters."""
NIFTI1_VOXELS = 2**15 - 1
"""Most along an axis of a NIfTI-1, which counts in 16 bits."""
GZIP_LEVEL = 1
"""As nibabel's default: CT is noise in its last bits, and level 6 takes three times as long for a tenth less."""


class Finding(StrEnum):
    """What can be found about the slices of a volume. Closed: tables hold no other word."""

    ONE_SLICE = "one_slice"
    """The step to a next slice is a guess: SpacingBetweenSlices or SliceThickness, else 1 mm."""
    GAP = "gap"
    """Two neighbours are a multiple of the spacing apart: slices are missing between them."""
    UNEVEN = "uneven"
    """Slices do not stand on one even grid."""
    TILT = "tilt"
    """The step from slice to slice is not along their normal (gantry tilt)."""
    PHASES = "phases"
    """Positions repeat in the series; this is one of the phases that an attribute tells apart."""
    RESCALE_VARIES = "rescale_varies"
    """RescaleSlope or RescaleIntercept differ from slice to slice (PET): the values are comparable, stored ones are not."""
    PADDING = "padding"
    """Voxels where the scanner put no data; they keep the value that was stored."""
    MONOCHROME1 = "monochrome1"
    """To be shown inverted; the values are not."""
    RESAMPLED = "resampled"
    """Slices were interpolated linearly onto an even grid."""
    DESKEWED = "deskewed"
    """Slices were shifted in their planes, interpolated linearly, so that the axes are at right angles."""


@dataclass(frozen=True)
class Found:
    """A finding and its facts: counts, millimetres, degrees."""

    kind: Finding
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        told = ", ".join(f"{name} {_shown(value)}" for name, value in self.facts.items())
        return f"{self.kind} ({told})" if told else str(self.kind)


@dataclass(frozen=True)
class SourceSlice:
    """Where a slice of a volume comes from. `to_source`: (2, 3), (row, column, 1) of the volume's slice → (row, column) of the frame.

    `weight`: the frame's share of the slice; 1 where it was not interpolated along the normal.
    """

    path: Path
    frame: int
    to_source: NDArray[np.float64]
    weight: float


@dataclass(frozen=True)
class Volume:
    """`voxels` (slices, rows, columns), int16 where all values are whole numbers that fit and nothing was interpolated, else float32.
    `sources`: of each slice the frame that is nearest to it."""

    voxels: NDArray[np.int16] | NDArray[np.float32]
    affine_lps: Matrix
    unit: PixelUnit
    findings: tuple[Found, ...]
    sources: tuple[SourceSlice, ...]

    @property
    def affine_ras(self) -> Matrix:
        """(4, 4) from (slice, row, column) to RAS mm."""
        return ras_from_lps(self.affine_lps)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Between slices (along their step, which a tilt makes longer than their distance), rows and columns."""
        slices, rows, columns = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(slices), float(rows), float(columns)

    @property
    def is_sheared(self) -> bool:
        """Whether the axes are not at right angles."""
        return is_sheared(self.affine_lps, len(self.voxels))

    @property
    def tilt_degrees(self) -> float:
        """Between the step and the normal; 0 within the tolerance."""
        return tilt_degrees(self.affine_lps) if self.is_sheared else 0.0

    @property
    def orientation(self) -> str:
        """axial, coronal or sagittal by the axis that the slices' normal is nearest to, or oblique."""
        rows, columns = self.affine_lps[:3, 1], self.affine_lps[:3, 2]
        return plane_name(np.cross(columns, rows))

    def found(self, kind: Finding) -> Found | None:
        """The finding of that kind, if there is one."""
        return next((found for found in self.findings if found.kind == kind), None)

    def slice_of(self, k: int) -> SourceSlice:
        """The frame that slice `k` (from 0) shows, or the nearest one, with the way from the slice's pixels to the frame's."""
        return self.sources[k]


def is_sheared(affine: Matrix, slices: int) -> bool:
    """Whether the last slice's corner is off the first one's normal by more than TILT_TOLERANCE_PIXELS."""
    step, down, along = affine[:3, :3].T
    shift_pixels = max(abs(step @ down) / (down @ down), abs(step @ along) / (along @ along)) * (slices - 1)
    return bool(shift_pixels > TILT_TOLERANCE_PIXELS)


def to_sitk(volume: Volume) -> SimpleITK.Image:
    """The volume as a SimpleITK image, in LPS, index (column, row, slice). The voxels are copied.

    A sheared volume gives a direction that is not orthonormal. SimpleITK takes it, and maps points and resamples by it; it cannot
    read it back from NIfTI, and filters that work in units of spacing alone (distance maps, gradients, Gaussians) take the axes to be
    at right angles. For those, deskew.
    """
    import SimpleITK

    affine = column_first(volume.affine_lps)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(volume.voxels)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def write_nifti(volume: Volume, path: Path) -> Path:
    """Writes a NIfTI-1 (.nii, or .nii.gz; a NIfTI-2 where an axis is too long) whole or not at all; the same volume, the same bytes.

    The sform is the exact affine, with code 1 (scanner); the qform, which cannot hold a shear, is set where there is none. Voxels
    keep their type, index (column, row, slice). Raises ValueError for another suffix, OSError.
    """
    import nibabel

    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path.name}: expected a name that ends with .nii or .nii.gz")
    affine = column_first(volume.affine_ras)
    kind = nibabel.Nifti1Image if max(volume.voxels.shape) <= NIFTI1_VOXELS else nibabel.Nifti2Image
    image = kind(volume.voxels.transpose(2, 1, 0), affine)
    image.set_sform(affine, code=1)
    image.set_qform(None if volume.is_sheared else affine, code=0 if volume.is_sheared else 1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = DESCRIPTION.encode()
    with whole_file(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", GZIP_LEVEL, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)
    return path


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_shown(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
