"""Rates by depth and by step, what decays, what learns when, and the moving average."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.config import Cosine, Plateau, Training
from pipeline.training.optimization import MovingAverage, Schedule, Unfreezing, cosine_factor, make_optimizer, stages


class Staged(nn.Module):
    """Three stages with a norm each, as a Classifier has them."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)])
        self.head = nn.Linear(4, 2)

    @property
    def groups(self) -> list[list[nn.Parameter] | list[nn.Module]]:
        return [[self.parts[0]], list(self.parts[1].parameters()), [self.head]]

    def set_trainable(self, count: int | None) -> None:
        for number, group in enumerate(stages(self)):
            for parameter in group:
                parameter.requires_grad_(count is None or number >= 3 - count)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(self.parts[1](self.parts[0](values)))


def _learning(network: Staged) -> list[bool]:
    return [all(parameter.requires_grad for parameter in stage) for stage in stages(network)]


def test_stages_hold_every_parameter_once():
    network = Staged()
    network.extra = nn.Parameter(torch.zeros(1))
    found = stages(network)
    assert [len(stage) for stage in found] == [4, 4, 3]
    assert {id(one) for stage in found for one in stage} == {id(one) for one in network.parameters()}
    assert [len(stage) for stage in stages(nn.Linear(2, 2))] == [2]


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_each_stage_learns_at_its_own_rate_and_only_adamw_spares_norms_and_biases(kind: str):
    options = Training(optimizer=kind, learning_rate=0.1, layer_decay=0.5, weight_decay=0.01)  # type: ignore[arg-type]
    network = Staged()
    groups = make_optimizer(network, options).param_groups
    rate_of = {id(one): group["lr"] for group in groups for one in group["params"]}
    decay_of = {id(one): group["weight_decay"] for group in groups for one in group["params"]}
    for stage, rate in zip(stages(network), (0.025, 0.05, 0.1), strict=True):
        assert [rate_of[id(one)] for one in stage] == pytest.approx([rate] * len(stage))
        spared = [0.0 if kind == "adamw" and one.ndim < 2 else 0.01 for one in stage]
        assert [decay_of[id(one)] for one in stage] == spared
    assert groups[0]["lr"] == 0.1
    if kind == "sgd":
        assert groups[0]["nesterov"]


def test_frozen_parameters_are_not_the_optimizers():
    network = Staged()
    network.set_trainable(1)
    held = [one for group in make_optimizer(network, Training()).param_groups for one in group["params"]]
    assert {id(one) for one in held} == {id(one) for one in network.head.parameters()}


@given(steps=st.integers(2, 200), rising=st.integers(0, 50), minimum=st.floats(0, 0.5))
def test_the_cosine_rises_falls_and_ends_at_its_minimum(steps: int, rising: int, minimum: float):
    rising = min(rising, steps - 1)
    factors = [cosine_factor(step, steps, rising, minimum) for step in range(steps)]
    assert all(0 < factor <= 1 or factor == minimum for factor in factors)
    assert factors[:rising] == sorted(factors[:rising])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    assert factors[rising] == pytest.approx(1.0)
    if steps - 1 > rising:
        assert factors[-1] == pytest.approx(minimum)


def test_the_cosine_goes_by_steps_and_a_resumed_one_goes_on():
    options = Training(epochs=3, plateau=None, cosine=Cosine(warmup_epochs=1, minimum=0.1), learning_rate=1.0)
    network = Staged()

    def rates(optimizer: torch.optim.Optimizer, schedule: Schedule, count: int) -> list[float]:
        taken = []
        for _ in range(count):
            optimizer.step()
            taken.append(optimizer.param_groups[0]["lr"])
            schedule.after_step()
        return taken

    optimizer = make_optimizer(network, options)
    schedule = Schedule(optimizer, options, 4)
    first = rates(optimizer, schedule, 5)
    states = optimizer.state_dict(), schedule.state_dict()
    rest = rates(optimizer, schedule, 7)
    again = make_optimizer(network, options)
    resumed = Schedule(again, options, 4)
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert rates(again, resumed, 7) == rest
    assert first[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rest[-1] == pytest.approx(0.1)


def test_the_plateau_lowers_every_stage_in_proportion():
    options = Training(
        plateau=Plateau(factor=0.1, patience=0, minimum=1e-3), learning_rate=0.1, layer_decay=0.5, early_stopping=None
    )
    optimizer = make_optimizer(Staged(), options)
    schedule = Schedule(optimizer, options, 1)
    for _ in range(6):
        schedule.after_epoch(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 5e-4, 2.5e-4])


def test_one_more_stage_learns_after_every_so_many_epochs_down_to_what_may():
    network = Staged()
    network.set_trainable(2)
    unfreezing = Unfreezing(network, 2)
    changes, learning = [], []
    for epoch in range(1, 7):
        changes.append(unfreezing.begin(epoch))
        learning.append(sum(_learning(network)))
    assert learning == [1, 1, 2, 2, 2, 2]
    assert changes == [True, False, True, False, False, False]
    resumed = Staged()
    resumed.set_trainable(2)
    assert Unfreezing(resumed, 2).begin(4)
    assert _learning(resumed) == [False, True, True]
    assert not Unfreezing(network, None).begin(1)


def test_what_does_not_learn_yet_stays_as_it_is():
    """Though the optimizer holds it, and decays it once it learns."""
    network = Staged()
    optimizer = make_optimizer(network, Training(optimizer="adamw", weight_decay=0.1))
    network.set_trainable(1)
    before = [one.clone() for one in network.parts.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.rand(5, 4)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(one, old) for one, old in zip(network.parts.parameters(), before, strict=True))
    network.set_trainable(None)
    network(torch.rand(5, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(network.parts[0][0].weight, before[0])


def test_the_average_is_that_of_weights_and_batch_norm_statistics():
    network = Staged()
    average = MovingAverage(network, 0.9)
    expected = {name: tensor.clone().double() for name, tensor in network.state_dict().items()}
    for step in range(5):
        network(torch.rand(5, 4))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            expected[name] = expected[name] * decay + tensor.double() * (1 - decay)
    for name, tensor in average.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert int(tensor) == 5
    assert not any(one.requires_grad for one in average.network.parameters())
    assert not average.network.training
    assert math.isclose(average.steps, 5)
