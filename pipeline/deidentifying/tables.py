"""The tables of a de-identification, and its summary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.csv_text import csv_text
from pipeline.deidentifying.outcomes import Outcomes
from pipeline.errors import RejectReason
from pipeline.files import write_whole
from pipeline.wording import counted

DEIDENTIFIED_FILE, HELD_FILE, REJECTS_FILE = "deidentified.csv", "held_back.csv", "rejects.csv"
HARMLESS = frozenset(
    map(
        str,
        (
            RejectReason.NOT_AN_IMAGE,
            RejectReason.EMPTY,
            RejectReason.DICOMDIR,
            RejectReason.NOT_REGULAR,
            RejectReason.MISSING,
        ),
    )
)
"""Reasons for which there is nothing to de-identify."""
DEIDENTIFIED_COLUMNS = [
    *("file", "path", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "patient_id", "sop_class_uid"),
    *("modality", "masked", "duplicate", "sha256"),
]
REASON_COLUMNS = ["file", "reason", "detail"]


@dataclass(frozen=True)
class DeidentifySummary:
    """What was done. `held`, `rejected`: how many files for which reason."""

    deidentified: int
    duplicates: int
    kept: int
    masked: int
    held: Counter[str]
    rejected: Counter[str]
    removed: int
    patients: int
    studies: int

    @property
    def failed(self) -> int:
        """Files that might be images and came to nothing."""
        return sum(count for reason, count in self.rejected.items() if reason not in HARMLESS)

    def lines(self) -> list[str]:
        """For the terminal."""
        kept = f" ({self.kept} kept as they were)" if self.kept else ""
        whose = f"{counted(self.patients, 'patient')}, {counted(self.studies, 'study')}"
        lines = [f"de-identified: {counted(self.deidentified, 'image')} of {whose}{kept}"]
        if self.masked:
            lines.append(f"blackened: regions in {counted(self.masked, 'image')}")
        if self.duplicates:
            lines.append(f"duplicates: {counted(self.duplicates, 'file')} of the same content as another")
        for name, counts, table in (("held back", self.held, HELD_FILE), ("rejected", self.rejected, REJECTS_FILE)):
            if counts:
                told = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
                lines.append(f"{name}: {counted(counts.total(), 'file')} ({told}; {table})")
        if self.failed:
            lines.append(
                f"not all went well: {counted(self.failed, 'file')} might be images and came to nothing ({REJECTS_FILE})"
            )
        if self.removed:
            lines.append(f"removed: {counted(self.removed, 'object')} of an earlier call that this one did not make")
        return lines


def write_tables(out: Path, outcomes: Outcomes) -> None:
    """In an order that says nothing of the source's."""
    rows = sorted(outcomes.rows, key=lambda row: (row["path"], row["file"]))
    write_whole(
        out / DEIDENTIFIED_FILE,
        csv_text(DEIDENTIFIED_COLUMNS, [[row[name] for name in DEIDENTIFIED_COLUMNS] for row in rows]),
    )
    write_whole(out / HELD_FILE, csv_text(REASON_COLUMNS, sorted(outcomes.held)))
    write_whole(out / REJECTS_FILE, csv_text(REASON_COLUMNS, sorted(outcomes.rejects)))


def summary_of(outcomes: Outcomes, removed: int) -> DeidentifySummary:
    return DeidentifySummary(
        deidentified=len(outcomes.taken),
        duplicates=len(outcomes.rows) - len(outcomes.taken),
        kept=outcomes.kept,
        masked=sum(row["masked"] == "yes" and not row["duplicate"] for row in outcomes.rows),
        held=Counter(reason for _, reason, _ in outcomes.held),
        rejected=Counter(reason for _, reason, _ in outcomes.rejects),
        removed=removed,
        patients=len({row["patient_id"] for row in outcomes.rows}),
        studies=len({row["study_instance_uid"] for row in outcomes.rows}),
    )
