"""Figures of the validation split after each epoch: loss, accuracy, AUROC and average precision, over all processes.

Logits are kept on their device until the split is through and fetched once. Every process then computes the same figures from all of
them, so that all decide alike. Axes: n images, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.training import distributed
from pipeline.training.losses import ImageLosses, right, targets_of


class ValidationFigures(Metric):
    """Ignite's metric over (logits, labels): val_loss, val_accuracy, val_auroc and val_average_precision of `images` images."""

    def __init__(self, losses: ImageLosses, images: int, device: torch.device) -> None:
        self._losses, self._images = losses, images
        super().__init__(output_transform=lambda output: (output["pred"], output["label"]), device=device)

    def reset(self) -> None:
        self._logits: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        logits, labels = output
        self._logits.append(logits.detach().float())
        self._labels.append(labels)

    def compute(self) -> dict[str, float]:
        logits, labels = (
            distributed.gathered(torch.cat(parts), self._images) for parts in (self._logits, self._labels)
        )
        targets = targets_of(labels, logits.shape[1])
        losses, hits = self._losses(logits, targets), right(logits, targets, several=self._losses.several)
        return {
            "val_loss": float(losses.double().mean()),
            "val_accuracy": float(hits.double().mean()),
            **ranking(logits.cpu(), labels.cpu().numpy()),
        }


def ranking(logits: torch.Tensor, labels: NDArray[Any]) -> dict[str, float]:
    """val_auroc and val_average_precision of (n, k) logits: of two classes the second's; else of each against the rest, their mean.

    NaN where a class, or each of several labels, is not both there and not there; labels that are, count among several.
    """
    scores = (torch.sigmoid(logits.double()) if labels.ndim == 2 else torch.softmax(logits.double(), dim=1)).numpy()
    present = labels > 0.5 if labels.ndim == 2 else labels[:, None] == np.arange(scores.shape[1])
    if labels.ndim == 1 and scores.shape[1] == 2:
        scores, present = scores[:, 1:], present[:, 1:]
    both = present.any(axis=0) & ~present.all(axis=0)
    told = np.isfinite(scores).all() and (both.any() if labels.ndim == 2 else both.all())
    figures: dict[str, Callable[..., float]] = {
        "val_auroc": roc_auc_score,
        "val_average_precision": average_precision_score,
    }
    return {
        name: float(np.mean([figure(present[:, place], scores[:, place]) for place in np.flatnonzero(both)]))
        if told
        else math.nan
        for name, figure in figures.items()
    }
