"""The way back, end to end: points, painted landmarks, heat cells and impulses through every network come out where they went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd
from numpy.typing import NDArray
from torch import nn

from pipeline.config import Network
from pipeline.dicom.phantom_objects import ct_slice, save
from pipeline.dicom.pixels import read_pixels
from pipeline.networks.model import Classifier
from pipeline.prediction.explain import class_evidence, evidence_in_source
from transforms.augment import Augmentations, RandAugmentd
from transforms.chains import prepare_chain
from transforms.intensity import WINDOWS, Pixels, PixelUnit, to_metatensor
from transforms.spatial import combined, flip_affine, index_affine, map_back, resize_chain, to_input, to_source

MODES = st.sampled_from(["stretch", "fit", "crop"])
ASPECTS = st.floats(0.3, 3.0)
FLIPS = st.sampled_from([(), (0,), (1,), (0, 1)])
LANDMARK_TOLERANCE = 0.5
"""Source pixels: what the issue asks of any point."""
POINT_TOLERANCE = 1e-3
"""Source pixels: what float32 leaves of a ramp over hundreds of pixels; inside, where nothing holds an edge's value."""
LOOK_TOLERANCE = 5.0
"""Input pixels, a sixth of a cell. Random weights put the centroid up to 1.7 off, untapered ones 3.2; a resize of the map, as most
heatmaps are placed, would be 15.5 off."""

ARCHITECTURES = get_args(Network.model_fields["architecture"].annotation)


def _centroid(values: NDArray[Any] | torch.Tensor) -> NDArray[np.float64]:
    """(row, column) of the centre of mass."""
    weights = np.asarray(values, np.float64)
    return (np.indices(weights.shape) * weights).sum((1, 2)) / weights.sum()


def _blob(shape: tuple[int, int], place: NDArray[Any], sigma: NDArray[Any] | float) -> NDArray[np.float32]:
    """A Gaussian of height 1 at `place`, of `sigma` (rows, columns) pixels."""
    sigma = np.broadcast_to(sigma, 2)
    lines = [np.exp(-((np.arange(shape[axis]) - place[axis]) ** 2) / (2 * sigma[axis] ** 2)) for axis in (0, 1)]
    return np.outer(*lines).astype(np.float32)


