"""The box of the body and of the lungs: on phantoms whose lungs are known, in any window, frame and size, and on what misleads."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.dicom.anatomy import lung_distance
from pipeline.dicom.anatomy_lungs import Grid, axial_slice, draw_chest
from pipeline.raster import read_raster
from transforms.anatomy_search import SIDE, Box, find_region, otsu
from transforms.chains import prepare_chain
from transforms.intensity import WINDOWS, Pixels, PixelUnit, Scaled, UnitRanged, to_metatensor, unit_channels
from transforms.region import RegionCropped
from transforms.spatial import index_affine, to_source
from transforms.stress import STRESSES, compressed, framed, resized

Picture = NDArray[np.float32]

EDGE = 0.04
"""Of the box's sides: what an edge may be off: two pixels of the search's copy, on a body of a third of it."""
EDGE_UNDER_STRESS = 0.04
"""Of the box's sides, from the same picture to itself under a stress that moves nothing."""
SIZE, WIDTH_MM = 192, 440.0
GRID = Grid(SIZE, WIDTH_MM / SIZE, -WIDTH_MM / 2, -WIDTH_MM / 2)
NOISE_HU = 25.0
PHANTOMS = [(seed, z) for seed in range(3) for z in (-70.0, 0.0, 60.0)]
SHAPES = {"window", "gamma", "noise", "jpeg", "blur"}
"""Stresses that move nothing, by the first word of their names."""


@lru_cache
def _chest(seed: int) -> Any:
    return draw_chest(np.random.default_rng(seed), female=seed % 2 == 1, contrast=seed == 2, curved_table=seed % 2 == 0)


@lru_cache
def _slice(seed: int = 0, z: float = 0.0) -> Picture:
    """HU with noise; on a table."""
    noise = np.random.default_rng(seed).normal(0, NOISE_HU, (SIZE, SIZE))
    return (axial_slice(_chest(seed), GRID, z) + noise).astype(np.float32)


@lru_cache
def _lung(seed: int = 0, z: float = 0.0) -> NDArray[np.bool_]:
    return np.asarray(lung_distance(_chest(seed).body, GRID.x, GRID.y, z) < 0)


def _shown(hu: Picture, window: str = "lung") -> Picture:
    return unit_channels(Pixels(hu, PixelUnit.HU), [WINDOWS[window]])[0]


def _box_of(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)


def _off(found: Box | tuple[float, ...], expected: Box) -> float:
    """The edge that is furthest off, as a part of the expected box's side."""
    sides = np.repeat([expected.row_end - expected.row, expected.column_end - expected.column], 2)
    return float((np.abs(np.subtract(found, expected)) / sides).max())


@pytest.mark.parametrize(("seed", "z"), PHANTOMS)
@pytest.mark.parametrize("window", ["lung", "mediastinum", "wide"])
def test_both_lungs_are_found_in_any_window(seed, z, window):
    found, box = find_region(_shown(_slice(seed, z), window), "lungs")
    assert found == "lungs"
    assert _off(box, _box_of(_lung(seed, z))) < EDGE


@pytest.mark.parametrize(("seed", "z"), PHANTOMS)
def test_the_body_is_found_without_the_table(seed, z):
    body = _chest(seed).body
    found, box = find_region(_shown(_slice(seed, z)), "body")
    assert found == "body"
    millimetres = np.array(box) * GRID.spacing_mm - WIDTH_MM / 2
    assert millimetres[1] < body.half_depth + 12.0  # where the table begins
    assert millimetres[1] > body.half_depth - 10.0
    parts, _ = ndimage.label(axial_slice(_chest(seed), GRID, z) > -300)
    largest = np.bincount(parts[parts > 0]).argmax()
    assert _off(box, _box_of(parts == largest)) < EDGE


@pytest.mark.parametrize("region", ["body", "lungs"])
@pytest.mark.parametrize("name", [name for name in STRESSES if name.split("_")[0] in SHAPES])
def test_other_shades_do_not_move_the_box(region, name):
    for seed, z in PHANTOMS[::2]:
        pixels = Pixels(_slice(seed, z), PixelUnit.HU)
        found, box = find_region(_shown(STRESSES[name].apply(pixels).values), region)
        known, expected = find_region(_shown(pixels.values), region)
        assert found == known
        assert _off(box, expected) < EDGE_UNDER_STRESS, (seed, z)


