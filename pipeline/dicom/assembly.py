"""Sorted slices → one volume: its grid planned and checked before a pixel is decoded, then filled slice by slice.

Legend: n slices of the series, k slices of the volume. `place` (n,) is where each of the n stands among the k; whole numbers where
nothing is to be interpolated. Resampling is linear along the normal between neighbours, deskewing linear along the shift in the
plane; both give float32. The volume and one slice more are in memory, never the series twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.arrangement import POSITION_TOLERANCE_MM, Arrangement, NotAVolume, Phase, Problem, arranged
from pipeline.dicom.geometry import Matrix, lps_from_voxel, tilt_degrees
from pipeline.dicom.pixels import read_frames
from pipeline.dicom.slices import Slice
from pipeline.dicom.volume import Finding, Found, SourceSlice, Volume, is_sheared
from transforms.intensity import Pixels, PixelUnit

Uneven = Literal["refuse", "resample"]
Tilt = Literal["keep", "deskew"]
Reals = NDArray[np.float64]
Image = NDArray[np.int16] | NDArray[np.float32]  # (rows, columns)

MAX_VOLUME_BYTES = 2**31
"""Of a volume as float32: 2,048 slices of 512 × 512."""
GRID_TOLERANCE = 0.1
"""Share of the spacing by which a slice may stand off the even grid: far below a slice's thickness, above the rounding of positions to
a tenth of a millimetre."""
SNAP_SLICES = 0.01
"""A slice so near to a place of the grid is at it, and stays as it is: 0.05 mm of 5, about the rounding of positions."""
SNAP_PIXELS = 0.01
"""A shift so near to whole pixels is one, and interpolates nothing."""
LONGEST_GAP = 4.5
"""Spacings between neighbours beyond which nothing is interpolated: four slices missing in a row are anatomy that nobody has seen."""
UNKNOWN_SPACING_MM = 1.0
"""Of a single slice whose header does not know its thickness."""
OUTSIDE_HU = -1000.0
"""Air, for what deskewing brings in from outside, and for padding where anything is interpolated; in other units the volume's
smallest value."""
_SMALLEST, _LARGEST = np.iinfo(np.int16).min, np.iinfo(np.int16).max


@dataclass(frozen=True)
class DecodedSlice:
    """A frame's modality values, int16 where they are whole numbers that fit, else float32."""

    values: Image
    unit: PixelUnit
    inverted: bool
    padding: NDArray[np.bool_] | None
    """(rows, columns) where the scanner put no data; None where it did everywhere."""


@dataclass(frozen=True)
class VolumePlan:
    """A volume but for its voxels. `slices` (n) ascend; `shape` is the volume's (slices, rows, columns).

    `shifts` (n, 2): (row, column) of the volume's slice - (row, column) of the frame, in pixels; whole 0 where nothing is deskewed.
    """

    slices: tuple[Slice, ...]
    place: Reals
    shape: tuple[int, int, int]
    affine_lps: Matrix
    shifts: Reals
    findings: tuple[Found, ...]

    @property
    def interpolates(self) -> bool:
        """Whether any voxel is more than one stored value."""
        return not (np.array_equal(self.place, np.rint(self.place)) and len(self.place) == self.shape[0]) or bool(
            self.shifts.any()
        )

    @property
    def sources(self) -> tuple[SourceSlice, ...]:
        """Of each slice of the volume the nearest frame."""
        found = []
        for k in range(self.shape[0]):
            above = int(np.searchsorted(self.place, k))
            below = above - 1 if above and self.place[above] > k else above
            share = _share(self.place, below, above, k)
            nearest = above if share >= 0.5 else below
            row, column = -self.shifts[nearest]
            to_source = np.array([[1.0, 0.0, row], [0.0, 1.0, column]])
            frame = self.slices[nearest]
            found.append(SourceSlice(frame.path, frame.frame, to_source, max(share, 1 - share)))
        return tuple(found)


