"""Where slices lie, in columns: texts to positions and orientations, groups of slices measured, values clustered; all vectorised.

(n,) is one a row. Positions and directions are in millimetres and cosines, in LPS (PS3.3 C.7.6.2). Groups are integers from 0, none
empty. Values are never compared in the order of rows, so that no result depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import equals, from_numpy, to_numpy

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
Flags = NDArray[np.bool_]

POSITION_TOLERANCE_MM = 0.01
"""Slices nearer than this are at the same position: positions are rounded to about this, and the finest slices are ten times as thick."""
IN_PLANE_TOLERANCE_MM = 0.5
"""How far a slice's corner may be off the line through its stack's first and last: about a pixel."""
MAX_SHEAR = 1.0
"""In-plane shift a step along the normal: gantries tilt by 30 degrees at most (0.58), so what shifts more is no tilt."""
UNIT_TOLERANCE = 0.02
"""Of the length of direction cosines and of their product: rounding to 2 decimals, which some devices do, passes."""
SPACING_TOLERANCE = 0.02
"""A stack is evenly spaced if no gap differs from the median by more than this share of it (and POSITION_TOLERANCE_MM)."""
OBLIQUE_BELOW = 0.8
"""A normal whose largest cosine is smaller belongs to no plane: 37 degrees off, more than any gantry's tilt."""

_PARSED_AT_ONCE = 1 << 17
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?"
AXIAL, CORONAL, SAGITTAL, OBLIQUE = "axial", "coronal", "sagittal", "oblique"
PLANES = ("", SAGITTAL, CORONAL, AXIAL, OBLIQUE)
"""By the axis of the normal: none known, x (left), y (posterior), z (head), none of them."""


@dataclass(frozen=True)
class Measures:
    """Groups of slices, each value (k,): `most` files at one position, whether all `sort`, `spacing_mm` (median, NaN for one file),
    whether it is `even`, and the lowest and highest position."""

    files: Integers
    most: Integers
    unique: Flags
    straight: Flags
    spacing_mm: Reals
    even: Flags
    low: Reals
    high: Reals

    @property
    def sort(self) -> Flags:
        return self.unique & self.straight


def orientations(column: pa.ChunkedArray | pa.Array) -> tuple[Integers, Reals]:
    """(n,) which of the distinct orientations each row has, -1 where it has no valid one, and those (k, 6), in ascending order."""
    codes, texts = encoded(column)
    cosines = parse_numbers(texts, 6)
    row, column_ = cosines[:, :3], cosines[:, 3:]
    with np.errstate(invalid="ignore", over="ignore"):
        off = [(row * row).sum(axis=1) - 1, (column_ * column_).sum(axis=1) - 1, (row * column_).sum(axis=1)]
        valid = (np.abs(off) <= UNIT_TOLERANCE).all(axis=0)
    distinct, place = np.unique(cosines[valid] + 0.0, axis=0, return_inverse=True)
    rank = np.full(len(texts) + 1, -1, dtype=np.int64)  # its last for codes of -1
    rank[:-1][valid] = place.reshape(-1)
    return rank[codes], distinct


def normals(cosines: Reals) -> Reals:
    """(k, 3) unit normals of orientations (k, 6), in LPS."""
    crossed = np.cross(cosines[:, :3], cosines[:, 3:]).reshape(-1, 3)
    return np.asarray(crossed / np.linalg.norm(crossed, axis=1, keepdims=True))


def planes(cosines: Reals) -> Integers:
    """(k,) which of `PLANES` each orientation (k, 6) is."""
    size = np.abs(normals(cosines))
    axis = size.argmax(axis=1) if len(size) else np.zeros(0, dtype=np.int64)
    return np.where(size.max(axis=1, initial=0.0) >= OBLIQUE_BELOW, axis + 1, PLANES.index(OBLIQUE)).astype(np.int64)


def parse_numbers(column: pa.ChunkedArray | pa.Array, count: int) -> Reals:
    """(n, count) numbers of texts that hold `count` of them with backslashes between; NaN where one does not."""
    if pa.types.is_dictionary(column.type):
        codes, texts = encoded(column)
        return np.vstack([parse_numbers(texts, count), np.full((1, count), np.nan)])[codes]
    numbers = np.full((len(column), count), np.nan)
    for start in range(0, len(column), _PARSED_AT_ONCE):
        some = pc.cast(column.slice(start, _PARSED_AT_ONCE), pa.string())
        valid = to_numpy(pc.match_substring_regex(some, f"^{_NUMBER}" + rf"(\\{_NUMBER})" * (count - 1) + "$"))
        parts = pc.list_flatten(pc.split_pattern(pc.filter(some, from_numpy(valid)), "\\"))
        read = reals(parts)
        numbers[start : start + len(some)][valid] = read.reshape(-1, count)
    return numbers


def along_axes(position: Reals, group: Integers, cosines: Reals) -> Reals:
    """(m, 3) millimetres along the normal, the rows and the columns of each group's orientation (k, 6)."""
    axes = np.stack([normals(cosines), cosines[:, :3], cosines[:, 3:]])
    place = np.zeros((len(position), 3))
    for number, axis in enumerate(axes):
        for component in range(3):
            place[:, number] += position[:, component] * axis[group, component]
    return place


