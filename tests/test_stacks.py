"""Series to stacks: what splits them, and that what is called sorted by position can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns import COLUMNS, INTEGER, REAL, REPEATING
from pipeline.indexing.positions import POSITION_TOLERANCE_MM, orientations, parse_numbers, planes
from pipeline.indexing.stacks import COSINE_TOLERANCE, STACK_COLUMNS, STACKS_SCHEMA, stack_series

AXIAL, CORONAL, SAGITTAL = "1\\0\\0\\0\\1\\0", "1\\0\\0\\0\\0\\-1", "0\\1\\0\\0\\0\\-1"
TYPES = {INTEGER: pa.int64(), REAL: pa.float64()}


def _slice(z: float, **other: Any) -> dict[str, Any]:
    """A row of the index: an axial slice at z mm."""
    row: dict[str, Any] = dict.fromkeys(STACK_COLUMNS)
    row |= {"source": "export", "series_instance_uid": "1.2.3", "collision": "", "frames": 1, "rows": 64, "columns": 64}
    row |= {"image_position_patient": f"-100.0\\-100.0\\{z:.6f}", "image_orientation_patient": AXIAL}
    return row | {"frame_of_reference_uid": "1.2.9", "pixel_spacing": "0.7\\0.7"} | other


def _table(rows: Sequence[dict[str, Any]], *, encoded: bool = False) -> pa.Table:
    """The rows as the index has them: text plain, or dictionary-encoded where it repeats."""
    arrays = {}
    for name in STACK_COLUMNS:
        values = [row["path"] or f"{number:04d}" if name == "path" else row[name] for number, row in enumerate(rows)]
        array = pa.array(values, TYPES.get(COLUMNS[name], pa.string()))
        arrays[name] = array.dictionary_encode() if encoded and name in REPEATING else array
    return pa.table(arrays)


def _stacked(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[dict[str, Any]]]:
    stack, stacks = stack_series(_table(rows))
    return stack.tolist(), stacks.to_pylist()


def test_a_plain_series_is_one_stack():
    stack, stacks = _stacked([_slice(z) for z in (5.0, 0.0, 2.5, 7.5)])
    assert stack == [0, 0, 0, 0]
    [one] = stacks
    assert list(one.values()) == ["1.2.3", 0, 4, 4, 64, 64, "axial", 2.5, True, "position", ""]


def test_no_rows_are_no_stacks():
    stack, stacks = stack_series(_table([]))
    assert len(stack) == 0
    assert stacks.schema == STACKS_SCHEMA
    assert stacks.num_rows == 0


def test_files_without_a_series_are_in_no_stack():
    assert _stacked([_slice(0, series_instance_uid=uid) for uid in (None, "")]) == ([-1, -1], [])


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"image_orientation_patient": SAGITTAL}, "orientation"),
        ({"rows": 32}, "size"),
        ({"columns": 32}, "size"),
        ({"frame_of_reference_uid": "1.2.8"}, "frame_of_reference_uid"),
        ({"pixel_spacing": "0.8\\0.8"}, "pixel_spacing"),
        ({"pixel_spacing": None}, "pixel_spacing"),
        ({"rows": 32, "image_orientation_patient": SAGITTAL}, "size, orientation"),
    ],
)
def test_what_cannot_be_one_volume_is_split(others: dict[str, Any], reason: str):
    stack, stacks = _stacked([_slice(0), _slice(50, **others), _slice(2), _slice(4)])
    assert stack == [0, 1, 0, 0]
    assert [one["reason"] for one in stacks] == [reason, reason]
    assert [one["files"] for one in stacks] == [3, 1]


def test_orientations_that_differ_by_rounding_are_one():
    rounded = ["1.000000\\0.000000\\0.000000\\0.000000\\0.999848\\-0.017452", "1\\0\\0\\0\\0.9998\\-0.0175"]
    stack, stacks = _stacked([_slice(z, image_orientation_patient=rounded[z % 2]) for z in range(4)])
    assert stack == [0] * 4
    assert stacks[0]["sorted_by"] == "position"


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("acquisition_number", (1, 2)),
        ("image_type", ("ORIGINAL\\PRIMARY\\M", "ORIGINAL\\PRIMARY\\P")),
        ("echo_time", (4.6, 9.2)),
        ("temporal_position_identifier", (1, 2)),
        ("trigger_time", (0.0, 40.0)),
        ("convolution_kernel", ("LUNG", None)),
        ("slice_thickness", (1.0, 5.0)),
        ("acquisition_time", ("101500.25", "101530")),
    ],
)
def test_positions_that_repeat_are_told_apart(attribute: str, values: tuple[Any, Any]):
    stack, stacks = _stacked([_slice(z, **{attribute: value}) for z in range(4) for value in values])
    assert stack in ([0, 1] * 4, [1, 0] * 4)
    assert [one["reason"] for one in stacks] == [attribute] * 2
    assert all(one["sorted_by"] == "position" and one["evenly_spaced"] for one in stacks)


def test_two_attributes_together():
    rows = [_slice(z, echo_time=echo, image_type=kind) for z in range(3) for echo in (4.6, 9.2) for kind in ("M", "P")]
    stack, stacks = _stacked(rows)
    assert stack == [0, 2, 1, 3] * 3 or sorted(set(stack)) == [0, 1, 2, 3]
    assert {one["reason"] for one in stacks} == {"image_type, echo_time"}
    assert {one["files"] for one in stacks} == {3}


def test_what_tells_every_file_apart_splits_nothing():
    rows = [_slice(z, acquisition_time=f"10{second:04d}") for second, z in enumerate([0, 1, 2, 0, 1, 2])]
    stack, stacks = _stacked(rows)
    assert stack == [0] * 6
    assert (stacks[0]["reason"], stacks[0]["sorted_by"]) == ("duplicate positions", "")
    assert stacks[0]["spacing_mm"] is None


def test_one_slice_over_time_is_a_stack_a_time():
    stack, stacks = _stacked([_slice(0, trigger_time=float(time)) for time in range(5)])
    assert sorted(stack) == list(range(5))
    assert {one["reason"] for one in stacks} == {"trigger_time"}


def test_an_acquisition_a_slice_stays_one_stack():
    """Scanners that number every rotation: a split there would shatter good series."""
    stack, stacks = _stacked([_slice(z, acquisition_number=z // 2) for z in range(8)])
    assert stack == [0] * 8
    assert stacks[0]["reason"] == ""


def test_two_scans_of_one_region_are_told_apart_though_no_position_repeats():
    rows = [_slice(z, acquisition_number=1) for z in (0, 5, 10, 15)]
    rows += [_slice(z, acquisition_number=2) for z in (1, 6, 11, 16)]
    stack, stacks = _stacked(rows)
    assert stack == [0] * 4 + [1] * 4
    assert {one["reason"] for one in stacks} == {"acquisition_number"}


def test_slices_interleaved_on_purpose_stay_together():
    rows = [_slice(z, acquisition_number=1 + z % 2) for z in range(8)]
    assert _stacked(rows)[0] == [0] * 8


def test_an_acquisition_elsewhere_in_the_plane_is_told_apart():
    away = [_slice(z, image_position_patient=f"-60\\-100\\{z}", acquisition_number=2) for z in (3, 4, 5)]
    stack, stacks = _stacked([*(_slice(z, acquisition_number=1) for z in (0, 1, 2)), *away])
    assert stack == [0] * 3 + [1] * 3
    assert {one["reason"] for one in stacks} == {"acquisition_number"}
    nameless = [row | {"acquisition_number": None} for row in away]
    assert _stacked([*(_slice(z) for z in (0, 1, 2)), *nameless])[1][0]["reason"] == "in-plane position"


def test_a_tilted_gantry_is_a_straight_line_and_a_scattered_localizer_is_not():
    tilted = "1\\0\\0\\0\\0.939693\\-0.342020"
    rows = [_slice(0, image_position_patient=f"-100\\-100\\{z}", image_orientation_patient=tilted) for z in range(5)]
    stack, stacks = _stacked(rows)
    assert stack == [0] * 5
    assert (stacks[0]["sorted_by"], stacks[0]["orientation"]) == ("position", "axial")
    assert stacks[0]["spacing_mm"] == pytest.approx(np.cos(np.radians(20)), abs=1e-5)
    scattered = [_slice(0, image_position_patient=f"{x}\\-100\\{z}") for z, x in enumerate((0, 90, 10))]
    [crooked] = _stacked(scattered)[1]
    assert (crooked["reason"], crooked["sorted_by"]) == ("positions not on a line", "")
    [steep] = _stacked(scattered[:2])[1]
    assert steep["reason"] == "positions not on a line"


def test_multi_frame_files_are_stacks_of_their_own():
    rows = [_slice(0), _slice(1), _slice(0, frames=20, path="b"), _slice(0, frames=10, path="a", rows=32)]
    stack, stacks = _stacked(rows)
    assert stack == [0, 0, 2, 1]
    assert [one["reason"] for one in stacks] == ["multi-frame"] * 3
    assert [one["frames"] for one in stacks] == [2, 10, 20]
    assert _stacked([_slice(0, frames=20)])[1][0]["reason"] == ""


def test_files_without_geometry():
    bare = {"image_position_patient": None, "image_orientation_patient": None}
    stack, [alone] = _stacked([_slice(0, **bare)])
    assert stack == [0]
    assert (alone["reason"], alone["sorted_by"], alone["orientation"]) == ("", "", "")
    stack, stacks = _stacked([_slice(0), _slice(1), _slice(0, **bare), _slice(0, **bare, rows=32)])
    assert stack == [0, 0, -1, -1]
    assert [(one["stack"], one["files"], one["rows"]) for one in stacks] == [(-1, 2, None), (0, 2, 64)]
    assert [one["reason"] for one in stacks] == ["no position or orientation", ""]


@pytest.mark.parametrize(
    "bad",
    [
        {"image_position_patient": "1\\2"},
        {"image_position_patient": "1\\2\\east"},
        {"image_position_patient": "0\\0\\1e300"},
        {"image_orientation_patient": "0\\0\\0\\0\\0\\0"},
        {"image_orientation_patient": "1\\0\\0\\1\\0\\0"},
        {"image_orientation_patient": "1\\0\\0\\0\\1"},
        {"image_orientation_patient": ""},
    ],
)
def test_geometry_that_is_none(bad: dict[str, Any]):
    assert _stacked([_slice(0), _slice(1, **bad)])[0] == [0, -1]


def test_further_copies_of_a_file_repeat_no_position():
    stack, [one] = _stacked([_slice(0), _slice(1), _slice(1, collision="duplicate"), _slice(2)])
    assert stack == [0, 0, -1, 0]
    assert (one["files"], one["sorted_by"], one["reason"]) == (3, "position", "")
    conflict = _stacked([_slice(0), _slice(1, collision="conflict"), _slice(1, collision="conflict")])[1]
    assert conflict[0]["reason"] == "duplicate positions"


def test_spacing_that_is_not_even():
    [gap] = _stacked([_slice(z) for z in (0, 2, 4, 8)])[1]
    assert (gap["spacing_mm"], gap["evenly_spaced"]) == (2.0, False)
    [single] = _stacked([_slice(0)])[1]
    assert (single["spacing_mm"], single["evenly_spaced"]) == (None, None)


def test_planes():
    codes, cosines = orientations(
        pa.array([AXIAL, CORONAL, SAGITTAL, "0.7071\\0.7071\\0\\0\\0\\-1", None, "1.0\\-0.0\\0\\0\\1\\0"])
    )
    assert codes[4] == -1
    assert codes[5] == codes[0]
    assert planes(cosines)[codes[:4]].tolist() == [3, 2, 1, 4]


def test_numbers_are_read_or_nan():
    read = parse_numbers(pa.array(["1\\-2.5", "+1.\\1.5e1", "1", "1\\2\\3", "nan\\1", "1 \\2", None, ""]), 2)
    assert read[:2].tolist() == [[1.0, -2.5], [1.0, 15.0]]
    assert np.isnan(read[2:]).all()


POSITIONS = st.one_of(st.none(), st.builds(lambda x, z: f"{x / 100}\\0\\{z / 100}", *[st.integers(-300, 300)] * 2))
TURNED = [f"{np.cos(a):.6f}\\{np.sin(a):.6f}\\0\\{-np.sin(a):.6f}\\{np.cos(a):.6f}\\0" for a in np.arange(6) * 4e-4]
ROWS = st.lists(
    st.builds(
        lambda position, **other: _slice(0, image_position_patient=position, **other),
        POSITIONS,
        series_instance_uid=st.sampled_from(["1", "2", None]),
        image_orientation_patient=st.sampled_from([*TURNED, SAGITTAL, "", None]),
        collision=st.sampled_from(["", "", "conflict", "duplicate"]),
        frames=st.sampled_from([1, 1, 1, 2, None]),
        rows=st.sampled_from([8, 8, 9, None]),
        frame_of_reference_uid=st.sampled_from(["1", None]),
        pixel_spacing=st.sampled_from(["1\\1", "1.0\\1.0", None]),
        acquisition_number=st.sampled_from([1, 2, None]),
        echo_time=st.sampled_from([1.0, 2.0, None]),
        image_type=st.sampled_from(["M", "P", ""]),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(rows=ROWS, seed=st.integers(0, 1000))
def test_the_order_of_rows_does_not_matter(rows: list[dict[str, Any]], seed: int):
    named = [row | {"path": f"{number:04d}"} for number, row in enumerate(rows)]
    order = np.random.default_rng(seed).permutation(len(named))
    stack, stacks = stack_series(_table(named))
    shuffled, same = stack_series(_table([named[place] for place in order], encoded=True))
    assert shuffled.tolist() == stack[order].tolist()
    assert same.equals(stacks)


@settings(deadline=None)
@given(rows=ROWS)
def test_what_is_sorted_by_position_can_be(rows: list[dict[str, Any]]):
    stack, stacks = stack_series(_table(rows))
    listed = {(one["series_instance_uid"], one["stack"]): one for one in stacks.to_pylist()}
    assert len(listed) == stacks.num_rows
    members: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row, number in zip(rows, stack.tolist(), strict=True):
        if row["series_instance_uid"] and row["collision"] != "duplicate":
            members.setdefault((row["series_instance_uid"], number), []).append(row)
        else:
            assert number == -1
    assert members.keys() == listed.keys()
    for key, one in listed.items():
        of_it = members[key]
        assert one["files"] == len(of_it)
        assert one["sorted_by"] == "" or key[1] >= 0
        if one["sorted_by"] != "position":
            continue
        assert len({row["rows"] for row in of_it}) == 1
        assert len({row["frame_of_reference_uid"] for row in of_it}) == 1
        cosines = parse_numbers(pa.array([row["image_orientation_patient"] for row in of_it]), 6)
        assert (np.ptp(cosines, axis=0) <= COSINE_TOLERANCE).all()
        normal = np.cross(*np.split(cosines[np.lexsort(cosines.T[::-1])[0]], 2))
        along = np.sort(parse_numbers(pa.array([row["image_position_patient"] for row in of_it]), 3) @ normal)
        assert (np.diff(along) > POSITION_TOLERANCE_MM - 1e-6).all()


@pytest.mark.real_data
def test_real_series(real_data: Path):
    from pipeline.dicom.header import read_header
    from pipeline.errors import Rejected
    from pipeline.identity import ephemeral_key

    rows = []
    for path in sorted((real_data / "dicom").rglob("*")):
        try:
            header = read_header(path, ephemeral_key()) if path.is_file() else {}
        except Rejected:
            continue
        if header:
            row = {"source": "s", "path": path.relative_to(real_data).as_posix(), "collision": ""} | header
            rows.append({name: row[name] for name in STACK_COLUMNS})
    stack, stacks = stack_series(_table(rows))
    found = {row["path"].split("/")[1]: number for row, number in zip(rows, stack.tolist(), strict=True)}
    assert found["ct_series_ge_tilt"] == 0
    [tilted] = [one for one in stacks.to_pylist() if one["files"] == 28]
    assert (tilted["sorted_by"], tilted["evenly_spaced"], tilted["orientation"]) == ("position", False, "axial")
    reasons = {reason for one in stacks.to_pylist() for reason in one["reason"].split(", ")}
    assert {"orientation", "duplicate positions", "no position or orientation", "multi-frame"} <= reasons
