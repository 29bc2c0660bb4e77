"""A state dict of whatever origin, fitted into a network: its names become the network's own, its first convolution its input's.

Known namings: torchvision's and timm's, under the prefixes that training scripts add; numbers in place of names, where a network's
children were put into an `nn.Sequential` (RadImageNet); MedicalNet's; earlier forms of timm's, by timm's own filters; radloop's runs.
Everything before the head must be there and fit; a head of other classes, or of another kind, stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pipeline.errors import WeightsError
from pipeline.networks.input_layer import IMAGENET_STATISTICS, InputLayer, InputStatistics, State, adapt_input
from pipeline.networks.stages import StagedNetwork

_BACKBONE = "backbone."
_AFTER_BACKBONE = ("head.", "block.", "attention.")
_PREFIXES = ("module.", "_orig_mod.", "state_dict.", "model.", "net.", "backbone.", "encoder.")
_HEADS = ("fc", "classifier", "head", "heads", "last_linear", "conv_seg", "pre_logits", "AuxLogits", "head_dist")
"""How other networks' heads begin, MedicalNet's and Inception's second one among them: radloop has its own."""
_TIMM_FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""What timm calls the functions that bring earlier forms of a network's weights to its present names and sizes."""
_RADIMAGENET_STATISTICS = InputStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Its example scales 0-255 by (x - 127.5) * 2 / 255 (github.com/BMEII-AI/RadImageNet, pytorch_example.ipynb)."""


def fit_weights(
    net: StagedNetwork,
    state: Mapping[str, torch.Tensor],
    where: str,
    own_statistics: InputStatistics,
    statistics: InputStatistics | None = None,
) -> None:
    """Loads `state` into `net`, whose images are normalised by `own_statistics`; the weights were trained on `statistics` (None: nobody
    says; then one channel is folded from three as from ImageNet's, and three stay as they are). WeightsError where it does not fit.
    """
    backbone, after, numbered = _parts(state, net)
    if numbered and statistics is None:
        statistics = _RADIMAGENET_STATISTICS
    own_shapes = {name: value.shape for name, value in net.backbone.state_dict().items()}
    gray = any(_is_folded(layer, backbone, own_shapes) for layer in net.inputs)
    if statistics is None and gray:
        statistics = IMAGENET_STATISTICS
    if statistics is not None and (gray or statistics != own_statistics):
        adapt_input(backbone, net.inputs, statistics, own_statistics, where)
    for layer in net.inputs:
        if layer.given_bias:
            bias = f"{layer.convolution}.bias"
            backbone.setdefault(bias, torch.zeros(own_shapes[bias]))
    _check(backbone, own_shapes, where)
    net.backbone.load_state_dict(backbone, strict=False)
    _load_what_fits(net, after)


def _parts(state: Mapping[str, torch.Tensor], net: StagedNetwork) -> tuple[State, State, bool]:
    """The backbone's part in the backbone's names, what comes after it in radloop's, and whether the file had numbers for names."""
    if _is_run(state):
        renamed = {name.replace("backbone.fc.", "head."): value for name, value in state.items()}
        inside = {name for name in renamed if name.startswith(_BACKBONE)}
        after = {name: renamed[name] for name in renamed if name not in inside}
        return {name.removeprefix(_BACKBONE): renamed[name] for name in inside}, after, False
    own = net.backbone.state_dict()
    backbone = _without_prefixes(dict(state), own)
    numbered = bool(backbone) and all(name.split(".")[0].isdigit() for name in backbone)
    if numbered:
        backbone = _named(backbone, net.backbone)
    after = {f"head.{name}": backbone[f"fc.{name}"] for name in ("weight", "bias") if f"fc.{name}" in backbone}
    if _misfits(backbone, own):
        backbone = _in_timms_present_form(backbone, net.backbone)
    left_out = {name for name, child in net.backbone.named_children() if not child.state_dict()}
    heads = {name for name in backbone if name not in own and name.split(".")[0] in {*_HEADS, *left_out}}
    return {name: value for name, value in backbone.items() if name not in heads}, after, numbered


def _is_run(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are the weights of a radloop run, of the present form or of the first (its head inside the backbone)."""
    outside = [name for name in state if not name.startswith(_BACKBONE)]
    with_head = "head.weight" in state or "backbone.fc.weight" in state
    return with_head and len(outside) < len(state) and all(name.startswith(_AFTER_BACKBONE) for name in outside)


def _without_prefixes(state: State, own: Mapping[str, object]) -> State:
    """Names without what wrappers put before most of them, one after the other."""
    for _ in range(len(_PREFIXES)):
        for prefix in _PREFIXES:
            inside = sum(name.startswith(prefix) for name in state)
            if 2 * inside > len(state) and not any(name.startswith(prefix) for name in own):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _named(state: State, backbone: nn.Module) -> State:
    """Names for the numbers of the backbone's children, in their order; what belongs to children without weights is a head."""
    children = dict(enumerate(backbone.named_children()))
    named = {}
    for name, value in state.items():
        number, _, rest = name.partition(".")
        child_name, child = children.get(int(number), ("head", nn.Identity()))
        named[f"{child_name if child.state_dict() else 'head'}.{rest}"] = value
    return named


def _in_timms_present_form(state: State, backbone: nn.Module) -> State:
    """What timm itself does to files that were written for an earlier form of its network, or for another input size."""
    module = sys.modules[type(backbone).__module__]
    for name in _TIMM_FILTERS:
        bring = getattr(module, name, None) if module.__name__.startswith("timm.") else None
        if bring is None:
            continue
        for arguments in ((dict(state), backbone), (dict(state),)):
            try:
                return {key: value for key, value in bring(*arguments).items() if isinstance(value, torch.Tensor)}
            except TypeError:
                continue  # some take the network, too, and some do not
            except Exception:  # a file that timm's filter cannot work with is told of by the check of names and shapes
                return state
    return state


def _is_folded(layer: InputLayer, state: State, own_shapes: Mapping[str, torch.Size]) -> bool:
    name = f"{layer.convolution}.weight"
    return name in state and state[name].shape[1] == 3 and own_shapes[name][1] == 1


def _misfits(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> bool:
    """Whether names are missing, or shapes differ by more than the channels that a convolution takes."""

    def shape(value: torch.Tensor) -> tuple[int, ...]:
        return tuple(value.shape[:1] + value.shape[2:]) if value.ndim == 4 else tuple(value.shape)

    needed = {name: value for name, value in own.items() if not name.endswith("num_batches_tracked")}
    return any(name not in state or shape(state[name]) != shape(value) for name, value in needed.items())


def _check(state: State, own_shapes: Mapping[str, torch.Size], where: str) -> None:
    """WeightsError unless the backbone's every tensor is there in its shape, and nothing else."""
    missing = sorted(name for name in own_shapes if name not in state and not name.endswith("num_batches_tracked"))
    unknown = sorted(name for name in state if name not in own_shapes)
    misshaped = sorted(name for name in state if name in own_shapes and state[name].shape != own_shapes[name])
    facts = [
        f"{len(names)} {kind} (first: {names[0]})"
        for kind, names in (("missing", missing), ("unknown", unknown))
        if names
    ]
    if misshaped:
        name = misshaped[0]
        expected, found = tuple(own_shapes[name]), tuple(state[name].shape)
        facts.append(f"{len(misshaped)} of another shape (first: {name}, expected {expected}, found {found})")
    if facts:
        raise WeightsError(f"{where}: does not fit this network: {'; '.join(facts)}; is it for another architecture?")


def _load_what_fits(net: StagedNetwork, after: Mapping[str, torch.Tensor]) -> None:
    """Conv block, attention and head, each as a whole where it has the same shapes; a head only behind the same block."""
    own = {name: value.shape for name, value in net.state_dict().items() if name.startswith(_AFTER_BACKBONE)}
    fits = {
        part: _of(part, own) == {name: value.shape for name, value in _of(part, after).items()}
        for part in _AFTER_BACKBONE
    }
    taken = [part for part in ("block.", "attention.") if fits[part]] + ["head."] * (fits["head."] and fits["block."])
    net.load_state_dict({name: value for name, value in after.items() if name.startswith(tuple(taken))}, strict=False)


def _of(part: str, names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in names.items() if name.startswith(part)}
