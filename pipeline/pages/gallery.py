"""Cases to look at: the errors that the model was surest of, and some of every outcome, each as a picture and, apart, its heatmap.

In: the tables of an evaluation (`predictions.csv`, `image_predictions.csv`) and the model, which predicts the chosen images again, as
nobody keeps the pixels of all. Out: `GalleryItem`s in the order shown, for the report's page; `tiles` are the same as one picture each.
Nothing here names a patient: an item says which line of predictions.csv it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pipeline.label_arrays import presence
from pipeline.pages.figures import Tile
from pipeline.prediction.explain import evidence_in_source
from pipeline.prediction.predict import ImageResult, TrainedModel, predict_files
from pipeline.prediction.prediction_tables import STATUS_OK, probability_columns
from pipeline.prepared.dataset import image_files
from pipeline.render import overlay
from pipeline.run import ModelFacts

OUTCOMES_SHOWN = 12
"""Cases of every outcome in turn."""
ERRORS_SHOWN = 6
"""Errors that the model was surest of, besides."""
OUTCOMES, ERRORS = "outcomes", "errors"
LONGEST_SIDE = 448
"""Pixels of a picture: twice what a page shows, for sharp screens; so a gallery of radiographs stays below 2 MB."""
FIRST_LINE = 2
"""Of predictions.csv, where its first case stands."""

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class GalleryItem:
    """One case: an image of it, and what the model says.

    `picture` (rows, columns) uint8; `heatmap` (rows, columns, 4) RGBA uint8, not premultiplied, to lie over the picture; None where
    nothing in it speaks for `shown`, the class that it is about. `probability`: of `shown`, 0-1. `group`: OUTCOMES or ERRORS. `where`:
    how a reader finds the case again.
    """

    picture: Picture
    heatmap: Picture | None
    actual: str
    predicted: str
    shown: str
    probability: float
    group: str = OUTCOMES
    where: str = ""

    @property
    def right(self) -> bool:
        return self.actual == self.predicted


def gallery_items(
    model: TrainedModel,
    cases: pd.DataFrame,
    images: pd.DataFrame,
    source_images: pd.DataFrame,
    roots: Mapping[str, Path],
) -> list[GalleryItem]:
    """Items of the cases chosen from predictions.csv; a chosen image that cannot be read any more is passed over.

    `cases`, `images`: predictions.csv and image_predictions.csv, numbered from 0. `source_images`: what `images` were predicted from,
    row for row.
    """
    chosen = chosen_cases(cases, model.facts)
    of_case = images[images["status"] == STATUS_OK].groupby("case_id", sort=False).groups
    rows = [_key_images(images.loc[of_case[one.case_id]], one, model.facts) for one in chosen]
    files = image_files(source_images.loc[[row for ours in rows for row in ours]], dict(roots))
    results = predict_files(model, files, keep_shown=True)
    keys = (_key_result(islice(results, len(ours)), one, model.facts) for ours, one in zip(rows, chosen, strict=True))
    weights = (
        _attention_weight(images.loc[of_case[one.case_id]], ours) for ours, one in zip(rows, chosen, strict=True)
    )
    return [
        _item(model, one, key, weight)
        for one, key, weight in zip(chosen, keys, weights, strict=True)
        if key is not None
    ]


def _attention_weight(images: pd.DataFrame, key: list[int]) -> float:
    """Of the key image of a case's `images`, as `pooling.attention_weights` has it; 1 without attention."""
    return (
        float(images["attention"].to_numpy(dtype=float)[images.index.get_indexer(pd.Index(key[:1]))[0]]) * len(images)
        if "attention" in images
        else 1.0
    )


@dataclass(frozen=True)
class Chosen:
    """A case of predictions.csv that is shown: the class that its picture is about, that class's probability, and its group."""

    case_id: str
    label: str
    predicted: str
    shown: str
    probability: float
    group: str
    where: str


def chosen_cases(cases: pd.DataFrame, facts: ModelFacts) -> list[Chosen]:
    """The surest errors first, then every outcome (actual, predicted) in turn.

    How sure an error was is the largest distance, over the classes, of the probability from the truth.
    """
    done = cases[cases["status"] == STATUS_OK]
    probabilities = done[probability_columns(facts.classes)].to_numpy(dtype=float)
    distance = np.abs(presence(done["label"], facts.classes) - probabilities)
    shown = _shown_classes(done, probabilities, distance, facts)
    table = done[["case_id", "label", "predicted"]].assign(
        shown=[facts.classes[place] for place in shown],
        probability=probabilities[np.arange(len(done)), shown],
        where=[f"line {place + FIRST_LINE} of predictions.csv" for place in done.index],
    )
    wrong = (table["label"] != table["predicted"]).to_numpy()
    surest = np.argsort(-np.where(wrong, distance.max(axis=1, initial=0), -1.0), kind="stable")
    errors = table.iloc[surest[: min(ERRORS_SHOWN, int(wrong.sum()))]].assign(group=ERRORS)
    others = table.drop(errors.index).assign(group=OUTCOMES)
    turn = others.groupby(["label", "predicted"]).cumcount().sort_values(kind="stable").index
    others = others.loc[turn].head(OUTCOMES_SHOWN).sort_values(["label", "predicted"], kind="stable")
    columns = ["case_id", "label", "predicted", "shown", "probability", "group", "where"]
    return [Chosen(*row) for row in pd.concat([errors, others])[columns].itertuples(index=False, name=None)]