def plan_volume(
    phase: Phase | Sequence[Slice],
    *,
    uneven: Uneven = "refuse",
    tilt: Tilt = "keep",
    slice_spacing_mm: float | None = None,
) -> VolumePlan:
    """The grid of a volume from its slices' headers. Raises NotAVolume, all but UNDECODABLE, NOT_GRAY and PHASES.

    `uneven`: slices that are missing or unevenly spaced are refused, or interpolated onto an even grid from the first to the last that
    comes nearest to their median spacing (where slices are only missing, the others stay as they are), or that begins with the first
    and has `slice_spacing_mm` along the normal. `tilt`: keep the exact, sheared affine, or deskew, which makes room so that nothing is
    cut off.
    """
    phase = phase if isinstance(phase, Phase) else Phase(tuple(phase))
    arrangement = arranged(phase.slices)
    if arrangement.most > 1:
        detail = f"{len(phase.slices)} slices, up to {arrangement.most} at one position: divide them first"
        raise NotAVolume(Problem.REPEATED, detail)
    if not arrangement.is_straight:
        raise NotAVolume(Problem.CROOKED, f"the positions of {len(phase.slices)} slices are not on one line")
    place, found = _grid(arrangement, uneven, slice_spacing_mm)
    one = arrangement.slices[0]
    shape = (int(place[-1]) + 1, one.rows, one.columns)
    affine = lps_from_voxel(arrangement.plane, _step_mm(arrangement, place))
    findings = [*_said_before(phase), *found]
    shifts = np.zeros((len(place), 2))
    if is_sheared(affine, shape[0]):
        degrees = tilt_degrees(affine)
        findings.append(Found(Finding.TILT, {"degrees": degrees}))
        if tilt == "deskew":
            shape, affine, shifts = _deskewed(arrangement, place, shape)
            findings.append(Found(Finding.DESKEWED, {"degrees": degrees}))
    _check_budget(shape)
    return VolumePlan(arrangement.slices, place, shape, affine, shifts, tuple(findings))


def decode_slices(slices: Sequence[Slice]) -> list[DecodedSlice]:
    """The frames, all of one file. For worker processes. Raises Rejected."""
    return [_compact(pixels) for pixels in read_frames(slices[0].path, [one.frame for one in slices])]


def assemble(plan: VolumePlan, decoded: Iterable[DecodedSlice]) -> Volume:
    """The volume from its slices, which come in the plan's order, one at a time. Raises NotAVolume: MIXED, NOT_GRAY."""
    voxels: NDArray[np.int16] | NDArray[np.float32]
    voxels = np.empty(plan.shape, np.float32) if plan.interpolates else np.empty(plan.shape, np.int16)
    image: Image
    before: Image | None = None
    first: DecodedSlice | None = None
    padding = inverted = number = 0
    for number, one in enumerate(decoded):
        first = first or one
        _check_alike(plan.slices[number], one, first)
        inverted += one.inverted
        padding += 0 if one.padding is None else int(one.padding.sum())
        image = _without_padding(one) if plan.interpolates else one.values
        if plan.shifts.any():
            image = _shifted(image, plan.shifts[number], plan.shape[1:])
        if image.dtype != voxels.dtype and voxels.dtype == np.int16:
            voxels = voxels.astype(np.float32)
        _fill(voxels, plan.place, number, before, image)
        before = image
    if first is None or number + 1 != len(plan.slices):
        raise ValueError(f"expected {len(plan.slices)} decoded slices, found {number + 1 if first else 0}")
    if plan.interpolates:
        _fill_outside(voxels, first.unit)
    findings = list(plan.findings)
    findings += [Found(Finding.PADDING, {"pixels": padding})] if padding else []
    findings += [Found(Finding.MONOCHROME1)] if inverted else []
    return Volume(voxels, plan.affine_lps, first.unit, tuple(findings), plan.sources)


# --- the grid


