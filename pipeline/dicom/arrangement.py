"""Slices in any order → along their normal, one place each: what repeats is divided into phases, what is mixed is refused.

Everything here follows from positions, orientations and the headers' traits (pipeline.dicom.slices); the order in which slices come
does not matter. Tolerances are those by which pipeline.indexing.stacks divides the series of an index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.geometry import Plane, places_mm
from pipeline.dicom.slices import STACK_ID, TRAITS, Slice
from pipeline.errors import RadloopError, RejectReason

POSITION_TOLERANCE_MM = 0.01
"""Slices nearer than this are at the same position: positions are rounded to about this, and the finest slices are ten times as thick."""
IN_PLANE_TOLERANCE_MM = 0.5
"""How far a slice's corner may be off the line through the first and the last: about a pixel."""
MAX_SHEAR = 1.0
"""In-plane shift a step along the normal: gantries tilt by 30 degrees at most (0.58), so what shifts more is no tilt."""
COSINE_TOLERANCE = 1e-3
"""Of direction cosines in one volume: half a millimetre over an image of 500 mm. Scanners write 3 to 6 decimals."""
PIXEL_SPACING_TOLERANCE_MM = 1e-3
"""Of one volume: half a millimetre over an image of 512 pixels."""


class Problem(StrEnum):
    """Why slices are not one volume. Closed: tables hold no other word."""

    NO_PLANE = "no_plane"
    """Headers do not say where slices lie (radiographs, secondary captures)."""
    MIXED = "mixed"
    """Slices differ in size, orientation, pixel spacing, frame of reference, series or unit."""
    REPEATED = "repeated"
    """Positions repeat, and nothing in the headers tells the repetitions apart."""
    PHASES = "phases"
    """Positions repeat, and an attribute tells several volumes apart, where one was asked for."""
    CROOKED = "crooked"
    """Positions are not on a line, or on one too oblique to be a gantry's tilt."""
    UNEVEN = "uneven"
    """Slices are missing or unevenly spaced, and are not to be resampled."""
    NOT_GRAY = "not_gray"
    """Colour or single bits, which are no modality values."""
    TOO_LARGE = "too_large"
    """The volume would exceed the memory budget."""
    UNDECODABLE = "undecodable"
    """Some slices cannot be read or decoded; a volume without them would have gaps that nobody sees."""


@dataclass(frozen=True)
class SliceFailure:
    """Why a frame of a file cannot be decoded; `frame` is None where the whole file cannot be read."""

    path: Path
    frame: int | None
    reason: RejectReason
    detail: str


class NotAVolume(RadloopError):
    """Slices that are not one volume. Says what was found, never where in the patient, nor whose it is."""

    def __init__(self, problem: Problem, detail: str, failures: tuple[SliceFailure, ...] = ()) -> None:
        super().__init__(f"not one volume, {problem}: {detail}")
        self.problem = problem
        self.detail = detail
        self.failures = failures

    def __reduce__(self) -> tuple[type[NotAVolume], tuple[Problem, str, tuple[SliceFailure, ...]]]:
        return type(self), (self.problem, self.detail, self.failures)


@dataclass(frozen=True)
class Arrangement:
    """Slices of one kind in ascending order along the normal of `plane`, whose position is that of the first.

    `place_mm` (n, 3): along the normal, down the columns and along the rows, from the first.
    """

    slices: tuple[Slice, ...]
    plane: Plane
    place_mm: NDArray[np.float64]

    @property
    def most(self) -> int:
        """Slices at the position that has most."""
        crowded = np.diff(self.place_mm[:, 0]) <= POSITION_TOLERANCE_MM
        runs = "".join("x" if close else " " for close in crowded).split()
        return 1 + max(map(len, runs), default=0)

    @property
    def is_straight(self) -> bool:
        """Whether corners lie on the line through the first and the last, no more oblique than a gantry's tilt."""
        along, across = self.place_mm[:, 0], self.place_mm[:, 1:]
        slope = across[-1] / along[-1] if along[-1] > 0 else np.zeros(2)
        off = np.abs(across - along[:, None] * slope).max()
        return bool(off <= IN_PLANE_TOLERANCE_MM and np.hypot(*slope) <= MAX_SHEAR)


@dataclass(frozen=True)
class Phase:
    """Slices of one volume, number `number` of `phases`, told apart from the others by the traits `by` (none where there is one)."""

    slices: tuple[Slice, ...]
    number: int = 0
    phases: int = 1
    by: tuple[str, ...] = ()


