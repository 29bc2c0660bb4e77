"""Outlines: filling them gives the region back, whatever it looks like, and they lie where the standard says pixels lie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from pipeline.dicom.outline import closed_polylines, rim

regions = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def filled(polylines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """What lies inside an odd number of the polylines: a pixel's centre has so many edges at its left."""
    crossings = np.zeros(shape, int)
    for line in polylines:
        for (x, y), (_, below) in itertools.pairwise(line):
            first, last = sorted((int(y), int(below)))
            crossings[first:last, int(x) :] += 1
    return crossings % 2 == 1


def area(line: np.ndarray) -> float:
    """Above 0 where it runs clockwise, rows growing downwards."""
    x, y = line.astype(float).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


@given(regions)
def test_filling_the_outlines_gives_the_region_back(region: np.ndarray) -> None:
    lines = closed_polylines(region)
    assert np.array_equal(filled(lines, region.shape), region)
    assert sum(area(line) for line in lines) == region.sum()


@given(regions)
def test_each_is_closed_turns_at_every_point_and_stays_in_the_image(region: np.ndarray) -> None:
    for line in closed_polylines(region):
        assert line.dtype == np.float32
        assert np.array_equal(line[0], line[-1])
        steps = np.diff(line, axis=0)
        assert ((steps != 0).sum(axis=1) == 1).all()
        around = np.concatenate([steps, steps[:1]])
        assert (np.sum(around[:-1] * around[1:], axis=1) == 0).all()
        assert line.min() >= 0
        assert (line <= region.shape[::-1]).all()


@given(regions)
def test_as_many_outlines_as_pieces_and_holes(region: np.ndarray) -> None:
    lines = closed_polylines(region)
    pieces = ndimage.label(region)[1]
    outside = np.pad(~region, 1, constant_values=True)
    holes = ndimage.label(outside, np.ones((3, 3)))[1] - 1
    assert sum(area(line) > 0 for line in lines) == pieces
    assert sum(area(line) < 0 for line in lines) == holes


def test_a_pixel_is_outlined_from_corner_to_corner() -> None:
    region = np.zeros((4, 5), bool)
    region[1, 2] = True
    (line,) = closed_polylines(region)
    assert line.tolist() == [[2, 1], [3, 1], [3, 2], [2, 2], [2, 1]]


def test_the_whole_image_ends_at_columns_and_rows() -> None:
    (line,) = closed_polylines(np.ones((4, 5), bool))
    assert line.tolist() == [[0, 0], [5, 0], [5, 4], [0, 4], [0, 0]]


def test_a_hole_runs_the_other_way() -> None:
    region = np.ones((3, 3), bool)
    region[1, 1] = False
    outer, hole = closed_polylines(region)
    assert (area(outer), area(hole)) == (9, -1)


def test_pixels_that_touch_at_a_corner_are_apart() -> None:
    assert len(closed_polylines(np.eye(3, dtype=bool))) == 3
    assert closed_polylines(np.zeros((3, 3), bool)) == []


@given(regions, st.integers(1, 3))
def test_the_rim_is_in_the_region_and_what_it_leaves_is_deep_inside(region: np.ndarray, thickness: int) -> None:
    found = rim(region, thickness)
    assert not (found & ~region).any()
    # by another way: the taxicab distance to the nearest pixel outside
    distance = ndimage.distance_transform_cdt(np.pad(region, 1), metric="taxicab")[1:-1, 1:-1]
    assert np.array_equal(found, region & (distance <= thickness))


@pytest.mark.parametrize("thickness", [1, 2])
def test_the_rim_of_a_region_at_the_border_is_closed(thickness: int) -> None:
    found = rim(np.ones((7, 9), bool), thickness)
    assert found[0].all()
    assert found[:, -1].all()
    assert not found[thickness:-thickness, thickness:-thickness].any()
