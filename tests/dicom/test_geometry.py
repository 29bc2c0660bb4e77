"""Where pixels lie: the standard's equation, its affines, and what is no plane."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

import pipeline.indexing.positions
from pipeline.dicom import arrangement, geometry
from pipeline.dicom.geometry import (
    NoPlane,
    column_first,
    frame_plane,
    lps_from_voxel,
    places_mm,
    plane_name,
    plane_of,
    ras_from_lps,
    tilt_degrees,
)
from tests.series_files import AXIAL, CORONAL, DOUBLE_OBLIQUE, GANTRY_TILT, SAGITTAL

NEAR_MM = 1e-9  # float64 over a metre
angles = st.floats(-np.pi, np.pi)


def _turned(alpha: float, beta: float, gamma: float) -> list[float]:
    """Two directions at right angles, from three turns."""
    cosines, sines = np.cos([alpha, beta, gamma]), np.sin([alpha, beta, gamma])
    about_z = np.array([[cosines[0], -sines[0], 0], [sines[0], cosines[0], 0], [0, 0, 1]])
    about_y = np.array([[cosines[1], 0, sines[1]], [0, 1, 0], [-sines[1], 0, cosines[1]]])
    about_x = np.array([[1, 0, 0], [0, cosines[2], -sines[2]], [0, sines[2], cosines[2]]])
    matrix = about_z @ about_y @ about_x
    return [*matrix[:, 0], *matrix[:, 1]]


def test_the_equation_of_the_standard():
    # C.7.6.2.1-1: P = X_xyz Δi i + Y_xyz Δj j + S, with i the column and j the row index. PixelSpacing has the rows' distance first.
    plane = plane_of((10, 20, 30), (0, 1, 0, 0, 0, -1), (0.5, 0.25))
    assert plane.to_lps_mm(np.array([[4.0, 8.0]])).tolist() == [[10, 20 + 8 * 0.25, 30 - 4 * 0.5]]
    assert plane.normal == (-1, 0, 0)  # y × -z


@given(
    angles, angles, angles, st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)), st.floats(-50, 600), st.floats(-50, 600)
)
def test_pixels_go_to_the_patient_and_back(alpha, beta, gamma, spacing, row, column):
    plane = plane_of((1.5, -80, 1200), _turned(alpha, beta, gamma), spacing)
    there = plane.to_lps_mm(np.array([[row, column]]))
    assert plane.to_pixels(there) == pytest.approx(np.array([[row, column]]), abs=1e-8)
    by_affine = lps_from_voxel(plane, plane.normal) @ [0, row, column, 1]
    assert by_affine[:3] == pytest.approx(there[0], abs=NEAR_MM)


def test_affines_agree_in_all_their_orders():
    plane = plane_of((10, 20, 30), DOUBLE_OBLIQUE, (0.5, 0.25))
    affine = lps_from_voxel(plane, np.array(plane.normal) * 3)
    slice_, row, column = 2, 4, 8
    lps = affine @ [slice_, row, column, 1]
    assert column_first(affine) @ [column, row, slice_, 1] == pytest.approx(lps)
    assert ras_from_lps(affine) @ [slice_, row, column, 1] == pytest.approx(lps * [-1, -1, 1, 1])
    assert np.array_equal(ras_from_lps(ras_from_lps(affine)), affine)


@pytest.mark.parametrize(
    ("orientation", "name"),
    [(AXIAL, "axial"), (CORONAL, "coronal"), (SAGITTAL, "sagittal"), (GANTRY_TILT, "axial"), (DOUBLE_OBLIQUE, "axial")],
)
def test_planes_are_named_as_the_index_names_them(orientation, name):
    normal = plane_of((0, 0, 0), orientation, (1, 1)).normal
    assert (
        plane_name(normal)
        == name
        == pipeline.indexing.positions.PLANES[pipeline.indexing.positions.planes(np.array([orientation]))[0]]
    )
    assert plane_name((1, 1, 1)) == "oblique"


def test_rounded_cosines_become_unit_vectors_at_right_angles():
    plane = plane_of((0, 0, 0), (0.94, -0.25, 0.25, 0.34, 0.85, -0.41), (1, 1))
    axes = np.array([plane.row_direction, plane.column_direction, plane.normal])
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-12)


def test_distances_are_along_the_normal():
    reference = plane_of((0, 0, 0), GANTRY_TILT, (1, 1))
    moved = plane_of((0, 0, 10), GANTRY_TILT, (1, 1))
    along, down, across = places_mm([moved], reference)[0]
    assert (along, down, across) == pytest.approx((10 * 0.939693, -10 * 0.34202, 0), abs=1e-5)


def test_a_tilt_is_the_angle_between_step_and_normal():
    plane = plane_of((0, 0, 0), GANTRY_TILT, (0.7, 0.7))
    assert tilt_degrees(lps_from_voxel(plane, (0, 0, 4.0))) == pytest.approx(20, abs=1e-4)
    assert tilt_degrees(lps_from_voxel(plane, plane.normal)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("position", "orientation", "spacing", "told"),
    [
        ((), AXIAL, (1, 1), "ImagePositionPatient: expected 3 numbers, it is missing"),
        ((0, 0), AXIAL, (1, 1), "ImagePositionPatient: expected 3 numbers, found 2"),
        ((0, 0, np.nan), AXIAL, (1, 1), "ImagePositionPatient: expected 3"),
        ((0, 0, 2e6), AXIAL, (1, 1), "a kilometre"),
        ((0, 0, 0), (1, 0, 0, 1, 0, 0), (1, 1), "no pair of unit vectors"),
        ((0, 0, 0), (2, 0, 0, 0, 1, 0), (1, 1), "no pair of unit vectors"),
        ((0, 0, 0), (0,) * 6, (1, 1), "no pair of unit vectors"),
        ((0, 0, 0), AXIAL, (1, 0), "not positive"),
        ((0, 0, 0), AXIAL, (), "PixelSpacing"),
    ],
)
def test_what_is_no_plane_says_which_attribute(position, orientation, spacing, told):
    with pytest.raises(NoPlane, match=told):
        plane_of(position, orientation, spacing)


def _item(**attributes) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def test_a_frames_own_group_goes_before_the_shared_one_and_the_top_level():
    shared = _item(
        PlaneOrientationSequence=Items([_item(ImageOrientationPatient=list(CORONAL))]),
        PixelMeasuresSequence=Items([_item(PixelSpacing=[0.5, 0.25])]),
    )
    own = [_item(PlanePositionSequence=Items([_item(ImagePositionPatient=[0, 0, z])])) for z in (1, 2)]
    own[1].PlaneOrientationSequence = Items([_item(ImageOrientationPatient=list(SAGITTAL))])
    dataset = _item(
        ImageOrientationPatient=list(AXIAL),
        ImagePositionPatient=[9, 9, 9],
        SharedFunctionalGroupsSequence=Items([shared]),
        PerFrameFunctionalGroupsSequence=Items(own),
    )
    assert frame_plane(dataset, 0) == plane_of((0, 0, 1), CORONAL, (0.5, 0.25))
    assert frame_plane(dataset, 1) == plane_of((0, 0, 2), SAGITTAL, (0.5, 0.25))
    del own[1].PlanePositionSequence
    with pytest.raises(NoPlane, match="ImagePositionPatient"):  # the top level's is no frame's
        frame_plane(dataset, 1)


def test_tolerances_are_those_by_which_series_become_stacks():
    import pipeline.indexing.stacks

    for name in ("POSITION_TOLERANCE_MM", "IN_PLANE_TOLERANCE_MM", "MAX_SHEAR"):
        assert getattr(arrangement, name) == getattr(pipeline.indexing.positions, name)
    for name in ("COSINE_TOLERANCE", "PIXEL_SPACING_TOLERANCE_MM", "MAX_POSITION_MM"):
        own = arrangement if hasattr(arrangement, name) else geometry
        assert getattr(own, name) == getattr(pipeline.indexing.stacks, name)
    for name in ("UNIT_TOLERANCE", "OBLIQUE_BELOW"):
        assert getattr(geometry, name) == getattr(pipeline.indexing.positions, name)
