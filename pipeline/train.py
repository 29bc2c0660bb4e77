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
from pipeline.cases import Cases, group_images, label_cases
from pipeline.config import Config, digest
from pipeline.dataset import (
    Preparer,
    TrainingImages,
    image_files,
    input_chain,
    input_statistics,
    training_chain,
    window_of,
)
from pipeline.errors import ConfigError, RunError
from pipeline.explain import heatmap_scale
from pipeline.fit import Fit, fit
from pipeline.index import Index, read_index, write_index
from pipeline.manifest import Manifest, OpenedSource, open_source
from pipeline.model import Classifier, WeightsOrigin, build_classifier
from pipeline.predict import batched, pick_device, scope_of, trained_model
from pipeline.progress import say
from pipeline.run import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    EXCLUSIONS_FILE,
    INDEX_FOLDER,
    MODEL_FILE,
    SPLIT_FILE,
    ModelFacts,
    read_config,
    read_table,
    write_environment,
    write_model,
    write_settings,
    write_table,
)  # fmt: skip
from pipeline.split import check_split, split_cases
from transforms.intensity import describe_unit_range

CACHE_FOLDER = "cache"


@dataclass(frozen=True)
class Part:
    """One split's decoded images: (n, 1, size, size), class indices (n,), and which rows of the images table they are."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def train(
    config: Config, out: Path, *, root: Path | None = None, resume: bool = False, progress: bool = True
) -> ModelFacts:
    """Trains what `config` says into the run folder `out`; returns the facts of the model, which is then on disk.

    Raises ConfigError, SourceError, WeightsError or RunError with one message that says what to do.
    """
    _check_folder(out, config, resume)
    opened = open_source(config.manifest, root)
    if opened.manifest is None:
        raise ConfigError(
            f"{config.manifest}: training needs a manifest (labels, patients, split); this is a bare source"
        )
    torch.manual_seed(config.seed)
    network, origin = build_classifier(config.network, len(opened.manifest.classes))
    device = pick_device()
    write_settings(out, config, opened.manifest)
    write_environment(out, device, opened.key())

    index = _indexed(opened, out, resume, progress)
    cases = _cases(index, opened, opened.manifest)
    split = _split(cases, opened.manifest, out, resume)
    training, validation, exclusions = _prepare(config, cases, split, index, opened.manifest, out, progress)
    write_table(out / EXCLUSIONS_FILE, pd.concat([cases.exclusions, exclusions], ignore_index=True))
    for warning in cases.warnings:
        say(f"warning: {warning}")
    if progress:
        _announce(split, training, validation, device)

    fitted = fit(
        network, *_datasets(config, training, validation), config.training,
        run=out, seed=config.seed, device=device, progress=progress,
    )  # fmt: skip
    facts = _finish(config, opened.manifest, cases, split, fitted, origin, validation, device, out)
    shutil.rmtree(out / CACHE_FOLDER, ignore_errors=True)
    return facts


def _check_folder(out: Path, config: Config, resume: bool) -> None:
    if (out / MODEL_FILE).exists() and not resume:
        raise RunError(f"{out}: holds a trained run; give another --out, or remove it")
    if (out / CONFIG_FILE).exists():
        if not resume:
            raise RunError(f"{out}: holds a training that was begun; go on with --resume, or give another --out")
        begun = read_config(out)
        same = {
            "training": begun.training.model_copy(
                update={"epochs": config.training.epochs, "max_minutes": config.training.max_minutes}
            )
        }
        if digest(begun.model_copy(update=same)) != digest(config):
            raise RunError(
                f"{out}: was begun with another configuration ({out / CONFIG_FILE}); only epochs and max_minutes may differ"
            )
    elif resume and not (out / CHECKPOINT_FILE).exists():
        say(f"{out}: nothing to resume, starting")
    out.mkdir(parents=True, exist_ok=True)


def _indexed(opened: OpenedSource, out: Path, resume: bool, progress: bool) -> Index:
    """The index that the run keeps; a resumed run goes on with the files it began with."""
    folder = out / INDEX_FOLDER
    if resume and (out / SPLIT_FILE).exists():
        return read_index(folder)
    index = opened.index(opened.key(), progress=progress)
    write_index(index, folder)
    return index


def _cases(index: Index, opened: OpenedSource, manifest: Manifest) -> Cases:
    grouped = group_images(index, manifest.unit, manifest.rules, drop_collisions=True, facts=manifest.facts)
    return label_cases(grouped, manifest, opened, opened.key())


def _split(cases: Cases, manifest: Manifest, out: Path, resume: bool) -> pd.DataFrame:
    if resume and (out / SPLIT_FILE).exists():
        split = read_table(out / SPLIT_FILE)
        check_split(split)
        return split
    split = split_cases(cases.cases, manifest.split)
    write_table(out / SPLIT_FILE, split)
    return split


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
            out / CACHE_FOLDER,
            image_files(rows, index.roots),
            Preparer(config.preprocessing),
            what=f"preparing {name} images",
            progress=progress,
        )
        parts.append(_part(prepared, rows["label"], manifest.classes, name))
        failed = rows.loc[prepared.failures["position"], ["source", "path"]].reset_index(drop=True)
        excluded.append(failed.assign(rule="cannot be decoded: " + prepared.failures["reason"]).drop_duplicates())
    return parts[0], parts[1], pd.concat(excluded, ignore_index=True)


def _part(prepared: PreparedImages, names: pd.Series, classes: Sequence[str], split: str) -> Part:
    usable = prepared.usable
    place = {name: number for number, name in enumerate(classes)}
    labels = np.array([place[name] for name in names], dtype=np.int64)[usable]
    absent = [name for name, number in place.items() if number not in labels]
    if absent:
        raise ConfigError(f"no image of class {absent[0]} in the {split} split can be decoded; radloop index says why")
    return Part(prepared.images if usable.all() else prepared.images[usable], labels)


def _datasets(config: Config, training: Part, validation: Part) -> tuple[TrainingImages, TrainingImages]:
    mean, std = input_statistics(config.preprocessing, config.network.channels)
    return (
        TrainingImages(training.images, training.labels, training_chain(config), seed=config.seed),
        TrainingImages(validation.images, validation.labels, input_chain(mean, std)),
    )


def _finish(
    config: Config, manifest: Manifest, cases: Cases, split: pd.DataFrame, fitted: Fit, origin: WeightsOrigin,
    validation: Part, device: torch.device, out: Path,
) -> ModelFacts:  # fmt: skip
    """The best epoch's weights and all that is known about them; the heatmap's scale comes from the validation split."""
    network: Classifier = fitted.network
    network.load_state_dict(fitted.best_weights)
    seen = cases.images[cases.images["case_id"].isin(split.loc[split["split"] == "train", "case_id"])]
    facts = _facts(config, manifest, fitted, origin) | {"scope": scope_of(seen)}
    provisional = trained_model(network, ModelFacts(**facts, heatmap_scale=1.0, weights_sha256=""), device)
    evidence = [provisional.predict(np.stack(batch)).evidence for batch in batched(validation.images)]
    return write_model(out, fitted.best_weights, facts | {"heatmap_scale": heatmap_scale(evidence)})


def _facts(config: Config, manifest: Manifest, fitted: Fit, origin: WeightsOrigin) -> dict[str, Any]:
    mean, std = input_statistics(config.preprocessing, config.network.channels)
    return {
        "name": config.name,
        "radloop_version": pipeline.__version__,
        "notice": config.notice,
        "network": config.network,
        "classes": manifest.classes,
        "positive": manifest.positive_class,
        "unit": manifest.unit,
        "rules": manifest.rules,
        "preprocessing": config.preprocessing,
        "preprocessing_digest": digest(config.preprocessing),
        "path_to_unit_range": describe_unit_range(window_of(config.preprocessing)),
        "input_mean": mean,
        "input_std": std,
        "initial_weights": origin.source,
        "initial_weights_sha256": origin.sha256,
        "best_epoch": fitted.best_epoch,
        "threshold": config.evaluation.threshold,
    }


def _announce(split: pd.DataFrame, training: Part, validation: Part, device: torch.device) -> None:
    counts = split.groupby("split")["case_id"].nunique()
    patients = split.groupby("split")["patient_key"].nunique()
    parts = ", ".join(
        f"{name} {counts[name]} cases of {patients[name]} patients" for name in ("train", "validation", "test")
    )
    say(f"split: {parts}")
    say(f"training on {len(training.labels)} images, validating on {len(validation.labels)}, on {device.type}")
