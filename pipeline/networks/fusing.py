"""What follows a convolution on the CPU, sum and ReLU, taken into it: the same function in fewer passes over memory.

oneDNN, by which torch convolves on the CPU, adds another tensor and clips at nought while a block of the result is still at hand
("post-ops" of its convolution primitive). The network's trunk is traced (`torch.fx`); a convolution whose output goes to nothing but a
ReLU, or to nothing but a sum and on to a ReLU, becomes one operation with them. The result is compared with the network as it was, and
dropped where it differs. Shapes are (batch, channels, rows, columns). Without gradients: the operation has none.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn import functional

from pipeline.networks.equivalence import SAME_WITHIN, answers, difference, example
from pipeline.networks.model import Classifier

CHANGE_THE_FIRST = {operator.iadd, "add_"}
SUMS = {operator.add, torch.add, "add"} | CHANGE_THE_FIRST
RECTIFIERS = {torch.relu, torch.relu_, functional.relu, "relu", "relu_"}


@dataclass(frozen=True)
class Fused:
    """What fusing gave. `network`: a copy of which `rectified` convolutions clip, and `summed` add and clip; where `refused` says why there
    is none, the network that was given."""

    network: Classifier
    rectified: int = 0
    summed: int = 0
    refused: str = ""


class FusedConvolution(nn.Module):
    """A convolution (without padding other than zeros) with what comes after it: a ReLU, or the sum with `other` and a ReLU, in `other`'s
    own memory (in new memory it is no faster than one after the other)."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        one = self.convolution
        how = (one.weight, one.bias, one.padding, one.stride, one.dilation, one.groups)
        if other is None:
            rectified: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(images, *how, "relu", [], "")
            return rectified
        summed: torch.Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            other, images, *how, "add", 1.0, "relu", [], ""
        )
        return summed


def fuse_activations(network: Classifier, channels: int, size: int) -> Fused:
    """`network` in evaluation mode, fused where it can be, on the CPU; tried on an image of `channels` and `size` pixels a side."""
    if not torch.backends.mkldnn.is_available():
        return Fused(network, refused="torch was built without oneDNN")
    fused = copy.deepcopy(network).cpu().eval()
    images = example(fused, channels, size)
    with torch.no_grad():
        expected = answers(fused, images)
        try:
            traced = fx.symbolic_trace(_Trunk(fused))
            ShapeProp(traced).propagate(images)
        except Exception as error:  # any code of any network: some decide by values that only a run knows
            return Fused(network, refused=f"its trunk cannot be traced ({type(error).__name__})")
        rectified, summed = _fuse(traced)
        if not rectified + summed:
            return Fused(network, refused="no ReLU stands alone after a convolution")
        fused.fast_trunk = traced
        try:
            apart = difference(expected, answers(fused, images))
        except (AttributeError, RuntimeError) as error:  # a build of torch, or a processor, without the operation
            return Fused(network, refused=f"its convolutions cannot be fused here ({type(error).__name__})")
    if not apart <= SAME_WITHIN:  # nor where it is no number
        return Fused(network, refused=f"fused it differs by {apart:.1g}")
    return Fused(fused, rectified, summed)


class _Trunk(nn.Module):
    """What is traced: images to the last feature map."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.trunk(images)


def _fuse(traced: fx.GraphModule) -> tuple[int, int]:
    """In place; how many convolutions clip, and how many add and clip."""
    _skip_identities(traced)
    rectified = summed = 0
    for node in list(traced.graph.nodes):
        if not _convolves(node, traced):
            continue
        reader = _only_reader(node)
        if reader is not None and _rectifies(reader, traced):
            _replace(traced, node, reader)
            rectified += 1
        elif reader is not None and (other := _added(node, reader)) is not None:
            last = _only_reader(reader)
            if last is not None and _rectifies(last, traced) and _free_at(last, other, node):
                _replace(traced, node, last, other)
                summed += 1
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return rectified, summed


def _skip_identities(traced: fx.GraphModule) -> None:
    """A folded batch norm leaves one."""
    for node in list(traced.graph.nodes):
        if isinstance(_module(node, traced), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _module(node: fx.Node, traced: fx.GraphModule) -> nn.Module | None:
    """What the node calls, where it calls a module."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _convolves(node: fx.Node, traced: fx.GraphModule) -> bool:
    module = _module(node, traced)
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _only_reader(node: fx.Node) -> fx.Node | None:
    """What alone reads a node's output."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _rectifies(node: fx.Node, traced: fx.GraphModule) -> bool:
    return type(_module(node, traced)) is nn.ReLU or (node.op != "call_module" and node.target in RECTIFIERS)


def _added(node: fx.Node, total: fx.Node) -> fx.Node | None:
    """What `total` adds to a convolution's output, of the same shape; None where it is no such sum, or one that changes the other."""
    if total.target not in SUMS or total.kwargs or len(total.args) != 2:
        return None
    first, second = total.args
    if node is not first and total.target in CHANGE_THE_FIRST:
        return None
    other = second if node is first else first
    return other if isinstance(other, fx.Node) and other is not node and _shape(other) == _shape(node) else None


def _free_at(last: fx.Node, other: fx.Node, convolution: fx.Node) -> bool:
    """Whether nobody reads `other` from `last` on, and the convolution itself does not: its memory can take the result."""
    return other.op == "call_module" and convolution not in other.users and all(reader < last for reader in other.users)


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None


def _replace(traced: fx.GraphModule, convolution: fx.Node, last: fx.Node, *other: fx.Node) -> None:
    """One operation in place of all from `convolution` to `last`."""
    name = f"{str(convolution.target).replace('.', '_')}_fused"
    original = traced.get_submodule(str(convolution.target))
    assert isinstance(original, nn.Conv2d)
    traced.add_submodule(name, FusedConvolution(original))
    with traced.graph.inserting_before(last):
        one = traced.graph.call_module(name, (convolution.args[0], *other))
    one.meta = last.meta
    last.replace_all_uses_with(one)
