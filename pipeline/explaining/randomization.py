"""Model randomization (Adebayo 2018): a heatmap that stays as it is when the network forgets what it learnt shows no such thing.

From the head down, stage by stage, the values of each parameter are put in another order, those already shuffled staying so: their
distribution is kept, what was learnt is gone. Batch norms of shuffled stages get their statistics anew from the images, so that the
features keep their size. After each stage every image's map is compared with that of the trained network, for the same class.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.explaining.likeness import in_pixels, rank_correlation, structural_similarity
from pipeline.explaining.probes import Cells, Probe, maps_of
from pipeline.prediction.predict import BATCH, Network, TrainedModel, trained_model

DRAWS = 3
"""Shuffles: what a single one makes of the head is, by chance, alike or opposite for all images at once."""
MOST_STAGES = 8
"""Of a network of more, so many are passed at even distances, head and input among them."""


@dataclass(frozen=True)
class Stage:
    """What is left of the maps once everything from `name` to the head is shuffled: (images, draws) each."""

    name: str
    rank_correlation: NDArray[np.float64]
    similarity: NDArray[np.float64]
    example: list[Cells]
    """Each image's map in the first draw."""


def randomized(
    model: TrainedModel, networks: Sequence[Network], probes: Sequence[Probe], original: Sequence[Cells], seed: int
) -> Iterator[Stage]:
    """A stage after the other, the head alone first. `networks`: the model's as they were trained; they stay so."""
    geometry, size = model.geometry, model.facts.preprocessing.size
    plain = [in_pixels(cells, geometry, size) for cells in original]
    for count in stage_counts(len(networks[0].groups)):
        draws = []
        for draw in range(DRAWS):
            shuffled = [
                shuffled_from(network, count, seed=seed + 1000 * draw + number)
                for number, network in enumerate(networks)
            ]
            for network in shuffled:
                renew_statistics(network, count, model, probes)
            draws.append(maps_of(trained_model(shuffled, model.facts, model.device), probes)[0])
        yield Stage(
            name=stage_name(networks[0], len(networks[0].groups) - count),
            rank_correlation=np.array([[rank_correlation(*pair) for pair in zip(original, maps, strict=True)] for maps in draws]).T,
            similarity=np.array(
                [
                    [structural_similarity(a, in_pixels(b, geometry, size)) for a, b in zip(plain, maps, strict=True)]
                    for maps in draws
                ]
            ).T,
            example=draws[0],
        )  # fmt: skip


def stage_counts(stages: int) -> list[int]:
    """How many of the last stages are shuffled in turn: 1 to all, at most `MOST_STAGES` of them."""
    return sorted(set(np.rint(np.linspace(1, stages, min(stages, MOST_STAGES))).astype(int).tolist()))


def shuffled_from(network: Network, count: int, seed: int) -> Network:
    """A copy whose last `count` groups of parameters have their values in another order, the same for any `count` that covers them."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for number, group in enumerate(other.groups):
            random = torch.Generator().manual_seed(seed * 1009 + number)
            for parameter in group if number >= len(other.groups) - count else ():
                order = torch.randperm(parameter.numel(), generator=random)
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return other


def renew_statistics(network: Network, count: int, model: TrainedModel, probes: Sequence[Probe]) -> None:
    """Running statistics of the batch norms in the last `count` groups, from the images themselves.

    A layer's own may lie on channels that are now of another size: over a hundred layers the features would overflow.
    """
    network.eval()
    changed = {id(parameter) for group in network.groups[len(network.groups) - count :] for parameter in group}
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and id(module.weight) in changed
    ]
    if not norms:
        return
    network.to(model.device)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        at_once = 1 if model.facts.network.pooling == "volume" else BATCH
        for start in range(0, len(probes), at_once):
            levels = np.concatenate([probe.levels for probe in probes[start : start + at_once]])
            network.features(model.inputs(levels))
    network.eval()


def stage_name(network: nn.Module, number: int) -> str:
    """What group `number` is called in the network: 'layer4', 'stages.3', 'conv1, bn1', 'head'."""
    groups: list[list[nn.Parameter]] = network.groups  # type: ignore[assignment]
    if number == len(groups) - 1:
        return "head"
    ours = {id(parameter) for parameter in groups[number]}
    names = [name.removeprefix("backbone.") for name, parameter in network.named_parameters() if id(parameter) in ours]
    paths = [name.split(".")[:-1] or [name] for name in names]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return ".".join(shared) or ", ".join(dict.fromkeys(path[0] for path in paths))
