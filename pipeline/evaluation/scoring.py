"""A model on a subject: its predictions as tables, and as the arrays that numbers are made from.

In: a `Subject` and a `TrainedModel`, perhaps with a stress on the images. Out: `Predictions`, whose tables are what evaluation writes.
Images are prepared through the cache where it can be used, but under stress; of an image nothing is kept but its logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pipeline.errors import CacheError
from pipeline.evaluation.subject import Subject
from pipeline.label_arrays import label_array
from pipeline.metrics.measures import Scored, score
from pipeline.prediction.predict import (
    STATUS_OK,
    ImageResult,
    TrainedModel,
    case_table,
    image_table,
    predict_files,
    predict_prepared,
    probability_columns,
)  # fmt: skip
from pipeline.prepared.cache import prepared_images
from pipeline.prepared.dataset import ImageFile, Preparer, image_files
from pipeline.progress import say, track
from pipeline.run import ModelFacts


@dataclass(frozen=True)
class Predictions:
    """`cases` and `images`: predictions.csv and image_predictions.csv, rows as in the subject's tables. `uncalibrated`: the cases with
    temperature 1."""

    cases: pd.DataFrame
    images: pd.DataFrame
    uncalibrated: pd.DataFrame


def predict_subject(model: TrainedModel, subject: Subject, *, stress: str = "", progress: bool = True) -> Predictions:
    """Every image of the subject predicted. `stress`: a name in `transforms.stress.STRESSES`, applied to each image first."""
    results = [replace(result, prepared=None, evidence=None) for result in _results(model, subject, stress, progress)]
    images = image_table(subject.images, results, model)
    cases = case_table(subject.cases, images, results, model)
    if model.facts.temperature == 1:
        return Predictions(cases, images, cases)
    plain = replace(model, facts=model.facts.model_copy(update={"temperature": 1.0}))
    return Predictions(cases, images, case_table(subject.cases, images, results, plain))


def _results(model: TrainedModel, subject: Subject, stress: str, progress: bool) -> Iterator[ImageResult]:
    """Each image's prediction; decoded into the cache, or without it where the cache cannot be used. Under stress it is passed by: each
    stress is looked at once, and all of them would fill it many times over."""
    files, name = image_files(subject.images, subject.index.roots), f"{subject.name} images"
    results = predict_files(model, files, stress=stress) if stress else _from_cache(model, files, name, progress)
    yield from track(results, f"evaluating {name}{f' under {stress}' if stress else ''}", len(files), show=progress)


def _from_cache(model: TrainedModel, files: list[ImageFile], name: str, progress: bool) -> Iterator[ImageResult]:
    preparer = Preparer(model.facts.preprocessing)
    try:
        prepared = prepared_images(files, preparer, what=f"preparing {name}", progress=progress)
    except CacheError as error:
        say(f"{error}; this evaluation goes on without it")
        return predict_files(model, files)
    return predict_prepared(model, files, prepared)


def scored(cases: pd.DataFrame, patients: pd.Series, facts: ModelFacts) -> Scored:
    """The cases of predictions.csv that could be predicted, as numbers, with what was called; `patients`: one a row of `cases`."""
    done = (cases["status"] == STATUS_OK).to_numpy()
    table = cases[done]
    made = score(
        label_array(table["label"], facts.classes, facts.several),
        table[probability_columns(facts.classes)].to_numpy(dtype=float),
        patients.to_numpy()[done],
        classes=facts.classes,
        positive=facts.positive_index,
        threshold=facts.thresholds,
        several=facts.several,
    )
    # As the table says: of folds each has thresholds of its own.
    return replace(made, predicted=_called(table["predicted"], facts))


def _called(predicted: pd.Series, facts: ModelFacts) -> np.ndarray:
    return np.asarray(label_array(predicted, facts.classes, facts.several)).astype(np.int64)
