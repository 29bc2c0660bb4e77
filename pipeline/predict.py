"""A trained model and cases to probabilities and evidence.

`load_model` opens a run; `TrainedModel.predict` takes prepared images (batch, k, size, size) as levels. Image predictions of one case are
averaged: the mean of the probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pipeline.cache import PreparedImages
from pipeline.columns import text
from pipeline.dataset import ImageFile, Prepared, Preparer, prepare_all
from pipeline.errors import RejectReason, RunError
from pipeline.explain import class_evidence
from pipeline.feed import standardised
from pipeline.model import WEIGHTS_FILE, Classifier, Geometry
from pipeline.run import MODEL_FILE, ModelFacts, read_model
from pipeline.work import Failure
from transforms.intensity import from_levels

BATCH = 16
"""Images a forward pass: on the CPU larger ones gain nothing, on a GPU decoding is the slower part."""

STATUS_OK, STATUS_FAILED = "ok", "failed"
UID_COLUMNS = ["study_instance_uid", "series_instance_uid", "sop_instance_uid"]
PICTURE_FORMATS = ("png", "jpeg", "tiff")
RASTER_FORMATS = (*PICTURE_FORMATS, "nifti")
"""Formats without a DICOM header: rules and scope have nothing to ask, and results become overlays."""
SCOPE_COLUMNS = ("modality", "body_part_examined", "view_position")

Item = TypeVar("Item")

NOTHING: NDArray[np.uint16] = np.empty(0, dtype=np.uint16)


@dataclass(frozen=True)
class Predicted:
    """`probabilities` (batch, classes) float64; `evidence` (batch, classes, cell rows, cell columns) float32; `shown` (batch,): the class
    whose evidence speaks for the image, the finding of two classes, the most probable of more.
    """

    probabilities: NDArray[np.float64]
    evidence: NDArray[np.float32]
    shown: NDArray[np.int64]


@dataclass(frozen=True)
class TrainedModel:
    """A network with what is known about it, on its device."""

    network: Classifier
    facts: ModelFacts
    device: torch.device

    @property
    def geometry(self) -> Geometry:
        return self.network.geometry

    def predict(self, levels: NDArray[np.uint16]) -> Predicted:
        """One forward pass: probabilities, and the evidence map that the same pass gives."""
        images = from_levels(torch.from_numpy(levels).to(self.device))
        batch = standardised(images, self.facts.input_mean, self.facts.input_std)
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            features = self.network.features(batch)
        with torch.inference_mode():
            features = features.float()
            logits = self.network.classify(features)
            probabilities = torch.softmax(logits.double() / self.facts.temperature, dim=1)
            positive = self.facts.positive_index
            shown = (
                logits.argmax(dim=1) if positive is None else torch.full((len(logits),), positive, device=logits.device)
            )
            evidence = class_evidence(features, self.network.head.weight, self.network.head.bias)
        return Predicted(probabilities.cpu().numpy(), evidence.float().cpu().numpy(), shown.cpu().numpy())

    def decide(self, probabilities: NDArray[np.float64]) -> list[str]:
        """Each row's class (n, classes): by the threshold for two classes, the most probable of more; '' for NaN."""
        classes, positive = self.facts.classes, self.facts.positive_index
        if positive is None:
            chosen = np.where(np.isnan(probabilities), -1.0, probabilities).argmax(axis=1)
        else:
            chosen = np.where(probabilities[:, positive] >= self.facts.threshold, positive, 1 - positive)
        unknown: NDArray[np.bool_] = np.asarray(np.isnan(probabilities).any(axis=1))
        return ["" if missing else classes[place] for place, missing in zip(chosen, unknown, strict=True)]


@dataclass(frozen=True)
class ImageResult:
    """What is known of one image: its prediction, or its failure."""

    file: ImageFile
    failure: Failure | None = None
    prepared: Prepared | None = None
    probabilities: NDArray[np.float64] | None = None  # (classes,)
    evidence: NDArray[np.float32] | None = None  # (classes, cell rows, cell columns)
    shown: int = 0

    @property
    def reason(self) -> str:
        """Why there is no prediction; '' where there is one."""
        return f"{self.failure.reason}: {self.failure.detail}" if self.failure else ""


