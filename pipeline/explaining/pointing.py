"""Where it is known where the findings are: how often a heatmap's peak lies on one, or within a feature cell of one.

Known findings are ellipses in source pixels, a row each in a `lesions.csv` beside the source's folder: sop_instance_uid, row, column,
radius_rows, radius_columns, as the generated export has them. (0, 0) is the centre of an image's first pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from pipeline.errors import RunError
from pipeline.prediction.explain import cell_size, evidence_in_source
from pipeline.prediction.predict import TrainedModel, predict_files
from pipeline.prepared.dataset import image_files

if TYPE_CHECKING:
    from pandas.core.groupby import DataFrameGroupBy

LESIONS_FILE = "lesions.csv"
ELLIPSE = ("sop_instance_uid", "row", "column", "radius_rows", "radius_columns")


@dataclass(frozen=True)
class Pointing:
    """Of `images` true positives, the `share` whose heatmap peaks within one feature cell of a finding, and the share by chance: of the
    image's pixels; `inside`, `inside_by_chance`: the same of peaks on a finding itself."""

    images: int
    share: float
    by_chance: float
    inside: float = 0.0
    inside_by_chance: float = 0.0

    def line(self) -> str:
        """For the terminal."""
        if not self.images:
            return "  no opacity was found in the test images, so no heatmap can be judged"
        return (
            f"  heatmap's peak within one feature cell of an opacity: {self.share:.0%} of {self.images} true-positive test images "
            f"({self.by_chance:.0%} by chance)"
        )


def known_findings(roots: Mapping[str, Path]) -> Path | None:
    """The `lesions.csv` beside one of the sources, or in it; None where there is none."""
    places = [place / LESIONS_FILE for root in roots.values() for place in (root.parent, root)]
    return next((path for path in places if path.is_file()), None)


def pointing(
    model: TrainedModel,
    cases: pd.DataFrame,
    images: pd.DataFrame,
    source_images: pd.DataFrame,
    roots: Mapping[str, Path],
    findings: Path,
) -> Pointing:
    """Over the images of true-positive cases that are themselves called: does the heatmap's peak lie at a finding?

    `cases`, `images`: predictions.csv and image_predictions.csv; `source_images`: what was predicted, with `sop_instance_uid`.
    """
    positive = model.facts.positive
    found = cases.loc[(cases["label"] == positive) & (cases["predicted"] == positive), "case_id"]
    called = images["case_id"].isin(found) & (images["predicted"] == positive)
    ellipses = _ellipses(findings)
    wanted = source_images["sop_instance_uid"].isin(images.loc[called, "sop_instance_uid"])
    wanted &= source_images["sop_instance_uid"].isin(list(ellipses.groups))
    chosen = source_images[wanted].reset_index(drop=True)
    near_hits, near_chances, hits, chances = [], [], [], []
    for uid, result in zip(
        chosen["sop_instance_uid"], predict_files(model, image_files(chosen, dict(roots))), strict=True
    ):
        if result.prepared is None or result.evidence is None:
            continue
        affine, shape = result.prepared.affine, result.prepared.source_shape
        evidence = evidence_in_source(
            result.evidence[result.shown], model.geometry, affine, shape, model.facts.preprocessing.size
        )
        peak = np.unravel_index(evidence.argmax(), evidence.shape)
        mask = lesion_mask(ellipses.get_group(uid), evidence.shape)
        near = distance_transform_edt(~mask) <= cell_size(model.geometry, affine)
        near_hits.append(bool(near[peak]))
        near_chances.append(float(near.mean()))
        hits.append(bool(mask[peak]))
        chances.append(float(mask.mean()))
    means = (float(np.mean(values)) if values else 0.0 for values in (near_hits, near_chances, hits, chances))
    return Pointing(len(hits), *means)


def _ellipses(findings: Path) -> DataFrameGroupBy:
    table = pd.read_csv(findings)
    missing = [name for name in ELLIPSE if name not in table]
    if missing:
        raise RunError(f"{findings}: expected the columns {', '.join(ELLIPSE)}; {', '.join(missing)} not found")
    return table.groupby("sop_instance_uid")


def lesion_mask(ellipses: pd.DataFrame, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(rows, columns): inside any of the ellipses of `lesions.csv`."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, dtype=bool)
    for ellipse in ellipses.to_dict("records"):
        vertical = (rows - ellipse["row"]) / ellipse["radius_rows"]
        horizontal = (columns - ellipse["column"]) / ellipse["radius_columns"]
        inside |= vertical**2 + horizontal**2 <= 1.0
    return inside
