"""Where the network saw what it says: evidence per cell of the last feature map, carried back to source pixels.

With a linear head after global average pooling, Grad-CAM is the head's own weights over the last feature map (Zhou 2016,
Selvaraju 2017). With the bias spread over the cells, each cell's evidence is what the classifier would say of that cell alone, and
the mean over the cells is the logit margin: 0 means "speaks for neither", so no threshold has to be invented. Other ways to make a map
are in `heatmap_methods`; what each says in words and in which unit is here, for objects and pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.networks.model import Geometry
from pipeline.profile_settings import MethodWords, Texts, UnitWords
from pipeline.run import ModelFacts
from transforms.spatial import map_back

USUAL_TEXTS = Texts()
SCALE_PERCENTILE = 99.0
"""Of the positive evidence on the validation split: the colours' full scale, so that one freak cell does not dim all others."""
METHOD_NAMES = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "scorecam": "Score-CAM",
}
"""Of `evaluation.heatmap`, where a name is all that is said; the others are in `MethodWords`."""


def class_evidence(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, several: bool = False
) -> torch.Tensor:
    """Evidence (batch, classes, *cells) from `features` (batch, channels, *cells), cells along two axes or three.

    Two classes: the logit margin of each over the other. More: weights centred over the classes, because the weights
    themselves are not identifiable (adding a vector to all of them changes no probability). `several` labels at once: each
    one's own logit, which is identifiable, because each has a probability of its own.
    """
    contrast, offset = (class_contrast(values, several=several) for values in (weight, bias))
    cells = torch.einsum("bc...,kc->bk...", features, contrast)
    return cells + offset.view(1, -1, *[1] * (cells.ndim - 2))


def class_contrast(values: torch.Tensor, *, several: bool) -> torch.Tensor:
    """(classes, ...) of logits, or of what they are made of, to what a map of each class is a map of: see `class_evidence`."""
    if several:
        return values
    return values - values.flip(0) if len(values) == 2 else values - values.mean(dim=0)


def mirrored_back(evidence: torch.Tensor, axes: Sequence[int], geometry: Geometry, input_size: int) -> torch.Tensor:
    """Evidence (..., cell rows, cell columns) of an image of `input_size` mirrored along `axes` (-1, -2), on the cells of the image
    as it was.

    Cell i looks at pixel offset + stride·i, its mirror image at size - 1 - that, which is no cell's centre as a rule: evidence is
    interpolated between the centres, and beyond the outermost one holds what it says (as in `map_back`).
    """
    for axis in axes:
        evidence = torch.movedim(
            torch.movedim(evidence, axis, -1) @ _mirror(evidence, axis, geometry, input_size), -1, axis
        )
    return evidence


def _mirror(evidence: torch.Tensor, axis: int, geometry: Geometry, input_size: int) -> torch.Tensor:
    """(cells, cells) weights: column i says of which cells of the mirrored image cell i is made."""
    cells = np.arange(evidence.shape[axis])
    places = geometry.cell_offset + geometry.cell_stride * cells
    mirrored = (input_size - 1 - places - geometry.cell_offset) / geometry.cell_stride
    weights = np.stack([np.interp(mirrored, cells, row) for row in np.eye(len(cells))])
    return torch.from_numpy(weights).to(evidence)


def method_words(facts: ModelFacts, words: MethodWords = USUAL_TEXTS.methods) -> str:
    """How the model's heatmaps are made, for people: 'the classifier's evidence (Grad-CAM of a linear head)'. In attributes of objects
    the usual words stand, which are ASCII."""
    method = {**METHOD_NAMES, "weights": words.weights, "eigencam": words.eigencam}[facts.heatmap]
    return words.attention.format(method=method) if facts.network.pooling == "attention" else method


def evidence_unit(facts: ModelFacts, words: UnitWords = USUAL_TEXTS.units) -> str:
    """The unit of the model's heatmaps: 'logit margin'."""
    if facts.heatmap == "eigencam":
        return words.own_maximum
    if facts.heatmap == "scorecam":
        return words.activation
    unit = words.logit if facts.several else words.logit_margin if len(facts.classes) == 2 else words.centred_logit
    changed = {"gradcam++": words.reweighted, "layercam": words.positive_part}.get(facts.heatmap, "{unit}")
    return changed.format(unit=unit)


def scale_of(facts: ModelFacts, evidence: Iterable[NDArray[np.float32]]) -> float:
    """`heatmap_scale` of the validation split's `evidence`; 1 where maps are shares of their own maximum."""
    return 1.0 if facts.heatmap_scale_of == "image" else heatmap_scale(evidence)


def heatmap_scale(evidence: Iterable[NDArray[np.float32]]) -> float:
    """The evidence that gets the full colour, for the whole run: `SCALE_PERCENTILE` of all positive evidence; 1 if there is none."""
    positive = [cells[cells > 0] for cells in evidence]
    values = np.concatenate(positive) if positive else np.array([])
    return float(np.percentile(values, SCALE_PERCENTILE)) if values.size else 1.0


def evidence_in_source(
    cells: NDArray[np.float32],
    geometry: Geometry,
    affine: NDArray[np.float64],
    source_shape: tuple[int, int],
    input_size: int,
) -> NDArray[np.float32]:
    """Evidence (rows, columns) on the source image, each cell where the network looks; 0 where the network saw nothing."""
    return map_back(
        torch.from_numpy(cells),
        affine,
        source_shape,
        (input_size, input_size),
        geometry.cell_stride,
        geometry.cell_offset,
    )


def cell_sides(geometry: Geometry, affine: NDArray[np.float64]) -> tuple[float, float]:
    """Rows and columns of source pixels that one feature cell covers: unequal where pixels are no squares, or the image was stretched."""
    rows, columns = geometry.cell_stride * np.abs(affine[:, :2]).sum(axis=1)
    return float(rows), float(columns)


def cell_size(geometry: Geometry, affine: NDArray[np.float64]) -> float:
    """The larger of `cell_sides`: how far from its place, in source pixels, evidence may speak."""
    return max(cell_sides(geometry, affine))
