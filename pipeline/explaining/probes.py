"""The images whose heatmaps are tested, and what a model shows on them, as they are or changed.

A `Probe` is one image of a case that the model calls, chosen so that as many patients as possible have one; with volume pooling it holds
the whole case, and one slice of it is looked at. Maps are the cells (cell rows, cell columns) of the class that the model shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.label_arrays import presence
from pipeline.prediction.predict import BATCH, STATUS_OK, TrainedModel, batched, predict_files, probability_columns
from pipeline.prepared.dataset import ImageFile, Prepared, image_files
from pipeline.run import ModelFacts

Levels = NDArray[np.uint16]  # (n, k, size, size)
Cells = NDArray[np.float32]  # (cell rows, cell columns)


@dataclass(frozen=True)
class Probe:
    """`levels` of the image, or of all slices of its case; `place`: the one looked at; `shown`: the class; `prepared`: of that image."""

    file: ImageFile
    patient: str
    shown: int
    levels: Levels
    place: int
    prepared: Prepared


@dataclass(frozen=True)
class Chosen:
    """Rows of the table of images that make one probe, and the class that it shows."""

    case_id: str
    shown: int
    rows: tuple[int, ...]


def chosen_images(
    cases: pd.DataFrame, images: pd.DataFrame, patients: pd.Series, facts: ModelFacts, count: int, seed: int
) -> list[Chosen]:
    """Of the cases that are called, up to `count`: one of each patient first, then a second of each, in an order drawn by `seed`.

    `cases`, `images`: predictions.csv and image_predictions.csv, numbered from 0; `patients`: one a row of `cases`. A case is called where
    the class whose heatmap it shows is among what is predicted; where none is, all count, as there is nothing better to look at.
    """
    done = (cases["status"] == STATUS_OK).to_numpy()
    table = cases.assign(patient_key=patients.astype(str).to_numpy())[done].reset_index(drop=True)
    if table.empty:
        return []
    shown = _shown(table, facts)
    called = presence(table["predicted"], facts.classes)[np.arange(len(table)), shown].astype(bool)
    table = table.assign(shown=shown)[called if called.any() else np.ones(len(table), dtype=bool)]
    table = table.sample(frac=1.0, random_state=seed)
    turn = table.groupby("patient_key").cumcount().sort_values(kind="stable").index
    of_case = images[images["status"] == STATUS_OK].groupby("case_id", sort=False).groups
    return [
        Chosen(str(case_id), int(place), _key_rows(images.loc[of_case[case_id]], int(place), facts))
        for case_id, place in table.loc[turn, ["case_id", "shown"]].head(count).itertuples(index=False, name=None)
    ]


def _shown(table: pd.DataFrame, facts: ModelFacts) -> NDArray[np.int64]:
    """The class whose heatmap is drawn: of two the finding, else the most probable."""
    if facts.positive_index is not None:
        return np.full(len(table), facts.positive_index)
    return np.asarray(table[probability_columns(facts.classes)].to_numpy(dtype=float).argmax(axis=1))


def _key_rows(images: pd.DataFrame, shown: int, facts: ModelFacts) -> tuple[int, ...]:
    """All of a volume; else the image that counts most: by attention where there is one, by the probability of the class shown."""
    if facts.network.pooling == "volume":
        return tuple(images.index.tolist())
    by = "attention" if "attention" in images else probability_columns(facts.classes)[shown]
    return (int(images.index[int(np.nanargmax(images[by].to_numpy(dtype=float)))]),)


def read_probes(
    model: TrainedModel, chosen: Sequence[Chosen], images: pd.DataFrame, roots: dict[str, Path], patient: pd.Series
) -> list[Probe]:
    """The chosen images decoded; one that cannot be read any more is passed over. `images`: those that were predicted, row for row;
    `patient`: by case_id. Of a volume the slice with the most evidence is looked at."""
    files = image_files(images.loc[[row for one in chosen for row in one.rows]], roots)
    results = predict_files(model, files, keep_shown=True)
    probes = []
    for one in chosen:
        ours = [next(results) for _ in one.rows]
        usable = [result for result in ours if result.prepared is not None and result.evidence is not None]
        if not usable:
            continue
        most = [float(result.evidence[one.shown].max()) for result in usable]  # type: ignore[index]
        place = int(np.argmax(most))
        prepared = usable[place].prepared
        assert prepared is not None
        levels = np.stack([result.prepared.image for result in usable if result.prepared is not None])
        probes.append(Probe(usable[place].file, str(patient[one.case_id]), one.shown, levels, place, prepared))
    return probes


def maps_of(
    model: TrainedModel, probes: Sequence[Probe], change: Callable[[Levels], Levels] | None = None
) -> tuple[list[Cells], list[float]]:
    """Each probe's map, and the probability of its class, after `change` of its levels."""
    cells: list[Cells] = []
    probabilities: list[float] = []
    at_once = 1 if model.facts.network.pooling == "volume" else BATCH
    for batch in batched(probes, at_once):
        levels = np.concatenate([probe.levels for probe in batch])
        told = model.predict(change(levels) if change else levels)
        for number, probe in enumerate(batch):
            row = number if at_once > 1 else probe.place
            cells.append(told.evidence[row, probe.shown].copy())
            probabilities.append(float(told.probabilities[row, probe.shown]))
    return cells, probabilities
