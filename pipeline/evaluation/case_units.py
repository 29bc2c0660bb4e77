"""The same predictions by other units: of single images, of series, of patients.

In: the tables of an evaluation, and the `Scored` of its cases. Out: for each unit that differs from the model's own a `Scored`, or in words
why there is none. A series or a patient has the mean of its images' probabilities (with attention or volume pooling: of its cases'), and
a label where all its cases have the same one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.columns import text
from pipeline.metrics.measures import Scored, score
from pipeline.prediction.prediction_tables import probability_columns
from pipeline.run import ModelFacts

UNITS = ("image", "series", "patient")


def by_unit(
    cases: Scored, case_ids: pd.Series, images: pd.DataFrame, facts: ModelFacts, *, patients_known: bool = True
) -> tuple[dict[str, Scored], dict[str, str]]:
    """What is scored by each of `UNITS` but the model's own, and why the others are not.

    `case_ids`: of each of `cases`, in their order. `images`: image_predictions.csv; those that failed are passed over.
    """
    found: dict[str, Scored] = {}
    without: dict[str, str] = {}
    for unit in UNITS:
        if unit == facts.unit:
            continue
        if unit == "patient" and not patients_known:
            without[unit] = "patients are not known"
        elif unit != "patient" and facts.network.pooling != "mean":
            without[unit] = f"with {facts.network.pooling} pooling images have no prediction of their own"
        else:
            rows = _rows(cases, case_ids, images, facts, unit)
            without[unit] = "" if unit == "image" else _no_group(cases, rows, unit)
            if not without[unit]:
                found[unit] = _scored(cases, rows, facts)
    return found, {unit: reason for unit, reason in without.items() if reason}


def _rows(cases: Scored, case_ids: pd.Series, images: pd.DataFrame, facts: ModelFacts, unit: str) -> pd.DataFrame:
    """One row an image (or a case) that was predicted: the number of its `case`, its `group`, and its probabilities by class number."""
    if facts.network.pooling != "mean":
        rows = pd.DataFrame(cases.probabilities).assign(case=np.arange(len(cases)), group="")
    else:
        place = pd.Index(text(case_ids)).get_indexer(pd.Index(text(images["case_id"])))
        probabilities = images[probability_columns(facts.classes)].to_numpy(dtype=float)
        used = (place >= 0) & ~np.isnan(probabilities).any(axis=1)
        rows = pd.DataFrame(probabilities[used])
        rows["case"] = place[used]
        rows["group"] = text(images["series_instance_uid"]).to_numpy()[used]
    if unit == "image":
        rows["group"] = np.arange(len(rows))
    elif unit == "patient":
        rows["group"] = cases.patient[rows["case"]]
    return rows


def _no_group(cases: Scored, rows: pd.DataFrame, unit: str) -> str:
    """Why these groups cannot be scored, or say nothing new; '' where they can."""
    if (rows["group"] == "").any():
        return f"not all images have a {unit}"
    pairs = rows[["group", "case"]].drop_duplicates()
    if pairs["group"].is_unique and pairs["case"].is_unique:
        return f"each case is one {unit}: the figures are the same"
    label = cases.label[pairs["case"]].reshape(len(pairs), -1)
    _, number = np.unique(label, axis=0, return_inverse=True)
    labels = pd.Series(number.reshape(-1)).groupby(pairs["group"].to_numpy()).nunique()
    mixed = int((labels > 1).sum())
    if mixed:
        of_all = f"of {len(labels):,} {unit if unit == 'series' else unit + 's'}"
        return f"{mixed:,} {of_all} {'has' if mixed == 1 else 'have'} cases with different labels"
    return ""


def _scored(cases: Scored, rows: pd.DataFrame, facts: ModelFacts) -> Scored:
    """One case for each group, with the mean of its probabilities."""
    each = rows.groupby("group", sort=False)
    case = each["case"].first().to_numpy()
    return score(
        cases.label[case],
        each[list(range(len(facts.classes)))].mean().to_numpy(dtype=float),
        cases.patient[case],
        classes=facts.classes,
        positive=facts.positive_index,
        threshold=facts.thresholds,
        several=facts.several,
    )
