"""The drawn chest: what is where, and that only the opacities differ between a healthy and an affected phantom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dicom.anatomy_lungs import (
    FULL_SECTION,
    SMALLEST_RADIUS,
    Chest,
    Grid,
    add_opacities,
    axial_slice,
    draw_chest,
    ellipses,
    frontal_projection,
    grown,
    slice_levels,
)

SIZE = 128


def chest_and_grid(seed: int, size: int = SIZE) -> tuple[Chest, Grid]:
    chest = draw_chest(np.random.default_rng(seed), female=bool(seed % 2), contrast=False, curved_table=True)
    width = 2.2 * chest.body.half_width
    return chest, Grid(size, width / size, -width / 2, -width / 2)


def value_at(hu: np.ndarray, grid: Grid, x_mm: float, y_mm: float) -> float:
    row, column = (round((at - start) / grid.spacing_mm) for at, start in ((y_mm, grid.front_mm), (x_mm, grid.left_mm)))
    return float(np.median(hu[row - 1 : row + 2, column - 1 : column + 2]))


def mask_of(chest: Chest, grid: Grid, z: float) -> np.ndarray:
    rows, columns = np.mgrid[: grid.size, : grid.size]
    mask = np.zeros((grid.size, grid.size), bool)
    for e in ellipses(chest, grid, z):
        mask |= ((rows - e.row) / e.radius_rows) ** 2 + ((columns - e.column) / e.radius_columns) ** 2 <= 1
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_organs_lie_where_a_supine_patient_has_them(seed: int) -> None:
    chest, grid = chest_and_grid(seed)
    body = chest.body
    hu = axial_slice(replace(chest, vessels=chest.vessels[:0]), grid, -40.0)
    assert value_at(hu, grid, -75.0, 0.0) < -750, "right lung, at the left of the picture"
    assert value_at(hu, grid, 20.0, -20.0) > 0, "heart, to the patient's left and front"
    assert value_at(hu, grid, 0.0, body.spine_y) > 75, "a vertebra or its disc, at the back"
    assert value_at(hu, grid, 0.0, body.spine_y + 22.0) < 60, "the canal behind it"
    assert value_at(hu, grid, 0.0, -body.half_depth - 20.0) == pytest.approx(-1000), "air in front"
    table = hu[round((body.half_depth + 13.0 - grid.front_mm) / grid.spacing_mm) - 3 :]
    assert (table > -500).any(axis=0).mean() > 0.8, "the table crosses the picture below the back"


def test_lung_is_about_850_below_water() -> None:
    chest, grid = chest_and_grid(1)
    hu = axial_slice(chest, grid, 0.0)
    lung = hu[(hu > -970) & (hu < -650)]
    assert lung.size > 0.08 * hu.size
    assert -900 < np.median(lung) < -800


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), slices=st.integers(1, 12))
def test_every_level_crosses_an_opacity_of_visible_size(seed: int, slices: int) -> None:
    chest, grid = chest_and_grid(seed, 64)
    levels = slice_levels(slices)
    width = grid.size * grid.spacing_mm
    affected = add_opacities(np.random.default_rng(seed), chest, levels, width)
    for z in levels:
        largest = max(min(e.radius_rows, e.radius_columns) for e in ellipses(affected, grid, z))
        assert largest >= 0.04 * grid.size
        assert any(opacity.section(z) >= FULL_SECTION for opacity in affected.opacities)
    assert FULL_SECTION * SMALLEST_RADIUS >= 0.04


@pytest.mark.parametrize("seed", range(6))
def test_opacities_are_in_their_ellipses_and_nowhere_else(seed: int) -> None:
    chest, grid = chest_and_grid(seed)
    levels = slice_levels(3)
    affected = add_opacities(np.random.default_rng(seed), chest, levels, grid.size * grid.spacing_mm)
    for z in levels:
        difference = axial_slice(affected, grid, z) - axial_slice(chest, grid, z)
        mask = mask_of(affected, grid, z)
        assert np.abs(difference[mask]).sum() > 0.9 * np.abs(difference).sum()
        assert (difference > 120).sum() > 0.25 * mask.sum(), "most of the ellipse is lung, and clearly denser"
        assert 150 < np.percentile(difference[difference > 50], 75) < 480


def test_a_grown_opacity_is_larger_in_its_slice() -> None:
    chest, grid = chest_and_grid(3)
    affected = add_opacities(np.random.default_rng(3), chest, [0.0], grid.size * grid.spacing_mm)
    before, after = (ellipses(each, grid, 0.0)[0] for each in (affected, grown(affected, 1.1)))
    assert after.radius_rows == pytest.approx(1.1 * before.radius_rows)
    assert (after.row, after.column) == (before.row, before.column)


def test_projection_shows_dense_spine_between_lungs_head_at_the_top() -> None:
    chest, _ = chest_and_grid(2)
    film = frontal_projection(chest, columns=64, rows=64, depth=24, width_mm=380.0, top_z=150.0, bottom_z=-230.0)
    middle = film[25:35]
    assert middle[:, 30:34].mean() > 1.5 * middle[:, 16:24].mean()
    assert film[-8:].mean() > film[20:40].mean(), "the abdomen is denser than the chest"
    assert film[38:42, 34:44].mean() > film[38:42, 20:30].mean(), "the heart lies at the right of the picture"
