"""The index in numbers: what was found and what became of it, for `summary.json` and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.dicom.header import uid_name

SHOWN_VALUES = 8
"""Of each breakdown, values on the terminal; summary.json has all."""
BREAKDOWNS = {
    "formats": "Formats",
    "modalities": "Modalities",
    "sop_classes": "Kinds of object",
    "transfer_syntaxes": "Transfer syntaxes",
    "manufacturers": "Manufacturers",
}


def summarise(
    table: pd.DataFrame, rejects: pd.DataFrame, roots: Mapping[str, Path], directories: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Counts, as plain values for JSON. `found` = `indexed` + `rejected`, what a DICOMDIR misses among the latter.

    Breakdowns count files, most frequent first, files without the value apart as ''.
    """
    collisions = _counts(table["collision"])
    collisions.pop("", None)
    return {
        "sources": {name: str(root) for name, root in roots.items()},
        "found": len(table) + len(rejects),
        "indexed": len(table),
        "rejected": len(rejects),
        "rejected_by_reason": _counts(rejects["reason"]),
        "bytes": int(table["bytes"].sum()),
        "frames": int(table["frames"].sum()),
        "patients": table["patient_key"].nunique(),
        "studies": table["study_instance_uid"].nunique(),
        "series": table["series_instance_uid"].nunique(),
        "formats": _counts(table["format"]),
        "modalities": _counts(table["modality"]),
        "sop_classes": _named(_counts(table["sop_class_uid"])),
        "transfer_syntaxes": _named(_counts(table["transfer_syntax_uid"])),
        "manufacturers": _counts(table["manufacturer"]),
        "collisions": collisions,
        "paths_that_hold_identity": int(table["path_holds_identity"].fillna(False).sum()),
        "directories": {name: dict(counts) for name, counts in directories.items()},
    }


def _counts(values: pd.Series) -> dict[str, int]:
    counts = values.fillna("").value_counts()
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))
    return {str(value): int(count) for value, count in ordered}


def _named(counts: Mapping[str, int]) -> dict[str, int]:
    """By the standard's names; UIDs that share a name are counted together."""
    named: dict[str, int] = {}
    for value, count in counts.items():
        name = uid_name(value) if value else ""
        named[name] = named.get(name, 0) + count
    return named


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal: the flow from found to indexed first, then what the images are, then what to know."""
    lines = [f"Source {name}: {location}" for name, location in summary["sources"].items()]
    lines.append(f"Found {summary['found']:,} → indexed {summary['indexed']:,}, rejected {summary['rejected']:,}")
    lines += [f"  {count:>9,}  {reason}" for reason, count in summary["rejected_by_reason"].items()]
    counted = ", ".join(f"{summary[what]:,} {what}" for what in ("patients", "studies", "series", "frames"))
    lines.append(f"Images: {counted}, {summary['bytes'] / 1e9:,.2f} GB")
    for field, title in BREAKDOWNS.items():
        lines.append(f"{title}: {_shown(summary[field])}")
    lines += _remarks(summary)
    return "\n".join(lines)


def _shown(counts: Mapping[str, int]) -> str:
    parts = [f"{value or '(none)'} {count:,}" for value, count in counts.items()]
    more = [f"and {len(parts) - SHOWN_VALUES} more"] if len(parts) > SHOWN_VALUES else []
    return ", ".join(parts[:SHOWN_VALUES] + more) or "none"


def _remarks(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, counts in summary["directories"].items():
        lines.append(
            f"DICOMDIR of {name}: {counts['listed']:,} files listed, of which {counts['missing']:,} are missing; "
            f"{counts['unlisted']:,} images are not listed"
        )
    collisions = summary["collisions"]
    if collisions:
        lines.append(
            f"Same SOPInstanceUID: {collisions.get('duplicate', 0):,} duplicates (same content), "
            f"{collisions.get('conflict', 0):,} in conflict (other content); training leaves them out"
        )
    if summary["paths_that_hold_identity"]:
        lines.append(
            f"Warning: {summary['paths_that_hold_identity']:,} paths hold the name or a number of their patient; "
            "paths stand in the tables as they are"
        )
    return lines
