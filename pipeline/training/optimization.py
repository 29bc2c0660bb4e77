"""How weights move: the optimizer with a learning rate for each stage, its schedule, which stages learn, and the weights' moving average.

Stages are `network.groups`, from input to head; a network without them is one stage. Decoupled decay (adamw) spares what has one axis,
norms and biases, as the recipes that it comes from do; the L2 penalty of adam and sgd is on all weights, as torch has it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from pipeline.config import Cosine, Plateau, Training


def stages(network: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each stage, from input to head, each parameter once; those of no stage are the head's."""
    named = getattr(network, "groups", None) or [[network]]
    stage_of: dict[nn.Parameter, int] = {}
    for number, group in enumerate([*named, network]):
        for parameter in _parameters(group):
            stage_of.setdefault(parameter, min(number, len(named) - 1))
    return [[one for one, number in stage_of.items() if number == place] for place in range(len(named))]


def _parameters(group: Iterable[nn.Parameter | nn.Module] | nn.Module) -> Iterator[nn.Parameter]:
    for member in [group] if isinstance(group, nn.Module) else group:
        yield from member.parameters() if isinstance(member, nn.Module) else (member,)


def make_optimizer(network: nn.Module, settings: Training) -> Optimizer:
    """Over all parameters that learn now, the head's group first: `param_groups[0]["lr"]` is the head's rate."""
    groups = []
    for depth, stage in enumerate(reversed(stages(network))):
        learning = [parameter for parameter in stage if parameter.requires_grad]
        spared = [one for one in learning if one.ndim < 2] if settings.optimizer == "adamw" else []
        rate = {"lr": settings.learning_rate * settings.layer_decay**depth}
        decayed = [one for one in learning if not any(one is other for other in spared)]
        groups += [{"params": decayed, "weight_decay": settings.weight_decay} | rate] if decayed else []
        groups += [{"params": spared, "weight_decay": 0.0} | rate] if spared else []
    options: dict[str, Any] = {"lr": settings.learning_rate, "fused": True}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.momentum > 0, **options)
    return {"adam": Adam, "adamw": AdamW}[settings.optimizer](groups, **options)


class Schedule:
    """Learning rates over a training of `steps` steps, `epoch_steps` of them an epoch."""

    def __init__(self, optimizer: Optimizer, settings: Training, epoch_steps: int) -> None:
        self._plateau = _plateau(optimizer, settings.plateau) if settings.plateau else None
        self._cosine = _cosine(optimizer, settings.cosine, settings.epochs, epoch_steps) if settings.cosine else None

    def after_step(self) -> None:
        """The next step's rate."""
        if self._cosine:
            self._cosine.step()

    def after_epoch(self, val_loss: float) -> None:
        """The next epoch's rate."""
        if self._plateau:
            self._plateau.step(val_loss)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: kind.state_dict() for name, kind in self._kinds.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """KeyError where it is another schedule's."""
        for name, kind in self._kinds.items():
            kind.load_state_dict(state[name])

    @property
    def _kinds(self) -> dict[str, Any]:
        kinds = {"plateau": self._plateau, "cosine": self._cosine}
        return {name: kind for name, kind in kinds.items() if kind}


def _plateau(optimizer: Optimizer, plateau: Plateau) -> ReduceLROnPlateau:
    """Its minimum is the head's; a stage's is in proportion to its rate."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    minima = [plateau.minimum * rate / rates[0] for rate in rates]
    return ReduceLROnPlateau(optimizer, factor=plateau.factor, patience=plateau.patience, min_lr=minima)


def _cosine(optimizer: Optimizer, cosine: Cosine, epochs: int, epoch_steps: int) -> LambdaLR:
    steps, rising = epochs * epoch_steps, round(cosine.warmup_epochs * epoch_steps)
    return LambdaLR(optimizer, lambda step: cosine_factor(step, steps, rising, cosine.minimum))


def cosine_factor(step: int, steps: int, rising: int, minimum: float) -> float:
    """What the rate is multiplied by in step `step` (from 0) of `steps`: up to 1 over the first `rising`, `minimum` at the last."""
    if step < rising:
        return (step + 1) / rising
    fallen = min((step - rising) / max(1, steps - 1 - rising), 1.0)
    return minimum + (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * fallen))


class Unfreezing:
    """Gradual unfreezing (Howard and Ruder 2018): the head first, and after every so many epochs one more of the stages that may learn.

    The optimizer holds them all from the start; one that has no gradient stays as it is.
    """

    def __init__(self, network: nn.Module, every: int | None) -> None:
        self._network, self._every = network, every
        learning = [any(parameter.requires_grad for parameter in stage) for stage in stages(network)]
        self._most = sum(learning)
        self.learning = 0
        """Stages that learn now; 0: as they came."""

    def begin(self, epoch: int) -> bool:
        """Sets what learns in `epoch` (from 1); whether that is something else than before."""
        if not self._every:
            return False
        before, self.learning = self.learning, min(self._most, 1 + (epoch - 1) // self._every)
        if self.learning != before:
            self._network.set_trainable(self.learning)  # type: ignore[operator]  # a Classifier's
        return self.learning != before


class MovingAverage:
    """Exponential moving average of weights and batch-norm statistics, step by step.

    The decay rises to its value as (1 + steps) / (10 + steps), as TensorFlow's does: the first epochs are not those of the first weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._decay, self.steps = decay, 0
        own, source = self.network.state_dict(), network.state_dict()
        floats = [name for name, tensor in own.items() if tensor.is_floating_point()]
        self._own, self._source = [own[name] for name in floats], [source[name] for name in floats]
        self._counts = [(own[name], source[name]) for name in own if not own[name].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(self._own, self._source, 1.0 - decay)
        for own, source in self._counts:
            own.copy_(source)
