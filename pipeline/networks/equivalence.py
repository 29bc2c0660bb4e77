"""Whether a network that was made faster still is the function that it was: both asked about the same image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.networks.model import Classifier
from pipeline.networks.volume_network import VolumeClassifier

SAME_WITHIN = 1e-4
"""Of the largest value there is, or of 1 where all are smaller: float32 rounds a hundred layers to a tenth of this, in whatever order it
sums; a layer in the wrong place is off by the values themselves."""
EXAMPLE_IMAGES = 1
EXAMPLE_DEPTH, EXAMPLE_SIDE = 32, 64
"""Of the one volume that a 3-D network is tried on: its layers are the same for any, and a whole one takes seconds."""

Network = Classifier | VolumeClassifier


def example(network: Network, channels: int, size: int) -> torch.Tensor:
    """Noise (1, channels, size, size), or a volume of it: it reaches every channel, and rarely leaves an activation at nought."""
    flat, volume = (EXAMPLE_IMAGES, channels, size, size), (1, channels, EXAMPLE_DEPTH, EXAMPLE_SIDE, EXAMPLE_SIDE)
    shape = volume if isinstance(network, VolumeClassifier) else flat
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def answers(network: Network, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and logits."""
    features = network.features(images)
    return features, network.classify(features)


def difference(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """The largest, as `SAME_WITHIN` measures it; NaN where any is, so ask whether it is within and not whether it is beyond."""
    pairs = zip(expected, found, strict=True)
    return float(torch.stack([(a - b).abs().max() / a.abs().max().clamp(min=1.0) for a, b in pairs]).max())
