"""Batch norm in convolutions: the same outputs for every kind of network, and nothing folded that another reads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config import Network, Preprocessing
from pipeline.files import file_digest
from pipeline.manifest import Rules
from pipeline.networks.equivalence import SAME_WITHIN
from pipeline.networks.folding import _fold, fold_batch_norms
from pipeline.networks.input_layer import RESNET_INPUT
from pipeline.networks.model import WEIGHTS_FILE, new_network
from pipeline.prediction.predict import load_model, trained_model
from pipeline.run import ModelFacts, write_model

SIZE = 64
CPU = torch.device("cpu")
ROUNDING = 1e-5
"""Of float32 through one convolution and one norm, values of about 1."""


def as_trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every batch norm statistics, weights and biases that a training might have left: a new one does next to nothing."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
        for norm in (norm for norm in norms if norm.track_running_stats):
            norm.running_mean.normal_(0.0, 0.2, generator=random)
            norm.running_var.uniform_(0.4, 1.6, generator=random)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.2, generator=random)
                norm.bias.normal_(0.0, 0.2, generator=random)
    return network


def norms_of(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


@pytest.mark.parametrize(
    ("architecture", "given", "size", "folded", "left"),
    [
        ("resnet18", {}, SIZE, 20, 0),
        ("resnet18", {"channels": 3, "pooling": "attention", "head": "conv"}, SIZE, 21, 0),
        ("resnet18", {"pooling": "volume"}, SIZE, 17, 0),
        ("resnet50", {"pooling": "volume"}, SIZE, 53, 0),
        ("resnet50", {}, SIZE, 53, 0),
        ("timm:vgg11_bn", {}, SIZE, 8, 0),
        ("timm:inception_v3", {}, 96, 94, 0),
        ("timm:legacy_xception", {}, SIZE, 40, 0),
        # the first norm of each layer, those of transitions and the last stand before what they are for
        ("timm:densenet121", {}, SIZE, 59, 62),
        ("timm:efficientnet_b0", {}, SIZE, 49, 0),
        ("timm:tf_mobilenetv3_small_minimal_100", {}, SIZE, 34, 0),  # pads before it convolves
        ("timm:regnety_002", {}, SIZE, 44, 0),
        ("timm:convnext_atto", {}, SIZE, 0, 0),  # layer norms
    ],
)
def test_a_folded_network_says_what_the_network_says(architecture: str, given: dict, size: int, folded: int, left: int):
    torch.manual_seed(0)
    network = as_trained(new_network(Network(architecture=architecture, **given), 3, size)).eval()
    before, channels = copy.deepcopy(network.state_dict()), given.get("channels", 1)
    found = fold_batch_norms(network, channels, size)
    assert (len(found.pairs), norms_of(found.network)) == (folded, left)
    assert bool(found.refused) == (folded == 0)
    volume = given.get("pooling") == "volume"
    images = torch.rand((1, 1, 16, size, size) if volume else (2, channels, size, size))
    with torch.no_grad():
        features, expected = (one.features(images) for one in (found.network, network))
        logits, expected_logits = found.network.classify(features), network.classify(expected)
    for ours, theirs in ((features, expected), (logits, expected_logits)):
        assert float((ours - theirs).abs().max()) <= SAME_WITHIN * max(1.0, float(theirs.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert norms_of(network) == folded + left


# What is between a convolution and a batch norm, in a network of nothing else


class Small(nn.Module):
    """What `fold_batch_norms` asks of a network, around any `features`."""

    inputs = RESNET_INPUT

    def __init__(self, features: Callable[[Small, torch.Tensor], torch.Tensor], **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Module()
        self.backbone.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.backbone.bn1 = nn.BatchNorm2d(4)
        for name, module in modules.items():
            self.backbone.add_module(name, module)
        self._features = features
        as_trained(self).eval()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self._features(self.backbone, images)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3))


def plain(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.bn1(net.conv1(x)).relu()


def read_twice(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = net.conv1(x)
    return net.bn1(x) + x


def changed_in_place(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.bn1(net.conv1(x).relu_())


def seen_through_a_view(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.bn1(net.conv1(x).flip(1))


def one_convolution_for_two_norms(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.bn1(net.conv1(x)) + net.other(net.conv1(x + 1.0))


def one_norm_for_two_convolutions(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.bn1(net.conv1(x)) + net.bn1(net.other(x))


def other_weights(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.bn1(functional.conv2d(x, net.conv1.weight / net.conv1.weight.std(), net.conv1.bias))


def other_bias(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.bn1(functional.conv2d(x, net.conv1.weight, net.conv1.bias + 1.0))


def test_a_convolution_alone_before_a_batch_norm_is_folded():
    found = fold_batch_norms(Small(plain), 1, SIZE)
    assert found.pairs == (("backbone.conv1", "backbone.bn1"),)
    assert not found.refused


@pytest.mark.parametrize(
    ("features", "modules"),
    [
        (read_twice, {}),
        (changed_in_place, {}),
        (seen_through_a_view, {}),
        (one_convolution_for_two_norms, {"other": nn.BatchNorm2d(4)}),
        (one_norm_for_two_convolutions, {"other": nn.Conv2d(1, 4, 3, padding=1)}),
        (other_weights, {}),
        (other_bias, {}),
    ],
)
def test_a_convolution_that_is_not_alone_is_left(features: Callable, modules: dict[str, nn.Module]):
    network = Small(features, **modules)
    found = fold_batch_norms(network, 1, SIZE)
    assert found.network is network
    assert found.pairs == ()
    assert found.refused


def test_only_what_is_alone_is_folded():
    """The second convolution's output is read twice, the first one's is not."""

    def features(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.second(plain(net, x))
        return net.norm(x) + x

    found = fold_batch_norms(Small(features, second=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), 1, SIZE)
    assert found.pairs == (("backbone.conv1", "backbone.bn1"),)
    assert norms_of(found.network) == 1


def test_a_batch_norm_of_batches_is_left():
    found = fold_batch_norms(Small(plain, bn1=nn.BatchNorm2d(4, track_running_stats=False)), 1, SIZE)
    assert found.pairs == ()


def test_a_kind_of_batch_norm_that_is_not_known_is_left():
    class Gated(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).sigmoid()

    assert fold_batch_norms(Small(plain, bn1=Gated(4)), 1, SIZE).pairs == ()


def test_what_differs_is_refused():
    """A network that uses the weights themselves elsewhere: no look at outputs tells, only the comparison does."""

    def features(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return plain(net, x) * net.conv1.weight.abs().sum()

    network = Small(features)
    found = fold_batch_norms(network, 1, SIZE)
    assert found.network is network
    assert found.difference > SAME_WITHIN
    assert "differs" in found.refused


def test_weights_that_are_no_numbers_stay_as_they_are():
    network = Small(plain)
    with torch.no_grad():
        network.backbone.conv1.weight[0] = float("nan")
    found = fold_batch_norms(network, 1, SIZE)
    assert found.network is network
    assert found.refused


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([2, 3]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.floats(1e-5, 0.1),
)
def test_any_convolution_and_batch_norm(
    dims: int, groups: int, kernel: int, stride: int, bias: bool, affine: bool, eps: float
):
    convolution, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
    torch.manual_seed(0)
    first = convolution(4, 8, kernel, stride=stride, groups=groups, bias=bias, dilation=3 - stride)
    net = as_trained(nn.Sequential(first, norm(8, eps=eps, affine=affine))).eval()
    x = torch.randn(2, 4, *[9] * dims)
    with torch.no_grad():
        expected = net(x)
        _fold(net, "0", "1")
        assert norms_of(net) == 0
        torch.testing.assert_close(net(x), expected, atol=ROUNDING, rtol=ROUNDING)


# In a model


def _facts(**given: object) -> dict[str, object]:
    told = {
        "name": "t", "radloop_version": "0", "network": Network(architecture="resnet18"), "classes": ["a", "b"], "positive": "b",
        "unit": "image", "rules": Rules(), "preprocessing": Preprocessing(size=SIZE), "preprocessing_digest": "",
        "path_to_unit_range": {}, "input_mean": (0.5,), "input_std": (0.25,), "initial_weights": "", "initial_weights_sha256": "",
        "best_epoch": 1, "heatmap_scale": 1.0, "scope": {}, "thresholds": {"b": 0.5},
    }  # fmt: skip
    return told | given


def test_a_model_is_folded_unless_its_heatmaps_need_the_network(tmp_path: Path):
    torch.manual_seed(0)
    facts = _facts()
    network = as_trained(new_network(facts["network"], 2, SIZE))
    written = write_model(tmp_path, network.state_dict(), facts)
    digest = file_digest(tmp_path / WEIGHTS_FILE)
    fast, again, plain_one = load_model(tmp_path), load_model(tmp_path), load_model(tmp_path, fold=False)
    assert norms_of(fast.network) == 0
    assert norms_of(plain_one.network) == 20
    assert (
        norms_of(trained_model([network], ModelFacts(**written.model_dump() | {"heatmap": "gradcam"}), CPU).network)
        == 20
    )
    levels = np.random.default_rng(0).integers(0, 65536, (3, 1, SIZE, SIZE), dtype=np.uint16)
    told, same, expected = (model.predict(levels) for model in (fast, again, plain_one))
    for name in ("logits", "evidence", "probabilities"):
        assert np.array_equal(getattr(told, name), getattr(same, name))
        np.testing.assert_allclose(getattr(told, name), getattr(expected, name), atol=SAME_WITHIN)
    assert file_digest(tmp_path / WEIGHTS_FILE) == digest
    assert fast.facts.digest == plain_one.facts.digest == written.digest


def test_the_weights_of_a_network_are_written_as_they_were_trained():
    """A training asks a model what its validation split says before it writes the network."""
    torch.manual_seed(0)
    network = as_trained(new_network(Network(architecture="resnet18"), 2, SIZE))
    before = copy.deepcopy(network.state_dict())
    trained_model([network], ModelFacts(**_facts(weights_sha256="")), CPU)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