@settings(max_examples=60, deadline=None)
@given(
    which=st.sampled_from(PHANTOMS),
    region=st.sampled_from(["body", "lungs"]),
    shade=st.floats(0.0, 1.0),
    widths=st.tuples(*[st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.4])] * 4),
    factor=st.floats(0.7, 2.0),
    gain=st.floats(0.05, 1.0),
    offset=st.floats(0.0, 1.0),
    power=st.floats(0.7, 1.4),
)
def test_frames_sizes_and_shades_do_not_move_the_box(which, region, shade, widths, factor, gain, offset, power):
    """Any frame of one shade, any linear window without clipping, any curve, 12 bits in 16 among them; any size from 134 pixels on, as
    with fewer the back and the table are no longer apart.
    """
    picture = _shown(_slice(*which))
    known, expected = find_region(picture, region)
    pixels = framed(resized(Pixels(picture**power, PixelUnit.FRACTION), factor), shade, widths)
    found, box = find_region(pixels.values * gain + offset * (1 - gain), region)
    sides = np.array(picture.shape) * factor
    start = np.repeat([round(widths[0] * round(sides[0])), round(widths[2] * round(sides[1]))], 2)
    assert found == known
    assert _off(tuple((np.array(box) - start) / factor), expected) < EDGE_UNDER_STRESS


@pytest.mark.parametrize("quality", [10, 30, 75])
@pytest.mark.parametrize("shade", [0.0, 1.0])
@pytest.mark.parametrize("width", [0.02, 0.05, 0.13])
def test_a_frame_that_was_kept_as_jpeg_is_no_part_of_the_picture(width, shade, quality):
    """Around lungs that the picture's edge cuts, where a rim of it would come with them."""
    for seed, z in PHANTOMS:
        lungs = _box_of(_lung(seed, z))
        inner = np.ix_(range(lungs.row + 8, lungs.row_end - 8), range(lungs.column + 8, lungs.column_end - 8))
        picture = resized(Pixels(_shown(_slice(seed, z))[inner], PixelUnit.FRACTION), 3.0)
        shot = compressed(framed(picture, shade, (width,) * 4), quality).values
        margin = [round(width * side) for side in picture.values.shape]
        found, box = find_region(shot, "lungs")
        assert found == "lungs"
        assert box.row >= margin[0] - 1  # of some 300 pixels
        assert box.row_end <= margin[0] + picture.values.shape[0] + 1
        assert box.column >= margin[1] - 1
        assert box.column_end <= margin[1] + picture.values.shape[1] + 1
        assert min(box.row_end - box.row, box.column_end - box.column) > 0.75 * min(picture.values.shape), (seed, z)


@pytest.mark.parametrize("name", ["screenshot_dark", "screenshot_page"])
@pytest.mark.parametrize("quality", [10, 30])
def test_a_coarse_screenshot_is_the_picture_in_it(name, quality):
    """The lines of text are one run of lines then, and the picture has a rim."""
    for seed, z in PHANTOMS:
        picture = resized(Pixels(_shown(_slice(seed, z)), PixelUnit.FRACTION), 2.0)
        _, expected = find_region(picture.values, "lungs")
        found, box = find_region(compressed(STRESSES[name].apply(picture), quality).values, "lungs")
        start = np.repeat([round(0.3 * 0.8 * 2 * SIZE), round(0.1 * 0.8 * 2 * SIZE)], 2)
        assert found == "lungs"
        assert _off(tuple((np.array(box) - start) / 0.8), expected) < EDGE, (seed, z)


@pytest.mark.parametrize("name", ["screenshot_dark", "screenshot_page"])
@pytest.mark.parametrize("region", ["body", "lungs"])
def test_a_screenshot_with_text_is_the_picture_in_it(name, region):
    picture = _shown(_slice())
    _, expected = find_region(picture, region)
    shot = STRESSES[name].apply(Pixels(picture, PixelUnit.FRACTION)).values
    _, box = find_region(shot, region)
    pasted = round(0.8 * SIZE)
    start = np.repeat([round(0.3 * pasted), round(0.1 * pasted)], 2)
    assert _off(tuple((np.array(box) - start) / 0.8), expected) < EDGE_UNDER_STRESS


