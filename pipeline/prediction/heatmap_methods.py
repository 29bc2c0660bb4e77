"""Heatmaps by the methods of the grad-cam package, of every network: the layer is the last feature map, whatever network made it.

In: the feature map that the forward pass gave, and the network that classifies it. Out: evidence per cell and class, as
`explain.class_evidence` gives it. The package's classes make the raw map (`get_cam_image`) and nothing else: features are at hand, and
gradients have to pass the head alone, so nothing is hooked and no second forward pass is needed. Their `forward` is not used, as it
scales each map to 0-1, so that no evidence looks like much; nor are they context managers, which swallow IndexError.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config import Heatmap
from pipeline.networks.model import Classifier, VolumeClassifier
from pipeline.prediction.explain import class_contrast

if TYPE_CHECKING:
    from pytorch_grad_cam.base_cam import BaseCAM

GRADIENT_SCALE = 2.0**20
"""Gradients are multiplied, and features divided, by this before the package sees them. No map changes by it; but Grad-CAM++ adds 1e-6 to
a denominator of squared gradients, and those of a head over 49 cells are some 1e-8: its weights would become cubes of themselves."""
NO_VARIATION = 1e-6
"""Of the largest feature: an EigenCAM below it is float32's rounding of features that are the same at all cells, and shows nothing."""
SCORED_AT_ONCE = 16
"""Masked images a forward pass of Score-CAM."""

Floats = NDArray[np.float64]
Network = Classifier | VolumeClassifier


def method_evidence(
    method: Heatmap, network: Network, inputs: torch.Tensor, features: torch.Tensor, *, several: bool
) -> torch.Tensor:
    """Evidence (batch, classes, *cells) by one of the package's methods, float32; NaN where the features are not finite.

    `features` (batch, channels, *cells): what `network.features` says of `inputs`. Units: those of Grad-CAM, HiResCAM and LayerCAM are
    multiplied by the number of cells, so that a cell's value is the logit (margin) of an image that were this cell all over, as
    `class_evidence` has it, but without the bias; Grad-CAM++ sums over the cells and has that unit by itself. EigenCAM: shares of the
    map's maximum, the same for all classes. Score-CAM: features, weighed.
    """
    cells, classes = features.shape[2:], network.head.out_features
    evidence = features.new_full((len(features), classes, *cells), torch.nan)
    finite = torch.isfinite(features.flatten(1)).all(dim=1)
    if not finite.any():
        return evidence
    inputs, features = inputs[finite], features[finite]
    if method == "eigencam":
        maps = _eigen_maps(network, features)[:, None].repeat(classes, axis=1)
    elif method == "scorecam":
        maps = np.stack(list(_score_maps(network, inputs, features, several)))
    else:
        maps = np.stack(list(_gradient_maps(method, network, features, several)), axis=1)
    evidence[finite] = torch.from_numpy(maps).to(evidence)
    return evidence


def own_share(evidence: torch.Tensor) -> torch.Tensor:
    """Each map (batch, classes, *cells) as a share of its own maximum; one that nowhere is above 0 as it is."""
    largest = evidence.flatten(2).amax(dim=2).view(*evidence.shape[:2], *[1] * (evidence.ndim - 2))
    return torch.where(largest > 0, evidence / largest, evidence)


def _gradient_maps(method: Heatmap, network: Network, features: torch.Tensor, several: bool) -> Iterator[Floats]:
    """(batch, *cells) of each class."""
    given = features.detach().clone().requires_grad_()
    with torch.enable_grad():
        told = class_contrast(network.classify(given).T, several=several)
        gradients = [torch.autograd.grad(of_class.sum(), given, retain_graph=True)[0] for of_class in told]
    package, by_cells = _packages_class(method)(network, []), 1.0
    if method != "gradcam++":
        by_cells = float(np.prod(features.shape[2:]))
    activations = _array(features) / GRADIENT_SCALE
    for gradient in gradients:
        raw = package.get_cam_image(None, None, [], activations, _array(gradient) * GRADIENT_SCALE, False)
        yield np.asarray(raw, dtype=np.float64) * by_cells


def _eigen_maps(network: Network, features: torch.Tensor) -> Floats:
    """(batch, *cells). Which end of a principal component is positive is arbitrary: here the one where features are larger on average."""
    activations = features.cpu().numpy()
    raw = np.asarray(_packages_class("eigencam")(network, []).get_cam_image(None, None, [], activations, None, False))
    maps, mean = raw.reshape(len(raw), -1).astype(np.float64), activations.mean(axis=1).reshape(len(raw), -1)
    turned = (maps * (mean - mean.mean(axis=1, keepdims=True))).sum(axis=1) < 0
    maps[turned] *= -1.0
    largest = maps.max(axis=1, keepdims=True)
    varies = largest > NO_VARIATION * np.abs(activations).reshape(len(raw), -1).max(axis=1, keepdims=True)
    return np.where(varies, maps / np.where(varies, largest, 1.0), 0.0).reshape(raw.shape)


def _score_maps(network: Network, inputs: torch.Tensor, features: torch.Tensor, several: bool) -> Iterator[Floats]:
    """(classes, *cells) of each image, one after the other: the package masks an image by all of its channels at once."""
    classes = network.head.out_features
    for image, its_features in zip(inputs, features, strict=True):
        speaks = _Remembers(network)
        package = _packages_class("scorecam")(speaks, [])
        package.batch_size = SCORED_AT_ONCE  # which the package looks for
        maps = []
        for place in range(classes):
            speaks.begin_again()
            target = [_contrast_of(place, several)]
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bar, one an image and class
                raw = package.get_cam_image(
                    image[None].float(), None, target, _array(its_features[None], np.float32), None
                )
            maps.append(np.asarray(raw[0], dtype=np.float64))
        yield np.stack(maps)


class _Remembers(nn.Module):
    """The network in evaluation; after `begin_again` it is asked the same once more, and remembers: of every class the package masks the
    same image by the same channels."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.said: list[torch.Tensor] = []
        self.place = 0

    def begin_again(self) -> None:
        self.place = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.place == len(self.said):
            with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=images.is_cuda):
                features = self.network.features(images)
            with torch.inference_mode():
                self.said.append(self.network.classify(features.float()))
        self.place += 1
        return self.said[self.place - 1]


def _contrast_of(place: int, several: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Of an image's logits (classes,) what the map of class `place` is a map of."""
    return lambda logits: class_contrast(logits, several=several)[place]


def _array(values: torch.Tensor, kind: Any = np.float64) -> NDArray[Any]:
    return values.detach().cpu().numpy().astype(kind)


def _packages_class(method: Heatmap) -> type[BaseCAM]:
    """The package brings matplotlib and OpenCV along: it is imported where it is used."""
    import pytorch_grad_cam as package

    found: dict[Heatmap, type[BaseCAM]] = {
        "gradcam": package.GradCAM,
        "gradcam++": package.GradCAMPlusPlus,
        "hirescam": package.HiResCAM,
        "layercam": package.LayerCAM,
        "eigencam": package.EigenCAM,
        "scorecam": package.ScoreCAM,
    }
    return found[method]
