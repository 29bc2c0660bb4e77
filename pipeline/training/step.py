"""One part of a training step, as MONAI's trainer runs it: forward, losses, gradients; with the step's last part the weights move.

A step's loss is the sum of its images' losses over their number, whatever parts and processes they are in, so all of these are one step
(but for ordinary batch norm, whose statistics are each part's own).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from torch import nn

from pipeline.training import distributed
from pipeline.training.checkpoint import Fit
from pipeline.training.feed import BatchSampler
from pipeline.training.losses import ImageLosses, mixed, right, targets_of

MIXUP_STREAM = 7
"""Apart from the numbers that the order of images is drawn from."""


class TrainingStep:
    """MONAI's `iteration_update`; returns each image's loss and whether it was right, (n,) each, on the device."""

    def __init__(self, state: Fit, losses: ImageLosses, batches: BatchSampler, seed: int) -> None:
        self._state, self._losses, self._batches, self._seed = state, losses, batches, seed
        self._trained = [one for group in state.optimizer.param_groups for one in group["params"]]
        self.rate = 0.0
        """The head's learning rate in the last step."""

    def __call__(self, trainer: SupervisedTrainer, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        place = self._batches.place((trainer.state.iteration - 1) % len(self._batches))
        inputs, labels = trainer.prepare_batch(batch, trainer.state.device, trainer.non_blocking)
        if place.first:
            trainer.optimizer.zero_grad(set_to_none=True)
        if place.last:
            losses, hits = self._learn(trainer, inputs, labels, place.step, place.part, place.images)
            self._move(trainer.optimizer)
            return losses, hits
        with distributed.unsynchronised(trainer.network):
            return self._learn(trainer, inputs, labels, place.step, place.part, place.images)

    def _learn(
        self, trainer: SupervisedTrainer, inputs: torch.Tensor, labels: torch.Tensor, step: int, part: int, images: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds this part's gradients; DDP takes the mean over the processes where the sum is meant."""
        settings = self._state.settings
        targets = targets_of(labels, self._losses.classes)
        if settings.mixup:
            seed = (self._seed, trainer.state.epoch, step, part, MIXUP_STREAM)
            inputs, targets = mixed(inputs, targets, settings.mixup, seed)
        logits = trainer.inferer(inputs, trainer.network)
        losses = self._losses(logits, targets)
        (losses.sum() * (distributed.processes() / images)).backward()
        return losses.detach(), right(logits.detach(), targets, several=self._losses.several)

    def _move(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimizer, and of all that goes by steps."""
        state = self._state
        if state.settings.clip_gradient:
            nn.utils.clip_grad_norm_(self._trained, state.settings.clip_gradient)
        optimizer.step()
        self.rate = float(optimizer.param_groups[0]["lr"])
        state.schedule.after_step()
        if state.average:
            state.average.update()


class Bfloat16Inferer(SimpleInferer):
    """The forward pass in bfloat16, its result in float32; features kept as one vector an image stay in float32, for a linear layer.

    MONAI's own `amp` scales gradients, which bfloat16 does not need, and asks the GPU in each step whether they are finite.
    """

    def __init__(self, device_type: str = "cuda") -> None:
        """Of the network's device: the input may still be on another."""
        super().__init__()
        self._device_type = device_type

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        images = inputs.ndim > 2 and inputs.shape[-2:] != (1, 1)
        with torch.autocast(self._device_type, dtype=torch.bfloat16, enabled=images):
            return super().__call__(inputs, network, *args, **kwargs).float()
