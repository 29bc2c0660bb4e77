"""What became of the files: who has which place in DIR, the rows of the tables, and those of the crosswalk."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.crosswalk import COLUMNS, VERSION, Row
from pipeline.deidentifying.journal import WORK_FOLDER
from pipeline.deidentifying.plan import Plan, SourceFile
from pipeline.dicom.deidentification import IDENTITY, Cleaned, HeldBack, Instance
from pipeline.dicom.deidentification_risk import Held
from pipeline.work import Failure

_SAME_UID = (str(Held.SAME_UID), "another file of its UID was there first")
_IDENTITY_COLUMNS = {
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer_of_patient_id",
    "PatientName": "patient_name",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
    "AccessionNumber": "accession_number",
    "StudyID": "study_id",
    "StudyDate": "study_date",
    "StudyTime": "study_time",
    "ReferringPhysicianName": "referring_physician_name",
    "StudyDescription": "study_description",
}
"""Columns of the crosswalk, by keyword."""


@dataclass
class Outcomes:
    """What became of the files so far; who has which place in DIR."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    held: list[tuple[str, str, str]] = field(default_factory=list)
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    claimed: dict[str, str] = field(default_factory=dict)
    """Path in DIR → sha256 of what stands there."""
    taken: set[str] = field(default_factory=set)
    """Paths in DIR that a row has."""
    kept: int = 0


def aside_of(out: Path, file: SourceFile) -> Path:
    return out / WORK_FOLDER / f"{file.name}.dcm"


def stands(known: dict[str, Any], out: Path) -> bool:
    """Whether what an outcome speaks of is in its place."""
    if known["kind"] != "cleaned":
        return True
    try:
        return (out / known["row"]["path"]).stat().st_size == known["bytes"]
    except OSError:
        return False


def take_known(file: SourceFile, outcomes: Outcomes) -> None:
    known = file.known or {}
    if known["kind"] != "cleaned":
        target = outcomes.held if known["kind"] == "held" else outcomes.rejects
        target.append((file.name, known["reason"], known["detail"]))
        return
    row = known["row"]
    claimed = outcomes.claimed.setdefault(row["path"], row["sha256"])
    if claimed != row["sha256"]:
        outcomes.held.append((file.name, *_SAME_UID))
        return
    outcomes.rows.append({**row, "duplicate": "yes" if row["path"] in outcomes.taken else ""})
    outcomes.taken.add(row["path"])
    outcomes.kept += 1


def settle(
    file: SourceFile, answer: Any, out: Path, outcomes: Outcomes, told: dict[str, Row], plan: Plan
) -> dict[str, Any]:
    """Gives a new file its place, or says why there is none; returns what the journal keeps."""
    if isinstance(answer, Failure):
        outcomes.rejects.append((file.name, str(answer.reason), answer.detail))
        return {"kind": "rejected", "reason": str(answer.reason), "detail": answer.detail}
    aside = aside_of(out, file)
    if isinstance(answer, Cleaned):
        place = "/".join((*_folders(answer.now), f"{answer.now.sop_instance_uid}.dcm"))
        claimed = outcomes.claimed.get(place)
        if claimed is None or claimed == answer.sha256:
            row = _row(file, answer, place, duplicate=claimed is not None)
            if claimed is None:
                (out / place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside, out / place)
                outcomes.claimed[place] = answer.sha256
            aside.unlink(missing_ok=True)
            outcomes.rows.append(row)
            outcomes.taken.add(place)
            if answer.was is not None:
                told[file.name] = _crosswalk_row(file, answer, plan)
            return {"kind": "cleaned", "row": row, "bytes": answer.bytes}
        answer = HeldBack(Held(_SAME_UID[0]), _SAME_UID[1])
    aside.unlink(missing_ok=True)
    outcomes.held.append((file.name, str(answer.reason), answer.detail))
    return {"kind": "held", "reason": str(answer.reason), "detail": answer.detail}


def _folders(instance: Instance) -> tuple[str, str]:
    return instance.study_instance_uid, instance.series_instance_uid


def _row(file: SourceFile, cleaned: Cleaned, place: str, *, duplicate: bool) -> dict[str, Any]:
    now = asdict(cleaned.now)
    return {
        "file": file.name,
        "path": place,
        **now,
        "patient_id": cleaned.patient_id,
        "sop_class_uid": cleaned.sop_class_uid,
        "modality": cleaned.modality,
        "masked": "yes" if cleaned.masked else "",
        "duplicate": "yes" if duplicate else "",
        "sha256": cleaned.sha256,
    }


def _crosswalk_row(file: SourceFile, cleaned: Cleaned, plan: Plan) -> dict[str, str]:
    was = asdict(cleaned.was) if cleaned.was is not None else {}
    identity = dict(zip((_IDENTITY_COLUMNS[keyword] for keyword in IDENTITY), cleaned.identity, strict=True))
    return {
        **unmade_row(file, plan),
        **was,
        **{f"new_{name}": value for name, value in asdict(cleaned.now).items()},
        **identity,
        "new_patient_id": cleaned.patient_id,
        "days": str(cleaned.days),
        "sop_class_uid": cleaned.sop_class_uid,
        "frames": str(cleaned.frames),
        "frame_of_reference_uid": cleaned.frame_of_reference_uid,
        "new_frame_of_reference_uid": cleaned.new_frame_of_reference_uid,
        "original": cleaned.original,
    }


def unmade_row(file: SourceFile, plan: Plan) -> dict[str, str]:
    """Of a file that is held back or rejected: which one it is."""
    return {
        **dict.fromkeys(COLUMNS, ""),
        "version": VERSION,
        "file": file.name,
        "source": file.source,
        "path": file.entry.path,
        "plan": plan.name,
    }


def remove_unclaimed(out: Path, paths: set[str]) -> int:
    """Objects of before that nothing claims: of files that are gone, or of other settings. Their empty folders go, too."""
    removed = 0
    for path in sorted(paths):
        place = out / path
        if place.is_file():
            place.unlink()
            removed += 1
        for folder in (place.parent, place.parent.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                shutil.rmtree(folder)
    return removed