def _mirrored(image: MetaTensor, axes: tuple[int, ...]) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """As a prediction at test time mirrors: a plain tensor, and the way back that goes with it."""
    size = (image.shape[1], image.shape[2])
    flipped = image.as_tensor().flip([axis + 1 for axis in axes])
    return flipped, combined(index_affine(image), flip_affine(size, axes))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 400),
    columns=st.integers(1, 400),
    aspect=ASPECTS,
    size=st.integers(1, 160),
    mode=MODES,
    axes=FLIPS,
)
def test_every_pixel_of_the_input_knows_its_place_in_the_source(rows, columns, aspect, size, mode, axes):
    """A source whose values are its rows and columns: the input holds, at each pixel, the place that the affine must tell."""
    places = np.indices((rows, columns), dtype=np.float32) + 1  # 0 is what was padded
    image = MetaTensor(torch.from_numpy(places), affine=torch.eye(4), meta={"aspect": aspect})
    shown, affine = _mirrored(resize_chain("image", size, mode)[0]({"image": image})["image"], axes)
    seen = (shown[0] > 0).numpy()
    assert seen.any()
    found = to_source(np.argwhere(seen), affine)
    truth = shown.double().numpy()[:, seen].T - 1
    assert np.abs(found - truth).max() <= LANDMARK_TOLERANCE + POINT_TOLERANCE
    inside = ((found >= 0) & (found <= np.array([rows, columns]) - 1)).all(
        axis=1
    )  # beyond, a growing image holds its edge
    assert np.abs(found - truth)[inside].max(initial=0) <= POINT_TOLERANCE
    np.testing.assert_allclose(to_input(found, affine), np.argwhere(seen), atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(41, 400), st.integers(41, 400)),
    aspect=ASPECTS,
    size=st.integers(48, 160),
    mode=MODES,
    axes=FLIPS,
    where=st.tuples(st.floats(0.15, 0.85), st.floats(0.15, 0.85)),
)
def test_a_painted_landmark_leads_back_to_its_place(shape, aspect, size, mode, axes, where):
    """A blob some pixels wide, mirrored inside the chain by MONAI and once more outside of it; also by MONAI's inverse of the chain."""
    place = np.array(where) * (np.array(shape) - 1)
    image = to_metatensor(Pixels(np.zeros(shape, np.float32), PixelUnit.FRACTION))
    image.meta["aspect"] = aspect
    chain = Compose([*resize_chain("image", size, mode), Flipd("image", spatial_axis=1)])
    affine = index_affine(chain({"image": image})["image"])
    scale = np.abs(np.diag(affine[:, :2]))
    sigma = np.maximum(2.0, 1.2 * scale)
    landmark = to_input(place, affine)[0]
    reach = 4 * sigma
    assume((place >= reach).all() and (place <= np.array(shape) - 1 - reach).all())
    assume((landmark >= reach / scale).all() and (landmark <= size - 1 - reach / scale).all())  # else cropped away
    result = chain({"image": MetaTensor(torch.from_numpy(_blob(shape, place, sigma))[None], meta=image.meta)})
    shown, affine = _mirrored(result["image"], axes)
    assert np.abs(to_source(_centroid(shown[0]), affine)[0] - place).max() <= LANDMARK_TOLERANCE
    back = chain.inverse(result)["image"]
    assert back.shape == (1, *shape)
    assert np.abs(_centroid(back[0]) - place).max() <= LANDMARK_TOLERANCE


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), aspect=ASPECTS, mode=MODES)
def test_the_way_back_through_random_augmentation(seed, aspect, mode):
    """Flips, zoom, rotation and shift: the tracked affine leads from the varied input to the source."""
    shape, size = (150, 210), 128
    place = np.array([70.0, 115.0])
    settings = Augmentations(flip_horizontal=0.5, flip_vertical=0.5, zoom=0.2, shift=0.1, rotate=40)
    chain = Compose([*resize_chain("image", size, mode), RandAugmentd("image", settings)])
    chain.set_random_state(seed=seed)
    image = MetaTensor(torch.from_numpy(_blob(shape, place, 4.0))[None], affine=torch.eye(4), meta={"aspect": aspect})
    result = chain({"image": image})["image"]
    assume(float(result.max()) > 0.5)  # it was not cropped or shifted away
    landmark = to_input(place, index_affine(result))[0]
    assume((landmark > 20).all() and (landmark < size - 21).all())
    assert np.abs(to_source(_centroid(result[0]), index_affine(result))[0] - place).max() <= LANDMARK_TOLERANCE


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(30, 300), st.integers(30, 300)),
    aspect=ASPECTS,
    mode=MODES,
    axes=FLIPS,
    cell=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    offset=st.sampled_from([0.0, 15.5]),
)
def test_a_heat_cell_comes_back_to_where_the_network_looked(shape, aspect, mode, axes, cell, offset):
    """One hot cell: its map on the source peaks within half a pixel of its centre's place, and its centre of mass is there.

    The outer cells are left out: their value holds up to the edge.
    """
    size, stride = 192, 32.0
    image = MetaTensor(torch.zeros(1, *shape), affine=torch.eye(4), meta={"aspect": aspect})
    _, affine = _mirrored(resize_chain("image", size, mode)[0]({"image": image})["image"], axes)
    cells = torch.zeros(6, 6)
    cells[cell] = 1.0
    placed = map_back(cells, affine, shape, (size, size), stride, offset)
    (expected,) = to_source(np.array(cell) * stride + offset, affine)
    assume((expected >= 0).all() and (expected <= np.array(shape) - 1).all())  # else it looks at padding
    peaks = np.argwhere(placed >= placed.max() - 1e-6)  # two, where the place is half way between pixels
    assert np.abs(peaks - expected).max(axis=1).min() <= LANDMARK_TOLERANCE + 1e-6
    assert placed.max() <= 1 + 1e-6
    corners = to_source(np.array(cell) * stride + offset + [[-stride, -stride], [stride, stride]], affine)
    if (corners >= 0).all() and (corners <= np.array(shape) - 1).all() and np.ptp(corners, axis=0).min() > 4:
        assert np.abs(_centroid(placed) - expected).max() <= LANDMARK_TOLERANCE


PLACES = [(30.0, 41.0), (64.5, 20.25), (50.0, 66.75), (21.0, 70.0)]
DICOM_SHAPE = (90, 96)


def _back_from_the_chain(pixels: Pixels, mode: Any) -> NDArray[np.float64]:
    """Where in the file the bright landmark of `pixels` is, judging by the network's input alone."""
    chain = prepare_chain(windows=WINDOWS["wide"], size=80, resize=mode)
    image = chain({"image": to_metatensor(pixels)})["image"]
    return to_source(_centroid(image[0]), index_affine(image))[0]


def _landmark_hu(place: tuple[float, float]) -> NDArray[np.float32]:
    return -1000 + 1500 * _blob(DICOM_SHAPE, np.array(place), 3.0)