def test_a_lung_that_is_not_seen_has_its_place():
    """Consolidated or missing: the mirror image of the other one."""
    hu, lung = _slice().copy(), _lung()
    hu[:, SIZE // 2 :][lung[:, SIZE // 2 :]] = 40.0
    found, box = find_region(_shown(hu), "lungs")
    assert found == "lungs"
    assert _off(box, _box_of(lung)) < 0.1


def test_consolidation_at_the_back_is_not_cut_off():
    hu, lung = _slice().copy(), _lung()
    whole = _box_of(lung)
    hu[whole.row_end - 30 :][lung[whole.row_end - 30 :]] = 40.0
    _, box = find_region(_shown(hu), "lungs")
    assert box.row_end > whole.row_end - 8


def test_trachea_and_bowel_gas_are_no_lungs():
    rows, columns = np.ogrid[:SIZE, :SIZE]

    def disc(row: float, column: float, height: float, width: float) -> NDArray[np.bool_]:
        return np.asarray(((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 1)

    hu = np.full((SIZE, SIZE), -1000.0, np.float32)
    hu[disc(96, 96, 60, 80)] = 40.0
    outline = _box_of(hu > -500)
    for gas in ([(90, 96, 8, 8)], [(60, 80, 8, 20), (75, 120, 7, 10), (110, 60, 6, 6)]):
        filled = hu.copy()
        for place in gas:
            filled[disc(*place)] = -1000.0
        found, box = find_region(_shown(filled), "lungs")
        assert found == "body"
        assert _off(box, outline) < EDGE


def test_a_margin_blended_into_the_picture_by_resampling_is_no_wall():
    """Else it would stand around the air beside the body."""
    picture = _shown(_slice(1))
    _, expected = find_region(picture, "lungs")
    for factor in (0.7, 1.3):
        shot = resized(framed(Pixels(picture, PixelUnit.FRACTION), 1.0, (0.03,) * 4), factor)
        found, box = find_region(shot.values, "lungs")
        assert found == "lungs"
        assert _off(tuple(np.array(box) / factor - round(0.03 * SIZE)), expected) < EDGE_UNDER_STRESS


def test_air_in_a_scanners_circle_is_not_the_body():
    """Around the circle is black, so that air is the brighter of two."""
    picture = _shown(_slice())
    _, expected = find_region(picture, "body")
    rows, columns = np.ogrid[:SIZE, :SIZE]
    picture = np.where((rows - 96) ** 2 + (columns - 96) ** 2 < 96**2, picture, np.float32(0))
    found, box = find_region(picture, "body")
    assert found == "body"
    assert _off(box, expected) < EDGE_UNDER_STRESS


def test_the_gray_sides_of_a_radiograph_belong_to_the_body():
    """Darker than the threshold between lungs and mediastinum, and ever darker outward: by that threshold an eighth would go."""
    rows, columns = np.ogrid[:200, :200]
    film = np.full((200, 200), 0.9, np.float32)
    for side in (65, 135):
        film[((rows - 100) / 60) ** 2 + ((columns - side) / 25) ** 2 < 1] = 0.3
    edge = np.linspace(0.15, 0.6, 25, dtype=np.float32)
    film[:, :25], film[:, -25:] = edge, edge[::-1]
    film *= np.linspace(0.85, 1.0, 200, dtype=np.float32)[:, None]  # no line is of one colour
    found, box = find_region(film, "body")
    assert found == "body"
    assert _off(box, Box(0, 200, 0, 200)) < 0.1
    assert find_region(film, "lungs")[0] == "lungs"


def test_twelve_bits_in_sixteen_with_a_white_letter():
    picture = _shown(_slice()) * np.float32(1 / 16)
    expected = find_region(picture, "lungs")
    picture[4:10, 4:10] = 1.0
    found, box = find_region(picture, "lungs")
    assert found == "lungs"
    assert _off(box, expected[1]) < EDGE_UNDER_STRESS


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.15])
def test_lungs_that_the_picture_cuts(share):
    """Cropped to the lungs' own box and further: their walls are gone, and they touch all edges."""
    for seed, z in PHANTOMS:
        box, cut = _box_of(_lung(seed, z)), share
        rows, columns = (
            slice(round(a + cut * (b - a)), round(b - cut * (b - a))) for a, b in zip(box[::2], box[1::2], strict=True)
        )
        picture = _shown(_slice(seed, z))[rows, columns]
        found, inner = find_region(picture, "lungs")
        assert found in ("lungs", "body")
        height, width = inner.row_end - inner.row, inner.column_end - inner.column
        assert height * width > 0.8 * picture.size, (seed, z)


def test_without_a_body_it_is_the_whole_image():
    for value in (0.0, 0.5, 1.0):
        assert find_region(np.full((40, 50), value, np.float32), "lungs") == ("image", Box(0, 40, 0, 50))
    speck = np.zeros((100, 100), np.float32)
    speck[50:60, 50:60] = 1.0
    assert find_region(speck, "body")[0] == "image"


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    seed=st.integers(0, 2**16),
    region=st.sampled_from(["body", "lungs"]),
)
def test_whatever_the_picture_there_is_a_box_in_it(rows, columns, seed, region):
    picture = np.random.default_rng(seed).random((rows, columns), np.float32)
    found, box = find_region(picture, region)
    assert found in ("lungs", "body", "image")
    assert 0 <= box.row < box.row_end <= rows
    assert 0 <= box.column < box.column_end <= columns


