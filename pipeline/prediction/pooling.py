"""How the images of a case, each seen in several views, become one prediction.

Axes: n images, v views (one network of an ensemble on one mirror image), k classes, m cases. In: `logits` (n, v, k), `attention` (n, v)
(what the attention network says before its softmax; 0 without one), both uncalibrated, and `temperatures` (v,). Out: float64 probabilities.
`pooling`: mean (and volume, whose slices all say what the volume says): probabilities are averaged over the images; attention: logits are,
weighed by the softmax of attention over the case's images (Ilse 2018), in each view. Then the mean over the views.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Pooling = Literal["mean", "attention", "volume"]


def pool_cases(
    logits: ArrayLike, attention: ArrayLike, temperatures: ArrayLike, several: bool, pooling: Pooling
) -> Floats:
    """(k,) probabilities of the one case that all images are of; NaN where there are none."""
    given = np.asarray(logits, dtype=np.float64)
    return pool_each(given, attention, np.zeros(len(given), dtype=np.int64), 1, temperatures, several, pooling)[0]


def pool_each(
    logits: ArrayLike,
    attention: ArrayLike,
    case: Integers,
    cases: int,
    temperatures: ArrayLike,
    several: bool,
    pooling: Pooling,
) -> Floats:
    """(m, k) probabilities of `cases`, of which image i is one of number `case[i]`; NaN for a case without images."""
    given = np.asarray(logits, dtype=np.float64)
    n, v, k = given.shape
    if pooling == "attention":
        weight = _softmax_within(np.asarray(attention, dtype=np.float64), case, cases)
        pooled = _sums((weight[:, :, None] * given).reshape(n, v * k), case, cases).reshape(cases, v, k)
        probabilities = image_probabilities(pooled, temperatures, several)
        probabilities[np.bincount(case, minlength=cases) == 0] = np.nan
        return probabilities
    count = np.bincount(case, minlength=cases).astype(np.float64)[:, None]
    return _sums(image_probabilities(given, temperatures, several), case, cases) / np.where(count, count, np.nan)


def image_probabilities(logits: Floats, temperatures: ArrayLike, several: bool) -> Floats:
    """(n, k) from (n, v, k): the mean over the views of the softmax, or of each label's own sigmoid."""
    calibrated = logits / np.asarray(temperatures, dtype=np.float64)[:, None]
    return np.asarray(expit(calibrated) if several else softmax(calibrated, axis=-1)).mean(axis=1)


def attention_shares(attention: ArrayLike, case: Integers, cases: int) -> Floats:
    """(n,) each image's share in its case, which add up to 1: the softmax over the case's images of `ranked_attention`."""
    return _softmax_within(ranked_attention(np.asarray(attention, dtype=np.float64))[:, None], case, cases)[:, 0]


def attention_weights(attention: ArrayLike, case: Integers, cases: int) -> Floats:
    """(n,) by which evidence is multiplied, so that the mean over a case's images is what the case says: each image's share, times their
    number. 1: an image that counts as much as the others."""
    return attention_shares(attention, case, cases) * np.bincount(case, minlength=cases)[case]


def ranked_attention(attention: Floats) -> Floats:
    """(n,) by which the images of a case are ranked, before the case is complete: the views' mean (shares: their geometric mean)."""
    return np.asarray(attention.mean(axis=-1))


def _softmax_within(values: Floats, case: Integers, cases: int) -> Floats:
    """The softmax over each case's rows of (n, c) values."""
    top = np.full((cases, values.shape[1]), -np.inf)
    np.maximum.at(top, case, values)
    raised = np.exp(values - top[case])
    return raised / _sums(raised, case, cases)[case]


def _sums(values: Floats, case: Integers, cases: int) -> Floats:
    """(m, c) sums of each case's rows of (n, c) values."""
    columns = [np.bincount(case, weights=column, minlength=cases) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros((cases, 0))