@pytest.mark.parametrize("mode", ["stretch", "fit", "crop"])
@pytest.mark.parametrize("spacing", [("0.7", "0.7"), ("1.0", "0.8")])
def test_each_frame_of_a_multi_frame_file(tmp_path: Path, mode, spacing):
    datasets = [ct_slice(hu=_landmark_hu(place), PixelSpacing=list(spacing)) for place in PLACES]
    datasets[0].PixelData = b"".join(dataset.PixelData for dataset in datasets)
    datasets[0].NumberOfFrames = len(PLACES)
    path = save(datasets[0], tmp_path / "frames.dcm")
    for frame, place in enumerate(PLACES):
        pixels = read_pixels(path, frame)
        assert pixels.aspect == pytest.approx(float(spacing[0]) / float(spacing[1]))
        found = _back_from_the_chain(pixels, mode)
        assert np.abs(found - place).max() <= LANDMARK_TOLERANCE


@pytest.mark.parametrize("mode", ["stretch", "fit", "crop"])
def test_each_slice_of_a_series(tmp_path: Path, mode):
    for number, place in enumerate(PLACES, start=1):
        path = save(ct_slice(hu=_landmark_hu(place), instance_number=number), tmp_path / f"{number}.dcm")
        assert np.abs(_back_from_the_chain(read_pixels(path), mode) - place).max() <= LANDMARK_TOLERANCE


def _tapered(network: Classifier) -> Classifier:
    """Random weights that fade from each kernel's middle, so that a cell's field of view is narrow enough to be seen whole.

    The fading is symmetric: it moves no field of view.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            distances = [torch.arange(side) - (side - 1) / 2 for side in module.weight.shape[-2:]]
            with torch.no_grad():
                module.weight *= torch.exp(-(distances[0][:, None] ** 2 + distances[1] ** 2) / (2 * 0.5**2))
    return network


def _look(features: torch.Tensor, images: torch.Tensor, cell: tuple[int, int]) -> NDArray[np.float64]:
    """Centre of mass of the squared gradient of one cell's features, summed with random signs, by the input."""
    signed = features[:, :, cell[0], cell[1]] * torch.randn(features.shape[:2])
    (gradient,) = torch.autograd.grad(signed.sum(), images, retain_graph=True)
    return _centroid((gradient.double() ** 2).sum((0, 1)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(128, 160), (101, 150)])
def test_each_cell_stands_where_the_network_looks(architecture, shape):
    """Cells at both ends of inputs that are, and are not, multiples of the stride; the outermost see half of what they look at."""
    torch.manual_seed(0)
    network = _tapered(Classifier(Network(architecture=architecture), 2).eval())
    images = torch.rand(3, 1, *shape, requires_grad=True)
    features = network.features(images)
    rows, columns = features.shape[2:]
    for cell in ((1, 1), (1, columns - 2), (rows - 2, columns - 2)):
        expected = network.geometry.cell_offset + network.geometry.cell_stride * np.array(cell)
        assert np.abs(_look(features, images, cell) - expected).max() <= LOOK_TOLERANCE, cell


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_middle_cell_of_a_network_as_it_is(architecture):
    """Untapered: a field of view reaches over most of the input, so only the cell in its middle sees alike to all sides."""
    torch.manual_seed(0)
    network = Classifier(Network(architecture=architecture), 2).eval()
    images = torch.rand(2, 1, 256, 192, requires_grad=True)
    expected = network.geometry.cell_offset + network.geometry.cell_stride * np.array((4, 3))
    assert np.abs(_look(network.features(images), images, (4, 3)) - expected).max() <= LOOK_TOLERANCE


@pytest.mark.parametrize("mode", ["stretch", "fit", "crop"])
@pytest.mark.parametrize(("shape", "aspect"), [((500, 500), 1.0), ((301, 640), 1.0), ((420, 260), 2.0)])
def test_an_impulse_in_a_source_pixel_comes_out_there(mode, shape, aspect):
    """Through chain, network and evidence of 32 random classes: within half a cell of the one pixel that was changed."""
    torch.manual_seed(0)
    network = Classifier(Network(architecture="resnet18"), 32).eval()
    nn.init.normal_(network.head.weight)
    chain = prepare_chain(windows=WINDOWS["wide"], size=384, resize=mode)
    values = np.random.default_rng(0).normal(-300, 200, shape).astype(np.float32)
    place = (round(0.46 * shape[0]), round(0.57 * shape[1]))
    changed = values.copy()
    changed[place] += 800
    both = [
        chain({"image": to_metatensor(Pixels(image, PixelUnit.HU, aspect=aspect))})["image"]
        for image in (values, changed)
    ]
    with torch.no_grad():
        features = network.features(torch.stack([image.as_tensor() for image in both]))
        evidence = class_evidence(features, network.head.weight, network.head.bias)
    change = ((evidence[1] - evidence[0]) ** 2).sum(0).numpy()
    affine = index_affine(both[0])
    placed = evidence_in_source(change / change.max(), network.geometry, affine, shape, 384)
    half_cell = 0.5 * network.geometry.cell_stride * np.abs(affine[:, :2]).sum(axis=1)
    assert (np.abs(_centroid(placed) - place) <= half_cell).all()
