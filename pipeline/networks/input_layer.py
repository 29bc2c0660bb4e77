"""The first convolution: three-channel weights for one gray channel, and for other statistics of the input.

Weights were trained on images normalised by some mean and standard deviation; what they get may be normalised by others, and be one gray
channel in place of three. Both differences are linear: they go into the first convolution, and a constant into what follows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import WeightsError
from transforms.chains import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class InputStatistics:
    """Mean and standard deviation, one a channel, by which images of 0-1 are normalised."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET_STATISTICS = InputStatistics(tuple(IMAGENET_MEAN), tuple(IMAGENET_STD))
GRAY_STATISTICS = InputStatistics(tuple(GRAY_MEAN), tuple(GRAY_STD))


def radloops_statistics(channels: int) -> InputStatistics:
    """What `normalization: imagenet` normalises by."""
    return GRAY_STATISTICS if channels == 1 else IMAGENET_STATISTICS


@dataclass(frozen=True)
class InputLayer:
    """A convolution that sees the images themselves."""

    convolution: str
    """Its name in the backbone."""
    norm: str = ""
    """The name of the batch norm right after it; empty: none."""
    plain: bool = True
    """It applies its weights as they are (some of timm's standardise them first: nothing can go into those)."""
    given_bias: bool = False
    """Its bias is radloop's: the network has none there."""


RESNET_INPUT = (InputLayer("conv1", "bn1"),)


class InputWatch:
    """Within the block, `net` is run once on `images`: which modules are called, and which convolutions see the images themselves."""

    def __init__(self, net: nn.Module, images: torch.Tensor) -> None:
        self.called: set[nn.Module] = set()
        self._net, self._images = net, images
        self._found: dict[nn.Module, nn.Module | None] = {}
        self._outputs: list[tuple[torch.Tensor, nn.Module]] = []

    def __enter__(self) -> Self:
        self._hooks = [module.register_forward_hook(self._look) for module in self._net.modules()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.called.add(module)
        if isinstance(module, nn.Conv2d) and _sees(inputs[0], self._images):
            self._found[module] = None
            self._outputs.append((output, module))
        elif isinstance(module, _BatchNorm):
            self._found.update({before: module for seen, before in self._outputs if seen is inputs[0]})

    def layers(self) -> tuple[InputLayer, ...]:
        """What was found. A convolution that has neither a bias nor a batch norm after it is given a bias of zeros: somewhere a constant
        must be able to go."""
        name_of = {module: name for name, module in self._net.named_modules()}
        layers = []
        for convolution, norm in self._found.items():
            plain = not type(convolution).__name__.startswith(("StdConv", "ScaledStdConv"))
            given = plain and norm is None and convolution.bias is None
            if given:
                weight = convolution.weight
                assert isinstance(weight, torch.Tensor)
                convolution.bias = nn.Parameter(weight.new_zeros(len(weight)))
            layers.append(InputLayer(name_of[convolution], name_of[norm] if norm else "", plain, given))
        self._outputs.clear()
        return tuple(layers)


def _sees(x: torch.Tensor, images: torch.Tensor) -> bool:
    """Whether `x` is `images`, padded perhaps (TensorFlow's "same" padding comes before the convolution)."""
    return x.shape[1] == images.shape[1] and x.shape[2] >= images.shape[2] and x.shape[3] >= images.shape[3]


def adapt_input(
    state: State, layers: tuple[InputLayer, ...], source: InputStatistics, target: InputStatistics, where: str
) -> None:
    """Changes `state`, trained on images of `source`, so that it takes images of `target`. WeightsError where that cannot be."""
    for layer in layers:
        name, bias = f"{layer.convolution}.weight", f"{layer.convolution}.bias"
        if name not in state or state[name].shape[1] != len(source.mean):
            continue  # told by the check of shapes
        if not layer.plain:
            raise WeightsError(
                f"{where}: expects {len(source.mean)} channels normalised by mean {source.mean} and std {source.std}, and "
                f"{name} cannot be brought to this input, because the network standardises its weights; give the image "
                "that normalization and those channels, or take another network"
            )
        state[name], constant = folded(state[name], source, target)
        if layer.norm:
            state[f"{layer.norm}.running_mean"] = state[f"{layer.norm}.running_mean"] - constant
        else:
            state[bias] = constant + state.get(bias, torch.zeros_like(constant))


def folded(weight: torch.Tensor, source: InputStatistics, target: InputStatistics) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (out, channels of `target`, ...) and a constant (out,) that give of images of `target` what `weight` gives of `source`'s.

    For a value x the network computes sum_c W_c (x - mean_c) / std_c. With z = (x - m_c) / s_c that is sum_c (W_c s_c / std_c) z +
    sum_c W_c (m_c - mean_c) / std_c. One target channel stands for three equal ones. Exact wherever the kernel does not reach over
    the image's edge.
    """
    shape = (1, -1, *[1] * (weight.ndim - 2))
    mean, std, own_mean, own_std = (
        torch.tensor(values, dtype=weight.dtype).view(shape)
        for values in (source.mean, source.std, target.mean, target.std)
    )
    scaled = weight * (own_std / std)
    constant = (weight * (own_mean - mean) / std).flatten(1).sum(dim=1)
    return (scaled.sum(dim=1, keepdim=True) if len(target.mean) == 1 else scaled), constant
