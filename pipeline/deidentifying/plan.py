"""What decides on a file's outcome, and a file of the source as the system tells it; their names say nothing without the project's key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from pipeline.deidentify_settings import Deidentification
from pipeline.identity import IdentityKey
from pipeline.indexing.listing import Entry
from pipeline.settings import digest

REVISION = 2
"""Of what is written: with another one every file is made anew."""


@dataclass(frozen=True)
class Plan:
    """All that decides on what a file becomes, beside the file."""

    settings: Deidentification
    key: IdentityKey
    crosswalk: bool

    @property
    def name(self) -> str:
        """Known to the key's owner alone."""
        told = (pipeline.__version__, str(REVISION), digest(self.settings))
        return self.key.keyed("deidentify", *told).hex()[:32]

    def file(self, source: str, path: str) -> str:
        """The name of a file in tables."""
        return self.key.keyed("file", source, path).hex()[:24]

    def state(self, entry: Entry) -> str:
        """Of a file as it is now."""
        return self.key.keyed("state", self.name, str(entry.bytes), str(entry.mtime_ns)).hex()[:24]


@dataclass(frozen=True)
class SourceFile:
    """A file of the source: its name in tables, and what the system says of it. `known`: its outcome of an earlier call."""

    name: str
    source: str
    entry: Entry
    place: Path
    state: str
    known: dict[str, Any] | None = None
