"""Training: a configuration and its dataset to a run folder with a model that evaluation and inference can use.

Where several processes train together (`training.distributed`), the first one indexes, divides, prepares and writes; the others wait.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pipeline
from pipeline.cohort.split import SPLITS, noun_of
from pipeline.config import Config, digest
from pipeline.files import file_digest
from pipeline.networks.model import Classifier, WeightsOrigin
from pipeline.prediction.predict import Network, load_model, pick_device, predict_prepared, trained_model
from pipeline.prediction.scope import scope_of
from pipeline.prepared.dataset import input_statistics, windows_of
from pipeline.progress import say
from pipeline.run import (
    SPLIT_FILE,
    ModelFacts,
    findings_of,
    read_model,
    write_model,
)  # fmt: skip
from pipeline.training.choices import Validated, chosen, together, validated
from pipeline.training.distributed import device, is_main, joined, main_first, on_main, wait
from pipeline.training.ensemble import make_ensemble
from pipeline.training.fit import Fit, fit
from pipeline.training.frozen import frozen_features
from pipeline.training.parts import Part, data_record, prepared_part, training_images, training_items, write_data_record
from pipeline.training.task import (
    Task,
    begin_fold,
    divided,
    first_network,
    is_trained,
    tell,
    write_dataset,
    write_exclusions,
)
from pipeline.wording import counted
from transforms.intensity import describe_unit_range

FEWEST_CELLS = 4
"""Along a side: with fewer, a cell is larger than an organ."""


def train(
    config: Config, out: Path, *, root: Path | None = None, resume: bool = False, progress: bool = True
) -> ModelFacts:
    """Trains what `config` says into the run folder `out`; returns the facts of the model, which is then on disk.

    Raises ConfigError, SourceError, WeightsError or RunError with one message that says what to do.
    """
    with joined():
        task = on_main(lambda: _begun(config, out, root, resume, progress))
        task = replace(task, progress=progress and is_main())
        return _train_folds(task) if task.manifest.split.fold == "all" else _train_split(task)


def _begun(config: Config, out: Path, root: Path | None, resume: bool, progress: bool) -> Task:
    task = divided(config, out, root, resume, progress)
    write_dataset(task)
    tell(task)
    return task


# One split


def _train_split(task: Task) -> ModelFacts:
    """Fits the network on the training split; the validation split chooses the epoch, temperature, thresholds and the heatmap's scale."""
    place = device(pick_device())
    network, origin = first_network(task.config, task.manifest)
    with main_first():
        training, validation = _prepared(task, "train"), _prepared(task, "validation")
        _say_parts(task, network, [training, validation], place)
    fitted = _fitted(task, network, training, validation, place)
    if is_main():
        network.load_state_dict({**network.state_dict(), **fitted.best_weights})  # a head's are a part of all
        _write_model(task, network, fitted, origin, validation, place)
    wait()
    return read_model(task.out)


def _fitted(task: Task, network: Network, training: Part, validation: Part, place: torch.device) -> Fit:
    """The whole network's fit; where nothing before its head is trained, that of the head on features that are computed once."""
    config, manifest = task.config, task.manifest
    fitted = partial(
        fit, settings=config.training, run=task.out, seed=config.seed, device=place, progress=task.progress
    )
    if not config.features_are_kept:
        varied = training_items(config, manifest, training, varied=True)
        return fitted(network, varied, training_items(config, manifest, validation))
    assert isinstance(network, Classifier)  # by Config.features_are_kept
    kept_training, kept_validation, head = frozen_features(
        network,
        training_images(config, manifest, training, varied=True),
        training_images(config, manifest, validation),
        copies=config.training.feature_copies,
        batch_size=config.training.batch_size,
        device=place,
        progress=task.progress,
        folder=task.out,
    )
    return fitted(head, kept_training, kept_validation)


def _prepared(task: Task, name: str) -> Part:
    return prepared_part(name, task.config, task.cases, task.split.table, task.index, task.out, task.progress)


