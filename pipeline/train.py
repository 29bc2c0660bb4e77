"""Training: a configuration and its dataset to a run folder with a model that evaluation and inference can use."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import pipeline
from pipeline.cache import PreparedImages, prepared_images
from pipeline.cases import Cases, columns_needed
from pipeline.columns import matches, text
from pipeline.config import Config, Preprocessing, digest
from pipeline.dataset import Preparer, image_files, input_statistics, windows_of
from pipeline.dataset_split import dataset_split
from pipeline.errors import ConfigError, RunError
from pipeline.explain import heatmap_scale
from pipeline.feed import LabelledImages
from pipeline.files import file_digest
from pipeline.fit import Fit, fit
from pipeline.identity import IdentityKey
from pipeline.index import Index, read_index
from pipeline.labels import check_labels, labelled_cases
from pipeline.manifest import Manifest
from pipeline.model import RESNET_GEOMETRY, Classifier, WeightsOrigin, build_classifier
from pipeline.predict import batched, pick_device, scope_of, trained_model
from pipeline.progress import say
from pipeline.run import (
    CONFIG_FILE,
    EVALUATION_FOLDER,
    EXCLUSIONS_FILE,
    INDEX_FOLDER,
    MANIFEST_FILE,
    MODEL_FILE,
    SHEET_FACTS_FILE,
    SHEET_PROBLEMS_FILE,
    SPLIT_FILE,
    ModelFacts,
    identity_fingerprint,
    read_config,
    read_manifest,
    read_model,
    read_table,
    write_environment,
    write_model,
    write_settings,
    write_table,
)  # fmt: skip
from pipeline.sources import open_dataset
from pipeline.split import SPLIT_COLUMNS, SPLITS, Split, check_split
from pipeline.split_file import left_out
from pipeline.wording import counted
from transforms.augment import Augmentations
from transforms.intensity import describe_unit_range

CACHE_FOLDER = "cache"
"""In the run, where the user's cache cannot be written."""
FEWEST_CELLS = 4
"""Along a side: with fewer, a cell is larger than an organ."""


@dataclass(frozen=True)
class Part:
    """One split's prepared images, the rows (n,) of those that could be decoded, and their class indices (n,)."""

    images: PreparedImages
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]


def train(
    config: Config, out: Path, *, root: Path | None = None, resume: bool = False, progress: bool = True
) -> ModelFacts:
    """Trains what `config` says into the run folder `out`; returns the facts of the model, which is then on disk.

    Raises ConfigError, SourceError, WeightsError or RunError with one message that says what to do.
    """
    opened = open_dataset(config.manifest, root)
    manifest, key = opened.manifest, opened.key()
    assert manifest is not None
    opened.refuse_output(out)
    _check_folder(out, config, manifest, key, resume)
    torch.manual_seed(config.seed)
    network, origin = build_classifier(config.network, len(manifest.classes))
    device = pick_device()

    resume = resume and (out / SPLIT_FILE).exists()
    if not resume:
        check_labels(opened, manifest, key)
    folder, columns = out / INDEX_FOLDER, columns_needed(manifest)
    index = read_index(folder, columns) if resume else opened.index(key, out=folder, columns=columns, progress=progress)
    cases = labelled_cases(index, opened, manifest, key, progress=progress)
    divided = _resumed(cases, out) if resume else dataset_split(cases, opened, manifest, key)
    split = divided.table
    write_environment(out, device, key)
    _write_dataset(out, cases, split, manifest)
    write_settings(out, config, manifest)  # last: a folder with a configuration can be resumed
    training, validation, exclusions = _prepare(config, cases, split, index, manifest, out, progress)
    left = [cases.exclusions, left_out(cases, split), exclusions]
    write_table(out / EXCLUSIONS_FILE, pd.concat(left, ignore_index=True))
    for warning in (*cases.warnings, *divided.warnings, *_start_warnings(config), *_window_warnings(config, cases)):
        say(f"warning: {warning}")
    if progress:
        _announce(divided, manifest, config, training, validation, device)

    fitted = fit(
        network, *_labelled(config, training, validation), config.training,
        run=out, seed=config.seed, device=device, progress=progress,
    )  # fmt: skip
    return _finish(config, manifest, cases, split, fitted, origin, validation, device, out)


