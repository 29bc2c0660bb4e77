"""Deletion: what the network loses when that is taken away, or alone is left, which a heatmap says it went by.

By the grad-cam package's metrics, on what the map is a map of (the logit margin of two classes, ...): ROAD (Rong 2022) removes the most
relevant pixels, and the least relevant, and fills them in from their neighbours; the other multiplies the image by its map. Each is done
again with a random map, which has the image's own cells in another order, and so is as smooth and as strong, but elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.explaining.likeness import FloatImage, in_pixels, seen_part
from pipeline.explaining.probes import Cells, Probe
from pipeline.prediction.explain import class_contrast
from pipeline.prediction.predict import MIRRORS, TrainedModel

PERCENTILES = (50, 70, 90)
"""Of relevance: half, 30 % and 10 % of the pixels are removed, and the scores are means over these."""
SHOWN_PERCENTILE = 90
"""Of the example pictures."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Deleted:
    """(images,) each: ROAD's combined score (what removing the least relevant leaves more than removing the most relevant, halved), and the
    change where the image is multiplied by its map; more is better for both. `example`: each image without its most relevant pixels."""

    road: Floats
    road_random: Floats
    kept: Floats
    kept_random: Floats
    example: list[FloatImage]


def deleted(model: TrainedModel, probes: Sequence[Probe], original: Sequence[Cells], seed: int) -> Deleted:
    """The scores of every image's map, and of a random one. Not for volumes, which the package cannot fill in."""
    from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange
    from pytorch_grad_cam.metrics.road import ROADCombined, ROADMostRelevantFirst

    speaks, geometry, size = Speaks(model), model.geometry, model.facts.preprocessing.size
    road, kept = ROADCombined(list(PERCENTILES)), CamMultImageConfidenceChange()
    random = np.random.default_rng(seed)
    scores: list[list[float]] = []
    pictures = []
    for probe, cells in zip(probes, original, strict=True):
        inputs = model.inputs(probe.levels).float().cpu()
        target = [_logit(probe.shown)]
        ours = in_pixels(cells, geometry, size)
        other = in_pixels(random.permutation(cells.ravel()).reshape(cells.shape), geometry, size)
        with torch.random.fork_rng(devices=[]):  # ROAD adds noise to what it fills in
            torch.manual_seed(seed)
            scores.append(
                [
                    *(float(road(inputs, relevance(one, random)[None], target, speaks)[0]) for one in (ours, other)),
                    *(float(kept(inputs, seen_part(one)[None], target, speaks)[0]) for one in (ours, other)),
                ]
            )
            _, without = ROADMostRelevantFirst(SHOWN_PERCENTILE)(
                inputs, relevance(ours, random)[None], target, speaks, return_visualization=True
            )
        pictures.append(_gray(without[0], model))
    table = np.array(scores, dtype=np.float64).reshape(len(scores), 4)
    return Deleted(table[:, 0], table[:, 1], table[:, 2], table[:, 3], pictures)


def relevance(evidence: FloatImage, random: np.random.Generator) -> NDArray[np.float32]:
    """(rows, columns) 0-1 by rank, equals in random order: so that a percentile is that share of the pixels also of a map that is mostly
    0, of which the package would otherwise remove all."""
    order = np.lexsort(np.stack([random.random(evidence.size), evidence.ravel()]))
    ranks = np.empty(evidence.size, dtype=np.float32)
    ranks[order] = np.linspace(0.0, 1.0, evidence.size, dtype=np.float32)
    return ranks.reshape(evidence.shape)


class Speaks(nn.Module):
    """The model as the package's metrics take it: images (b, c, rows, columns), standardised, to what maps are maps of (b, classes), the
    mean over its views."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        facts = self.model.facts
        given = images.to(self.model.device)
        with torch.inference_mode():
            logits = [
                network.classify(network.features(given.flip(axes) if axes else given).float())
                for axes in MIRRORS[facts.views]
                for network in self.model.networks
            ]
        return class_contrast(torch.stack(logits).mean(dim=0).float().T, several=facts.several).T


def _logit(shown: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda told: told[shown]


def _gray(inputs: torch.Tensor, model: TrainedModel) -> FloatImage:
    """(rows, columns) 0-1 of what a network is given (c, rows, columns)."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.facts.input_mean, model.facts.input_std))
    return np.asarray((inputs * std + mean).mean(dim=0).clamp(0, 1).numpy(), dtype=np.float32)