def predict_files(
    model: TrainedModel, files: Iterable[ImageFile], *, keep_shown: bool = False, workers: int | None = None
) -> Iterator[ImageResult]:
    """Each file decoded, prepared and predicted, in order; a stream, so memory does not grow with the number of files."""
    preparer = Preparer(model.facts.preprocessing, keep_shown)
    for batch in batched(prepare_all(files, preparer, workers)):
        decoded = [(file, prepared) for file, prepared in batch if isinstance(prepared, Prepared)]
        levels = np.stack([prepared.image for _, prepared in decoded]) if decoded else NOTHING
        predicted = _results(model, levels, decoded)
        for file, outcome in batch:
            yield ImageResult(file, failure=outcome) if isinstance(outcome, Failure) else next(predicted)


def predict_prepared(model: TrainedModel, files: Sequence[ImageFile], images: PreparedImages) -> Iterator[ImageResult]:
    """`predict_files` of images that are in the cache: the same results without what only decoding tells (`ImageResult.prepared`)."""
    failed = {
        int(position): Failure(RejectReason(reason), detail)
        for position, reason, detail in images.failures.itertuples(index=False, name=None)
    }
    for batch in batched(range(len(files))):
        usable = [position for position in batch if position not in failed]
        levels = images.take(np.array(usable, dtype=np.int64))
        predicted = _results(model, levels, [(files[position], None) for position in usable])
        for position in batch:
            failure = failed.get(position)
            yield ImageResult(files[position], failure=failure) if failure else next(predicted)


def _results(
    model: TrainedModel, levels: NDArray[np.uint16], images: Sequence[tuple[ImageFile, Prepared | None]]
) -> Iterator[ImageResult]:
    """One result for each of `images`, whose levels (n, k, size, size) are given."""
    if not images:
        return
    predicted = model.predict(levels)
    for (file, prepared), probabilities, evidence, shown in zip(
        images, predicted.probabilities, predicted.evidence, predicted.shown.tolist(), strict=True
    ):
        if np.isfinite(probabilities).all() and np.isfinite(evidence).all():
            yield ImageResult(file, None, prepared, probabilities, evidence, shown)
        else:
            failure = Failure(RejectReason.NOT_FINITE, "the network's output is not a finite number")
            yield ImageResult(file, failure=failure)


def pick_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(run: Path, device: torch.device | None = None) -> TrainedModel:
    """The trained model of a run; RunError where it is incomplete or damaged."""
    facts = read_model(run)
    network = Classifier(facts.network, len(facts.classes))
    try:
        network.load_state_dict(load_file(run / WEIGHTS_FILE))
    except RuntimeError as error:
        raise RunError(f"{run / WEIGHTS_FILE}: does not fit the network that {MODEL_FILE} describes") from error
    return trained_model(network, facts, device or pick_device())


def trained_model(network: Classifier, facts: ModelFacts, device: torch.device) -> TrainedModel:
    """A network in evaluation mode on its device."""
    return TrainedModel(network.eval().to(device).to(memory_format=torch.channels_last), facts, device)


