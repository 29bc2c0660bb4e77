"""What a report of a run is made from: plain values, as the evaluation has them.

Every part but `record`, `facts`, `config` and `manifest` may be missing; the page, the model card and the checklist then do without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.config import Config, digest
from pipeline.manifest import Manifest
from pipeline.pages.gallery import GalleryItem
from pipeline.run import ModelFacts
from pipeline.wording import counted


@dataclass(frozen=True)
class Member:
    """A network of an ensemble, or the only one: its name ("fold-0"; "" for the only one), `model.json` and `history.csv`."""

    name: str
    facts: ModelFacts
    history: pd.DataFrame | None = None


@dataclass(frozen=True)
class RunReport:
    """What the page is made from."""

    record: Mapping[str, Any]
    """What metrics.json holds."""
    facts: ModelFacts
    """model.json; of an ensemble its own."""
    config: Config
    """config.yaml"""
    manifest: Manifest
    """Of the data that are evaluated: the run's own, or those of `--data`."""
    curves: Mapping[str, Any] = field(default_factory=dict)
    """What curves.json holds."""
    members: Sequence[Member] = ()
    """The networks with their histories: one, or one a fold."""
    split: pd.DataFrame | None = None
    """split.csv: the columns label, split, patient_key count; None for other data than the run's own."""
    flow: Mapping[str, Any] | None = None
    """What `breakdowns.flow` gives."""
    audit: Mapping[str, Any] | None = None
    """audit.json, where an audit of the same manifest is at hand."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """environment.json"""
    gallery: Sequence[GalleryItem] = ()
    """From `gallery.gallery_items`."""

    @property
    def own_data(self) -> bool:
        """Whether it is a split of the run's own data that is evaluated."""
        return self.split is not None

    @property
    def who(self) -> str:
        return "blocks" if self.manifest.patients.source == "blocks" else "patients"

    @property
    def of_whom(self) -> str:
        """1 patient, 2,000 patients; or blocks."""
        return counted(self.record["patients"], self.who.removesuffix("s"))


def read_audit(path: Path, manifest: Manifest) -> Mapping[str, Any] | None:
    """audit.json at `path`, if it is there, can be read, and is of this manifest as it stands."""
    try:
        record = json.loads(path.read_text())
        same = record["manifest"]["digest"] == digest(manifest) and isinstance(record["warnings"], list)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(record) if same else None