def arranged(slices: Sequence[Slice]) -> Arrangement:
    """The slices sorted; positions may repeat. Raises NotAVolume: NO_PLANE, MIXED."""
    planes = [one.plane for one in slices if one.plane is not None]
    if len(planes) < len(slices) or not slices:
        why = next((one.problem for one in slices if one.plane is None), "no slices at all")
        raise NotAVolume(Problem.NO_PLANE, f"{len(slices) - len(planes)} of {len(slices)} slices have no place: {why}")
    _refuse_mixed(slices, planes)
    chosen = min(planes)
    place = places_mm(planes, chosen)
    order = sorted(range(len(slices)), key=lambda n: (place[n, 0], str(slices[n].path), slices[n].frame))
    first = planes[order[0]]
    plane = Plane(chosen.row_direction, chosen.column_direction, chosen.spacing_mm, first.position_mm)
    return Arrangement(tuple(slices[n] for n in order), plane, place[order] - place[order[0]])


def divide(slices: Sequence[Slice]) -> tuple[Phase, ...]:
    """The volumes that the slices make: by StackID (PS3.3 C.7.6.16.2.2) first; where positions repeat, by the first of `TRAITS`, or
    the first two, that make all parts free of repetition. Raises NotAVolume: NO_PLANE, MIXED, REPEATED."""
    stacks = _parts(slices, (STACK_ID,))
    found = [(phase, by) for stack in stacks for phase, by in _phases(stack)]
    several = (STACK_ID,) if len(stacks) > 1 else ()
    return tuple(Phase(tuple(phase), number, len(found), (*several, *by)) for number, (phase, by) in enumerate(found))


def _phases(slices: Sequence[Slice]) -> Iterator[tuple[Sequence[Slice], tuple[str, ...]]]:
    most = arranged(slices).most
    if most == 1:
        yield slices, ()
        return
    names = [name for name in TRAITS if len(_parts(slices, (name,))) > 1]
    for by in [*((name,) for name in names), *combinations(names, 2)]:
        parts = _parts(slices, by)
        if len(parts) <= max(most, len(slices) // 2) and all(_sorts(part) for part in parts):
            yield from ((part, by) for part in parts)
            return
    differing = f"{', '.join(names)} differ but do not divide them" if names else "no attribute that could tell differs"
    raise NotAVolume(Problem.REPEATED, f"{len(slices)} slices, up to {most} at one position; {differing}")


def _parts(slices: Sequence[Slice], names: tuple[str, ...]) -> list[list[Slice]]:
    """The slices by the values of some traits, in the order of the values, numbers by size."""
    parts: dict[tuple[str, ...], list[Slice]] = {}
    for one in slices:
        traits = dict(one.traits)
        parts.setdefault(tuple(traits.get(name, "") for name in names), []).append(one)
    return [parts[values] for values in sorted(parts, key=lambda values: [_rank(value) for value in values])]


def _rank(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return np.inf, value


def _sorts(slices: Sequence[Slice]) -> bool:
    arrangement = arranged(slices)
    return arrangement.most == 1 and arrangement.is_straight


def _refuse_mixed(slices: Sequence[Slice], planes: Sequence[Plane]) -> None:
    kinds: dict[str, Callable[[Slice], Hashable]] = {
        "SeriesInstanceUID": lambda one: one.series,
        "Rows and Columns": lambda one: (one.rows, one.columns),
        "FrameOfReferenceUID": lambda one: one.frame_of_reference,
    }
    for name, value in kinds.items():
        counts = Counter(map(value, slices))
        if len(counts) > 1:
            raise NotAVolume(Problem.MIXED, f"{len(counts)} different {name} among {len(slices)} slices")
    orientation = np.array([(*plane.row_direction, *plane.column_direction) for plane in planes])
    spacing = np.array([plane.spacing_mm for plane in planes])
    for name, values, tolerance in (
        ("ImageOrientationPatient", orientation, COSINE_TOLERANCE),
        ("PixelSpacing", spacing, PIXEL_SPACING_TOLERANCE_MM),
    ):
        spread = float(np.ptp(values, axis=0).max())
        if spread > tolerance:
            raise NotAVolume(Problem.MIXED, f"{name} differs by {spread:.3g} among {len(slices)} slices")
