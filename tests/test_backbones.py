"""Backbones by name: a map of cells from every layout, cells where each network looks, clear words for what cannot be built."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pipeline.config import Network
from pipeline.errors import ConfigError
from pipeline.networks import backbones
from pipeline.networks.backbones import RESNET_GEOMETRY, Backbone, build_backbone
from pipeline.networks.cell_geometry import Geometry, centred_geometry, measured_geometry
from pipeline.networks.model import Classifier
from pipeline.networks.stages import parameters_of_stages

PLACE_TOLERANCE_PX = 0.2
"""What the image's edge cuts off from a blur of almost impulses and five poolings; a wrong border is off by half a pixel at least."""
LEAK = 0.002
"""Share of a kernel's weight beside its centre: enough to be seen, too little to reach the edge through a hundred layers."""


def as_blur(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every layer a narrow blur of positive weights, so that gradients show placement alone. Pooling takes means; norms
    (but batch norm, which does nothing when new) and the gates of squeeze and excitation are taken out."""
    monkeypatch.setattr(functional, "max_pool2d", functional.avg_pool2d)
    for module in list(backbone.module.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                pooling = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, ceil_mode=child.ceil_mode)
                setattr(module, name, pooling)
            elif isinstance(child, nn.LayerNorm) or name == "se":
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for name, parameter in backbone.module.named_parameters():
            if name.endswith("bias") and parameter.ndim == 1:
                parameter.zero_()
            if parameter.ndim == 4:
                parameter.copy_((_kernel(*parameter.shape[2:]) / parameter.shape[1]).expand_as(parameter))
            elif parameter.ndim == 2:
                parameter.fill_(1 / parameter.shape[1])


def _kernel(rows: int, columns: int) -> torch.Tensor:
    if rows % 2 == 0 or rows * columns == 1:
        return torch.full((rows, columns), 1 / (rows * columns))
    kernel = torch.full((rows, columns), LEAK / (rows * columns))
    kernel[rows // 2, columns // 2] += 1 - LEAK
    return kernel


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        ("resnet18", 224),
        ("resnet50", 224),
        ("timm:resnet26", 224),
        ("timm:vgg16", 160),
        ("timm:inception_v3", 235),
        ("timm:legacy_xception", 224),
        ("timm:densenet121", 192),
        ("timm:efficientnet_b0", 224),
        ("timm:convnext_tiny", 160),
        ("timm:tf_mobilenetv3_small_minimal_100", 160),  # pads as TensorFlow does: by the image's size
        ("timm:tf_mobilenetv3_small_minimal_100", 161),
    ],
)
def test_gradients_of_each_cell_are_centred_where_the_geometry_says(
    architecture: str, size: int, monkeypatch: pytest.MonkeyPatch
):
    backbone = build_backbone(architecture, 1, size)
    geometry = backbone.geometry
    assert geometry.exact
    as_blur(backbone, monkeypatch)
    images = torch.ones(1, 1, size, size, requires_grad=True)
    features = backbone.features(backbone.module.eval(), images)
    assert features.shape[1] == backbone.channels
    for row, column in ((2, 3), (3, 2)):
        (gradient,) = torch.autograd.grad(features[0, :, row, column].sum(), images, retain_graph=True)
        assert gradient.min() >= 0
        mass = gradient[0, 0].double()
        for axis, cell in ((1, row), (0, column)):
            profile = mass.sum(dim=axis)
            center = float((profile * torch.arange(size)).sum() / profile.sum())
            assert abs(center - (geometry.cell_offset + geometry.cell_stride * cell)) < PLACE_TOLERANCE_PX


@pytest.mark.parametrize(
    ("name", "stride", "offset"),
    [
        ("resnet18", 32, 0),
        ("timm:vgg11", 32, 15.5),  # five poolings of 2: 1/2 + 1 + 2 + 4 + 8
        ("timm:inception_v3", 32, 37),  # nothing is padded in the stem and where it strides
        ("timm:densenet121", 32, 14),  # three transitions pool 2 × 2: 2 + 4 + 8
        ("timm:vit_tiny_patch16_224", 16, 7.5),
        ("timm:swin_tiny_patch4_window7_224", 32, 15.5),
    ],
)
def test_geometries_as_counted_by_hand(name: str, stride: float, offset: float):
    assert build_backbone(name, 1).geometry == Geometry(stride, offset)


def test_monais_resnets_have_the_geometry_that_is_measured():
    for name in ("resnet18", "resnet50"):
        backbone = build_backbone(name, 1)
        assert measured_geometry(backbone.module, backbone.features, 1, (96, 128)) == (RESNET_GEOMETRY, RESNET_GEOMETRY)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3]), st.sampled_from([0, 1, 2])),
        min_size=1,
        max_size=4,
    )
)
def test_any_chain_of_convolutions_is_placed_as_arithmetic_says(layers: list[tuple[int, int, int]]):
    """Dumoulin and Visin 2016: each layer adds ((kernel - 1) / 2 - padding) times the stride so far."""
    stride, offset = 1.0, 0.0
    for kernel, step, padding in layers:
        offset += ((kernel - 1) / 2 - padding) * stride
        stride *= step
    chain = nn.Sequential(*(nn.Conv2d(1, 1, kernel, step, padding) for kernel, step, padding in layers))
    side = int(stride) * 40
    found = measured_geometry(chain, lambda net, images: net(images), 1, (side, side))
    assert found == (Geometry(stride, offset), Geometry(stride, offset))


def test_where_nothing_can_be_measured_the_geometry_says_so(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr(backbones, "_MEASURED", {})
    monkeypatch.setattr(backbones, "measured_geometry", fails)
    geometry = build_backbone("timm:resnet18", 1, 64).geometry
    assert geometry == centred_geometry(64, 2) == Geometry(32.0, 15.5, exact=False)
    mixer = build_backbone("timm:mixer_s32_224", 1)
    assert not mixer.geometry.exact


def test_a_network_that_mixes_all_cells_is_not_said_to_be_measured():
    """Every token of an MLP-Mixer is a sum over all of them: no place can be had from it."""
    assert build_backbone("timm:mixer_s32_224", 1).geometry == centred_geometry(224, 7)


def test_measuring_leaves_the_network_as_it_was():
    net = timm.create_model("resnet18", in_chans=1).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    measured_geometry(net, lambda net, images: net.forward_features(images), 1, (64, 64))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("timm:mobilenetv3_small_050", 96, (288, 3, 3)),  # channels first; its last convolution comes after pooling
        ("timm:swin_tiny_patch4_window7_224", 64, (768, 2, 2)),  # channels last
        ("timm:vit_tiny_patch16_224", 64, (192, 4, 4)),  # tokens, one of them of no place
        ("timm:deit_tiny_distilled_patch16_224", 64, (192, 4, 4)),  # two of no place
    ],
)
def test_every_layout_becomes_a_map_and_logits(name: str, size: int, shape: tuple[int, ...]):
    network = Classifier(Network(architecture=name), 2, size).eval()
    images = torch.rand(2, 1, size, size)
    with torch.no_grad():
        features = network.features(images)
        assert features.shape == (2, *shape)
        torch.testing.assert_close(network(images), network.classify(features))


def test_tokens_lie_row_by_row():
    """A bright patch changes its own token most, in a network whose attention is left as it is."""
    torch.manual_seed(0)
    network = Classifier(Network(architecture="timm:vit_tiny_patch16_224"), 2, 64).eval()
    images = torch.zeros(2, 1, 64, 64)
    images[1, 0, 16:32, 48:64] = 3.0
    with torch.no_grad():
        dark, bright = network.features(images)
    change = (bright - dark).norm(dim=0)
    assert divmod(int(change.argmax()), 4) == (1, 3)


def test_timms_own_heads_are_left_out():
    net = build_backbone("timm:vgg11", 1, 32).module
    parameters = sum(parameter.numel() for parameter in net.parameters())
    assert parameters < 10_000_000, "without the 120 million of its fully connected layers"
    net = build_backbone("timm:mobilenetv3_small_050", 1, 32).module
    assert not any(name.startswith("conv_head") for name, _ in net.named_parameters())


@pytest.mark.parametrize(
    "name", ["timm:vgg11", "timm:mobilenetv3_small_050", "timm:vit_tiny_patch16_224", "timm:inception_v3"]
)
def test_stages_hold_every_parameter_once_from_input_to_output(name: str):
    backbone = build_backbone(name, 1)
    stages = parameters_of_stages(backbone.module, backbone.stages)
    assert sorted(id(parameter) for stage in stages for parameter in stage) == sorted(
        map(id, backbone.module.parameters())
    )
    assert len(stages) >= 5
    first = backbone.module.get_submodule(backbone.inputs[0].convolution).weight
    assert any(parameter is first for parameter in stages[0])
    network = Classifier(Network(architecture=name, trainable=2), 2)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert {id(p) for p in learning} == {id(p) for group in network.groups[-2:] for p in group}
    assert len(learning) < len(list(network.parameters()))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("timm:resnet5", "no network resnet5; did you mean timm:resnet5"),
        ("timm:resnet50.none", "no network resnet50.none; did you mean timm:resnet50"),
        ("timm:hf-hub:some/thing", "no network hf-hub:some/thing"),
    ],
)
def test_unknown_networks_are_told_with_the_nearest(name: str, told: str):
    with pytest.raises(ConfigError, match=told):
        build_backbone(name, 1)


def test_sizes_that_a_network_cannot_take_are_told():
    with pytest.raises(
        ConfigError, match=r"timm:inception_v3 cannot take images of 32 × 32 pixels: .*preprocessing\.size"
    ):
        build_backbone("timm:inception_v3", 1, 32)


@pytest.mark.parametrize(
    ("name", "found"),
    [("timm:crossvit_tiny_240", "found list"), ("timm:volo_d1_224", r"found features of shape \(1, 197, 384\)")],
)
def test_networks_without_one_map_are_told(name: str, found: str):
    with pytest.raises(ConfigError, match=f"{name}: expected one map of cells before its head, {found}"):
        build_backbone(name, 1)


def test_what_is_used_without_being_called_is_kept():
    """Learned rotary positions are asked for by a method of their module, not by calling it."""
    net = build_backbone("timm:vit_small_patch16_rope_mixed_224", 1, 64).module
    assert any(True for _ in net.rope.parameters())


def test_old_names_are_understood():
    assert build_backbone("timm:xception", 1, 96).module.pretrained_cfg["architecture"] == "legacy_xception"