def batched(items: Iterable[Item], size: int = BATCH) -> Iterator[list[Item]]:
    """Lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def probability_columns(classes: Sequence[str]) -> list[str]:
    """The columns p_<class>."""
    return [f"p_{name}" for name in classes]


def image_table(images: pd.DataFrame, results: Sequence[ImageResult], model: TrainedModel) -> pd.DataFrame:
    """One row an image, in the order of `results`: probabilities, or the reason for which there are none."""
    missing = np.full(len(model.facts.classes), np.nan)
    probabilities = np.array([missing if result.probabilities is None else result.probabilities for result in results])
    probabilities = probabilities.reshape(len(results), len(missing))
    named = {column: text(images[column]).to_numpy() for column in ("case_id", *UID_COLUMNS, "source", "path")}
    table = pd.DataFrame({**named, "frame": images["frame"].to_numpy()})
    table["predicted"] = model.decide(probabilities)
    table[probability_columns(model.facts.classes)] = probabilities
    table["in_scope"] = scope_reason(images, model.facts.scope).to_numpy() == ""
    table["status"] = [STATUS_FAILED if result.failure else STATUS_OK for result in results]
    table["reason"] = [result.reason for result in results]
    return table


def case_table(cases: pd.DataFrame, images: pd.DataFrame, model: TrainedModel) -> pd.DataFrame:
    """One row a case of `cases` (case_id, UIDs, path, perhaps label): the mean over its images that could be predicted.

    A case fails only if all of its images do; images that failed in a case that did not are named in its reason.
    """
    columns = probability_columns(model.facts.classes)
    ids = cases["case_id"]
    by_case = images.groupby("case_id", sort=False)
    mean = by_case[columns].mean().reindex(ids).to_numpy()
    failed = images["status"].eq(STATUS_FAILED).groupby(images["case_id"], sort=False).sum().reindex(ids).to_numpy()
    total = by_case.size().reindex(ids).to_numpy()
    first_reason = (
        images[images["reason"] != ""].groupby("case_id", sort=False)["reason"].first().reindex(ids).fillna("")
    )
    table = cases[["case_id", *UID_COLUMNS, "path"]].reset_index(drop=True)
    table["label"] = cases["label"].to_numpy() if "label" in cases else ""
    table["predicted"] = model.decide(mean)
    table[columns] = mean
    table["in_scope"] = by_case["in_scope"].all().reindex(ids).to_numpy(dtype=bool)
    table["status"] = np.where(failed == total, STATUS_FAILED, STATUS_OK)
    table["reason"] = [
        f"{bad} of {count} images failed: {why}" if bad and count > 1 else why
        for bad, count, why in zip(failed, total, first_reason, strict=True)
    ]
    return table


def scope_of(images: pd.DataFrame) -> dict[str, list[str]]:
    """What a model trained on `images` has seen: file formats, and the values of the columns that headers (or the manifest's facts)
    tell; '' among them where some were not known.
    """
    seen = {column: sorted(text(images[column]).unique().tolist()) for column in ("format", *SCOPE_COLUMNS)}
    return {column: values for column, values in seen.items() if values != [""]}


def scope_reason(images: pd.DataFrame, scope: dict[str, list[str]]) -> pd.Series:
    """For each image why it is not of the kind that the model was trained on, or ''.

    A PNG, JPEG or TIFF has no header to ask: it is in scope if such files were trained on. A NIfTI is if NIfTI was, and its modality,
    which decides what its values count, is one that the training saw. A DICOM image is if DICOM was, it has for each column that the
    training knew one of the values that it saw, and it breaks none of the training's rules (column `rule`).
    """
    formats = scope.get("format", [])
    found = text(images["format"])
    picture, volume = found.isin(PICTURE_FORMATS), found.eq("nifti")
    dicom = ~picture & ~volume
    only = f"trained on {', '.join(formats)} only"
    reason = pd.Series("", index=images.index, dtype=object)
    if not set(formats) & set(PICTURE_FORMATS):
        reason.loc[picture] = f"out of scope: a PNG, JPEG or TIFF, {only}"
    if "nifti" not in formats:
        reason.loc[volume] = f"out of scope: a NIfTI, {only}"
    if "dicom" not in formats:
        reason.loc[dicom] = f"out of scope: a DICOM image, {only}"
    for column in [name for name in SCOPE_COLUMNS if name in scope]:
        value = text(images[column])
        asked = dicom | volume if column == "modality" else dicom
        outside = asked & ~value.isin(scope[column]) & (reason == "")
        trained = ", ".join(value or "not known" for value in scope[column])
        reason.loc[outside] = (
            f"out of scope: {column} is " + value[outside].replace("", "not known") + f", trained on {trained}"
        )
    rule = text(images["rule"])
    broken = dicom & (rule != "") & (reason == "")
    reason.loc[broken] = "out of scope: the training left such images out (" + rule[broken] + ")"
    return reason
