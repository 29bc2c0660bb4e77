"""The index in numbers: what was found and what became of it, for `summary.json` and for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RadloopError
from pipeline.wording import counted

SHOWN_VALUES = 8
"""Of each breakdown, values on the terminal; summary.json has all."""
COUNTED = {
    "formats": "format",
    "modalities": "modality",
    "sop_classes": "sop_class_uid",
    "transfer_syntaxes": "transfer_syntax_uid",
    "manufacturers": "manufacturer",
}
"""Breakdowns of the summary, with their columns."""
DISTINCT = {"patients": "patient_key", "studies": "study_instance_uid", "series": "series_instance_uid"}
COUNTED_NOUNS = {"patients": "patient", "studies": "study", "series": "series"}
BREAKDOWNS = {
    "formats": "Formats",
    "modalities": "Modalities",
    "sop_classes": "Kinds of object",
    "transfer_syntaxes": "Transfer syntaxes",
    "manufacturers": "Manufacturers",
}


class Counts:
    """Counts of an index while it is written, group by group. Breakdowns count files; files without the value count as ''."""

    def __init__(self, sources: Mapping[str, str], state: str, listed: int, unhashed: int) -> None:
        """`listed`: files that the sources hold. `unhashed`: those that could not be read for their digest, to be tried again."""
        self._sources, self._state, self._listed, self._unhashed = dict(sources), state, listed, unhashed
        self._sums = Counter[str]()
        self._values = {column: Counter[str]() for column in (*COUNTED.values(), "collision")}
        self._distinct: dict[str, set[int]] = {column: set() for column in DISTINCT.values()}
        self._reasons = Counter[str]()
        self._directories: dict[str, dict[str, int]] = {}
        self._stacks: dict[str, Any] = {}

    def count_images(self, images: pa.Table) -> None:
        """Takes in rows of the index."""
        self._sums["indexed"] += len(images)
        for column in ("bytes", "frames", "path_holds_identity"):
            self._sums[column] += int(pc.sum(pc.cast(images[column], pa.int64())).as_py() or 0)
        for column, counter in self._values.items():
            for pair in pc.value_counts(images[column]):
                counter[pair["values"].as_py() or ""] += pair["counts"].as_py()
        for column, seen in self._distinct.items():
            seen.update(hash(value) for value in pc.unique(images[column]).to_pylist() if value)

    def count_reject(self, reason: str) -> None:
        """Takes in a row of the rejects."""
        self._reasons[reason] += 1

    def count_directory(self, source: str, listed: int, missing: int, unlisted: int) -> None:
        """Takes in what a DICOMDIR says of its source."""
        self._directories[source] = {"listed": listed, "missing": missing, "unlisted": unlisted}

    def count_stacks(self, stacks: pa.Table) -> None:
        """Takes in the table of stacks."""
        reasons = Counter(reason for reason in stacks["reason"].to_pylist() if reason)
        series = set(map(hash, stacks["series_instance_uid"].to_pylist()))
        self._stacks = {"series": len(series), "stacks": len(stacks), "by_reason": _ordered(reasons)}

    def to_json(self, names_of: Callable[[Sequence[str]], Sequence[str]]) -> dict[str, Any]:
        """Plain values for JSON. `found`: what was listed, and what a DICOMDIR misses. `names_of`: of UIDs.

        Raises RadloopError where indexed and rejected files are not as many.
        """
        rejected = self._reasons.total()
        found = self._listed + sum(counts["missing"] for counts in self._directories.values())
        if found != self._sums["indexed"] + rejected:
            raise RadloopError(
                f"{found} files were found, {self._sums['indexed']} indexed and {rejected} rejected: this is a fault of radloop; "
                "remove the index's folder and index again"
            )
        breakdowns = {name: _ordered(self._values[column]) for name, column in COUNTED.items()}
        for name in ("sop_classes", "transfer_syntaxes"):
            breakdowns[name] = _named(breakdowns[name], names_of)
        collisions = _ordered(self._values["collision"])
        collisions.pop("", None)
        return {
            "sources": self._sources,
            "found": found,
            "indexed": self._sums["indexed"],
            "rejected": rejected,
            "rejected_by_reason": _ordered(self._reasons),
            "bytes": self._sums["bytes"],
            "frames": self._sums["frames"],
            **{name: len(self._distinct[column]) for name, column in DISTINCT.items()},
            **breakdowns,
            "collisions": collisions,
            "unhashed": self._unhashed,
            "stacks": self._stacks,
            "paths_that_hold_identity": self._sums["path_holds_identity"],
            "directories": self._directories,
            "state": self._state,
        }


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """Most frequent first."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _named(counts: Mapping[str, int], names_of: Callable[[Sequence[str]], Sequence[str]]) -> dict[str, int]:
    """By the standard's names; UIDs that share a name are counted together."""
    named = Counter[str]()
    for name, count in zip(names_of(list(counts)), counts.values(), strict=True):
        named[name] += count
    return _ordered(named)


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal: the flow from found to indexed first, then what the images are, then what to know."""
    lines = [f"Source {name}: {location}" for name, location in summary["sources"].items()]
    lines.append(f"Found {summary['found']:,} → indexed {summary['indexed']:,}, rejected {summary['rejected']:,}")
    lines += [f"  {count:>9,}  {reason}" for reason, count in summary["rejected_by_reason"].items()]
    totals = [counted(summary[what], noun) for what, noun in COUNTED_NOUNS.items() if summary[what]]
    totals.append(counted(summary["frames"], "frame"))
    lines.append(f"Images: {', '.join(totals)}, {_size(summary['bytes'])}")
    for field, title in BREAKDOWNS.items():
        if summary[field].keys() - {""}:
            lines.append(f"{title}: {_shown(summary[field])}")
    lines += _remarks(summary)
    return "\n".join(lines)


def _size(count: int) -> str:
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def _shown(counts: Mapping[str, int]) -> str:
    parts = [f"{value or '(none)'} {count:,}" for value, count in counts.items()]
    more = [f"and {len(parts) - SHOWN_VALUES} more"] if len(parts) > SHOWN_VALUES else []
    return ", ".join(parts[:SHOWN_VALUES] + more) or "none"


def _remarks(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, counts in summary["directories"].items():
        lines.append(
            f"DICOMDIR of {name}: {counted(counts['listed'], 'file')} listed, of which {counts['missing']:,} missing; "
            f"{counted(counts['unlisted'], 'image')} not listed (column listed)"
        )
    stacks = summary["stacks"]
    if stacks.get("by_reason"):
        lines.append(
            f"{counted(stacks['series'], 'series')} in {counted(stacks['stacks'], 'stack')} (stacks.csv), divided by: "
            f"{_shown(stacks['by_reason'])}"
        )
    collisions = summary["collisions"]
    if collisions:
        lines.append(
            f"Same SOPInstanceUID: {counted(collisions.get('duplicate', 0), 'duplicate')} (same content), "
            f"{collisions.get('conflict', 0):,} in conflict (other content); training leaves them out"
        )
    if summary["paths_that_hold_identity"]:
        count = summary["paths_that_hold_identity"]
        lines.append(
            f"Warning: {counted(count, 'path')} {'holds' if count == 1 else 'hold'} the name or a number of the patient; "
            "paths stand in the tables as they are"
        )
    return lines
