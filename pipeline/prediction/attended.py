"""Evidence of images whose case is pooled by attention: what each says, times how much it counts.

The case's logits are those of its images, weighed by attention; so is its evidence: cells times the image's share in its case, times the
number of images. The mean over all cells of all images is then the logit margin of the case, as that over an image's cells is the
image's, and cases of few and of many images share one scale. Shares are known when a case is complete. With several views evidence is
their mean already, and the shares are those by which images are ranked (`pooling.ranked_attention`), exact for one view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.prediction.pooling import attention_weights
from pipeline.prediction.predict import ImageResult
from pipeline.run import ModelFacts


def attended(results: Sequence[ImageResult], facts: ModelFacts) -> tuple[ImageResult, ...]:
    """All results of one case, their evidence weighed; as they are where pooling is not attention."""
    done = [(result, result.attention) for result in results if result.attention is not None]
    if facts.network.pooling != "attention" or not done:
        return tuple(results)
    weights = attention_weights([attention for _, attention in done], np.zeros(len(done), dtype=np.int64), 1)
    weight_of = {result.file: np.float32(weight) for (result, _), weight in zip(done, weights, strict=True)}
    return tuple(
        replace(result, evidence=result.evidence * weight_of[result.file]) if result.evidence is not None else result
        for result in results
    )
