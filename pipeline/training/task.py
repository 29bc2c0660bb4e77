"""A training before its network learns: its dataset indexed, labelled and divided, its settings checked, both written to its run."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from pipeline.cohort.cases import Cases, columns_needed
from pipeline.cohort.dataset_split import dataset_split
from pipeline.cohort.labels import check_labels, labelled_cases
from pipeline.cohort.split import Split, for_fold
from pipeline.cohort.split_file import left_out
from pipeline.config import Config, digest
from pipeline.identity import IdentityKey
from pipeline.indexing.index import Index, read_index
from pipeline.indexing.sources import open_dataset
from pipeline.manifest import Manifest
from pipeline.networks.input_layer import InputStatistics
from pipeline.networks.model import WeightsOrigin, build_classifier
from pipeline.prediction.predict import Network, pick_device
from pipeline.prepared.dataset import input_statistics
from pipeline.progress import say
from pipeline.run import (
    EXCLUSIONS_FILE,
    INDEX_FOLDER,
    MODEL_FILE,
    SHEET_FACTS_FILE,
    SHEET_PROBLEMS_FILE,
    SPLIT_FILE,
    read_config,
    write_environment,
    write_settings,
    write_table,
)  # fmt: skip
from pipeline.training.begun import (
    check_folder,
    earlier_run,
    resumed_split,
    start_warnings,
    tells_other_classes,
    window_warnings,
)


def fold_folder(fold: int) -> str:
    """The folder of a fold's run, in that of the ensemble."""
    return f"fold-{fold}"


@dataclass(frozen=True)
class Task:
    """A training whose dataset is known and divided, into the run folder `out`."""

    config: Config
    manifest: Manifest
    key: IdentityKey
    index: Index
    cases: Cases
    split: Split
    out: Path
    progress: bool

    def of_fold(self, fold: int) -> Task:
        """The training of one fold, in a run folder of its own, which may have been begun."""
        rule = self.manifest.split.model_copy(update={"fold": fold})
        return replace(
            self,
            manifest=self.manifest.model_copy(update={"split": rule}),
            split=Split(for_fold(self.split.table, fold)),
            out=self.out / fold_folder(fold),
        )


def divided(config: Config, out: Path, root: Path | None, resume: bool, progress: bool) -> Task:
    """The dataset, indexed, labelled and divided; of a run that is resumed, as it stands there."""
    opened = open_dataset(config.manifest, root)
    manifest, key = opened.manifest, opened.key()
    assert manifest is not None
    opened.refuse_output(out)
    check_folder(out, config, manifest, key, resume)
    first_network(config, manifest)  # before hours of indexing: weights may not be there, or not fit

    resume = resume and (out / SPLIT_FILE).exists()
    if not resume:
        check_labels(opened, manifest, key)
    folder, columns = out / INDEX_FOLDER, columns_needed(manifest)
    index = read_index(folder, columns) if resume else opened.index(key, out=folder, columns=columns, progress=progress)
    cases = labelled_cases(index, opened, manifest, key, progress=progress)
    split = resumed_split(cases, out) if resume else dataset_split(cases, opened, manifest, key)
    return Task(config, manifest, key, index, cases, split, out, progress)


def write_dataset(task: Task) -> None:
    """The dataset, what the label sheet had to say (which of its rows are wrong, and facts that the index does not hold), and the
    settings.
    """
    out, cases, manifest = task.out, task.cases, task.manifest
    write_environment(out, pick_device(), task.key)
    if len(cases.sheet_problems):
        write_table(out / SHEET_PROBLEMS_FILE, cases.sheet_problems)
    if manifest.sheet and manifest.sheet.facts:
        files = cases.images.drop_duplicates(["source", "path"])
        write_table(out / SHEET_FACTS_FILE, files[["source", "path", *manifest.sheet.facts]])
    write_table(out / SPLIT_FILE, task.split.table)
    write_exclusions(task, [])
    write_settings(out, task.config, manifest)  # last: a folder with a configuration can be resumed


def tell(task: Task) -> None:
    """To standard error: what there is to warn of, and how the split came about."""
    cases = task.cases
    warnings = (*cases.warnings, *task.split.warnings, *start_warnings(task.config))
    for warning in (*warnings, *window_warnings(task.config, cases)):
        say(f"warning: {warning}")
    for line in task.split.lines if task.progress else ():
        say(line)


def write_exclusions(task: Task, undecodable: list[pd.DataFrame]) -> None:
    left = [task.cases.exclusions, left_out(task.cases, task.split.table), *undecodable]
    write_table(task.out / EXCLUSIONS_FILE, pd.concat(left, ignore_index=True).drop_duplicates())


def first_network(config: Config, manifest: Manifest) -> tuple[Network, WeightsOrigin]:
    """The network as the training begins with it; WeightsError where its weights are not there, or do not fit."""
    torch.manual_seed(config.seed)
    settings = config.preprocessing
    own = (
        InputStatistics(*input_statistics(settings, config.network.channels)) if settings.scaling != "z_score" else None
    )
    network, origin = build_classifier(config.network, len(manifest.classes), settings.size, own)
    start = earlier_run(config)
    if start is not None and tells_other_classes(start, manifest):
        network.head.reset_parameters()  # as many classes, but others: its outputs would begin as their answers
    return network, origin


def is_trained(task: Task) -> bool:
    """Whether a fold's run has ended, with these settings: with more epochs it goes on."""
    return (task.out / MODEL_FILE).is_file() and digest(read_config(task.out)) == digest(task.config)


def begin_fold(task: Task, fold: Task) -> None:
    """The run folder of a fold, complete but for what its training leaves."""
    (fold.out / MODEL_FILE).unlink(
        missing_ok=True
    )  # of fewer epochs: `is_trained` would take it for the end of this training
    if not (fold.out / INDEX_FOLDER).is_dir():
        aside = fold.out / f".{INDEX_FOLDER}.part"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(task.out / INDEX_FOLDER, aside)
        os.replace(aside, fold.out / INDEX_FOLDER)
    write_dataset(fold)
