"""Evidence maps: equal to the grad-cam package on the same target, summing up to the logit margin, placed in source pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_grad_cam import GradCAM

from pipeline.config import Network
from pipeline.networks.model import RESNET_GEOMETRY, Classifier, Geometry
from pipeline.prediction.explain import (
    cell_sides,
    cell_size,
    class_evidence,
    evidence_in_source,
    heatmap_scale,
    mirrored_back,
)


@pytest.fixture(scope="module", params=[2, 4])
def network(request: pytest.FixtureRequest) -> Classifier:
    torch.manual_seed(1)
    classifier = Classifier(Network(architecture="resnet18"), request.param).eval()
    torch.nn.init.normal_(classifier.head.weight, std=0.3)
    torch.nn.init.normal_(classifier.head.bias)
    return classifier


class _MarginTarget:
    """What the evidence is a map of: the margin over the other class, or the logit centred over the classes."""

    def __init__(self, shown: int) -> None:
        self.shown = shown

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[self.shown] - (logits[1 - self.shown] if len(logits) == 2 else logits.mean())


def _evidence(network: Classifier, images: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        maps = class_evidence(network.features(images), network.head.weight, network.head.bias)
    return maps[torch.arange(len(images)), shown]


def _offset(network: Classifier, shown: int) -> float:
    bias = network.head.bias.detach()
    return float(bias[shown] - (bias[1 - shown] if len(bias) == 2 else bias.mean()))


def test_evidence_is_grad_cam_of_the_margin(network: Classifier):
    """GradCAM averages the gradient over the cells, so its map is ours without bias, over the number of cells, above 0."""
    images = torch.rand(3, 1, 128, 160)
    shown = 1
    ours = _evidence(network, images, torch.full((3,), shown)) - _offset(network, shown)
    with GradCAM(model=network, target_layers=[network.backbone.layer4]) as cam:
        cam.outputs = cam.activations_and_grads(images)
        loss = sum(_MarginTarget(shown)(logits) for logits in cam.outputs)
        network.zero_grad()
        loss.backward()
        activations = cam.activations_and_grads.activations[0].numpy()
        gradients = cam.activations_and_grads.gradients[0].numpy()
        theirs = cam.get_cam_image(images, network.backbone.layer4, [], activations, gradients, eigen_smooth=False)
    cells = ours.shape[1] * ours.shape[2]
    scale = float(ours.abs().max())
    np.testing.assert_allclose(np.maximum(theirs, 0) * cells / scale, np.maximum(ours.numpy(), 0) / scale, atol=2e-5)


def test_the_mean_over_the_cells_is_the_margin(network: Classifier):
    images = torch.rand(4, 1, 96, 96)
    shown = torch.arange(4) % network.head.out_features
    with torch.no_grad():
        logits = network(images)
    expected = torch.stack([_MarginTarget(int(place))(row) for place, row in zip(shown, logits, strict=True)])
    torch.testing.assert_close(_evidence(network, images, shown).mean(dim=(1, 2)), expected, rtol=1e-4, atol=1e-4)


def test_many_classes_do_not_depend_on_what_is_not_identifiable():
    """Adding one vector to all classes' weights changes no probability, so it may change no map."""
    features, weight, bias = torch.rand(2, 8, 3, 3), torch.randn(4, 8), torch.randn(4)
    moved = class_evidence(features, weight + torch.randn(8), bias + 1.7)
    torch.testing.assert_close(moved, class_evidence(features, weight, bias), rtol=1e-4, atol=1e-4)


def test_several_labels_show_their_own_logits():
    """Each label has a probability of its own, so its weights are identifiable, and none is taken from another's."""
    features, weight, bias = torch.rand(2, 8, 3, 3), torch.randn(2, 8), torch.randn(2)
    evidence = class_evidence(features, weight, bias, several=True)
    logits = features.mean(dim=(2, 3)) @ weight.T + bias
    torch.testing.assert_close(evidence.mean(dim=(2, 3)), logits, rtol=1e-4, atol=1e-4)


def test_evidence_of_a_volume_is_that_of_its_slices():
    features, weight, bias = torch.rand(1, 8, 4, 3, 3), torch.randn(2, 8), torch.randn(2)
    evidence = class_evidence(features, weight, bias)
    assert evidence.shape == (1, 2, 4, 3, 3)
    torch.testing.assert_close(evidence[:, :, 1], class_evidence(features[:, :, 1], weight, bias))


@given(
    cells=st.integers(1, 9),
    stride=st.floats(4, 40),
    offset=st.floats(0, 20),
    excess=st.floats(0, 1),
    axes=st.sampled_from([(-1,), (-2,), (-2, -1)]),
)
def test_evidence_comes_back_to_where_the_mirror_image_had_it(
    cells: int, stride: float, offset: float, excess: float, axes: tuple[int, ...]
):
    """Where evidence is the place that a cell of the mirror image shows, it is again the place of the cell, as far as cells reach."""
    size = int(offset + stride * (cells - 1) + 1 + excess * stride)
    geometry = Geometry(stride, offset)
    places = offset + stride * np.arange(cells)
    for axis in (-1, -2):
        shown = size - 1 - places if axis in axes else places
        ramp = torch.from_numpy(shown).double()
        grid = ramp.expand(cells, cells) if axis == -1 else ramp[:, None].expand(cells, cells)
        found = mirrored_back(grid, axes, geometry, size)
        expected = np.clip(places, shown.min(), shown.max()) if axis in axes else places
        line = found[0] if axis == -1 else found[:, 0]
        np.testing.assert_allclose(line.numpy(), expected, atol=1e-6 * size)


def test_cells_that_lie_evenly_are_only_turned_round():
    evidence = torch.rand(2, 3, 7, 7)
    turned = mirrored_back(evidence, (-1,), Geometry(cell_stride=32, cell_offset=15.5), 224)
    torch.testing.assert_close(turned, evidence.flip(-1))


def test_the_scale_is_one_for_the_run():
    maps = [np.full((2, 2), value, np.float32) for value in (-5, 1, 2, 3)]
    assert heatmap_scale(maps) == pytest.approx(3.0)
    assert heatmap_scale([np.full((2, 2), -1, np.float32)]) == 1.0
    assert heatmap_scale([]) == 1.0


def test_cells_land_in_source_pixels():
    """A 512-pixel source shrunk to 128: cell (2, 1) is centred on input pixel (64, 32), source pixel (257.5, 129.5)."""
    affine = np.array([[4.0, 0, 1.5], [0, 4.0, 1.5]])
    cells = np.zeros((4, 4), np.float32)
    cells[2, 1] = 1
    placed = evidence_in_source(cells, RESNET_GEOMETRY, affine, (512, 512), 128)
    assert placed.shape == (512, 512)
    center = (placed * np.indices((512, 512))).sum((1, 2)) / placed.sum()
    np.testing.assert_allclose(center, (257.5, 129.5), atol=0.01)
    assert cell_size(RESNET_GEOMETRY, affine) == 128


def test_a_cell_has_two_sides_on_pixels_that_are_no_squares():
    """256 × 512 pixels, twice as high as wide, in an input of 128: a cell covers 64 rows and 128 columns, as far in millimetres."""
    affine = np.array([[2.0, 0, 0.5], [0, 4.0, 1.5]])
    assert cell_sides(RESNET_GEOMETRY, affine) == (64, 128)
    assert cell_size(RESNET_GEOMETRY, affine) == 128
    mirrored = affine * [[1, 1, 1], [1, -1, 1]]
    assert cell_sides(RESNET_GEOMETRY, mirrored) == (64, 128)
