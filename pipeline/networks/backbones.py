"""Backbones: what comes before the head of a 2-D network, images (batch, channels, rows, columns) to a map (batch, d, rows, columns).

MONAI's ResNets in torchvision's shape: with `conv1_t_stride=2, bias_downsample=False` they take torchvision's ImageNet state dict key
for key. timm's networks by name, without their own heads, whatever the layout of their features (channels first, channels last, tokens).
A `Backbone` stands beside the module rather than around it, so that a state dict keeps the names that its library gives.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from monai.networks.nets import resnet18, resnet34, resnet50, resnet101
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.cell_geometry import Geometry, centred_geometry, measured_geometry
from pipeline.networks.input_layer import RESNET_INPUT, InputLayer, InputWatch
from pipeline.training_settings import TIMM

RESNETS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}
RESNET_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
RESNET_GEOMETRY = Geometry(cell_stride=32.0, cell_offset=0.0)
"""Every strided layer of a ResNet has an odd kernel padded by half of it, so cell 0 stays on pixel 0 (tested by impulses)."""

Layout = Literal["channels_first", "channels_last", "tokens"]

_MEASURED: dict[tuple[str, int, int], Geometry] = {}
"""Geometries of timm's networks by name, channels and size: seconds to measure for large ones."""


@dataclass(frozen=True)
class Backbone:
    """A module, how to get its last feature map, and what is known of that map."""

    module: nn.Module
    features: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    """(module, images) to (batch, channels, cell rows, cell columns)."""
    channels: int
    """Of the feature map."""
    stages: tuple[tuple[str, ...], ...]
    """From input to output, the names of the modules or parameters in each (`stages.parameters_of_stages`)."""
    geometry: Geometry
    inputs: tuple[InputLayer, ...]
    """The convolutions that see the images themselves."""


def build_backbone(architecture: str, channels: int, size: int | None = None) -> Backbone:
    """The backbone of `network.architecture` for square images of `size` pixels (None: of the network's own usual size).

    ConfigError where the name is unknown, or where the network cannot take such images or has no map of cells.
    """
    if architecture in RESNETS:
        return resnet_backbone(architecture, channels)
    return timm_backbone(architecture.removeprefix(TIMM), channels, size)


def resnet_backbone(architecture: str, channels: int) -> Backbone:
    """MONAI's 2-D ResNet in torchvision's shape, without its last layer."""
    net = RESNETS[architecture](
        spatial_dims=2, n_input_channels=channels, feed_forward=False, conv1_t_stride=2, bias_downsample=False
    )
    return Backbone(net, resnet_features, net.in_planes, RESNET_STAGES, RESNET_GEOMETRY, RESNET_INPUT)


