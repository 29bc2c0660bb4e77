"""The crosswalk of a de-identification: which new UIDs and pseudonyms stand for which old ones. It identifies everybody in it.

One CSV, written only when asked for, for its owner's eyes only (mode 0600), never beside the de-identified files. A row a file, held back
or rejected ones too: what it was called (source, path, UIDs, patient and study), what it is now, by how many days its dates
moved, and by what settings (`plan`, a hash). `original` has what objects need on their way back (`dicom.original`, JSON): patient and
study whole, the scanner, and every other UID. Each row says of which `version` the crosswalk is.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.errors import ConfigError

VERSION = "2"
"""Of the columns and what they hold; 1 had no way back."""
COLUMNS = (
    *("version", "file", "source", "path"),
    *("study_instance_uid", "series_instance_uid", "sop_instance_uid"),
    *("new_study_instance_uid", "new_series_instance_uid", "new_sop_instance_uid"),
    *("patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date", "patient_sex"),
    *("accession_number", "study_id", "study_date", "study_time", "referring_physician_name", "study_description"),
    *("new_patient_id", "days", "sop_class_uid", "frames", "frame_of_reference_uid", "new_frame_of_reference_uid"),
    *("original", "plan"),
)
CELL_CHARACTERS = 2**28
"""Of one value: an enhanced image of 20,000 frames names as many instances."""
Row = Mapping[str, str]


def read_crosswalk(path: Path) -> dict[str, Row]:
    """The rows by their `file`; ConfigError where it is none, or where others than its owner may read it."""
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the crosswalk cannot be read ({type(error).__name__})") from None
    if hasattr(os, "getuid") and status.st_mode & 0o077:
        raise ConfigError(f"{path}: others than its owner may read this crosswalk, which names patients; chmod 600 it")
    csv.field_size_limit(CELL_CHARACTERS)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError(
            f"{path}: expected a crosswalk of this version's radloop deidentify, found another file; give another path"
        )
    rows = list(reader)
    if any(None in row or None in row.values() for row in rows):
        raise ConfigError(f"{path}: a damaged crosswalk: a row has not as many columns as the head")
    if any(row["version"] != VERSION for row in rows):
        raise ConfigError(
            f"{path}: expected a crosswalk of version {VERSION}, found another; write it anew with radloop deidentify"
        )
    return {row["file"]: row for row in rows}


def write_crosswalk(path: Path, rows: Iterable[Row]) -> None:
    """Whole or not at all, and never readable by others, not even while it is written."""
    aside = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.part")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
