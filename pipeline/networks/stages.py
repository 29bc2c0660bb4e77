"""A network in stages, from its input to its head: which of them learn, and which keep their batch-norm statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import ConfigError
from pipeline.networks.input_layer import InputLayer
from pipeline.training_settings import Network


class StagedNetwork(nn.Module):
    """Base of radloop's networks: `backbone` and what comes after it, in `groups` that learn or are frozen."""

    backbone: nn.Module
    head: nn.Linear
    groups: list[list[nn.Parameter]]
    """Parameters from input to head, each in one group; the last group is the head with the conv block and the attention."""
    inputs: tuple[InputLayer, ...]
    """The backbone's convolutions that see the images themselves."""

    def set_up_stages(self, network: Network, stages: Sequence[Sequence[nn.Parameter]]) -> None:
        """To be called at the end of `__init__`: groups from the backbone's `stages`, and `network.trainable` put into effect."""
        before = {id(parameter) for stage in stages for parameter in stage}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in before]
        self.groups = [*(list(stage) for stage in stages), rest]
        self._keep_batch_norm = network.batch_norm == "keep"
        self.set_trainable(self._count(network.trainable))

    def set_trainable(self, count: int | None) -> None:
        """The last `count` groups learn (None: all); the others are frozen, and in evaluation mode from now on."""
        first = 0 if count is None else len(self.groups) - count
        for number, group in enumerate(self.groups):
            for parameter in group:
                parameter.requires_grad_(number >= first)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for what is frozen and, with `batch_norm: keep`, the backbone's batch norms: they stay with the
        statistics that their weights came with. The conv block's batch norm is new, and always learns its own."""
        super().train(mode)
        if mode:
            for module in self.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
            for module in self.backbone.modules():
                if self._keep_batch_norm and isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _count(self, trainable: str | int) -> int | None:
        """How many groups from the head on `network.trainable` means."""
        if isinstance(trainable, int):
            if trainable > len(self.groups):
                raise ConfigError(
                    f"network.trainable: this network has {len(self.groups)} stages with its head; found {trainable}"
                )
            return trainable
        return {"all": None, "head": 1, "layer4": 2, "layer3": 3, "layer2": 4}[trainable]


def parameters_of_stages(backbone: nn.Module, stages: Sequence[Sequence[str]]) -> list[list[nn.Parameter]]:
    """The backbone's parameters by stage, from the names of modules or parameters in each; a name covers all below it.

    A parameter that no name covers goes to the first stage; of several names the longest counts.
    """
    number_of = {name: number for number, stage in enumerate(stages) for name in stage}
    groups: list[list[nn.Parameter]] = [[] for _ in stages]
    for name, parameter in backbone.named_parameters():
        parts = name.split(".")
        known = (number_of.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
        groups[next((number for number in known if number is not None), 0)].append(parameter)
    return [group for group in groups if group]