def _grid(arrangement: Arrangement, uneven: Uneven, slice_spacing_mm: float | None) -> tuple[Reals, list[Found]]:
    """`place`, and what was found about the spacing."""
    at_mm = arrangement.place_mm[:, 0]
    if len(at_mm) == 1:
        spacing = arrangement.slices[0].spacing_mm
        return np.zeros(1), [Found(Finding.ONE_SLICE, {"spacing_mm": spacing or "unknown"})]
    gaps = np.diff(at_mm)
    median = float(np.median(gaps))
    steps = np.maximum(1, np.rint(gaps / median))
    place = np.append(0.0, np.cumsum(steps))
    spacing = at_mm[-1] / place[-1]
    on_grid = bool((np.abs(at_mm - place * spacing) <= GRID_TOLERANCE * spacing + POSITION_TOLERANCE_MM).all())
    missing = np.flatnonzero((steps > 1) & (np.abs(gaps / median - steps) <= GRID_TOLERANCE * steps))
    found: list[Found] = []
    if len(missing):
        facts: dict[str, Any] = {
            "after_slice": tuple(missing.tolist()),
            "missing": tuple((steps[missing] - 1).astype(int).tolist()),
        }
        found.append(Found(Finding.GAP, {**facts, "distance_mm": tuple(gaps[missing].tolist())}))
    if not on_grid:
        facts = {"least_mm": float(gaps.min()), "most_mm": float(gaps.max()), "median_mm": median}
        found.append(Found(Finding.UNEVEN, facts))
    if slice_spacing_mm is not None and not slice_spacing_mm > 0:
        raise ValueError(f"slice_spacing_mm: expected millimetres above 0, found {slice_spacing_mm:g}")
    if not found and slice_spacing_mm is None:
        return place, found
    _refuse_uneven(uneven, found, float(gaps.max()) / median)
    if not on_grid or slice_spacing_mm is not None:
        spacing = slice_spacing_mm or at_mm[-1] / np.rint(at_mm[-1] / median)
        place = at_mm / spacing
        place = np.where(np.abs(place - np.rint(place)) < SNAP_SLICES, np.rint(place), place)
    return place, [*found, _resampled(place, spacing, missing)]


def _refuse_uneven(uneven: Uneven, found: Sequence[Found], longest_gap: float) -> None:
    told = "; ".join(map(str, found)) or "another spacing is asked for"
    if uneven == "refuse":
        raise NotAVolume(Problem.UNEVEN, f"{told}; no affine fits all slices: give uneven=resample to interpolate")
    if longest_gap > LONGEST_GAP:
        detail = f"{told}; nothing is interpolated over more than {LONGEST_GAP:g} times the median distance"
        raise NotAVolume(Problem.UNEVEN, detail)


def _resampled(place: Reals, spacing: float, missing: NDArray[np.int64]) -> Found:
    """How much is interpolated, and how much of it where slices are missing."""
    grid = np.arange(int(place[-1]) + 1)
    made = ~np.isin(grid, place)
    over = np.isin(np.searchsorted(place, grid) - 1, missing) & made
    facts = {"spacing_mm": float(spacing), "interpolated": int(made.sum()), "over_gaps": int(over.sum())}
    return Found(Finding.RESAMPLED, facts)


def _step_mm(arrangement: Arrangement, place: Reals) -> Reals:
    """(3,) from slice to slice of the volume, LPS: from the first position to the last, as they stand in the files."""
    first, last = (arrangement.slices[n].plane for n in (0, -1))
    if len(place) == 1 or first is None or last is None:
        return np.array(arrangement.plane.normal) * (arrangement.slices[0].spacing_mm or UNKNOWN_SPACING_MM)
    return (np.array(last.position_mm) - np.array(first.position_mm)) / place[-1]


def _deskewed(
    arrangement: Arrangement, place: Reals, shape: tuple[int, int, int]
) -> tuple[tuple[int, int, int], Matrix, Reals]:
    """Shape, affine and shifts of the volume with axes at right angles that holds every pixel of every slice."""
    plane = arrangement.plane
    shifts = arrangement.place_mm[:, 1:] / np.array(plane.spacing_mm)
    shifts = np.where(np.abs(shifts - np.rint(shifts)) < SNAP_PIXELS, np.rint(shifts), shifts)
    shifts = shifts - np.floor(shifts.min(axis=0))
    rows, columns = np.array(shape[1:]) + np.ceil(shifts.max(axis=0)).astype(int)
    affine = lps_from_voxel(plane, np.array(plane.normal) * arrangement.place_mm[-1, 0] / place[-1])
    affine[:3, 3] -= affine[:3, 1:3] @ shifts[0]
    return (shape[0], int(rows), int(columns)), affine, shifts