def _check_folder(out: Path, config: Config, manifest: Manifest, key: IdentityKey, resume: bool) -> None:
    """A folder of another training is left alone; one that is resumed must have been begun with the same data and settings."""
    if not (out / CONFIG_FILE).exists():
        if resume:
            say(f"{out}: nothing to resume, starting")
        return
    if not resume:
        what = (
            "a trained run; give"
            if (out / MODEL_FILE).exists()
            else "a training that was begun; go on with --resume, or give"
        )
        raise RunError(f"{out}: holds {what} another --out, or remove it")
    begun = read_config(out)
    same = {"epochs": config.training.epochs, "max_minutes": config.training.max_minutes}
    if digest(begun.model_copy(update={"training": begun.training.model_copy(update=same)})) != digest(config):
        raise RunError(
            f"{out}: was begun with another configuration ({CONFIG_FILE}); only epochs and max_minutes may differ"
        )
    if digest(read_manifest(out)) != digest(manifest):
        raise RunError(f"{out}: was begun with another manifest ({MANIFEST_FILE}); train into another --out")
    if identity_fingerprint(out) != key.fingerprint:
        raise RunError(
            f"{out}: its patients were hashed under another key; restore the project's key, or train into another --out"
        )


def _start_warnings(config: Config) -> tuple[str, ...]:
    """Where the weights come from a run that saw other numbers: its features, frozen above all, may then say nothing."""
    start = Path(config.network.weights)
    if not (start / MODEL_FILE).is_file():
        return ()
    before, now = (_what_numbers_mean(settings) for settings in (read_model(start).preprocessing, config.preprocessing))
    other = [name for name, value in now.items() if before.get(name) != value]
    return (f"the weights of {start} were trained with another preprocessing.{' and .'.join(other)}",) if other else ()


def _what_numbers_mean(preprocessing: Preprocessing) -> dict[str, Any]:
    """The settings that decide what a value of the network's input stands for, whatever its size."""
    settings = preprocessing.model_dump(exclude={"size", "resize"})
    return settings if preprocessing.scaling == "percentile" else settings | {"percentiles": None}


def _window_warnings(config: Config, cases: Cases) -> tuple[str, ...]:
    """Three windows where nothing is in HU: three channels that are all the same."""
    if not isinstance(config.preprocessing.window, tuple) or matches(cases.images["modality"], "CT".__eq__).any():
        return ()
    return (
        "preprocessing.window: three windows are for CT, of which there is none here; all three channels are the same",
    )


def _resumed(cases: Cases, out: Path) -> Split:
    """The split that the run was begun with; its labels and patients must still be the data's."""
    split = read_table(out / SPLIT_FILE, SPLIT_COLUMNS)
    check_split(split)
    places = pd.Index(text(cases.cases["case_id"])).get_indexer(pd.Index(split["case_id"]))
    for column, noun in (("label", "label"), ("patient_key", "patient")):
        now = text(cases.cases[column]).to_numpy()[places]
        changed = int(((places < 0) | (now != split[column].to_numpy())).sum())
        if changed:
            raise RunError(
                f"{out / SPLIT_FILE}: expected the data that the training was begun with; the {noun} of {counted(changed, 'case')} "
                "is another now, or the case is gone; train into another --out"
            )
    return Split(split)


def _write_dataset(out: Path, cases: Cases, split: pd.DataFrame, manifest: Manifest) -> None:
    """The split, and what the label sheet had to say: which of its rows are wrong, and facts that the index does not hold."""
    if len(cases.sheet_problems):
        write_table(out / SHEET_PROBLEMS_FILE, cases.sheet_problems)
    if manifest.sheet and manifest.sheet.facts:
        files = cases.images.drop_duplicates(["source", "path"])
        write_table(out / SHEET_FACTS_FILE, files[["source", "path", *manifest.sheet.facts]])
    write_table(out / SPLIT_FILE, split)


def _prepare(
    config: Config,
    cases: Cases,
    split: pd.DataFrame,
    index: Index,
    manifest: Manifest,
    out: Path,
    progress: bool,
) -> tuple[Part, Part, pd.DataFrame]:
    """Decoded images of the training and validation splits; those that cannot be decoded are exclusions."""
    parts, excluded = [], []
    for name in ("train", "validation"):
        ids = split.loc[split["split"] == name, "case_id"]
        rows = cases.images[cases.images["case_id"].isin(ids)].reset_index(drop=True)
        prepared = prepared_images(
            image_files(rows, index.roots),
            Preparer(config.preprocessing),
            what=f"preparing {name} images",
            progress=progress,
            fallback=out / CACHE_FOLDER,
        )
        parts.append(_part(prepared, rows["label"], manifest.classes, name))
        failed = rows.loc[prepared.failures["position"], ["source", "path"]].reset_index(drop=True)
        excluded.append(failed.assign(rule="cannot be decoded: " + prepared.failures["reason"]).drop_duplicates())
    return parts[0], parts[1], pd.concat(excluded, ignore_index=True)


