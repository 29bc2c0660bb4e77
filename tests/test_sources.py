"""The sources of the tests are what they claim to be: valid DICOM of their kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from pipeline.dicom.conformance import check
from pipeline.dicom.pixels import read_pixels
from pipeline.errors import ObjectError
from tests.sources import INVALID, NAMES, SOURCES, png
from tests.validators import dcentvfy_errors, dciodvfy_errors


@pytest.mark.dciodvfy
@pytest.mark.parametrize("name", sorted(SOURCES.keys() - INVALID))
def test_sources_are_valid(name: str, tmp_path: Path) -> None:
    paths = SOURCES[name](tmp_path)
    assert {path.name: errors for path in paths if (errors := dciodvfy_errors(path))} == {}
    assert dcentvfy_errors(paths) == []
    for path in paths:
        check(dcmread(path))


@pytest.mark.parametrize("name", sorted(INVALID))
def test_invalid_sources_are_found_out(name: str, tmp_path: Path) -> None:
    for path in SOURCES[name](tmp_path):
        with pytest.raises(ObjectError, match=r"PatientID is missing \(Type 2\)"):
            check(dcmread(path))


@pytest.mark.parametrize("name", SOURCES)
def test_sources_can_be_read(name: str, tmp_path: Path) -> None:
    for path in SOURCES[name](tmp_path):
        values = read_pixels(path).values
        assert np.ptp(values) > 0


@pytest.mark.parametrize("name", NAMES)
def test_names_read_as_written(name: str, tmp_path: Path) -> None:
    for path in SOURCES[name](tmp_path):
        assert str(dcmread(path).PatientName) == NAMES[name][1]


def test_a_picture_is_no_dicom(tmp_path: Path) -> None:
    [path] = png(tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
