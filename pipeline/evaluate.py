"""Evaluation: a run's model on a split of its data, or on other labelled data, as numbers with intervals and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import RESEARCH_ONLY, figures
from pipeline.cache import prepared_images
from pipeline.cases import Cases, columns_needed, group_images
from pipeline.columns import text
from pipeline.config import Config
from pipeline.dataset import Preparer, image_files
from pipeline.errors import CacheError, ConfigError, RunError
from pipeline.explain import evidence_in_source
from pipeline.files import file_digest, write_whole
from pipeline.index import Index, read_index
from pipeline.labels import NOT_PROVEN, UNKNOWN_PATIENT, check_labels, labelled_cases
from pipeline.manifest import Manifest
from pipeline.metrics import Evaluation, evaluate_predictions
from pipeline.predict import (
    STATUS_OK,
    ImageResult,
    TrainedModel,
    case_table,
    image_table,
    load_model,
    predict_files,
    predict_prepared,
    probability_columns,
)  # fmt: skip
from pipeline.progress import say, track
from pipeline.render import overlay
from pipeline.roc import roc_points
from pipeline.run import (
    EVALUATION_FOLDER,
    HISTORY_FILE,
    INDEX_FOLDER,
    SHEET_FACTS_FILE,
    SPLIT_FILE,
    identity_fingerprint,
    read_config,
    read_manifest,
    read_table,
    write_table,
)  # fmt: skip
from pipeline.sources import open_dataset
from pipeline.split import SPLIT_COLUMNS, SPLITS, check_patients, check_split
from pipeline.wording import counted

GALLERY_TILES = 12


@dataclass(frozen=True)
class Subject:
    """What is evaluated: labelled cases with their images, and where results go."""

    name: str
    cases: pd.DataFrame  # case_id, UIDs, path, label, patient_key
    images: pd.DataFrame
    index: Index
    folder: Path
    warnings: tuple[str, ...]


def evaluate(
    run: Path, *, split: str = "test", data: str | None = None, root: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Writes `metrics.json`, `predictions.csv` and pictures; returns what metrics.json holds.

    `data`: a manifest of other data, all of whose cases are evaluated, in place of a split of the run's own.
    """
    model, config = load_model(run), read_config(run)
    subject = (
        _other_data(run, data, root, model, progress) if data else _own_split(run, split, model.facts.split_sha256)
    )
    results = [_without_pixels(result) for result in _predicted(subject, model, progress)]
    images = image_table(subject.images, results, model)
    cases = case_table(subject.cases, images, model)

    subject.folder.mkdir(parents=True, exist_ok=True)
    write_table(subject.folder / "predictions.csv", cases)
    write_table(subject.folder / "image_predictions.csv", images)
    evaluation = _numbers(subject, cases, model, config)
    record = _record(subject, cases, evaluation, model)
    _pictures(run, subject, cases, images, evaluation, model)
    write_whole(subject.folder / "metrics.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    for warning in record["warnings"]:
        say(f"warning: {warning}")
    return record | {"folder": str(subject.folder)}


def _predicted(subject: Subject, model: TrainedModel, progress: bool) -> Iterator[ImageResult]:
    """Each image's prediction; decoded into the cache, or without it where the cache cannot be used."""
    files, name = image_files(subject.images, subject.index.roots), f"{subject.name} images"
    try:
        prepared = prepared_images(
            files, Preparer(model.facts.preprocessing), what=f"preparing {name}", progress=progress
        )
    except CacheError as error:
        say(f"{error}; this evaluation goes on without it")
        results = predict_files(model, files)
    else:
        results = predict_prepared(model, files, prepared)
    yield from track(results, f"evaluating {name}", len(files), show=progress)


def _own_split(run: Path, split: str, split_sha256: str) -> Subject:
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    manifest = read_manifest(run)
    table = read_table(run / SPLIT_FILE, SPLIT_COLUMNS)
    check_split(table)
    index = read_index(run / INDEX_FOLDER, columns_needed(manifest))
    grouped = _grouped(run, index, manifest)
    if manifest.patients.source == "dicom":
        check_patients(table, grouped.images)
    if split_sha256 not in ("", file_digest(run / SPLIT_FILE)):
        raise RunError(
            f"{run / SPLIT_FILE}: is not the one that the model was trained with; restore it, or train again"
        )
    wanted = table.loc[table["split"] == split, ["case_id", "label", "patient_key"]]
    cases = grouped.cases.assign(case_id=text(grouped.cases["case_id"])).merge(wanted, on="case_id", how="inner")
    if len(cases) < len(wanted):
        gone = counted(len(wanted) - len(cases), "case")
        raise RunError(f"{run / SPLIT_FILE}: {gone} of it not found in {run / INDEX_FOLDER}; the run is damaged")
    images = grouped.images[grouped.images["case_id"].isin(cases["case_id"])].reset_index(drop=True)
    folder = run / EVALUATION_FOLDER if split == "test" else run / EVALUATION_FOLDER / split
    return Subject(split, cases, images, index, folder, _independence_warnings(manifest, cases["patient_key"]))


def _grouped(run: Path, index: Index, manifest: Manifest) -> Cases:
    """The run's images as its training had them; what `sheet.facts` told of them is in the run, as the rules went by it too."""
    rules, known = manifest.rules, run / SHEET_FACTS_FILE
    if known.is_file():
        told = read_table(known, ["source", "path"])
        facts = told.columns.drop(["source", "path"])
        table = index.table.reset_index(drop=True)
        of_row = table[["source", "path"]].astype("str").merge(told, how="left", on=["source", "path"])
        table = table.assign(**{name: of_row[name].astype("category") for name in facts})
        index = replace(index, table=table.loc[of_row[facts[0]].notna().to_numpy()].reset_index(drop=True))
        rules = rules.model_copy(
            update={"include": {}, "exclude": {}, "series": "all"}
        )  # those that are left passed them
    return group_images(index, manifest.unit, rules, drop_collisions=True, facts=manifest.facts)


def _other_data(run: Path, data: str, root: Path | None, model: TrainedModel, progress: bool) -> Subject:
    opened = open_dataset(data, root)
    manifest = opened.manifest
    assert manifest is not None
    for name, own, others in (
        ("classes", model.facts.classes, manifest.classes),
        ("unit", model.facts.unit, manifest.unit),
    ):
        if own != others:
            raise ConfigError(f"--data {data}: its {name} is {others}, the model's is {own}")
    key = opened.key()
    check_labels(opened, manifest, key)
    folder = run / EVALUATION_FOLDER / f"data-{manifest.name}"
    index = opened.index(key, out=folder / INDEX_FOLDER, columns=columns_needed(manifest), progress=progress)
    labelled = labelled_cases(index, opened, manifest, key, progress=progress)
    _refuse_shared(run, data, labelled, manifest)
    warnings = labelled.warnings
    if key.fingerprint != identity_fingerprint(run):
        warnings += (
            f"{NOT_PROVEN}: the run's patients were hashed under another key, so shared patients cannot be found",
        )
    return Subject(manifest.name, labelled.cases, labelled.images, index, folder, warnings)


def _refuse_shared(run: Path, data: str, labelled: Cases, manifest: Manifest) -> None:
    """RunError if patients or images of `labelled` were trained or validated on.

    Images are told by SOPInstanceUID, without one by name and size. Stand-ins for patients say nothing across datasets.
    """
    table = read_table(run / SPLIT_FILE, SPLIT_COLUMNS)
    check_split(table)
    fitted = table[table["split"] != "test"]
    own = read_manifest(run)
    before = _grouped(run, read_index(run / INDEX_FOLDER, columns_needed(own)), own).images
    before = before[before["case_id"].isin(fitted["case_id"])]
    seen = set(fitted["patient_key"])
    if own.patients.source == "dicom":  # near-duplicates may have joined patients under another's key
        seen |= set(text(before["patient_key"]).unique())
    patients = text(labelled.cases["patient_key"])
    known = ~patients.str.startswith(UNKNOWN_PATIENT) & (manifest.patients.source != "blocks")
    seen |= {group for patient, group in labelled.joined.items() if patient in seen}
    shared = patients[known & patients.isin(seen)].nunique()
    images = int(_image_identities(labelled.images).isin(_image_identities(before)).sum())
    if shared or images:
        raise RunError(
            f"--data {data}: {shared} of its patients and {images} of its images were trained or validated on; "
            "the figures would be wrong, so nothing is done"
        )


def _image_identities(images: pd.DataFrame) -> pd.Series:
    by_name = text(images["path"]).str.replace(r"^.*/", "", regex=True) + "\x1f" + images["bytes"].astype("str")
    uid = text(images["sop_instance_uid"])
    return uid.where(uid != "", by_name)


def _independence_warnings(manifest: Manifest, patients: pd.Series) -> tuple[str, ...]:
    """Why patients may stand in two splits although no key does."""
    if manifest.patients.source == "blocks":
        return (f"{NOT_PROVEN}: patients are blocks of consecutive numbers",)
    unknown = int(patients.str.startswith(UNKNOWN_PATIENT).sum())
    cases = counted(len(patients), "case")
    return (f"{NOT_PROVEN}: {unknown} of {cases} without a known patient",) if unknown else ()


def _without_pixels(result: ImageResult) -> ImageResult:
    """Evaluation keeps every result until the end, so not their pixels."""
    return ImageResult(result.file, result.failure, None, result.probabilities, None, result.shown)


def _numbers(subject: Subject, cases: pd.DataFrame, model: TrainedModel, config: Config) -> Evaluation:
    facts = model.facts
    done = cases["status"] == STATUS_OK
    if not done.any():
        raise RunError(
            f"not one of {counted(len(cases), 'case')} could be predicted; reasons are in {subject.folder / 'predictions.csv'}"
        )
    label = (
        cases.loc[done, "label"].map({name: place for place, name in enumerate(facts.classes)}).to_numpy(dtype=np.int64)
    )
    return evaluate_predictions(
        label,
        cases.loc[done, probability_columns(facts.classes)].to_numpy(),
        subject.cases["patient_key"].to_numpy()[done.to_numpy()],
        classes=facts.classes,
        positive=facts.positive_index,
        threshold=facts.threshold,
        resamples=config.evaluation.resamples,
        seed=config.seed,
    )


def _record(subject: Subject, cases: pd.DataFrame, evaluation: Evaluation, model: TrainedModel) -> dict[str, Any]:
    failed = int((cases["status"] != STATUS_OK).sum())
    warnings = [*subject.warnings, *evaluation.warnings]
    if failed:
        warnings.append(
            f"{failed} of {counted(len(cases), 'case')} could not be predicted, so not in the figures (predictions.csv says why)"
        )
    if model.facts.notice:
        warnings.append(model.facts.notice)
    record = {"split": subject.name, "unit": model.facts.unit, **evaluation.to_json(), "failed": failed}
    return record | {"warnings": _brief(warnings), "model": model.facts.name, "intended_use": RESEARCH_ONLY}


def _brief(warnings: Sequence[str]) -> list[str]:
    """Each warning once; those that say the same of different things (what stands before ': ') in one sentence."""
    told: dict[str, list[str]] = {}
    for warning in dict.fromkeys(warnings):
        what, _, of_what = warning.partition(": ")
        told.setdefault(what if what == NOT_PROVEN else warning, []).append(of_what)
    return [
        f"{what}: {'; '.join(filter(None, of_what))}" if what == NOT_PROVEN else what for what, of_what in told.items()
    ]


def _pictures(
    run: Path, subject: Subject, cases: pd.DataFrame, images: pd.DataFrame, evaluation: Evaluation, model: TrainedModel
) -> None:
    facts, folder = model.facts, subject.folder
    note = f"{facts.name}, {subject.name}. {facts.notice + '. ' if facts.notice else ''}{RESEARCH_ONLY}."
    done = cases[cases["status"] == STATUS_OK]
    figures.confusion_matrix(folder / "confusion_matrix.png", evaluation.confusion, facts.classes, note=note)
    figures.roc(folder / "roc.png", _roc_lines(subject, done, evaluation, model), note=note)
    history = pd.read_csv(run / HISTORY_FILE)
    of_the_run = note.replace(f"{facts.name}, {subject.name}.", f"{facts.name}.", 1)
    figures.history(folder / "history.png", history, best_epoch=facts.best_epoch, note=of_the_run)
    figures.class_histogram(folder / "class_histogram.png", read_table(run / SPLIT_FILE), note=of_the_run)
    figures.gallery(folder / "gallery.png", _tiles(subject, done, images, model), note=note)


def _roc_lines(
    subject: Subject, done: pd.DataFrame, evaluation: Evaluation, model: TrainedModel
) -> list[figures.RocLine]:
    """One line for two classes; one against rest for each of more. Where it is not defined, the figure says so."""
    facts = model.facts
    patients = done["case_id"].map(subject.cases.set_index("case_id")["patient_key"]).to_numpy()
    positive = facts.positive_index
    lines = []
    for place in range(len(facts.classes)) if positive is None else (positive,):
        name = facts.classes[place]
        truth = (done["label"] == name).to_numpy()
        area = evaluation.metrics["auroc" if positive is not None else f"auroc_{name}"]
        points = roc_points(truth, done[f"p_{name}"].to_numpy(), patients)
        lines.append(figures.RocLine(name, points, area, facts.threshold if positive is not None else None))
    return lines


def _tiles(subject: Subject, done: pd.DataFrame, images: pd.DataFrame, model: TrainedModel) -> list[figures.Tile]:
    """Cases of every outcome (actual, predicted) in turn, each by its image with the highest probability of the class shown."""
    facts, chosen = model.facts, _gallery_cases(done).to_dict("records")
    usable = images[images["status"] == STATUS_OK]
    shown = [
        facts.classes.index(case["predicted"]) if facts.positive_index is None else facts.positive_index
        for case in chosen
    ]
    rows = [
        usable.loc[usable["case_id"] == case["case_id"], f"p_{facts.classes[place]}"].idxmax()
        for case, place in zip(chosen, shown, strict=True)
    ]
    results = predict_files(model, image_files(subject.images.loc[rows], subject.index.roots), keep_shown=True)
    return [
        figures.Tile(
            heatmap_picture(model, result, place),
            case["label"],
            case["predicted"],
            float(case[f"p_{case['predicted']}"]),
        )
        for case, place, result in zip(chosen, shown, results, strict=True)
        if result.failure is None
    ]


def _gallery_cases(done: pd.DataFrame) -> pd.DataFrame:
    rank = done.groupby(["label", "predicted"]).cumcount()
    return (
        done.assign(rank=rank)
        .sort_values("rank", kind="stable")
        .head(GALLERY_TILES)
        .sort_values(["label", "predicted"], kind="stable")
    )


def heatmap_picture(model: TrainedModel, result: ImageResult, shown: int) -> np.ndarray:
    """The image with its evidence for class `shown` over it, (rows, columns, 3) uint8, at its own resolution."""
    prepared = result.prepared
    if prepared is None or prepared.shown is None or result.evidence is None:
        raise ValueError("a picture needs a predicted image whose pixels were kept")
    evidence = evidence_in_source(
        result.evidence[shown], model.geometry, prepared.affine, prepared.source_shape, model.facts.preprocessing.size
    )
    return overlay(prepared.shown.astype(np.float32) / 255.0, evidence, model.facts.heatmap_scale)


def summary_lines(
    record: dict[str, Any], names: Sequence[str] = ("accuracy", "sensitivity", "specificity", "f1", "auroc")
) -> list[str]:
    """The main figures as text, each with its interval."""
    proven = "" if not any(NOT_PROVEN in warning for warning in record["warnings"]) else f" ({NOT_PROVEN})"
    of_whom = f"{counted(record['cases'], 'case')} of {counted(record['patients'], 'patient')}"
    lines = [f"{record['split']}: {of_whom}{proven}"]
    for name in names:
        metric = record["metrics"].get(name)
        if metric is None or metric["value"] is None:
            lines.append(f"  {name:<12} not defined here")
        elif metric["low"] is None:
            lines.append(f"  {name:<12} {metric['value']:.3f}")
        else:
            lines.append(
                f"  {name:<12} {metric['value']:.3f}  (95 % interval {metric['low']:.3f} to {metric['high']:.3f})"
            )
    return lines