def _say_parts(task: Task, network: Network, parts: list[Part], place: torch.device) -> None:
    """Writes which images there are, and tells whoever watches."""
    if not is_main():
        return
    write_exclusions(task, [part.failed for part in parts])
    for warning in write_data_record(task.out, data_record(parts)):
        say(f"warning: {warning}")
    if not task.progress:
        return
    table, rule = task.split.table, task.manifest.split
    cases, patients = table["split"].value_counts(), table.groupby("split")["patient_key"].nunique()
    told = (
        f"{name} {counted(cases[name], 'case')} of {counted(patients[name], noun_of(task.manifest))}" for name in SPLITS
    )
    say(f"split: {', '.join(told)}" + (f"; fold {rule.fold} of {rule.folds} validates" if rule.folds else ""))
    size = task.config.preprocessing.size
    cells = -(-size // int(network.geometry.cell_stride))
    if cells < FEWEST_CELLS:
        say(f"warning: at {size} pixels the feature map has {cells} x {cells} cells: heatmaps say little about place")
    trained, validating = (int(part.prepared.usable.sum()) for part in parts)
    say(f"training on {counted(trained, 'image')}, validating on {validating}, on {place.type}")


def _write_model(
    task: Task, network: Network, fitted: Fit, origin: WeightsOrigin, validation: Part, place: torch.device
) -> None:
    """The best epoch's weights and all that is known about them."""
    facts = _facts(task, fitted, origin)
    said = _validated(network, facts, validation, place)
    decided = chosen(said, ModelFacts(**facts), task.config.evaluation)
    for warning in decided.warnings:
        say(f"warning: {warning}")
    facts |= {
        "temperature": decided.temperature,
        "thresholds": decided.thresholds,
        "threshold_rule": decided.threshold_rule,
        "heatmap_scale": decided.heatmap_scale,
    }
    del facts["weights_sha256"]
    write_model(task.out, network.state_dict(), facts)


def _validated(network: Network, facts: dict[str, Any], validation: Part, place: torch.device) -> Validated:
    model = trained_model([network], ModelFacts(**facts), place)
    return validated(model, predict_prepared(model, validation.files, validation.prepared), validation.labels)


def _facts(task: Task, fitted: Fit, origin: WeightsOrigin) -> dict[str, Any]:
    """What is known of the model before the validation split has decided; neutral values for that."""
    config, manifest = task.config, task.manifest
    preprocessing, several = config.preprocessing, manifest.labels.several
    mean, std = input_statistics(preprocessing, config.network.channels)
    findings = findings_of(manifest.classes, manifest.positive_class, several)
    table = task.split.table
    seen = task.cases.images["case_id"].isin(table.loc[table["split"] == "train", "case_id"])
    return {
        "name": config.name,
        "radloop_version": pipeline.__version__,
        "notice": config.notice,
        "network": config.network,
        "classes": manifest.classes,
        "positive": manifest.positive_class,
        "several": several,
        "views": config.evaluation.views,
        "heatmap": config.evaluation.heatmap,
        "heatmap_scale_of": "image" if config.evaluation.heatmap == "eigencam" else "run",
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
        "split_sha256": file_digest(task.out / SPLIT_FILE),
        "scope": scope_of(task.cases.images[seen]),
        "thresholds": dict.fromkeys(findings, 0.5),
        "heatmap_scale": 1.0,
        "weights_sha256": "",
    }


# Folds


def _train_folds(task: Task) -> ModelFacts:
    """One network a fold, each in a complete run of its own; then the run above them, in which they speak as one."""
    folds = [task.of_fold(fold) for fold in range(task.manifest.split.folds or 0)]
    for fold in folds:
        if not is_trained(fold):
            on_main(partial(begin_fold, task, fold))
            _train_split(fold)
    if is_main():
        _join_folds(task, folds)
    wait()
    return read_model(task.out)


def _join_folds(task: Task, folds: list[Task]) -> None:
    parts, place = [], device(pick_device())
    for fold in folds:
        model, validation = load_model(fold.out, place), _prepared(replace(fold, progress=False), "validation")
        parts.append(
            validated(model, predict_prepared(model, validation.files, validation.prepared), validation.labels)
        )
    table = task.split.table
    seen = task.cases.images["case_id"].isin(table.loc[table["split"] == "train", "case_id"])
    names = [fold.out.name for fold in folds]
    _, decided = make_ensemble(
        task.out, names, together(parts), scope_of(task.cases.images[seen]), task.config.evaluation
    )
    for warning in decided.warnings:
        say(f"warning: {warning}")