def test_pixels_that_are_not_square_are_as_high_as_they_are():
    picture, half = _shown(_slice()), _shown(_slice())[::2]
    _, box = find_region(half, "lungs", aspect=2.0)
    _, expected = find_region(picture, "lungs")
    assert _off((2 * box.row, 2 * box.row_end, box.column, box.column_end), expected) < EDGE_UNDER_STRESS


def test_otsu_tells_two_groups_apart():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0.2, 0.03, 700), generator.normal(0.7, 0.05, 300)])
    assert 0.3 < otsu(values.astype(np.float32)) < 0.55
    assert otsu(np.full(5, 0.3, np.float32)) == pytest.approx(0.3)


def _ranged(values: Picture, **rest: Any) -> dict[str, MetaTensor]:
    image = to_metatensor(Pixels(values, PixelUnit.HU, **rest))
    return UnitRanged("image", [WINDOWS["lung"], WINDOWS["bone"]])({"image": image})


def test_cropping_keeps_place_padding_and_aspect():
    padding = np.zeros((SIZE, SIZE), bool)
    padding[:, :70] = True
    cropped = RegionCropped("image", "lungs", margin=0.0)(_ranged(_slice(), padding=padding, aspect=1.25))["image"]
    whole = _ranged(_slice(), padding=padding)["image"]
    (row, column), (rows, columns) = cropped.meta["cropped_at"], cropped.shape[1:]
    assert (row, column) != (0, 0)
    assert torch.equal(cropped.as_tensor(), whole.as_tensor()[:, row : row + rows, column : column + columns])
    np.testing.assert_array_equal(cropped.meta["padding"], padding[row : row + rows, column : column + columns])
    assert cropped.meta["aspect"] == 1.25
    assert to_source([[0, 0]], index_affine(cropped)).tolist() == [[row, column]]