def _shown_classes(done: pd.DataFrame, probabilities: Floats, distance: Floats, facts: ModelFacts) -> Integers:
    """(n,) the class whose heatmap is shown: of two the finding, of many the predicted one, of several at once the one most wrong, or,
    where the case is right, the most probable."""
    if facts.several:
        right = (done["label"] == done["predicted"]).to_numpy()
        return np.where(right, probabilities.argmax(axis=1), distance.argmax(axis=1))
    if facts.positive_index is not None:
        return np.full(len(done), facts.positive_index)
    return presence(done["predicted"], facts.classes).argmax(axis=1)


def _key_images(images: pd.DataFrame, case: Chosen, facts: ModelFacts) -> list[int]:
    """Which rows of a case's `images` to predict again: all of a volume, else the one that counts most, by attention where the model has
    it, else by the probability of the class shown."""
    if facts.network.pooling == "volume":
        return images.index.tolist()
    by = "attention" if "attention" in images else f"p_{case.shown}"
    return [int(images.index[int(np.nanargmax(images[by].to_numpy(dtype=float)))])]


def _key_result(results: Iterable[ImageResult], case: Chosen, facts: ModelFacts) -> ImageResult | None:
    """The image with the most evidence for the class shown; None where none could be predicted."""
    place = facts.classes.index(case.shown)
    done = [result for result in results if result.failure is None and result.evidence is not None]
    return max(done, key=lambda result: float(result.evidence[place].mean()), default=None)  # type: ignore[index]


def _item(model: TrainedModel, case: Chosen, result: ImageResult, weight: float) -> GalleryItem:
    prepared = result.prepared
    if prepared is None or prepared.shown is None or result.evidence is None:
        raise ValueError("a picture needs a predicted image whose pixels were kept")
    cells = result.evidence[model.facts.classes.index(case.shown)] * np.float32(weight)
    size = model.facts.preprocessing.size
    evidence = evidence_in_source(cells, model.geometry, prepared.affine, prepared.source_shape, size)
    heatmap = heatmap_layer(evidence, model.facts.heatmap_scale)
    sides = shown_sides(prepared.source_shape, prepared.spacing_mm)
    return GalleryItem(
        picture=_resized(prepared.shown, sides),
        heatmap=_resized(heatmap, sides) if heatmap[..., 3].any() else None,
        actual=case.label,
        predicted=case.predicted,
        shown=case.shown,
        probability=case.probability,
        group=case.group,
        where=case.where,
    )


def heatmap_layer(evidence: NDArray[np.float32], scale: float) -> Picture:
    """What `render.overlay` paints, as a layer of its own: (rows, columns, 4) RGBA uint8, clear where evidence is 0 or less.

    Over black the overlay is colour times opacity, over white that and what of the white comes through: so the two tell both.
    """
    black, white = (
        overlay(np.full_like(evidence, shade), evidence, scale).astype(np.float32) / 255.0 for shade in (0.0, 1.0)
    )
    opacity = np.clip(1.0 - (white - black).mean(axis=2, keepdims=True), 0.0, 1.0)
    opacity[evidence <= 0] = 0.0
    colour = np.divide(black, opacity, out=np.zeros_like(black), where=opacity > 0)
    return np.rint(np.concatenate([np.clip(colour, 0.0, 1.0), opacity], axis=2) * 255.0).astype(np.uint8)


def shown_sides(source_shape: tuple[int, int], spacing_mm: tuple[float, float] | None) -> tuple[int, int]:
    """(rows, columns) in which an image is shown: in the patient's proportions where its pixels are no squares, within `LONGEST_SIDE`."""
    spacing = spacing_mm or (1.0, 1.0)
    rows, columns = (side * millimetres / min(spacing) for side, millimetres in zip(source_shape, spacing, strict=True))
    shrink = min(1.0, LONGEST_SIDE / max(rows, columns))
    return max(1, round(rows * shrink)), max(1, round(columns * shrink))


def _resized(picture: Picture, sides: tuple[int, int]) -> Picture:
    """Pillow resizes RGBA premultiplied, so that clear pixels lend no colour."""
    if picture.shape[:2] == sides:
        return picture
    return np.asarray(Image.fromarray(picture).resize((sides[1], sides[0]), Image.Resampling.BILINEAR, reducing_gap=3))


def tiles(items: Sequence[GalleryItem]) -> list[Tile]:
    """The items for `figures.gallery`: each picture with its heatmap on it, by actual and predicted class."""
    ordered = sorted(items, key=lambda item: (item.actual, item.predicted))
    return [
        Tile(blended(item.picture, item.heatmap), item.actual, item.predicted, item.probability, about=item.shown)
        for item in ordered
    ]


def blended(picture: Picture, heatmap: Picture | None) -> Picture:
    """(rows, columns, 3) uint8: the heatmap over the picture, as a browser lays it."""
    base = picture[..., None].repeat(3, axis=2) if picture.ndim == 2 else picture
    if heatmap is None:
        return base
    opacity = heatmap[..., 3:].astype(np.float32) / 255.0
    return np.rint(base * (1.0 - opacity) + heatmap[..., :3] * opacity).astype(np.uint8)
