"""How alike two heatmaps of one image are, and what that comes to over all images.

Maps are compared at the centres of their cells (rank correlation), and as they are seen (structural similarity of what is above 0, each
up to its own maximum). Intervals are over patients: images of one patient are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from pipeline.metrics.metrics import Interval, percentile_interval
from pipeline.networks.cell_geometry import Geometry
from pipeline.prediction.explain import evidence_in_source

UNMOVED = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""The affine of an image that is its own source."""
CONSTANT = 1e-6
"""Of its largest value: a map that varies less is constant, and only rounded otherwise."""

FloatImage = NDArray[np.float32]
Affine = NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """Whose images they are, and how intervals are drawn."""

    patients: Sequence[str]
    resamples: int
    seed: int

    def mean(self, values: ArrayLike) -> Interval:
        """The mean over images, NaN left out, with its 95 % interval from a bootstrap over patients."""
        given = np.asarray(values, dtype=np.float64)
        _, patient = np.unique(np.asarray(self.patients), return_inverse=True)
        known = ~np.isnan(given)
        if not known.any():
            return Interval(None, None, None)
        sums = np.bincount(patient[known], weights=given[known], minlength=patient.max() + 1)
        counts = np.bincount(patient[known], minlength=patient.max() + 1)
        random = np.random.default_rng(self.seed)
        drawn = random.integers(len(sums), size=(self.resamples, len(sums)))
        with np.errstate(invalid="ignore"):  # a resample of patients without a value defines none
            draws = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        return percentile_interval(float(given[known].mean()), draws if len(sums) > 1 else np.empty(0))


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's, of cells; 0 where one of the maps is constant, as it says nothing about places."""
    a, b = (np.asarray(values, dtype=np.float64).ravel() for values in (first, second))
    if _is_constant(a) or _is_constant(b):
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _is_constant(values: NDArray[np.float64]) -> bool:
    return not values.size or float(np.ptp(values)) <= CONSTANT * max(
        float(np.abs(values).max()), np.finfo(np.float64).tiny
    )


def structural_similarity(first: FloatImage, second: FloatImage) -> float:
    """MONAI's SSIM of two maps (rows, columns) as they are seen: above 0, as shares of their own maximum."""
    from monai.metrics import SSIMMetric

    seen = [torch.from_numpy(seen_part(one))[None, None] for one in (first, second)]
    return float(SSIMMetric(spatial_dims=2, data_range=1.0)(*seen).item())


def seen_part(evidence: FloatImage) -> FloatImage:
    """Above 0, as a share of its maximum; 0 where nothing is above 0."""
    above = np.maximum(evidence, 0)
    largest = float(above.max(initial=0))
    return np.asarray(above / largest if largest > 0 else above, dtype=np.float32)


def in_pixels(cells: FloatImage, geometry: Geometry, size: int, affine: Affine = UNMOVED) -> FloatImage:
    """(size, size): a map on the pixels that the network was given; `affine` leads from those of a changed image to these."""
    return evidence_in_source(cells, geometry, affine, (size, size), size)


def cell_centres(geometry: Geometry, count: int, size: int) -> NDArray[np.int64]:
    """(m,) pixels, along one axis, on which the centres of `count` cells lie, of those inside the image."""
    places = np.rint(geometry.cell_offset + geometry.cell_stride * np.arange(count)).astype(np.int64)
    return places[(places >= 0) & (places < size)]
