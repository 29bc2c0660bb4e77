"""Images of lower resolution, softer and harder ones, each image of a batch by its own strength, on the batch's own device.

Images are (n, channels, rows, columns) float32. Sampling at fewer places and a Gaussian filter are each a matrix along the rows and
one along the columns; so however strong, two products of matrices do both to every image of a batch, and beyond the edge nothing
counts, so that none is darkened there.
"""

from __future__ import annotations

import torch

UNSHARP_DEVIATION = 1.0
"""Pixels, of the blur whose difference sharpens: about what a scanner's reconstruction kernels differ by."""


def softened(images: torch.Tensor, sides: torch.Tensor | None, deviations: torch.Tensor | None) -> torch.Tensor:
    """Sampled at `sides` (n, 2) rows and columns and brought back, then blurred by `deviations` (n,) pixels; one of them may be None.

    Square images are sampled at as many columns as rows, so that one matrix does both.
    """
    length, width = images.shape[2:]
    rows = _softening(length, None if sides is None else sides[:, 0], deviations)
    columns = rows if width == length else _softening(width, None if sides is None else sides[:, 1], deviations)
    return rows[:, None] @ images @ columns[:, None].mT


def _softening(length: int, sides: torch.Tensor | None, deviations: torch.Tensor | None) -> torch.Tensor:
    """(n, length, length): both along one axis."""
    steps = [] if deviations is None else [gaussian(length, deviations)]
    if sides is not None:
        steps.append(resampling(length, sides))
    return steps[0] if len(steps) == 1 else steps[0] @ steps[1]


def sharpened(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Plus `factors` (n, 1, 1, 1) times the difference to a blurred image (unsharp masking), cut to 0-1."""
    deviation = torch.full((1,), UNSHARP_DEVIATION, device=images.device)
    rows, columns = (gaussian(length, deviation)[0] for length in images.shape[2:])
    blurred = rows @ images @ columns.mT
    return images.add(images.sub(blurred).mul_(factors)).clamp_(0.0, 1.0)


def gaussian(length: int, deviations: torch.Tensor) -> torch.Tensor:
    """(n, length, length): each line of it the weights of a Gaussian about its pixel, of the sum 1; 0 is the identity."""
    places = torch.arange(length, dtype=torch.float32, device=deviations.device)
    narrowest = 1e-3  # pixels: exp(-(1 / narrowest)²) is 0, and nothing is divided by 0
    distances = (places[:, None] - places) / deviations.clamp_min(narrowest)[:, None, None]
    weights = torch.exp_(distances.square_().mul_(-0.5))
    return weights.div_(weights.sum(dim=2, keepdim=True))


def resampling(length: int, sides: torch.Tensor) -> torch.Tensor:
    """(n, length, length): `length` pixels sampled at `sides` (n,) places, each over its neighbourhood, and interpolated back.

    Triangles, as wide as the samples are apart: what anti-aliased bilinear resizing does, there and back. A side of `length` is the
    identity.
    """
    places = torch.arange(length, dtype=torch.float32, device=sides.device)
    apart = (length / sides)[:, None, None]
    centers = (places[:, None] + 0.5) * apart - 0.5  # of sample j, (n, length, 1)
    weights = (1.0 - (places - centers).abs_() / apart).clamp_(min=0.0)  # (n, sample, pixel)
    down = weights / weights.sum(dim=2, keepdim=True).clamp_min(1e-6)  # samples beyond the side: see none
    among = ((places[:, None] + 0.5) / apart - 0.5).clamp(min=0.0)  # of each pixel, among the samples
    among = among.minimum(sides[:, None, None] - 1.0)
    up = (1.0 - (places - among).abs_()).clamp_(min=0.0)  # (n, pixel, sample)
    return up @ down
