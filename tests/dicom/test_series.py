"""Series to volumes: sorted whatever the order, everything odd found and said, and each voxel where its pixel was."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dicom import assembly
from pipeline.dicom.arrangement import NotAVolume, Problem, divide
from pipeline.dicom.assembly import DecodedSlice, VolumePlan, assemble, decode_slices, plan_volume
from pipeline.dicom.geometry import column_first, plane_of
from pipeline.dicom.series import read_volume, read_volumes
from pipeline.dicom.slices import Slice, read_slices
from pipeline.dicom.volume import DESCRIPTION, Finding, Volume, to_sitk, write_nifti
from pipeline.errors import Rejected, RejectReason
from pipeline.nifti import read_nifti, read_nifti_header
from tests.series_files import (
    AXIAL,
    CORNER_MM,
    CORONAL,
    DOUBLE_OBLIQUE,
    GANTRY_TILT,
    SAGITTAL,
    positions,
    unit_vectors,
    values_hu,
    write_enhanced,
    write_series,
)
from transforms.intensity import PixelUnit

NEAR_MM = 1e-5
"""Positions are written to 7 decimals or more, cosines to 6: over the small images here, a hundred times finer."""
FLOAT32 = 1e-3
"""HU: interpolation in float32 of values up to 2,000."""


def _slice(position: Sequence[float], number: int = 0, orientation: Sequence[float] = AXIAL, **other: Any) -> Slice:
    """A slice as its header tells it, without a file."""
    facts: dict[str, Any] = {"rows": 6, "columns": 5, "problem": "", "spacing_mm": 2.0, "rescale": (1.0, 0.0)}
    facts |= {"series": "1.2.3", "frame_of_reference": "1.2.9", "traits": (), "path": Path(f"IM{number}"), "frame": 0}
    return Slice(**(facts | {"plane": plane_of(position, orientation, (0.5, 0.8))} | other))


def _slices(places: Sequence[float], orientation: Sequence[float] = AXIAL, **other: Any) -> list[Slice]:
    return [_slice(at, number, orientation, **other) for number, at in enumerate(positions(orientation, places))]


@cache
def _values(number: int, shape: tuple[int, int] = (6, 5)) -> DecodedSlice:
    return DecodedSlice(values_hu(number, shape).astype(np.int16), PixelUnit.HU, False, None)


def _built(plan: VolumePlan):
    return assemble(plan, (_values(int(one.path.name[2:])) for one in plan.slices))


def _kinds(findings) -> list[Finding]:
    return [found.kind for found in findings]


# --- order


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, DOUBLE_OBLIQUE])
@pytest.mark.parametrize("direction", [1, -1])
def test_every_pixel_stands_where_its_header_says(tmp_path: Path, orientation, direction):
    at = positions(orientation, np.arange(5) * 2.5 * direction)
    volume = read_volume(write_series(tmp_path, at, orientation, spacing_mm=(0.7, 1.1)), workers=0)
    assert volume.voxels.shape == (5, 10, 14)
    assert volume.voxels.dtype == np.int16
    assert volume.unit is PixelUnit.HU
    assert volume.findings == ()
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 1.1), abs=NEAR_MM)
    assert volume.tilt_degrees == 0
    row, column = unit_vectors(orientation)
    for number, position in enumerate(at):
        k = number if direction == 1 else 4 - number
        assert np.array_equal(volume.voxels[k], values_hu(number))
        for r, c in ((0, 0), (9, 13), (3, 7)):
            expected = np.array(position) + c * 1.1 * row + r * 0.7 * column
            assert (volume.affine_lps @ [k, r, c, 1])[:3] == pytest.approx(expected, abs=NEAR_MM)


@settings(max_examples=40, deadline=None)
@given(
    st.permutations(range(7)),
    st.sampled_from([AXIAL, GANTRY_TILT, DOUBLE_OBLIQUE]),
    st.sampled_from(["keep", "deskew"]),
    st.sampled_from([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 4, 5, 7, 8], [0, 1, 2, 3.3, 4.1, 6, 8]]),
)
def test_any_order_of_files_gives_the_same_volume(order, orientation, tilt, places):
    at = positions(orientation, places, along=(0, 0, 1) if orientation is GANTRY_TILT else None)
    slices = [_slice(position, number, orientation) for number, position in enumerate(at)]
    first = _built(plan_volume(slices, uneven="resample", tilt=tilt))
    again = _built(plan_volume([slices[n] for n in order], uneven="resample", tilt=tilt))
    assert np.array_equal(first.voxels, again.voxels)
    assert np.array_equal(first.affine_lps, again.affine_lps)
    assert first.findings == again.findings
    assert [one.path for one in first.sources] == [one.path for one in again.sources]


def test_instance_numbers_decide_nothing(tmp_path: Path):
    at = positions(AXIAL, [0, 2, 4])
    forward = write_series(tmp_path / "a", at, each=[{"InstanceNumber": n} for n in (1, 2, 3)])
    backward = write_series(tmp_path / "b", at, each=[{"InstanceNumber": n} for n in (3, 2, 1)])
    assert np.array_equal(read_volume(forward, workers=0).voxels, read_volume(backward, workers=0).voxels)


# --- spacing


def test_a_missing_slice_is_a_gap_and_refused(tmp_path: Path):
    paths = write_series(tmp_path, positions(AXIAL, [0, 2, 4, 8, 10]))
    with pytest.raises(NotAVolume, match=r"gap \(after_slice 2, missing 1, distance_mm 4\)") as refused:
        read_volume(paths, workers=0)
    assert refused.value.problem is Problem.UNEVEN


def test_a_missing_slice_is_interpolated_on_request_and_the_others_stay(tmp_path: Path):
    paths = write_series(tmp_path, positions(AXIAL, [0, 2, 4, 8, 10]))
    volume = read_volume(paths, uneven="resample", workers=0)
    assert _kinds(volume.findings) == [Finding.GAP, Finding.RESAMPLED]
    assert volume.found(Finding.RESAMPLED).facts == {
        "spacing_mm": pytest.approx(2), "interpolated": 1, "over_gaps": 1
    }  # fmt: skip
    assert volume.voxels.dtype == np.float32
    for k, number in enumerate((0, 1, 2, None, 3, 4)):
        expected = (values_hu(2) + values_hu(3)) / 2 if number is None else values_hu(number)
        assert volume.voxels[k] == pytest.approx(expected, abs=0)
    assert [round(one.weight, 6) for one in volume.sources] == [1, 1, 1, 0.5, 1, 1]


def test_uneven_slices_go_onto_an_even_grid_from_the_first_to_the_last():
    places = [0, 1, 2, 3, 4.2, 5.9, 7.7]
    with pytest.raises(NotAVolume, match=r"uneven \(least_mm 1, most_mm 1\.8, median_mm 1\.1\)"):
        plan_volume(_slices(places))
    plan = plan_volume(_slices(places), uneven="resample")
    assert Finding.UNEVEN in _kinds(plan.findings)
    volume = _built(plan)
    assert len(volume.voxels) == 8  # 7.7 mm at the median of 1.1
    assert volume.spacing_mm[0] == pytest.approx(1.1, abs=NEAR_MM)
    stored = np.stack([_values(number).values for number in range(7)]).astype(float)
    for k in range(8):
        above = int(np.searchsorted(places, 1.1 * k - 1e-9))
        share = 1.0 if above == 0 else (1.1 * k - places[above - 1]) / (places[above] - places[above - 1])
        expected = stored[above] if above == 0 else stored[above - 1] * (1 - share) + stored[above] * share
        assert volume.voxels[k] == pytest.approx(expected, abs=1e-2), k  # positions of 1e-6 mm, times 2,500 HU a slice


def test_another_spacing_can_be_asked_for():
    plan = plan_volume(_slices([0, 2, 4]), uneven="resample", slice_spacing_mm=0.5)
    volume = _built(plan)
    assert len(volume.voxels) == 9
    assert volume.voxels[1] == pytest.approx(_values(0).values * 0.75 + _values(1).values * 0.25, abs=FLOAT32)


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_a_spacing_is_above_zero(spacing: float):
    with pytest.raises(ValueError, match="above 0"):
        plan_volume(_slices([0, 2, 4]), uneven="resample", slice_spacing_mm=spacing)


def test_nothing_is_made_up_where_nobody_has_looked():
    with pytest.raises(NotAVolume, match="nothing is interpolated over more than"):
        plan_volume(_slices([0, 1, 2, 3, 203]), uneven="resample")


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.floats(0.3, 10), st.integers(0, 2**31))
def test_positions_rounded_to_a_tenth_of_the_spacing_are_even(count, spacing, seed):
    jitter = np.random.default_rng(seed).uniform(-0.04, 0.04, count) * spacing
    plan = plan_volume(_slices((np.arange(count) * spacing + jitter).tolist()))
    assert plan.shape[0] == count
    assert not plan.interpolates


def test_small_errors_that_add_up_are_not_even():
    # Each gap is within 5 % of the median, but in the middle the affine would be off by a slice and a half.
    gaps = [1.05] * 30 + [0.95] * 30
    with pytest.raises(NotAVolume, match="uneven"):
        plan_volume(_slices(np.cumsum([0, *gaps]).tolist()))


def test_one_slice_says_that_its_step_is_a_guess(tmp_path: Path):
    volume = read_volume(write_series(tmp_path, positions(AXIAL, [0]), thickness_mm=3.0), workers=0)
    assert str(volume.findings[0]) == "one_slice (spacing_mm 3)"
    assert volume.spacing_mm[0] == 3
    assert plan_volume(_slices([0], spacing_mm=None)).affine_lps[2, 0] == assembly.UNKNOWN_SPACING_MM


# --- tilt


def test_a_tilt_is_kept_as_the_exact_sheared_affine(tmp_path: Path):
    at = positions(GANTRY_TILT, np.arange(4) * 3.0, along=(0, 0, 1))
    volume = read_volume(write_series(tmp_path, at, GANTRY_TILT), workers=0)
    assert str(volume.found(Finding.TILT)) == "tilt (degrees 20)"
    assert volume.tilt_degrees == pytest.approx(20, abs=1e-3)
    assert volume.is_sheared
    assert volume.voxels.dtype == np.int16
    for k, position in enumerate(at):
        assert (volume.affine_lps @ [k, 0, 0, 1])[:3] == pytest.approx(position, abs=NEAR_MM)


@pytest.mark.parametrize("spacing_row_mm", [0.7, 3.0 * 0.342020143 / 2])  # shifts between pixels; of two whole pixels
def test_deskewed_voxels_have_the_values_that_stood_at_their_place(spacing_row_mm):
    """A ramp in the patient is reproduced by linear interpolation without error, wherever no slice's edge is crossed."""
    gradient = np.array([3.0, -5.0, 7.0])
    at = positions(GANTRY_TILT, np.arange(6) * 3.0, along=(0, 0, 1))
    slices = [
        _slice(position, number, GANTRY_TILT, plane=plane_of(position, GANTRY_TILT, (spacing_row_mm, 0.8)), rows=20)
        for number, position in enumerate(at)
    ]
    plan = plan_volume(slices, tilt="deskew")
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(5), indexing="ij"), axis=-1).reshape(-1, 2).astype(float)

    def ramp(one: Slice) -> DecodedSlice:
        values = (one.plane.to_lps_mm(grid) @ gradient).reshape(20, 5).astype(np.float32)
        return DecodedSlice(values, PixelUnit.HU, False, None)

    volume = assemble(plan, map(ramp, plan.slices))
    assert _kinds(volume.findings) == [Finding.TILT, Finding.DESKEWED]
    assert not volume.is_sheared
    axes = volume.affine_lps[:3, :3] / np.array(volume.spacing_mm)
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-5)
    assert volume.spacing_mm[0] == pytest.approx(3 * np.cos(np.radians(20)), abs=1e-4)
    index = np.stack(np.meshgrid(*map(np.arange, volume.voxels.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    expected = (index @ volume.affine_lps[:3, :3].T + volume.affine_lps[:3, 3]) @ gradient
    inside = volume.voxels.ravel() != assembly.OUTSIDE_HU
    assert volume.voxels.ravel()[inside] == pytest.approx(expected[inside], abs=FLOAT32)
    edge = 0 if spacing_row_mm < 0.6 else 1  # a shift between pixels costs one row, that has one neighbour only
    assert inside.sum() == 5 * (20 + 5 * (20 - edge))
    assert volume.voxels.shape[1] == 20 + np.ceil(5 * 3.0 * np.sin(np.radians(20)) / spacing_row_mm - 1e-6)


def test_outside_of_a_deskewed_volume_is_air_or_the_smallest_value():
    at = positions(GANTRY_TILT, np.arange(3) * 3.0, along=(0, 0, 1))
    plan = plan_volume([_slice(position, n, GANTRY_TILT) for n, position in enumerate(at)], tilt="deskew")
    assert _built(plan).voxels[0, -1, 0] == assembly.OUTSIDE_HU or _built(plan).voxels[0, 0, 0] == assembly.OUTSIDE_HU
    plain = [DecodedSlice(np.full((6, 5), 40 + n, np.int16), PixelUnit.MODALITY, False, None) for n in range(3)]
    other = assemble(plan, plain).voxels
    assert other.min() == 40
    assert np.isfinite(other).all()


def test_deskew_leaves_what_is_not_tilted_alone():
    plan = plan_volume(_slices([0, 1, 2], DOUBLE_OBLIQUE), tilt="deskew")
    assert not plan.interpolates
    assert plan.findings == ()


# --- phases, mixtures


def test_phases_are_divided_by_what_tells_them_apart(tmp_path: Path):
    at = positions(AXIAL, [0, 2, 4] * 2)
    paths = write_series(tmp_path, at, each=[{"AcquisitionNumber": 1 + n // 3} for n in range(6)])
    with pytest.raises(NotAVolume, match="2 volumes, told apart by acquisition_number") as refused:
        read_volume(paths, workers=0)
    assert refused.value.problem is Problem.PHASES
    first, second = read_volumes(reversed(paths), workers=0)
    assert [np.array_equal(first.voxels[k], values_hu(k)) for k in range(3)] == [True] * 3
    assert [np.array_equal(second.voxels[k], values_hu(k + 3)) for k in range(3)] == [True] * 3
    assert str(second.findings[0]) == "phases (phase 1, of 2, by acquisition_number)"


def test_phases_may_take_two_attributes():
    traits = [(("acquisition_number", str(a)), ("echo_time", str(e))) for a in (9, 10) for e in (1.5, 2.5)]
    slices = [_slice(at, 10 * n, traits=each) for n, each in enumerate(traits) for at in positions(AXIAL, [0, 2, 4, 6])]
    phases = divide(slices)
    assert [phase.by for phase in phases] == [("acquisition_number", "echo_time")] * 4
    assert [phase.slices[0].traits for phase in phases] == traits  # 9 before 10: numbers by size


def test_repetitions_that_nothing_explains_are_refused():
    slices = [*_slices([0, 2, 4]), *_slices([0.004, 2, 4])]
    with pytest.raises(NotAVolume, match="6 slices, up to 2 at one position; no attribute") as refused:
        divide(slices)
    assert refused.value.problem is Problem.REPEATED
    with pytest.raises(NotAVolume, match="divide them first"):
        plan_volume(slices)


def test_an_attribute_that_numbers_every_slice_explains_nothing():
    slices = [
        _slice(at, n, traits=(("acquisition_time", str(100 + n)),))
        for n, at in enumerate(positions(AXIAL, [0, 2, 4, 6] * 2))
    ]
    with pytest.raises(NotAVolume, match="acquisition_time differ but do not divide them"):
        divide(slices)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rows": 7}, "2 different Rows and Columns among 3 slices"),
        ({"series": "1.2.4"}, "2 different SeriesInstanceUID"),
        ({"frame_of_reference": "1.2.8"}, "2 different FrameOfReferenceUID"),
        ({"plane": plane_of(CORNER_MM, CORONAL, (0.5, 0.8))}, "ImageOrientationPatient differs by 1"),
        ({"plane": plane_of(CORNER_MM, AXIAL, (0.5, 0.9))}, "PixelSpacing differs by 0.1"),
    ],
)
def test_mixtures_are_refused(changed, told):
    slices = [*_slices([2, 4]), _slice(CORNER_MM, 9, **changed)]
    with pytest.raises(NotAVolume, match=told) as refused:
        plan_volume(slices)
    assert refused.value.problem is Problem.MIXED


def test_positions_off_the_line_are_refused():
    slices = [*_slices([0, 2, 4]), _slice(np.add(CORNER_MM, (3, 0, 1)), 9)]
    with pytest.raises(NotAVolume) as refused:
        plan_volume(slices)
    assert refused.value.problem is Problem.CROOKED


def test_images_without_a_place_say_what_is_missing(tmp_path: Path):
    paths = write_series(tmp_path, positions(AXIAL, [0, 2]), ImageOrientationPatient=None)
    with pytest.raises(NotAVolume, match="2 of 2 slices have no place: ImageOrientationPatient") as refused:
        read_volume(paths, workers=0)
    assert refused.value.problem is Problem.NO_PLANE


def test_hu_and_other_values_do_not_mix(tmp_path: Path):
    paths = write_series(tmp_path, positions(AXIAL, [0, 2]), each=[{}, {"RescaleType": "OD"}])
    with pytest.raises(NotAVolume, match="different units"):
        read_volume(paths, workers=0)


# --- values


def test_each_slice_has_its_own_rescale(tmp_path: Path):
    each = [{"slope": 1.0, "hu": np.full((4, 4), 60.0)}, {"slope": 0.5, "hu": np.full((4, 4), 60.5)}]
    volume = read_volume(write_series(tmp_path, positions(AXIAL, [0, 2]), each=each), workers=0)
    assert volume.voxels.dtype == np.float32  # the second is no whole number; the first was there before
    assert volume.voxels[:, 0, 0].tolist() == [60.0, 60.5]
    assert Finding.RESCALE_VARIES in _kinds(volume.findings)


@pytest.mark.parametrize("tilt", ["keep", "deskew"])
def test_padding_mixes_with_nothing_where_slices_are_interpolated(tmp_path: Path, tilt: str):
    padded = np.zeros((10, 14), bool)
    padded[:2] = True
    flat = [{"hu": np.full((10, 14), 60.0)}] * 3
    places = [(0.0, shift, at) for shift, at in ((0.0, 0.0), (0.3, 2.0), (0.75, 5.0))]
    files = write_series(tmp_path, places, signed=True, padded=padded, each=flat)
    voxels = read_volume(files, uneven="resample", tilt=tilt, workers=0).voxels  # type: ignore[arg-type]
    assert (np.isclose(voxels, 60.0, atol=1e-4) | (voxels == assembly.OUTSIDE_HU)).all()
    assert np.isclose(voxels[:, 5], 60.0, atol=1e-4).all()
    assert (voxels[:, 0] == assembly.OUTSIDE_HU).all()


def test_padding_and_inversion_are_said_and_the_values_kept(tmp_path: Path):
    padded = np.zeros((10, 14), bool)
    padded[:2] = True
    volume = read_volume(
        write_series(
            tmp_path, positions(AXIAL, [0, 2]), signed=True, padded=padded, PhotometricInterpretation="MONOCHROME1"
        ),
        workers=0,
    )
    assert list(map(str, volume.findings)) == ["padding (pixels 56)", "monochrome1"]
    assert volume.voxels[0, 0, 0] == -2000 - 1024
    assert volume.voxels[1, 5, 5] == values_hu(1)[5, 5]


def test_values_beyond_16_bits_are_float():
    plan = plan_volume(_slices([0, 2]))
    large = [DecodedSlice(np.full((6, 5), 40000.0, np.float32), PixelUnit.HU, False, None), _values(1)]
    volume = assemble(plan, large)
    assert volume.voxels.dtype == np.float32
    assert volume.voxels[0, 0, 0] == 40000


def test_the_budget_is_checked_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(assembly, "MAX_VOLUME_BYTES", 3 * 6 * 5 * 4 - 1)
    with pytest.raises(NotAVolume, match="the budget is") as refused:
        plan_volume(_slices([0, 2, 4]))
    assert refused.value.problem is Problem.TOO_LARGE
    with pytest.raises(NotAVolume, match="the budget is"):  # by resampling
        plan_volume(_slices([0, 2]), uneven="resample", slice_spacing_mm=1.0)


def test_all_slices_that_fail_are_named_and_nothing_is_left_out(tmp_path: Path):
    paths = write_series(tmp_path, positions(AXIAL, [0, 2, 4, 6]))
    for path in paths[1:3]:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(NotAVolume, match="2 of 4 slices cannot be read") as refused:
        read_volume(paths, workers=0)
    assert [failure.path for failure in refused.value.failures] == paths[1:3]
    assert {failure.reason for failure in refused.value.failures} == {RejectReason.TRUNCATED}
    assert pickle.loads(pickle.dumps(refused.value)).failures == refused.value.failures
    paths[0].write_text("no DICOM at all")
    with pytest.raises(NotAVolume, match="1 of 4 slices cannot be read") as refused:
        read_volume(paths, workers=0)
    assert refused.value.failures[0].reason is RejectReason.NOT_AN_IMAGE


def test_what_goes_to_workers_and_back_can_be_sent(tmp_path: Path):
    paths = write_series(tmp_path, positions(AXIAL, [0, 2]))
    sent = pickle.loads(pickle.dumps([one for path in paths for one in read_slices(path)]))
    decoded = pickle.loads(pickle.dumps([one for slice_ in sent for one in decode_slices([slice_])]))
    assert np.array_equal(assemble(plan_volume(sent), decoded).voxels, read_volume(paths, workers=0).voxels)


# --- enhanced


def test_an_enhanced_file_equals_the_classic_series(tmp_path: Path):
    at = positions(DOUBLE_OBLIQUE, [5.0, 0.0, 7.5, 2.5])
    classic = read_volume(write_series(tmp_path / "c", at, DOUBLE_OBLIQUE, thickness_mm=2.5), workers=0)
    enhanced = read_volume([write_enhanced(tmp_path / "e", at, DOUBLE_OBLIQUE)], workers=0)
    assert np.array_equal(classic.voxels, enhanced.voxels)
    assert np.array_equal(classic.affine_lps, enhanced.affine_lps)
    assert [one.frame for one in enhanced.sources] == [1, 3, 0, 2]


def test_frames_of_an_enhanced_file_are_divided_by_stack_and_time(tmp_path: Path):
    at = positions(AXIAL, [0, 2, 4] * 2)
    content = [{"StackID": "1", "TemporalPositionIndex": 1 + n % 2} for n in (0, 0, 0, 1, 1, 1)]
    path = write_enhanced(tmp_path / "e", at, content=content)
    volumes = list(read_volumes([path], workers=0))
    assert [str(one.findings[0]) for one in volumes] == [
        f"phases (phase {n}, of 2, by temporal_position)" for n in (0, 1)
    ]
    stacked = write_enhanced(tmp_path / "s", at, content=[{"StackID": str(1 + n // 3)} for n in range(6)])
    assert [phase.by for phase in divide(read_slices(stacked))] == [("stack_id",)] * 2


def test_functional_groups_that_are_not_one_a_frame_are_malformed(tmp_path: Path):
    path = write_enhanced(tmp_path / "e", positions(AXIAL, [0, 2, 4]), NumberOfFrames=2)
    with pytest.raises(Rejected) as rejected:
        read_slices(path)
    assert rejected.value.reason is RejectReason.MALFORMED


# --- the way back


@pytest.mark.parametrize("tilt", ["keep", "deskew"])
@pytest.mark.parametrize("places", [[0, 2, 4, 6], [0, 2, 4, 8, 10], [0, 2, 3.1, 6, 8]])
def test_each_point_of_each_slice_goes_back_to_its_source(tilt, places):
    at = positions(GANTRY_TILT, places, along=(0, 0, 1))
    slices = {f"IM{n}": _slice(position, n, GANTRY_TILT) for n, position in enumerate(at)}
    volume = _built(plan_volume(list(slices.values()), uneven="resample", tilt=tilt))
    normal = np.cross(*unit_vectors(GANTRY_TILT))
    for k in range(len(volume.voxels)):
        source = volume.slice_of(k)
        plane = slices[source.path.name].plane
        for point in ((0, 0), (3, 4), (5.5, 1.25)):
            there = (volume.affine_lps @ [k, *point, 1])[:3]
            found = plane.to_lps_mm((source.to_source @ [*point, 1])[None])[0]
            off = there - found
            distance = abs(off @ normal)
            assert distance <= (1e-6 if source.weight > 1 - 1e-6 else 0.51 * max(np.diff(places)))
            if tilt == "deskew":  # exactly below; a kept shear carries the point along the table instead
                assert np.linalg.norm(off - (off @ normal) * normal) < 0.01
            else:
                assert np.linalg.norm(np.cross(off, (0, 0, 1))) < 0.01


# --- written


def _oblique(tmp_path: Path, **other):
    at = positions(DOUBLE_OBLIQUE, [0, 2.5, 5.0])
    return read_volume(write_series(tmp_path / "o", at, DOUBLE_OBLIQUE, spacing_mm=(0.7, 1.1), **other), workers=0)


def test_a_sitk_image_has_the_volumes_points_and_values(tmp_path: Path):
    volume = _oblique(tmp_path)
    image = to_sitk(volume)
    assert image.GetSize() == (14, 10, 3)
    assert image.GetSpacing() == pytest.approx((1.1, 0.7, 2.5), abs=NEAR_MM)
    assert image.GetOrigin() == pytest.approx(CORNER_MM, abs=NEAR_MM)
    for k, r, c in ((0, 0, 0), (2, 9, 13), (1, 4, 6)):
        expected = (volume.affine_lps @ [k, r, c, 1])[:3]
        assert image.TransformIndexToPhysicalPoint((c, r, k)) == pytest.approx(expected, abs=NEAR_MM)
        assert image[c, r, k] == volume.voxels[k, r, c]


def test_sitk_takes_a_sheared_volume_and_resamples_it_right(tmp_path: Path):
    at = positions(GANTRY_TILT, np.arange(5) * 3.0, along=(0, 0, 1))
    paths = write_series(tmp_path, at, GANTRY_TILT, hu=np.full((10, 14), 70.0))
    volume = read_volume(paths, workers=0)
    image = to_sitk(volume)
    there = image.TransformIndexToPhysicalPoint((13, 9, 4))
    assert there == pytest.approx((volume.affine_lps @ [4, 9, 13, 1])[:3], abs=NEAR_MM)
    assert image.TransformPhysicalPointToIndex(there) == (13, 9, 4)
    upright = to_sitk(read_volume(paths, tilt="deskew", workers=0))
    onto = SimpleITK.Resample(image, upright, SimpleITK.Transform(), SimpleITK.sitkLinear, -1000.0)
    resampled = SimpleITK.GetArrayFromImage(onto)
    both = (resampled != -1000) & (SimpleITK.GetArrayFromImage(upright) != -1000)
    assert both.sum() > 500
    assert resampled[both] == pytest.approx(70.0, abs=1e-3)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_a_nifti_is_read_back_equal_by_nibabel_and_by_the_house(tmp_path: Path, name):
    volume = _oblique(tmp_path)
    path = write_nifti(volume, tmp_path / name)
    image = nibabel.load(path)
    affine = column_first(volume.affine_ras)
    assert image.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(image.dataobj), volume.voxels.transpose(2, 1, 0))
    for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        assert form == pytest.approx(affine, abs=1e-4)  # float32 of some 40 mm; the quaternion of 6 digits
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header["descrip"].item().decode() == DESCRIPTION
    header = read_nifti_header(path)
    assert (header["frames"], header["rows"], header["columns"]) == (3, 10, 14)
    assert header["pixel_spacing"] == "0.7\\1.1"
    for k in range(3):  # rows from anterior, columns from the right, slices from the feet: as stored
        assert np.array_equal(read_nifti(path, k, hounsfield=True).values, volume.voxels[k])
    assert write_nifti(volume, tmp_path / f"again_{name}").read_bytes() == path.read_bytes()


def test_an_axis_too_long_for_a_nifti_1_makes_a_nifti_2(tmp_path: Path):
    voxels = np.arange(6 * 2**15, dtype=np.float32).reshape(2**15, 3, 2)
    path = write_nifti(Volume(voxels, column_first(np.eye(4)), PixelUnit.HU, (), ()), tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), voxels.transpose(2, 1, 0))
    np.testing.assert_array_equal(read_nifti(path, 2**15 - 1).values, voxels[-1])


def test_a_sheared_nifti_has_no_qform_and_sitk_refuses_it(tmp_path: Path):
    at = positions(GANTRY_TILT, np.arange(5) * 3.0, along=(0, 0, 1))
    paths = write_series(tmp_path / "s", at, GANTRY_TILT)
    volume = read_volume(paths, workers=0)
    path = write_nifti(volume, tmp_path / "v.nii")
    image = nibabel.load(path)
    assert image.header["qform_code"] == 0
    assert image.affine == pytest.approx(column_first(volume.affine_ras), abs=1e-5)
    with pytest.raises(RuntimeError, match="orthonormal"):
        SimpleITK.ReadImage(str(path))
    deskewed = write_nifti(read_volume(paths, tilt="deskew", workers=0), tmp_path / "d.nii")
    assert SimpleITK.ReadImage(str(deskewed)).GetSize()[2] == 5


def test_a_nifti_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch):
    volume = _oblique(tmp_path)
    monkeypatch.setattr(nibabel.Nifti1Image, "to_stream", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_nifti(volume, tmp_path / "out" / "v.nii.gz")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ValueError, match=r"\.nii"):
        write_nifti(volume, tmp_path / "v.img")


def test_nothing_of_the_patient_is_in_the_file(tmp_path: Path):
    volume = _oblique(tmp_path, patient_id="SECRET-4711")
    content = write_nifti(volume, tmp_path / "v.nii").read_bytes()
    assert b"SECRET" not in content
    assert b"PHANTOM" not in content
