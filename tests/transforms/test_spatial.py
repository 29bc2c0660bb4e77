"""Resizing and the way back: every pixel of the network's input leads to its place in the source, and heatmaps with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.transforms import Compose

from transforms.intensity import Pixels, PixelUnit, to_metatensor
from transforms.spatial import index_affine, map_back, resize_chain

MODES = ("stretch", "fit", "crop")
sides = st.integers(min_value=40, max_value=160)


def _resized(values: np.ndarray, size: int, mode: str):
    image = to_metatensor(Pixels(values.astype(np.float32), PixelUnit.FRACTION))
    return Compose(resize_chain("image", size, mode))({"image": image})["image"]


@settings(max_examples=60, deadline=None)
@given(
    rows=sides,
    columns=sides,
    size=st.integers(32, 128),
    mode=st.sampled_from(MODES),
    where=st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
)
def test_a_landmark_leads_back_to_its_pixel(rows, columns, size, mode, where):
    """The centre of a blob in the input, taken through the affine, is its centre in the source within half a pixel."""
    center = np.array([where[0] * (rows - 1), where[1] * (columns - 1)])
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    width = max(3.0, 1.5 * max(rows, columns) / size)  # wide enough to be seen after shrinking
    blob = np.exp(-((grid - center) ** 2).sum(-1) / (2 * width**2))
    image = _resized(blob, size, mode)
    assert image.shape == (1, size, size)
    peak = np.array(np.unravel_index(int(image[0].argmax()), (size, size)), dtype=float)
    linear, shift = index_affine(image)[:, :2], index_affine(image)[:, 2]
    in_input = np.linalg.solve(linear, center - shift)
    if ((in_input < 1) | (in_input > size - 2)).any():
        return  # cropped away
    weights = np.asarray(image[0], dtype=float)
    window = [slice(max(int(p) - 2, 0), int(p) + 3) for p in peak]
    local = weights[window[0], window[1]]
    places = np.stack(
        np.meshgrid(
            *[np.arange(w.start, w.start + n) for w, n in zip(window, local.shape, strict=True)], indexing="ij"
        ),
        -1,
    )
    best = (places * local[..., None] ** 4).sum((0, 1)) / (local**4).sum()
    found = linear @ best + shift
    pixel = max(1.0, *np.abs(linear).sum(axis=1))
    assert np.abs(found - center).max() <= 0.5 * pixel + 0.25


@pytest.mark.parametrize("mode", MODES)
def test_the_affine_is_that_of_monais_inverse(mode):
    """MONAI's own inverse of the chain and a single step by the affine bring a smooth input to the same source image."""
    rows, columns, size = 90, 130, 64
    smooth = np.outer(np.linspace(0, 1, rows), np.linspace(1, 0, columns))
    image = to_metatensor(Pixels(smooth.astype(np.float32), PixelUnit.FRACTION))
    chain = Compose(resize_chain("image", size, mode))
    resized = chain({"image": image})
    back = np.asarray(chain.inverse(resized)["image"][0])
    ours = map_back(
        resized["image"][0].as_tensor(), index_affine(resized["image"]), (rows, columns), (size, size), 1.0, 0.0
    )
    seen = ours != 0
    inner = np.zeros_like(seen)
    inner[4:-4, 4:-4] = True
    assert seen.any()
    np.testing.assert_allclose(ours[seen & inner & (back > 0)], back[seen & inner & (back > 0)], atol=0.02)


@settings(max_examples=60, deadline=None)
@given(
    rows=sides,
    columns=sides,
    mode=st.sampled_from(MODES),
    cell=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_a_cell_peaks_where_the_network_looks(rows, columns, mode, cell):
    """A feature map that is 0 but for one cell has its peak at the source pixel nearest to input pixel (32 i, 32 j).

    The outer cells are left out: their value holds up to the edge, so that they have no single peak.
    """
    size, stride = 128, 32
    affine = index_affine(_resized(np.zeros((rows, columns)), size, mode))
    cells = torch.zeros(4, 4)
    cells[cell] = 1.0
    back = map_back(cells, affine, (rows, columns), (size, size), stride, 0.0)
    expected = affine[:, :2] @ (np.array(cell) * stride) + affine[:, 2]
    assume((expected >= 0).all() and (expected <= np.array([rows - 1, columns - 1])).all())  # else it looks at padding
    peaks = np.argwhere(back >= back.max() - 1e-6)  # two, where the place is half way between pixels
    assert np.abs(peaks - expected).max(axis=1).min() <= 0.5 + 1e-6
    assert back.max() <= 1.0 + 1e-6


def test_what_was_cropped_away_has_no_evidence():
    affine = index_affine(_resized(np.zeros((64, 192)), 64, "crop"))
    back = map_back(torch.ones(2, 2), affine, (64, 192), (64, 64), 32.0, 0.0)
    assert back[:, :60].max() == 0
    assert back[:, 132:].max() == 0
    assert back[:, 70:120].min() == 1


def test_fit_pads_with_black_and_keeps_the_aspect():
    image = _resized(np.ones((50, 100)), 64, "fit")
    assert float(image[0, :16].max()) == 0
    assert float(image[0, -16:].max()) == 0
    assert float(image[0, 20:44, 2:-2].min()) == pytest.approx(1.0)


def test_shrinking_is_anti_aliased():
    """A fine checkerboard becomes even gray, not a pattern."""
    board = np.indices((256, 256)).sum(axis=0) % 2
    image = _resized(board, 64, "stretch")
    assert float(image[0, 8:-8, 8:-8].std()) < 0.02