def resnet_features(net: Any, images: torch.Tensor) -> torch.Tensor:
    """The output of `layer4` of MONAI's ResNet, 2-D or 3-D."""
    x = net.maxpool(net.act(net.bn1(net.conv1(images))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


def timm_backbone(name: str, channels: int, size: int | None) -> Backbone:
    """timm's network `name` without its own head, its parameters in timm's coarse groups."""
    net = _timm_network(name, channels, size)
    side = size or int(net.pretrained_cfg["input_size"][-1])
    images = torch.zeros(1, channels, side, side)
    with InputWatch(net, images) as watch:
        shape = _try(net, images, name)
    inputs = watch.layers()
    _drop_head(net, images, watch.called)
    prefix = int(getattr(net, "num_prefix_tokens", 0)) if len(shape) == 3 else 0
    layout, width, cells = _map_of(shape, prefix, name)
    features = partial(timm_features, layout=layout, prefix=prefix)
    geometry = _timm_geometry(net, features, (name, channels, side), cells)
    return Backbone(net, features, width, _timm_stages(net), geometry, inputs)


def timm_features(net: Any, images: torch.Tensor, *, layout: Layout, prefix: int) -> torch.Tensor:
    """The last feature map (batch, d, cell rows, cell columns) before timm's pooling, of whatever layout."""
    found = net.forward_features(images)
    if layout == "channels_first":
        return found
    if layout == "channels_last":
        return found.permute(0, 3, 1, 2)
    tokens = found[:, prefix:]
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _timm_network(name: str, channels: int, size: int | None) -> Any:
    """timm's network with random weights, told `size` where its input size is fixed."""
    import timm

    present = timm.models.get_deprecated_models().get(name) or name
    try:
        known = timm.get_pretrained_cfg(present) if timm.is_model(present) else None
    except RuntimeError:  # a network that timm has, but not with weights of this tag
        known = None
    if known is None:
        nearest = difflib.get_close_matches(name, [*timm.list_models(), *timm.list_models(pretrained=True)], n=3)
        hint = (
            f"did you mean {', '.join(TIMM + other for other in nearest)}?" if nearest else "timm.list_models() has all"
        )
        raise ConfigError(f"network.architecture: timm {timm.__version__} has no network {name}; {hint}")
    fixed: dict[str, Any] = {"img_size": size} if size and known.fixed_input_size else {}
    try:
        try:  # without pooling, so that a last norm comes before it
            return timm.create_model(present, num_classes=0, in_chans=channels, global_pool="", **fixed)
        except (AssertionError, ValueError):  # a few have no form without pooling; only `forward_features` is used
            return timm.create_model(present, num_classes=0, in_chans=channels, **fixed)
    except Exception as error:  # any code of any of timm's networks
        raise ConfigError(
            f"network.architecture {TIMM}{name} cannot be built for images of {channels} channel(s)"
            f"{f' and {size} × {size} pixels' if fixed else ''}: {_first_line(error)}"
        ) from error


def _try(net: Any, images: torch.Tensor, name: str) -> torch.Size:
    """The shape of the features of an image; ConfigError where the network cannot take it, or gives no tensor."""
    side, training = images.shape[-1], net.training
    net.eval()
    try:
        with torch.no_grad():
            found = net.forward_features(images)
    except Exception as error:  # any code of any of timm's networks
        raise ConfigError(
            f"network.architecture {TIMM}{name} cannot take images of {side} × {side} pixels: {_first_line(error)}; "
            "give another preprocessing.size or another network"
        ) from error
    finally:
        net.train(training)
    if not isinstance(found, torch.Tensor):
        raise _no_map(name, type(found).__name__)
    return found.shape


def _drop_head(net: nn.Module, images: torch.Tensor, called: Container[nn.Module]) -> None:
    """Replaces what `forward_features` does not call (VGG's fully connected layers, ...) by nothing."""
    unused = {
        name: child
        for name, child in net.named_children()
        if any(True for _ in child.parameters()) and not any(module in called for module in child.modules())
    }
    for name in unused:
        setattr(net, name, nn.Identity())
    try:
        if unused:
            _try(net, images, "")
    except ConfigError:  # used by another way than a call, as learned rotary positions are
        for name, child in unused.items():
            setattr(net, name, child)


def _map_of(shape: torch.Size, prefix: int, name: str) -> tuple[Layout, int, int]:
    """Layout, channels and cells along a side of features from a square image: the axis of channels is of another size than the two."""
    if len(shape) == 3 and math.isqrt(shape[1] - prefix) ** 2 == shape[1] - prefix:
        return "tokens", shape[2], math.isqrt(shape[1] - prefix)
    if len(shape) == 4 and shape[2] == shape[3]:
        return "channels_first", shape[1], shape[2]
    if len(shape) == 4 and shape[1] == shape[2]:
        return "channels_last", shape[3], shape[1]
    raise _no_map(name, f"features of shape {tuple(shape)}")


def _no_map(name: str, found: str) -> ConfigError:
    return ConfigError(f"network.architecture {TIMM}{name}: expected one map of cells before its head, found {found}")


def _timm_geometry(net: nn.Module, features: Any, key: tuple[str, int, int], cells: int) -> Geometry:
    """Measured, once a name, channels and size; where that fails, cells that share the image evenly, marked so."""
    if key not in _MEASURED:
        _, channels, side = key
        try:
            rows, columns = measured_geometry(net, features, channels, (side, side))
            if rows != columns:
                raise ArithmeticError("rows and columns differ")
            _MEASURED[key] = rows
        except Exception:  # code that meets shapes or values it does not expect: nothing is known then
            _MEASURED[key] = centred_geometry(side, cells)
    return _MEASURED[key]


def _timm_stages(net: Any) -> tuple[tuple[str, ...], ...]:
    """timm's coarse groups of parameters, by name; its children in their order where timm has none.

    A last group of nothing but a norm (Swin, ViT) is no stage of its own: it joins the one before.
    """
    from timm.models import group_parameters

    try:
        groups = group_parameters(net, net.group_matcher(coarse=True))
        stages = [tuple(groups[number]) for number in sorted(groups)]
    except Exception:  # some networks have no matcher, or one that does not fit them without their head
        stages = [(name,) for name, child in net.named_children() if any(True for _ in child.parameters())]
    if len(stages) > 1 and all("norm" in name for name in stages[-1]):
        stages[-2:] = [stages[-2] + stages[-1]]
    return tuple(stages)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
