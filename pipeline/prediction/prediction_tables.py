"""Predictions as tables: `image_predictions.csv`, one row a file and frame, and `predictions.csv`, one row a case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.columns import text
from pipeline.label_arrays import label_texts
from pipeline.prediction.pooling import attention_shares, pool_each
from pipeline.prediction.scope import scope_reason

if TYPE_CHECKING:
    from pipeline.prediction.predict import ImageResult, TrainedModel
    from pipeline.run import ModelFacts

STATUS_OK, STATUS_FAILED = "ok", "failed"
UID_COLUMNS = ["study_instance_uid", "series_instance_uid", "sop_instance_uid"]


def probability_columns(classes: Sequence[str]) -> list[str]:
    """The columns p_<class>."""
    return [f"p_{name}" for name in classes]


def decide(facts: ModelFacts, probabilities: NDArray[np.float64]) -> list[str]:
    """Each row's class (n, classes): by the threshold for two classes, the most probable of more; of several labels at once all
    over their thresholds (`label_arrays.label_texts`). '' for NaN.
    """
    unknown: NDArray[np.bool_] = np.asarray(np.isnan(probabilities).any(axis=1))
    known = np.where(unknown[:, None], 0.0, probabilities)
    texts = np.array(_texts(facts, known), dtype=object)
    texts[unknown] = ""
    return list(texts)


def _texts(facts: ModelFacts, probabilities: NDArray[np.float64]) -> list[str]:
    classes, positive = np.array(facts.classes, dtype=object), facts.positive_index
    if facts.several:
        called = probabilities >= [facts.thresholds[name] for name in facts.classes]
        return label_texts(called, facts.classes)
    if positive is None:
        return list(classes[probabilities.argmax(axis=1)])
    return list(classes[np.where(probabilities[:, positive] >= facts.threshold, positive, 1 - positive)])


def image_table(images: pd.DataFrame, results: Sequence[ImageResult], model: TrainedModel) -> pd.DataFrame:
    """One row an image, in the order of `results`: probabilities, or the reason for which there are none.

    Where attention pools them, `attention` is the image's share in its case, 0 to 1.
    """
    facts = model.facts
    done = _done(results)
    probabilities = np.full((len(results), len(facts.classes)), np.nan)
    if done.any():
        probabilities[done] = [result.probabilities for result in results if result.probabilities is not None]
    named = {column: text(images[column]).to_numpy() for column in ("case_id", *UID_COLUMNS, "source", "path")}
    table = pd.DataFrame({**named, "frame": images["frame"].to_numpy()})
    table["predicted"] = decide(facts, probabilities)
    table[probability_columns(facts.classes)] = probabilities
    if facts.network.pooling == "attention":
        table["attention"] = _shares(table["case_id"], results, done)
    table["in_scope"] = scope_reason(images, facts.scope).to_numpy() == ""
    table["status"] = np.where(done, STATUS_OK, STATUS_FAILED)
    table["reason"] = [result.reason for result in results]
    return table


def case_table(
    cases: pd.DataFrame, images: pd.DataFrame, results: Sequence[ImageResult], model: TrainedModel
) -> pd.DataFrame:
    """One row a case of `cases` (case_id, UIDs, path, perhaps label): what its images that could be predicted say together.

    `images`: the `image_table` of `results`. A case fails only if all of its images do; images that failed in a case that did not are
    named in its reason.
    """
    facts, ids = model.facts, pd.Index(text(cases["case_id"]))
    place = ids.get_indexer(pd.Index(images["case_id"])).astype(np.int64)
    pooled = _pooled(results, place, len(ids), model)
    bad = (images["status"] == STATUS_FAILED).to_numpy()
    total, failed = np.bincount(place, minlength=len(ids)), np.bincount(place[bad], minlength=len(ids))
    table = cases[["case_id", *UID_COLUMNS, "path"]].reset_index(drop=True)
    table["label"] = cases["label"].to_numpy() if "label" in cases else ""
    table["predicted"] = decide(facts, pooled)
    table[probability_columns(facts.classes)] = pooled
    table["in_scope"] = np.bincount(place[~images["in_scope"].to_numpy(dtype=bool)], minlength=len(ids)) == 0
    table["status"] = np.where(failed == total, STATUS_FAILED, STATUS_OK)
    table["reason"] = _reasons(images.loc[bad, "reason"].to_numpy(), place[bad], failed, total)
    return table


def _done(results: Sequence[ImageResult]) -> NDArray[np.bool_]:
    return np.fromiter((result.probabilities is not None for result in results), dtype=bool, count=len(results))


def _shares(case_id: pd.Series, results: Sequence[ImageResult], done: NDArray[np.bool_]) -> NDArray[np.float64]:
    shares = np.full(len(results), np.nan)
    if done.any():
        attention = np.array([result.attention for result in results if result.attention is not None])
        codes, names = pd.factorize(case_id[done])
        shares[done] = attention_shares(attention, codes.astype(np.int64), len(names))
    return shares


def _pooled(
    results: Sequence[ImageResult], place: NDArray[np.int64], cases: int, model: TrainedModel
) -> NDArray[np.float64]:
    """(cases, classes) probabilities; NaN for a case of which no image could be predicted."""
    done = _done(results)
    if not done.any():
        return np.full((cases, len(model.facts.classes)), np.nan)
    logits = np.array([result.logits for result in results if result.logits is not None])
    attention = np.array([result.attention for result in results if result.attention is not None])
    facts = model.facts
    return pool_each(logits, attention, place[done], cases, model.temperatures, facts.several, facts.network.pooling)


def _reasons(
    reasons: NDArray[np.object_], place: NDArray[np.int64], failed: NDArray[np.int64], total: NDArray[np.int64]
) -> list[str]:
    """For each case the first reason of its failed images, and how many of how many failed."""
    told = [""] * len(total)
    for case, first in zip(*np.unique(place, return_index=True), strict=True):
        count = f"{failed[case]} of {total[case]} images failed: " if total[case] > 1 else ""
        told[case] = f"{count}{reasons[first]}"
    return told