def measure(group: Integers, place: Reals) -> Measures:
    """Groups 0 to k-1, none empty, by where their slices are: (m, 3) along the normal, the rows and the columns."""
    order = np.lexsort((place[:, 0], group))
    group, place = group[order], place[order]
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(group)])
    files = np.diff(np.append(starts, len(group)))
    last = starts + files - 1
    inside = group[1:] == group[:-1]
    gaps = np.diff(place[:, 0])[inside]
    owner = group[1:][inside]
    crowded = gaps <= POSITION_TOLERANCE_MM
    spacing, even = _spacing(owner, gaps, files)
    return Measures(
        files=files,
        most=_longest_runs(crowded, owner, len(files)),
        unique=np.bincount(owner[crowded], minlength=len(files)) == 0,
        straight=_on_a_line(group, place, starts, last),
        spacing_mm=spacing,
        even=even,
        low=place[starts, 0],
        high=place[last, 0],
    )


def _spacing(owner: Integers, gaps: Reals, files: Integers) -> tuple[Reals, Flags]:
    """The median of each group's gaps, NaN without any, and whether all are about that."""
    spacing = np.full(len(files), np.nan)
    sorted_ = gaps[np.lexsort((gaps, owner))]
    count = files - 1
    some = count > 0
    start = (np.cumsum(count) - count)[some]
    lower, upper = start + (count[some] - 1) // 2, start + count[some] // 2
    spacing[some] = (sorted_[lower] + sorted_[upper]) / 2
    least, most = sorted_[start], sorted_[start + count[some] - 1]
    tolerance = SPACING_TOLERANCE * spacing[some] + POSITION_TOLERANCE_MM
    even = np.zeros(len(files), dtype=bool)
    even[some] = np.maximum(most - spacing[some], spacing[some] - least) <= tolerance
    return spacing, even


def _longest_runs(crowded: Flags, owner: Integers, groups: int) -> Integers:
    """(k,) the most files at one position: one more than the longest run of gaps that are none. `owner` ascends."""
    most = np.ones(groups, dtype=np.int64)
    if crowded.any():
        begins = np.append(True, (owner[1:] != owner[:-1]) | ~crowded[:-1] | ~crowded[1:])
        run = np.cumsum(begins)[crowded]
        np.maximum.at(most, owner[crowded], np.bincount(run)[run] + 1)
    return most


def _on_a_line(group: Integers, place: Reals, starts: Integers, last: Integers) -> Flags:
    """(k,) whether positions lie on the line through the first and the last, not more oblique to the normal than a gantry's tilt."""
    extent = place[last, 0] - place[starts, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(extent[:, None] > 0, (place[last, 1:] - place[starts, 1:]) / extent[:, None], 0.0)
    origin = place[starts]
    off = np.zeros(len(group))
    for axis in (1, 2):
        expected = origin[group, axis] + slope[group, axis - 1] * (place[:, 0] - origin[group, 0])
        off = np.maximum(off, np.abs(place[:, axis] - expected))
    farthest = np.maximum.reduceat(off, starts) if len(starts) else off
    return np.asarray((farthest <= IN_PLANE_TOLERANCE_MM) & (np.hypot(slope[:, 0], slope[:, 1]) <= MAX_SHEAR))


def clusters(group: Integers, values: Reals, tolerance: float) -> Integers:
    """(m,) clusters of `values` (m, d) within each group, no wider than the tolerance in any component, numbered in ascending order.

    They part where a gap is wider; where many small gaps add up to more, at every tolerance from the smallest value on.
    """
    codes = dense(group)
    for component in values.T:
        order = np.lexsort((component, codes))
        code, value = codes[order], component[order]
        edge = np.append(True, (code[1:] != code[:-1]) | (np.diff(value) > tolerance))[: len(value)]
        run = np.cumsum(edge) - 1
        starts = np.flatnonzero(edge)
        offset = value - value[starts][run]
        wide = np.maximum.reduceat(offset, starts) > tolerance if len(starts) else edge
        step = np.where(wide[run], np.floor(offset / tolerance), 0.0)
        edge |= np.append(True, np.diff(step) != 0)[: len(step)]
        codes = np.empty(len(order), dtype=np.int64)
        codes[order] = np.cumsum(edge) - 1
    return codes


def refine(group: Integers, code: NDArray[np.signedinteger]) -> Integers:
    """Groups divided by a code, numbered anew, by group and code."""
    low = int(code.min(initial=0))
    return dense(group * (int(code.max(initial=0)) - low + 1) + (code - low))


def dense(codes: NDArray[Any]) -> Integers:
    """The codes' ranks, from 0."""
    return np.unique(codes, return_inverse=True)[1].astype(np.int64).reshape(-1)


def first_of(group: Integers, values: Integers) -> Integers:
    """(k,) the smallest of each group's values; groups are 0 to k-1, none empty."""
    smallest = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, group, values)
    return smallest


def parts_of(whole: Integers, group: Integers) -> Integers:
    """How many of the finer groups each whole has."""
    return np.bincount(first_of(group, whole), minlength=whole.max(initial=-1) + 1)


def ranks(column: pa.ChunkedArray | pa.Array) -> Integers:
    """(n,) the rank of each value among the distinct ones, -1 for missing and empty ones."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = reals(column)
        return np.where(np.isnan(values), -1, dense(values))
    codes, texts = encoded(column)
    order = to_numpy(pc.array_sort_indices(texts))
    rank = np.full(len(texts) + 1, -1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    rank[:-1][equals(texts, "")] = -1
    return rank[codes]


def reals(column: pa.ChunkedArray | pa.Array) -> Reals:
    """(n,) a column of numbers, NaN where there is none."""
    return to_numpy(pc.cast(column, pa.float64()), missing=np.nan)


def encoded(column: pa.ChunkedArray | pa.Array) -> tuple[Integers, pa.Array]:
    """(n,) codes, -1 for null, and the distinct texts."""
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    codes = to_numpy(pc.cast(column.indices, pa.int64()), missing=-1)
    return codes, pc.cast(column.dictionary, pa.string())