def _said_before(phase: Phase) -> list[Found]:
    """What does not depend on the grid."""
    found = []
    if phase.phases > 1:
        facts = {"phase": phase.number, "of": phase.phases, "by": " and ".join(phase.by)}
        found.append(Found(Finding.PHASES, facts))
    rescales = len({one.rescale for one in phase.slices})
    if rescales > 1:
        found.append(Found(Finding.RESCALE_VARIES, {"different": rescales}))
    return found


def _check_budget(shape: tuple[int, int, int]) -> None:
    slices, rows, columns = shape
    needed = slices * rows * columns * np.dtype(np.float32).itemsize
    if needed > MAX_VOLUME_BYTES:
        detail = (
            f"{slices} slices of {rows} × {columns} need {needed >> 20} MiB; the budget is {MAX_VOLUME_BYTES >> 20}"
        )
        raise NotAVolume(Problem.TOO_LARGE, detail)


# --- the voxels


def _compact(pixels: Pixels) -> DecodedSlice:
    values: Image = pixels.values
    whole = values.size and values.min() >= _SMALLEST and values.max() <= _LARGEST and (values == np.rint(values)).all()
    return DecodedSlice(values.astype(np.int16) if whole else values, pixels.unit, pixels.inverted, pixels.padding)


def _without_padding(one: DecodedSlice) -> NDArray[np.float32]:
    """NaN where there is padding: between its value and tissue lies no value that means anything."""
    values = one.values.astype(np.float32)
    if one.padding is not None:
        values[one.padding] = np.nan
    return values


def _check_alike(slice_: Slice, one: DecodedSlice, first: DecodedSlice) -> None:
    if one.unit is PixelUnit.FRACTION or one.values.ndim != 2:
        raise NotAVolume(Problem.NOT_GRAY, "slices of colour or of single bits; a volume holds modality values")
    if one.unit is not first.unit or one.inverted != first.inverted:
        raise NotAVolume(Problem.MIXED, "values of different units (HU and others, or MONOCHROME1 and 2) in one stack")
    if one.values.shape != (slice_.rows, slice_.columns):
        raise NotAVolume(Problem.MIXED, "a slice does not have the size that its header told before; was it changed?")


def _fill(voxels: Image, place: Reals, number: int, before: Image | None, image: Image) -> None:
    """Writes the volume's slices from behind place[number - 1] up to place[number]."""
    if before is None:
        voxels[0] = image
        return
    for k in range(int(place[number - 1]) + 1, int(place[number]) + 1):
        share = np.float32(_share(place, number - 1, number, k))
        voxels[k] = image if share == 1 else before * (1 - share) + image * share


def _share(place: Reals, below: int, above: int, k: int) -> float:
    """Of the slice `above` in the volume's slice k, which is between both."""
    return 1.0 if place[above] == k else float((k - place[below]) / (place[above] - place[below]))


def _shifted(image: Image, shift: Reals, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """out[r, c] = image[r - shift[0], c - shift[1]], linear; NaN outside of the image's pixel centres."""
    shifted = image.astype(np.float32)
    for axis in (0, 1):
        shifted = _shifted_down(np.moveaxis(shifted, axis, 0), float(shift[axis]), shape[axis])
        shifted = np.moveaxis(shifted, 0, axis)
    return shifted


def _shifted_down(image: NDArray[np.float32], shift: float, rows: int) -> NDArray[np.float32]:
    out = np.full((rows, image.shape[1]), np.nan, np.float32)
    whole = int(np.floor(shift))
    part = np.float32(shift - whole)
    if part == 0:
        out[whole : whole + len(image)] = image
    else:
        out[whole + 1 : whole + len(image)] = image[1:] * (1 - part) + image[:-1] * part
    return out


def _fill_outside(voxels: Image, unit: PixelUnit) -> None:
    """NaN → OUTSIDE_HU, or the smallest value that there is; slice by slice, to save memory."""
    smallest = np.array([np.fmin.reduce(one, axis=None) for one in voxels])
    outside = OUTSIDE_HU if unit is PixelUnit.HU else np.min(smallest, where=~np.isnan(smallest), initial=np.inf)
    if not np.isfinite(outside):  # a volume of nothing but padding
        outside = 0.0
    for one in voxels:
        one[np.isnan(one)] = outside
