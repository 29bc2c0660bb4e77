"""Batch norm folded into the convolution before it: the same function in fewer passes over memory.

In evaluation a batch norm scales and shifts each channel by constants (Ioffe 2015, section 3.1), which the weights and bias of a
convolution take up where its output goes to that batch norm alone. Which do is seen while the network runs, whatever library it is from;
the result is compared with the network as it was, and dropped where it differs. The network that is given is left as it is, and so are
its weights on the disk. Shapes are (batch, channels, rows, columns), or (batch, channels, depth, rows, columns).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.networks.equivalence import SAME_WITHIN, Network, answers, difference, example


@dataclass(frozen=True)
class Folded:
    """What folding gave. `network`: a copy without the batch norms of `pairs` (names of convolution and batch norm); where `refused`
    says why there is none, the network that was given."""

    network: Network
    pairs: tuple[tuple[str, str], ...]
    difference: float
    """The largest between what the two say of random images (features and logits), measured as `SAME_WITHIN` says."""
    refused: str = ""


def fold_batch_norms(network: Network, channels: int, size: int) -> Folded:
    """`network` in evaluation mode, each batch norm folded that can be, on the CPU; tried on images of `channels` and `size` pixels a
    side."""
    folded = copy.deepcopy(network).cpu().eval()
    images = example(folded, channels, size)
    with torch.no_grad(), _Watch(folded) as watch:
        expected = answers(folded, images)
    pairs = tuple(watch.pairs())
    if not pairs:
        return Folded(network, (), 0.0, "no batch norm stands alone after a convolution")
    for convolution, norm in pairs:
        _fold(folded, convolution, norm)
    with torch.no_grad():
        apart = difference(expected, answers(folded, images))
    if not apart <= SAME_WITHIN:  # nor where it is no number
        return Folded(network, (), apart, f"folded it differs by {apart:.1g}")
    return Folded(folded, pairs, apart)


class _Watch(TorchDispatchMode):
    """Within the block, which convolution's output goes where: every operation passes by here, in a module or between modules."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._name_of = {module: name for name, module in network.named_modules()}
        plain = [module for module in self._name_of if _is_plain(module)]
        self._convolution_of = {id(module.weight): module for module in plain}
        norms = [module for module in self._name_of if isinstance(module, _BatchNorm)]
        self._norm_of = {id(norm.running_mean): norm for norm in norms if norm.running_mean is not None}
        self._outputs: dict[int, tuple[torch.Tensor, nn.Module]] = {}  # the tensor too, or its id would go to another
        self._readers: Counter[int] = Counter()
        self._runs: Counter[nn.Module] = Counter()
        self._found: list[tuple[int, nn.Module]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        self._readers.update(read & self._outputs.keys())
        result = func(*args, **kwargs)
        kind = func.overloadpacket.__name__
        if kind == "convolution":
            self._convolved(args[1], args[2], result)
        elif "batch_norm" in kind:
            self._normed(args)
        return result

    def _convolved(self, weight: torch.Tensor, bias: torch.Tensor | None, result: torch.Tensor) -> None:
        """Only a convolution with its module's own weight and bias: some of timm's standardise theirs first."""
        module = self._convolution_of.get(id(weight))
        if module is not None:
            self._runs[module] += 1
            if bias is module.bias:
                self._outputs[id(result)] = (result, module)

    def _normed(self, args: Sequence[Any]) -> None:
        """`args`: input, weight, bias, running mean, running variance, ..."""
        norm = next((self._norm_of[id(one)] for one in args[1:] if id(one) in self._norm_of), None)
        if norm is not None:
            self._runs[norm] += 1
            if id(args[0]) in self._outputs:
                self._found.append((id(args[0]), norm))

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Names of each convolution and the batch norm that alone reads what it gives; neither runs twice."""
        for output, norm in self._found:
            _, convolution = self._outputs[output]
            alone = self._readers[output] == 1 and self._runs[convolution] == 1 and self._runs[norm] == 1
            if alone and _remainder(norm) is not None:
                yield self._name_of[convolution], self._name_of[norm]


def _is_plain(module: nn.Module) -> bool:
    """Whether its weight is a parameter, and not made anew at each call."""
    return isinstance(module, nn.Conv2d | nn.Conv3d) and isinstance(module.weight, nn.Parameter)


def _remainder(norm: nn.Module) -> nn.Module | None:
    """What of `norm` stays when it is folded: nothing of torch's, of timm's with their activation that; None where it is not known."""
    if type(norm) in (nn.BatchNorm2d, nn.BatchNorm3d):
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":
        return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    return None


def _fold(network: nn.Module, convolution_name: str, norm_name: str) -> None:
    """With gain g = weight / sqrt(variance + eps): g (W x + b - mean) + bias = (g W) x + (g (b - mean) + bias), in float64."""
    convolution, norm = network.get_submodule(convolution_name), network.get_submodule(norm_name)
    assert isinstance(convolution, nn.Conv2d | nn.Conv3d)
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        gain = norm.running_var.double().add(norm.eps).rsqrt()
        gain = gain if norm.weight is None else gain * norm.weight.double()
        shift = (
            -norm.running_mean.double() if convolution.bias is None else convolution.bias - norm.running_mean.double()
        )
        bias = shift * gain if norm.bias is None else shift * gain + norm.bias.double()
        weight = convolution.weight.double() * gain.view(-1, *[1] * (convolution.weight.ndim - 1))
        convolution.weight = nn.Parameter(weight.float())
        convolution.bias = nn.Parameter(bias.float())
    remainder = _remainder(norm)
    assert remainder is not None
    network.set_submodule(norm_name, remainder.eval())
