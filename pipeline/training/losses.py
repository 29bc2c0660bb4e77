"""What training makes small: cross-entropy over classes, or over each of several labels, weighted, smoothed, focal, on mixed images.

Axes: n images, k classes. Labels are (n,) int64 class numbers or, where an image may have several, (n, k) float32 of 0 and 1; `targets_of`
makes of both (n, k) floats in 0-1, which mixup mixes. A loss is one number an image, (n,): who adds them up divides by the images of the
whole step, so that a step in parts, or over several processes, is the same step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from pipeline.config import Training

SMALLEST_WRONG = 1e-6
"""Focal factors are powers of 1 - p: at p = 1 a power below 1 has no finite slope."""


class ImageLosses(nn.Module):
    """(n, k) logits and (n, k) targets to (n,) losses: -weight * (1 - p) ** gamma * log p, expected under the smoothed target.

    Smoothing as Szegedy 2016 (over all classes; of several labels, over presence and absence), the focal factor as Lin 2017. Weights
    belong to what the image is, whatever smoothing spreads. Of several labels, the mean over them.
    """

    weights: torch.Tensor

    def __init__(self, weights: torch.Tensor, *, several: bool, smoothing: float = 0.0, gamma: float = 0.0) -> None:
        """`weights`: (k,) of the classes, or (k, 2) of each label's absence and presence."""
        super().__init__()
        self.several, self.smoothing, self.gamma = several, smoothing, gamma
        self.register_buffer("weights", weights)

    @property
    def classes(self) -> int:
        """k."""
        return len(self.weights)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        if not self.several:
            return self._expected(functional.log_softmax(logits, dim=1), targets)
        both = torch.stack([functional.logsigmoid(-logits), functional.logsigmoid(logits)], dim=2)
        return self._expected(both, torch.stack([1.0 - targets, targets], dim=2)).mean(dim=1)

    def _expected(self, log_p: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Over the outcomes on the last axis, of which `shares` says how much is true of each."""
        weighted = shares * self.weights
        if self.smoothing:
            weighted = torch.lerp(weighted, weighted.mean(dim=-1, keepdim=True).expand_as(weighted), self.smoothing)
        if self.gamma:
            weighted = weighted * (-torch.expm1(log_p)).clamp_min(SMALLEST_WRONG) ** self.gamma
        return -(weighted * log_p).sum(dim=-1)


def image_losses(labels: NDArray[np.int64] | NDArray[np.float32], classes: int, settings: Training) -> ImageLosses:
    """The loss that `settings` ask for, on training images with these labels."""
    weights = class_weights(labels, classes, balanced=settings.class_weights == "balanced")
    return ImageLosses(
        weights, several=labels.ndim == 2, smoothing=settings.label_smoothing, gamma=settings.focal_gamma
    )


def class_weights(labels: NDArray[np.int64] | NDArray[np.float32], classes: int, *, balanced: bool) -> torch.Tensor:
    """(k,) of the classes, or (k, 2) of each label's absence and presence: all 1, or each counting alike, the mean over images 1."""
    if labels.ndim == 2:
        present = labels.sum(axis=0)
        counts = np.stack([len(labels) - present, present], axis=1)
    else:
        counts = np.bincount(labels, minlength=classes).astype(np.float64)
    if not balanced:
        return torch.ones(counts.shape)
    return torch.tensor(len(labels) / (counts.shape[-1] * np.maximum(counts, 1.0)), dtype=torch.float32)


def targets_of(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(n,) class numbers or (n, k) labels to (n, k) float32."""
    return labels.float() if labels.ndim == 2 else functional.one_hot(labels, classes).float()


def right(logits: torch.Tensor, targets: torch.Tensor, *, several: bool) -> torch.Tensor:
    """(n,) 1 where the most probable class is the target's largest; of several labels the share of them that is right at 0.5."""
    if several:
        return ((logits > 0) == (targets > 0.5)).float().mean(dim=1)
    return (logits.argmax(dim=1) == targets.argmax(dim=1)).float()


def mixed(
    inputs: torch.Tensor, targets: torch.Tensor, alpha: float, seed: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang 2018): each image with another of its part of the step, by a share of its own from Beta(alpha, alpha).

    Inputs (n, ...), targets (n, k). `seed` alone decides what is drawn, on the host; the device is not waited for.
    """
    random = np.random.default_rng(tuple(seed))
    partners = _sent(torch.from_numpy(random.permutation(len(inputs))), inputs.device)
    shares = _sent(torch.from_numpy(random.beta(alpha, alpha, len(inputs)).astype(np.float32)), inputs.device)
    return tuple(
        torch.lerp(values, values.index_select(0, partners), shares.view(-1, *[1] * (values.ndim - 1)).to(values.dtype))
        for values in (inputs, targets)
    )  # type: ignore[return-value]


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """From ordinary memory the copy would wait for all that the device still has to do."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
