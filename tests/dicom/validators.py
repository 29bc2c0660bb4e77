"""Other people's programs that judge documents: each gives what it complains about, and skips the test where it is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNBOUNDED_XPATH = " ".join(f"-Djdk.xml.xpath{limit}=0" for limit in ("ExprOpLimit", "TotalOpLimit", "ExprGrpLimit"))
"""pixelmed's rules are larger than what Java allows a file of unknown origin."""
EXPECTED = ("Found ", "Root Template Validation Complete", "IOD validation complete", "Picked up JAVA_TOOL_OPTIONS")

DCMTK_LIMITS = (
    "Check for template constraints not yet supported",
    "The VR checker does not support this Specific Character Set",
    "Reading unknown/unsupported SpecificCharacterSet",
)
"""What dcmtk 3.6.7 warns of because it cannot judge it: TID 2010, and several character sets at once."""


def dciodvfy_errors(path: Path) -> list[str]:
    """dicom3tools: modules and attributes."""
    found = _run("dciodvfy", "-new", str(path))
    errors = [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")]
    return errors or ([f"exit status {found.returncode}"] if found.returncode else [])


def template_complaints(path: Path) -> list[str]:
    """pixelmed: the content tree, row by row of its template. It takes some 10 seconds."""
    found = _run("DicomSRValidator", str(path), JAVA_TOOL_OPTIONS=UNBOUNDED_XPATH)
    lines = (found.stdout + found.stderr).splitlines()
    assert "IOD validation complete" in lines, lines
    return [line for line in lines if line.strip() and not line.startswith(EXPECTED)]


def dsrdump(path: Path) -> tuple[str, list[str]]:
    """dcmtk: the content tree in words, and what it complains about."""
    found = _run("dsrdump", "+Pl", str(path))
    assert found.returncode == 0, found.stderr
    complaints = [line for line in found.stderr.splitlines() if line.startswith(("W:", "E:", "F:"))]
    return found.stdout, [
        line for line in complaints if not line.startswith(tuple(f"W: {known}" for known in DCMTK_LIMITS))
    ]


def _run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **environment},
    )
