"""The training and the validation split as the network gets them: prepared images in the cache, their labels, and a digest of both.

With pooling attention or volume an item of the training is a case (`pipeline.training.bags`), else an image (`pipeline.training.feed`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.cohort.cases import Cases
from pipeline.columns import text
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.files import write_whole
from pipeline.indexing.index import Index
from pipeline.label_arrays import label_array
from pipeline.manifest import Manifest
from pipeline.prepared.cache import PreparedImages, prepared_images
from pipeline.prepared.dataset import ImageFile, Preparer, image_files, input_statistics
from pipeline.run import DATA_FILE
from pipeline.training.bags import LabelledBags, positions_by_case
from pipeline.training.feed import LabelledImages, TrainingData
from pipeline.training_settings import Training
from transforms.augment import Augmentations

CACHE_FOLDER = "cache"
"""In the run, where the user's cache cannot be written."""
DIGESTED_AT_ONCE = 64
"""Images: some MB."""


@dataclass(frozen=True)
class Part:
    """One split: a row an image, case after case (`case_id`, `label`, `source`, `path`), with its file and its prepared image."""

    name: str
    table: pd.DataFrame
    files: list[ImageFile]
    prepared: PreparedImages

    @property
    def labels(self) -> pd.Series:
        """The texts by case_id."""
        first = self.table.drop_duplicates("case_id")
        return pd.Series(text(first["label"]).to_numpy(), index=text(first["case_id"]).to_numpy())

    @property
    def failed(self) -> pd.DataFrame:
        """Rows for exclusions.csv: files that cannot be decoded."""
        failures = self.prepared.failures
        failed = self.table.loc[failures["position"], ["source", "path"]].reset_index(drop=True)
        return failed.assign(rule="cannot be decoded: " + failures["reason"]).drop_duplicates()


def prepared_part(
    name: str, config: Config, cases: Cases, split: pd.DataFrame, index: Index, out: Path, progress: bool
) -> Part:
    """The split `name`, decoded into the cache where it is not there yet."""
    ids = split.loc[split["split"] == name, "case_id"]
    table = cases.images[cases.images["case_id"].isin(ids)].reset_index(drop=True)
    files = image_files(table, index.roots)
    prepared = prepared_images(
        files,
        Preparer(config.preprocessing),
        what=f"preparing {name} images",
        progress=progress,
        fallback=out / CACHE_FOLDER,
    )
    return Part(name, table, files, prepared)


def training_items(config: Config, manifest: Manifest, part: Part, *, varied: bool = False) -> TrainingData:
    """What the network learns from: images, or cases; `varied` at random. ConfigError where a class has none."""
    return (training_images if config.network.pooling == "mean" else _bags)(config, manifest, part, varied=varied)


def training_images(config: Config, manifest: Manifest, part: Part, *, varied: bool = False) -> LabelledImages:
    """Single images with their cases' labels."""
    usable = part.prepared.usable
    labels = _labels(text(part.table["label"])[usable], manifest, part.name)
    statistics = input_statistics(config.preprocessing, config.network.channels)
    return LabelledImages(
        part.prepared,
        np.flatnonzero(usable),
        labels,
        *statistics,
        augmentation=_augmentation(config, varied),
        seed=config.seed,
        plain_from=_plain_from(config.training),
    )


def _bags(config: Config, manifest: Manifest, part: Part, *, varied: bool) -> LabelledBags:
    network = config.network
    positions = positions_by_case(list(text(part.table["case_id"])), part.prepared.usable)
    return LabelledBags(
        part.prepared,
        list(positions.values()),
        _labels(part.labels.loc[list(positions)], manifest, part.name),
        *input_statistics(config.preprocessing, network.channels),
        pooling="volume" if network.pooling == "volume" else "attention",
        bag_size=network.bag_size if varied or network.pooling == "volume" else None,
        augmentation=_augmentation(config, varied),
        seed=config.seed,
        plain_from=_plain_from(config.training),
    )


def _augmentation(config: Config, varied: bool) -> Augmentations:
    return Augmentations(**config.augmentation.model_dump()) if varied else Augmentations()


def _plain_from(training: Training) -> int | None:
    """The first of the epochs in which images are at most mirrored."""
    return training.epochs - training.plain_epochs + 1 if training.plain_epochs else None


def _labels(names: pd.Series, manifest: Manifest, split: str) -> NDArray[Any]:
    labels = label_array(names, manifest.classes, manifest.labels.several)
    there = set(np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels))
    absent = [name for place, name in enumerate(manifest.classes) if place not in there]
    if absent:
        raise ConfigError(f"no image of class {absent[0]} in the {split} split can be decoded; radloop index says why")
    return labels


def data_record(parts: Sequence[Part]) -> dict[str, Any]:
    """Content of data.json: of each split how many cases and images it has, and the sha256 of the prepared images in their order."""
    return {
        part.name: {
            "cases": int(part.table["case_id"].nunique()),
            "images": int(part.prepared.usable.sum()),
            "sha256": _digest(part.prepared),
        }
        for part in parts
    }


def _digest(prepared: PreparedImages) -> str:
    rows, digest = np.flatnonzero(prepared.usable), hashlib.sha256()
    for begin in range(0, len(rows), DIGESTED_AT_ONCE):
        digest.update(np.ascontiguousarray(prepared.take(rows[begin : begin + DIGESTED_AT_ONCE])).data)
    return digest.hexdigest()


def write_data_record(out: Path, record: dict[str, Any]) -> tuple[str, ...]:
    """Writes data.json; a warning where another stands there: a resumed training goes on with other images than it began with."""
    path, content = out / DATA_FILE, json.dumps(record, indent=2) + "\n"
    changed = path.is_file() and path.read_text() != content
    write_whole(path, content)
    return ("the prepared images are not those that this training was begun with (data.json)",) if changed else ()
