"""Series to stacks: images of one size, plane and place that sort by position along their normal (PS3.3 C.7.6.2); all vectorised.

In: index rows with `STACK_COLUMNS`. Out: each row's stack and a table of the stacks, each with what split its series. The order of
rows does not matter, and InstanceNumber is never looked at. A multi-frame file is a stack of its own; a series of one file is one;
files without position or orientation are none, and neither are further copies of a file (collision `duplicate`).
A mixture that repeats positions, or does not lie on a line, is divided by the first of `SPLIT_BY`, or the first two, that make all
parts sortable. AcquisitionNumber alone divides nothing else, as scanners may number every slice, but interleaved acquisitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import equals, from_numpy, from_values, to_numpy
from pipeline.indexing.positions import (
    IN_PLANE_TOLERANCE_MM,
    PLANES,
    Flags,
    Integers,
    Reals,
    along_axes,
    clusters,
    dense,
    encoded,
    first_of,
    measure,
    orientations,
    parse_numbers,
    parts_of,
    planes,
    ranks,
    reals,
    refine,
)

COSINE_TOLERANCE = 1e-3
"""Of direction cosines in one stack: half a millimetre over an image of 500 mm. Scanners write 3 to 6 decimals."""
PIXEL_SPACING_TOLERANCE_MM = 1e-3
"""Of one stack: half a millimetre over an image of 512 pixels."""
MAX_POSITION_MM = 1e6
"""A kilometre from the origin is no position in a patient."""

SPLIT_BY = (
    *("acquisition_number", "image_type", "echo_time", "temporal_position_identifier", "trigger_time"),
    *("convolution_kernel", "slice_thickness", "acquisition_time"),
)
"""What may tell apart images at one position, in the order tried: what a scanner counts first; its clock, which runs on, last."""
IN_PLANE, MULTI_FRAME, UNLOCATED = "in-plane position", "multi-frame", "no position or orientation"
DUPLICATE, CROOKED = "duplicate positions", "positions not on a line"
REASONS = (
    *(MULTI_FRAME, "size", "orientation", "frame_of_reference_uid", "pixel_spacing"),
    *(*SPLIT_BY, IN_PLANE, UNLOCATED, DUPLICATE, CROOKED),
)
"""What `reason` of a stack is made of; several are joined by commas."""
_BIT = {reason: 1 << place for place, reason in enumerate(REASONS)}

SPACING_DECIMALS = 6
"""Of millimetres: more are the noise of subtracting positions."""
STACK_COLUMNS = (
    *("source", "path", "series_instance_uid", "collision", "frames", "rows", "columns"),
    *("image_position_patient", "image_orientation_patient", "frame_of_reference_uid", "pixel_spacing", *SPLIT_BY),
)
"""The index's columns that stacks depend on."""
STACKS_SCHEMA = pa.schema(
    [
        ("series_instance_uid", pa.string()),
        ("stack", pa.int64()),
        ("files", pa.int64()),
        ("frames", pa.int64()),
        ("rows", pa.int64()),
        ("columns", pa.int64()),
        ("orientation", pa.string()),
        ("spacing_mm", pa.float64()),
        ("evenly_spaced", pa.bool_()),
        ("sorted_by", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class _Stacks:
    """Some stacks: `member` (m,) rows of the table, `group` (m,) the stack of each, from 0; the others (k,), one a stack, in the order
    in which equally large stacks of a series are numbered."""

    member: Integers
    group: Integers
    reason: Integers
    plane: Integers
    spacing_mm: Reals
    even: Flags
    by_position: Flags


def stack_series(table: pa.Table) -> tuple[Integers, pa.Table]:
    """Each row's stack (n,), numbered within its series from 0, the one with most files first; -1 for none. And the stacks, a table of
    `STACKS_SCHEMA` by series and stack; what of a series is in no stack for want of geometry is a row with stack -1."""
    series = ranks(table["series_instance_uid"])
    present = (series >= 0) & ~_is_duplicate(table["collision"])
    frames = np.maximum(np.nan_to_num(reals(table["frames"]), nan=1.0), 1.0).astype(np.int64)
    orientation, cosines = orientations(table["image_orientation_patient"])
    position = parse_numbers(table["image_position_patient"], 3)
    with np.errstate(invalid="ignore"):
        located = (orientation >= 0) & (np.abs(position) <= MAX_POSITION_MM).all(axis=1)
    several = present & (frames > 1)
    mixed = (_count(series[several], series) > 0) & (_count(series[present], series) > 1)
    alone = present & ~several & ~located & (_count(series[present], series) == 1)
    slices = np.flatnonzero(present & ~several & located)
    position = position[slices]
    parts = (
        _slice_stacks(table, slices, series[slices], position, orientation[slices], cosines),
        _file_stacks(table, np.flatnonzero(several | alone), planes(cosines), orientation),
    )
    stacks = _Stacks(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _Stacks.__annotations__}
    )
    stacks.group[len(slices) :] += len(parts[0].reason)
    stacks.reason[np.unique(stacks.group[mixed[stacks.member]])] |= _BIT[MULTI_FRAME]
    ordinal = _ordinals(stacks.group, series[stacks.member])
    stack = np.full(len(series), -1, dtype=np.int64)
    stack[stacks.member] = ordinal[stacks.group]
    lost = np.flatnonzero(present & ~several & ~located & ~alone)
    return stack, _table(table, series, frames, stacks, ordinal, lost)


def _slice_stacks(
    table: pa.Table, member: Integers, series: Integers, position: Reals, orientation: Integers, cosines: Reals
) -> _Stacks:
    """Stacks of single-frame files that have a place."""
    group, reason = _alike(table, member, series, orientation, cosines)
    first = first_of(group, orientation)
    place = along_axes(position, group, cosines[first])
    group, reason = _without_repeats(table, member, group, reason, place)
    group, reason = _without_interleaving(table, member, group, reason, place)
    measures = measure(group, place)
    failing = np.where(measures.unique, _BIT[CROOKED], _BIT[DUPLICATE])
    return _Stacks(
        member=member,
        group=group,
        reason=np.where(measures.sort, reason, reason | failing),
        plane=planes(cosines)[first_of(group, orientation)],
        spacing_mm=np.where(measures.sort, measures.spacing_mm, np.nan),
        even=measures.even,
        by_position=measures.sort,
    )


def _file_stacks(table: pa.Table, member: Integers, plane: Integers, orientation: Integers) -> _Stacks:
    """A stack a file, in the order of their paths: multi-frame files, and those that are alone in their series."""
    names = ("source", "path")
    places = [pc.cast(table[name].take(from_numpy(member)), pa.string()) for name in names]
    of_files = pa.Table.from_arrays(places, names=list(names))
    member = member[to_numpy(pc.sort_indices(of_files, sort_keys=[(name, "ascending") for name in names]))]
    return _Stacks(
        member=member,
        group=np.arange(len(member)),
        reason=np.zeros(len(member), dtype=np.int64),
        plane=np.append(plane, 0)[orientation[member]],
        spacing_mm=np.full(len(member), np.nan),
        even=np.zeros(len(member), dtype=bool),
        by_position=np.zeros(len(member), dtype=bool),
    )


def _alike(
    table: pa.Table, member: Integers, series: Integers, orientation: Integers, cosines: Reals
) -> tuple[Integers, Integers]:
    """Rows of a series apart by size, orientation, frame of reference and pixel spacing; and which of them differ in its series."""
    group = dense(series)
    whole = group
    bits = np.zeros(group.max(initial=-1) + 1, dtype=np.int64)
    chosen = from_numpy(member)
    spacing = np.nan_to_num(parse_numbers(table["pixel_spacing"].take(chosen), 2), nan=-1.0)
    traits: tuple[tuple[str, tuple[Integers, ...]], ...] = (
        ("size", (ranks(table["rows"].take(chosen)), ranks(table["columns"].take(chosen)))),
        ("orientation", (_directions(group, orientation, cosines),)),
        ("frame_of_reference_uid", (ranks(table["frame_of_reference_uid"].take(chosen)),)),
        ("pixel_spacing", (clusters(group, spacing, PIXEL_SPACING_TOLERANCE_MM),)),
    )
    for name, codes in traits:
        alone = whole
        for code in codes:
            alone, group = refine(alone, code), refine(group, code)
        bits[parts_of(whole, alone) > 1] |= _BIT[name]
    return group, bits[first_of(group, whole)]


def _directions(group: Integers, orientation: Integers, cosines: Reals) -> Integers:
    """(m,) clusters of the orientations within each group."""
    pairs, pair = np.unique(group * (len(cosines) + 1) + orientation, return_inverse=True)
    owner, which = pairs // (len(cosines) + 1), pairs % (len(cosines) + 1)
    return clusters(owner, cosines[which], COSINE_TOLERANCE)[pair]


def _without_repeats(
    table: pa.Table, member: Integers, group: Integers, reason: Integers, place: Reals
) -> tuple[Integers, Integers]:
    """Groups that do not sort divided by the first attributes that make them do."""
    part = np.zeros(len(group), dtype=np.int64)
    measures = measure(group, place)
    reason = reason.copy()
    rows = np.flatnonzero(~measures.sort[group])
    if not len(rows):
        return group, reason
    codes = {name: ranks(table[name].take(from_numpy(member[rows]))).astype(np.int32) for name in SPLIT_BY}
    codes[IN_PLANE] = clusters(group[rows], place[rows, 1:], IN_PLANE_TOLERANCE_MM).astype(np.int32)
    most_parts = np.maximum(measures.most, measures.files // 2)
    open_ = np.ones(len(rows), dtype=bool)
    for names in _ways(codes):
        left = np.flatnonzero(open_)
        solved, parts = _divided(
            group[rows[left]], [codes[name][left] for name in names], place[rows[left]], most_parts
        )
        part[rows[left[solved]]] = parts[solved]
        for name in names:
            reason[group[rows[left[solved]]]] |= _BIT[name]
        open_[left[solved]] = False
        if not open_.any():
            break
    return _with_parts(group, part, reason)


def _ways(codes: Mapping[str, NDArray[np.int32]]) -> Iterator[tuple[str, ...]]:
    """The attributes that differ at all, one at a time, then two."""
    differing = [name for name, values in codes.items() if values.min() != values.max()]
    yield from ((name,) for name in differing)
    yield from combinations(differing, 2)


def _divided(
    group: Integers, codes: Sequence[NDArray[np.int32]], place: Reals, most_parts: Integers
) -> tuple[Flags, Integers]:
    """(m,) whether the codes divide the row's group well, and its part. Well: every part sorts, and there are no more of them than
    files at one position, or files a pair: an attribute that tells every file from every other explains nothing."""
    owner = dense(group)
    original = first_of(owner, group)
    parts = owner
    for code in codes:
        parts = refine(parts, code)
    count = parts_of(owner, parts)
    fits = (count > 1) & (count <= most_parts[original])
    chosen = np.flatnonzero(fits[owner])
    if not len(chosen):
        return np.zeros(len(group), dtype=bool), parts
    inner = dense(parts[chosen])
    bad = first_of(inner, owner[chosen])[~measure(inner, place[chosen]).sort]
    fits[bad] = False
    return fits[owner], parts


def _without_interleaving(
    table: pa.Table, member: Integers, group: Integers, reason: Integers, place: Reals
) -> tuple[Integers, Integers]:
    """Acquisitions that reach into each other and are evenly spaced each, but not together, divided: two scans of one region.

    Consecutive acquisitions of a table that steps stay one stack, and so do slices interleaved on purpose, which are even together.
    """
    measures = measure(group, place)
    rows = np.flatnonzero((measures.sort & ~measures.even & (measures.files >= 6))[group])
    if not len(rows):
        return group, reason
    parts = refine(group[rows], ranks(table["acquisition_number"].take(from_numpy(member[rows]))))
    of_parts = measure(parts, place[rows])
    owner = first_of(parts, group[rows])
    order = np.lexsort((of_parts.low, owner))
    reach = (owner[order][1:] == owner[order][:-1]) & (of_parts.low[order][1:] < of_parts.high[order][:-1])
    mixed = np.zeros(len(reason), dtype=bool)
    mixed[owner[order][1:][reach]] = True
    mixed[owner[(of_parts.files < 3) | ~of_parts.even]] = False
    chosen = mixed[group[rows]]
    part = np.zeros(len(group), dtype=np.int64)
    part[rows[chosen]] = parts[chosen]
    reason = np.where(mixed, reason | _BIT["acquisition_number"], reason)
    return _with_parts(group, part, reason)


def _ordinals(group: Integers, series: Integers) -> Integers:
    """(k,) each stack's number within its series, the one with most files first."""
    owner = first_of(group, series)
    order = np.lexsort((-np.bincount(group, minlength=len(owner)), owner))
    ordinal = np.empty(len(order), dtype=np.int64)
    ordinal[order] = np.arange(len(order)) - np.searchsorted(owner[order], owner[order], side="left")
    return ordinal


def _table(
    table: pa.Table, series: Integers, frames: Integers, stacks: _Stacks, ordinal: Integers, lost: Integers
) -> pa.Table:
    """The stacks, and of each series the `lost` files, as one row."""
    rest, of_rest = np.unique(series[lost], return_inverse=True)
    count, more = len(ordinal), len(rest)
    member = np.concatenate([stacks.member, lost])
    group = np.concatenate([stacks.group, of_rest + count])
    spacing = np.append(stacks.spacing_mm, np.full(more, np.nan))
    words = from_values([*PLANES, "position"], pa.string())
    plane = np.append(stacks.plane, np.zeros(more, dtype=np.int64))
    even = np.append(stacks.even, np.zeros(more, dtype=bool))
    sorted_by = np.append(np.where(stacks.by_position, len(PLANES), 0), np.zeros(more, dtype=np.int64))
    columns = {
        "series_instance_uid": pc.cast(
            table["series_instance_uid"].take(from_numpy(first_of(group, member))), pa.string()
        ),
        "stack": from_numpy(np.append(ordinal, np.full(more, -1))),
        "files": from_numpy(np.bincount(group, minlength=count + more)),
        "frames": from_numpy(np.bincount(group, weights=frames[member], minlength=count + more).astype(np.int64)),
        "rows": _common(reals(table["rows"])[member], group, count + more),
        "columns": _common(reals(table["columns"])[member], group, count + more),
        "orientation": words.take(from_numpy(plane)),
        "spacing_mm": from_numpy(np.round(spacing, SPACING_DECIMALS), missing=np.isnan(spacing)),
        "evenly_spaced": from_numpy(even, missing=np.isnan(spacing)),
        "sorted_by": words.take(from_numpy(sorted_by)),
        "reason": _reason_texts(np.append(stacks.reason, np.full(more, _BIT[UNLOCATED]))),
    }
    found = pa.Table.from_arrays(
        [_one(columns[field.name]).cast(field.type) for field in STACKS_SCHEMA], schema=STACKS_SCHEMA
    )
    return found.sort_by([("series_instance_uid", "ascending"), ("stack", "ascending")])


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _reason_texts(bits: Integers) -> pa.Array:
    distinct, place = np.unique(bits, return_inverse=True)
    texts = [", ".join(reason for reason in REASONS if int(one) & _BIT[reason]) for one in distinct]
    return from_values(texts, pa.string()).take(from_numpy(place))


def _common(values: Reals, group: Integers, groups: int) -> pa.Array:
    """(k,) the value that all of a group have; null where they differ."""
    least, most = np.full(groups, np.inf), np.full(groups, -np.inf)
    with np.errstate(invalid="ignore"):
        np.minimum.at(least, group, values)
        np.maximum.at(most, group, values)
    return from_numpy(np.where(least == most, least, 0.0).astype(np.int64), missing=least != most)


def _with_parts(group: Integers, part: Integers, reason: Integers) -> tuple[Integers, Integers]:
    """Groups divided by `part`, and each one's reason from the group that it was of."""
    finer = refine(group, part)
    return finer, reason[first_of(finer, group)]


def _is_duplicate(column: pa.ChunkedArray | pa.Array) -> Flags:
    codes, texts = encoded(column)
    return np.append(equals(texts, "duplicate"), False)[codes]


def _count(values: Integers, codes: Integers) -> Integers:
    """(n,) how often each code is among the values, which are codes of 0 or more."""
    return np.bincount(values, minlength=codes.max(initial=-1) + 2)[codes]
