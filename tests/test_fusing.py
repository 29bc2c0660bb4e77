"""Sums and ReLUs in convolutions: the same outputs for every kind of network, and nothing fused that another reads."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pipeline.config import Network
from pipeline.networks.equivalence import SAME_WITHIN
from pipeline.networks.folding import fold_batch_norms
from pipeline.networks.fusing import FusedConvolution, fuse_activations
from pipeline.networks.model import Classifier, new_network
from tests.test_folding import as_trained

SIZE = 64

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found - expected).abs().max()) <= SAME_WITHIN * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("architecture", "given", "size", "rectified", "summed"),
    [
        ("resnet18", {}, SIZE, 9, 8),
        ("resnet18", {"channels": 3, "pooling": "attention", "head": "conv"}, SIZE, 9, 8),
        ("resnet50", {}, SIZE, 33, 16),
        ("timm:vgg11_bn", {}, SIZE, 8, 0),
        ("timm:inception_v3", {}, 96, 94, 0),
        ("timm:legacy_xception", {}, SIZE, 24, 0),
        ("timm:densenet121", {}, SIZE, 59, 0),
        ("timm:regnetx_004", {}, SIZE, 45, 22),
        ("timm:efficientnet_b0", {}, SIZE, 0, 0),  # SiLU
        ("timm:convnext_atto", {}, SIZE, 0, 0),  # GELU
        ("timm:vit_tiny_patch16_224", {}, 224, 0, 0),  # no map of cells to trace, nor ReLU
    ],
)
def test_a_fused_network_says_what_the_network_says(
    architecture: str, given: dict, size: int, rectified: int, summed: int
):
    torch.manual_seed(0)
    channels = given.get("channels", 1)
    network = fold_batch_norms(
        as_trained(new_network(Network(architecture=architecture, **given), 3, size)), channels, size
    ).network.eval()
    before = copy.deepcopy(network.state_dict())
    found = fuse_activations(network, channels, size)
    assert (found.rectified, found.summed) == (rectified, summed)
    assert bool(found.refused) == (rectified + summed == 0)
    assert (found.network is network) == bool(found.refused)
    images = torch.rand(3, channels, size, size)  # another number than it was tried on
    for layout in (torch.contiguous_format, torch.channels_last):
        given_images = images.to(memory_format=layout)
        untouched = given_images.clone()
        with torch.inference_mode():
            features, expected = (
                one.to(memory_format=layout).features(given_images) for one in (found.network, network)
            )
            assert close(features, expected)
            assert close(found.network.classify(features), network.classify(expected))
        assert torch.equal(given_images, untouched)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_copy_runs_by_its_own_weights():
    """Or a test by shuffled weights would find the maps unchanged."""
    torch.manual_seed(0)
    fused = fuse_activations(new_network(Network(architecture="resnet18"), 2, SIZE).eval(), 1, SIZE).network
    other = copy.deepcopy(fused)
    images = torch.rand(1, 1, SIZE, SIZE)
    with torch.inference_mode():
        expected = fused.features(images)
        assert torch.equal(other.features(images), expected)
        for parameter in other.backbone.parameters():
            parameter.zero_()
        assert not other.features(images).any()
        assert torch.equal(fused.features(images), expected)


# What is around a convolution, in a trunk of nothing else


class Layers(nn.Module):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        for name, module in modules.items():
            self.add_module(name, module)


def small(features: Callable[[Layers, torch.Tensor], torch.Tensor], **modules: nn.Module) -> Classifier:
    torch.manual_seed(0)
    network = new_network(Network(architecture="resnet18"), 2, SIZE)
    assert isinstance(network, Classifier)
    network.backbone = Layers(**modules)
    network._features_of = features
    network.head = nn.Linear(4, 2)
    return network.eval()


def block(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = net.act(net.one(x))
    y = net.two(x)
    y += x
    return net.act(y)


def block_of_functions(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = functional.relu(net.one(x))
    return torch.relu(torch.add(x, net.two(x)))


def block_of_methods(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = net.one(x).relu_()
    return net.two(x).add_(x).relu()


def its_own_input(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = net.act(net.one(x))
    return net.act(net.two(x) + x)


def read_after(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = net.act(net.one(x))
    y = net.act(net.two(net.two(x)) + x)
    return y + x


def added_to_in_place(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = net.act(net.one(x))
    return net.act(x.add_(net.two(net.two(x))))


def with_a_factor(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = net.act(net.one(x))
    return net.act(torch.add(net.two(net.two(x)), x, alpha=2))


def spread_out(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = net.act(net.one(x))
    return net.act(net.two(net.two(x)) + net.pool(x))


def of_a_number(net: Layers, x: torch.Tensor) -> torch.Tensor:
    return net.act(net.two(net.act(net.one(x))) + 1.0)


def doubled(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = net.two(net.act(net.one(x)))
    return net.act(x + x)


def read_twice(net: Layers, x: torch.Tensor) -> torch.Tensor:
    x = net.two(net.act(net.one(x)))
    return functional.relu(x) + x


def the_images_themselves(net: Layers, x: torch.Tensor) -> torch.Tensor:
    return net.act(net.third(x) + x).expand(-1, 4, -1, -1) + 0 * net.act(net.one(x))


@pytest.mark.parametrize(
    ("features", "modules", "rectified", "summed"),
    [
        (block, {}, 1, 0),  # two's input is what is added: not in its memory
        (block_of_functions, {}, 1, 0),
        (block_of_methods, {}, 1, 0),
        (its_own_input, {}, 1, 0),
        (read_after, {}, 1, 0),
        (added_to_in_place, {}, 1, 0),
        (with_a_factor, {}, 1, 0),
        (spread_out, {"pool": nn.AdaptiveAvgPool2d(1)}, 1, 0),
        (of_a_number, {}, 1, 0),
        (doubled, {}, 1, 0),
        (read_twice, {}, 1, 0),
        (the_images_themselves, {"third": nn.Conv2d(1, 1, 3, padding=1)}, 1, 0),
    ],
)
def test_only_what_nobody_else_reads_is_fused(
    features: Callable, modules: dict[str, nn.Module], rectified: int, summed: int
):
    network = small(features, **modules)
    found = fuse_activations(network, 1, SIZE)
    assert (found.rectified, found.summed) == (rectified, summed)
    images = torch.randn(2, 1, SIZE, SIZE)
    with torch.inference_mode():
        assert close(found.network.features(images), network.features(images))


@pytest.mark.parametrize("add", [torch.add, lambda a, b: a + b, lambda a, b: b + a, lambda a, b: a.add_(b)])
@pytest.mark.parametrize("act", [torch.relu, functional.relu, lambda x: x.relu_(), nn.ReLU()])
def test_a_residual_sum_is_fused_however_it_is_written(add: Callable, act: Callable):
    def features(net: Layers, x: torch.Tensor) -> torch.Tensor:
        x = net.act(net.one(x))
        return act(add(net.two(net.act(net.third(x))), x))

    def with_module(net: Layers, x: torch.Tensor) -> torch.Tensor:
        x = net.act(net.one(x))
        return net.act(add(net.two(net.act(net.third(x))), x))

    network = small(with_module if isinstance(act, nn.Module) else features, third=nn.Conv2d(4, 4, 1))
    found = fuse_activations(network, 1, SIZE)
    assert (found.rectified, found.summed) == (2, 1), found.refused
    images = torch.randn(2, 1, SIZE, SIZE)
    with torch.inference_mode():
        assert close(found.network.features(images), network.features(images))


def test_what_cannot_be_traced_is_refused():
    def features(net: Layers, x: torch.Tensor) -> torch.Tensor:
        return net.act(net.one(x)) if x.sum() > 0 else net.act(net.one(-x))

    network = small(features)
    found = fuse_activations(network, 1, SIZE)
    assert found.network is network
    assert "cannot be traced" in found.refused


def test_a_torch_without_the_operation_is_refused(monkeypatch: pytest.MonkeyPatch):
    def missing(self: FusedConvolution, *_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not built in")

    monkeypatch.setattr(FusedConvolution, "forward", missing)
    network = small(block)
    found = fuse_activations(network, 1, SIZE)
    assert found.network is network
    assert "cannot be fused here" in found.refused


def test_what_differs_is_refused():
    """A trunk that asks the weights for what the trace holds as a number."""

    def features(net: Layers, x: torch.Tensor) -> torch.Tensor:
        net.runs = getattr(net, "runs", 0) + 1
        return net.act(net.one(x)) * net.runs

    network = small(features)
    found = fuse_activations(network, 1, SIZE)
    assert found.network is network
    assert "differs" in found.refused


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.booleans(), st.booleans()
)
def test_any_convolution_with_what_follows(
    groups: int, kernel: int, stride: int, padding: int, bias: bool, summed: bool
):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, kernel, stride=stride, padding=padding, groups=groups, bias=bias, dilation=3 - stride)
    images = torch.randn(2, 4, 9, 9)
    with torch.inference_mode():
        expected = plain(images)
        other = torch.randn_like(expected) if summed else None
        expected = functional.relu(expected if other is None else expected + other)
        torch.testing.assert_close(FusedConvolution(plain)(images, other), expected, atol=1e-5, rtol=1e-5)