@pytest.mark.parametrize("name", ["frame_black", "frame_white", "frame_gray"])
def test_the_margin_never_reaches_into_a_frame(name):
    """Of a picture whose edges cut the lungs: a rim of the frame would tell one hospital from another."""
    pixels = Pixels(_shown(_slice()), PixelUnit.FRACTION)
    lungs = find_region(pixels.values, "lungs")[1]
    cut = pixels.values[lungs.row + 8 : lungs.row_end - 8, lungs.column + 8 : lungs.column_end - 8]
    framed = STRESSES[name].apply(Pixels(cut, PixelUnit.FRACTION)).values
    off = [(large - small) // 2 for large, small in zip(framed.shape, cut.shape, strict=True)]
    found, box = find_region(framed, "lungs", margin=0.1)
    assert found == find_region(cut, "lungs", margin=0.1)[0]
    assert (box.row >= off[0], box.column >= off[1]) == (True, True)
    assert (box.row_end <= off[0] + cut.shape[0], box.column_end <= off[1] + cut.shape[1]) == (True, True)


def test_the_margin_is_a_part_of_the_box_within_the_image():
    box = Box(10, 60, 0, 100)
    assert box.grown(0.1, Box(0, 64, 0, 120)) == Box(5, 64, 0, 110)
    close, wide = (RegionCropped("image", "lungs", margin)(_ranged(_slice()))["image"] for margin in (0.0, 0.1))
    assert [round(1.2 * side) for side in close.shape[1:]] == pytest.approx(list(wide.shape[1:]), abs=1)


@pytest.mark.parametrize("region", ["body", "lungs"])
def test_inverse_puts_it_back_among_zeros(region):
    chain = Compose([RegionCropped("image", region), Flipd("image", spatial_axis=1)])
    data = _ranged(_slice())
    before, affine = data["image"].clone(), data["image"].affine.clone()
    result = chain(data)
    assert result["image"].meta["region"] == region
    back = chain.inverse(result)["image"]
    assert torch.equal(data["image"].as_tensor(), before.as_tensor())
    assert torch.equal(back.affine, affine)
    assert back.shape == before.shape
    assert not back.applied_operations
    kept = back.as_tensor() != 0
    assert torch.equal(back.as_tensor()[kept], before.as_tensor()[kept])
    assert int(kept.any(dim=0).any(dim=1).sum()) == result["image"].shape[1]


def test_what_is_cut_off_counts_in_no_statistic():
    """A white frame, and the same picture without it, are scaled alike."""
    plain = Pixels(_shown(_slice()), PixelUnit.FRACTION)
    steps = Compose([UnitRanged("image", WINDOWS["lung"]), RegionCropped("image", "body"), Scaled("image", "min_max")])
    with_frame = framed(replace_shades(plain), 1.0, (0.1,) * 4)
    a, b = (steps({"image": to_metatensor(pixels)})["image"] for pixels in (replace_shades(plain), with_frame))
    assert float(a.max()) == float(b.max()) == 1.0
    assert float(a.mean()) == pytest.approx(float(b.mean()), abs=0.02)
    moved = Compose([*steps.transforms[:2], Flipd("image", spatial_axis=0), Scaled("image", "min_max")])
    padding = np.zeros((SIZE, SIZE), bool)
    with pytest.raises(RuntimeError, match=r"Flipd|Scaled"):
        moved({"image": to_metatensor(Pixels(_slice(), PixelUnit.HU, padding=padding))})


def replace_shades(pixels: Pixels) -> Pixels:
    """Darker, so that a white frame is brighter than all of it."""
    return Pixels(pixels.values * np.float32(0.5), pixels.unit)


@pytest.mark.parametrize("crop", ["none", "body", "lungs"])
@pytest.mark.parametrize("mode", ["fit", "stretch", "crop"])
def test_the_place_of_a_landmark_in_the_whole_chain(crop, mode):
    """A bright dot in a hole of the heart comes back to its pixel, and MONAI's inverse has the source's shape."""
    hu, place = _slice().copy(), (SIZE // 2 - 3, SIZE // 2 + 5)
    around = slice(place[0] - 3, place[0] + 4), slice(place[1] - 3, place[1] + 4)
    hu[around] = -1000.0
    dot = hu.copy()
    dot[place[0] - 1 : place[0] + 2, place[1] - 1 : place[1] + 2] = 200.0
    chain = prepare_chain(windows=WINDOWS["lung"], crop=crop, size=160, resize=mode)
    results = [chain({"image": to_metatensor(Pixels(values, PixelUnit.HU))}) for values in (hu, dot)]
    change = (results[1]["image"] - results[0]["image"]).abs().double().as_tensor()[0].numpy()
    centre = (np.indices(change.shape) * change).sum(axis=(1, 2)) / change.sum()
    found = to_source(centre, index_affine(results[1]["image"]))[0]
    assert np.abs(found - place).max() < 0.5
    assert chain.inverse(results[1])["image"].shape == (1, SIZE, SIZE)


def test_plain_tensors_and_what_is_refused():
    assert isinstance(RegionCropped("image", "body")({"image": torch.rand(1, 20, 20)})["image"], MetaTensor)
    with pytest.raises(ValueError, match="body or lungs"):
        RegionCropped("image", "heart")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="margin"):
        RegionCropped("image", "body", margin=1.0)
    with pytest.raises(ValueError, match="channels, rows, columns"):
        RegionCropped("image", "body")({"image": torch.rand(20, 20)})


def test_the_copy_is_small():
    """The search's cost does not grow with the picture: its threshold and parts are of at most `SIDE` pixels a side."""
    large = np.kron(_shown(_slice()), np.ones((6, 6), np.float32))
    _, box = find_region(large, "lungs")
    assert max(large.shape) > 6 * SIDE
    assert _off(tuple(np.array(box) / 6), find_region(_shown(_slice()), "lungs")[1]) < EDGE_UNDER_STRESS


@pytest.mark.real_data
def test_real_slices_have_their_lungs_under_every_window(real_data: Path):
    """Of both classes: found in all, and the box stays where it is; none is less than a third of the picture."""
    paths = [path for name in ("COVID", "non-COVID") for path in sorted((real_data / "ct_slices_png" / name).iterdir())]
    for path in paths[::32]:
        pixels = read_raster(path)
        found, box = find_region(pixels.values, "lungs")
        assert found == "lungs"
        assert (box.row_end - box.row) * (box.column_end - box.column) > pixels.values.size / 3
        for name in ("window_narrower", "window_wider", "gamma_high", "jpeg_10", "noise"):
            again, moved = find_region(STRESSES[name].apply(pixels).values, "lungs")
            assert again == "lungs"
            assert _off(moved, box) < EDGE_UNDER_STRESS, name