def _part(prepared: PreparedImages, names: pd.Series, classes: Sequence[str], split: str) -> Part:
    usable = prepared.usable
    place = {name: number for number, name in enumerate(classes)}
    labels = np.array([place[name] for name in names], dtype=np.int64)[usable]
    rows = np.flatnonzero(usable)
    absent = [name for name, number in place.items() if number not in labels]
    if absent:
        raise ConfigError(f"no image of class {absent[0]} in the {split} split can be decoded; radloop index says why")
    return Part(prepared, rows, labels)


def _labelled(config: Config, training: Part, validation: Part) -> tuple[LabelledImages, LabelledImages]:
    """Training images to be varied at random, validation images as they are."""
    statistics = input_statistics(config.preprocessing, config.network.channels)
    augmentation = Augmentations(**config.augmentation.model_dump())
    return (
        LabelledImages(
            training.images, training.rows, training.labels, *statistics, augmentation=augmentation, seed=config.seed
        ),
        LabelledImages(validation.images, validation.rows, validation.labels, *statistics),
    )


def _finish(
    config: Config, manifest: Manifest, cases: Cases, split: pd.DataFrame, fitted: Fit, origin: WeightsOrigin,
    validation: Part, device: torch.device, out: Path,
) -> ModelFacts:  # fmt: skip
    """The best epoch's weights and all that is known about them; the heatmap's scale comes from the validation split."""
    network: Classifier = fitted.network
    network.load_state_dict(fitted.best_weights)
    seen = cases.images[cases.images["case_id"].isin(split.loc[split["split"] == "train", "case_id"])]
    facts = _facts(config, manifest, fitted, origin, out) | {"scope": scope_of(seen)}
    provisional = trained_model(network, ModelFacts(**facts, heatmap_scale=1.0, weights_sha256=""), device)
    evidence = []
    for rows in batched(validation.rows):
        predicted = provisional.predict(validation.images.take(np.array(rows, dtype=np.int64)))
        evidence += [maps[place] for maps, place in zip(predicted.evidence, predicted.shown, strict=True)]
    shutil.rmtree(out / EVALUATION_FOLDER, ignore_errors=True)  # figures of weights that are no more
    return write_model(out, fitted.best_weights, facts | {"heatmap_scale": heatmap_scale(evidence)})


def _facts(config: Config, manifest: Manifest, fitted: Fit, origin: WeightsOrigin, out: Path) -> dict[str, Any]:
    preprocessing = config.preprocessing
    mean, std = input_statistics(preprocessing, config.network.channels)
    return {
        "name": config.name,
        "radloop_version": pipeline.__version__,
        "notice": config.notice,
        "network": config.network,
        "classes": manifest.classes,
        "positive": manifest.positive_class,
        "unit": manifest.unit,
        "rules": manifest.rules,
        "preprocessing": preprocessing,
        "preprocessing_digest": digest(preprocessing),
        "path_to_unit_range": describe_unit_range(
            windows_of(preprocessing),
            voi=preprocessing.voi,
            color=preprocessing.color,
            scaling=preprocessing.scaling,
            percentiles=preprocessing.percentiles,
        ),
        "input_mean": mean,
        "input_std": std,
        "initial_weights": origin.source,
        "initial_weights_sha256": origin.sha256,
        "best_epoch": fitted.best_epoch,
        "threshold": config.evaluation.threshold,
        "split_sha256": file_digest(out / SPLIT_FILE),
    }


def _announce(
    divided: Split, manifest: Manifest, config: Config, training: Part, validation: Part, device: torch.device
) -> None:
    for line in divided.lines:
        say(line)
    cases = divided.table["split"].value_counts()
    patients = divided.table.groupby("split")["patient_key"].nunique()
    noun = "block" if manifest.patients.source == "blocks" else "patient"
    parts = (f"{name} {counted(cases[name], 'case')} of {counted(patients[name], noun)}" for name in SPLITS)
    rule = manifest.split
    say(f"split: {', '.join(parts)}" + (f"; fold {rule.fold} of {rule.folds} validates" if rule.folds else ""))
    cells = -(-config.preprocessing.size // int(RESNET_GEOMETRY.cell_stride))
    if cells < FEWEST_CELLS:
        say(
            f"warning: at {config.preprocessing.size} pixels the feature map has {cells} x {cells} cells: heatmaps say little about place"
        )
    say(
        f"training on {counted(len(training.labels), 'image')}, validating on {len(validation.labels)}, on {device.type}"
    )
