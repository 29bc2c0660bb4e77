"""A PACS (Orthanc) takes every kind of object by STOW-RS and C-STORE and gives it back as it was; dcmtk shows presentation states right.

The objects are what `write_object` left on the disk. Whoever sends them by C-STORE makes file meta information of its own; nothing else
may change.
"""

from __future__ import annotations

import datetime
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from pipeline.dicom.case_result import CaseResult
from pipeline.dicom.derived import write_object
from pipeline.dicom.pixels import read_pixels
from pipeline.prediction.object_set import Made, objects_of
from pipeline.profile_settings import KINDS, Kind, Profile
from tests.case_results import CREATED, case_result
from tests.pacs.orthanc import Orthanc
from tests.sources import SOURCES
from transforms.intensity import WINDOWS, to_unit_range

STORED = ("ct", "cr_monochrome1", "us_color", "enhanced_ct", "no_type_2", "japanese")
"""Sources whose objects go to the PACS: with and without a place in the patient, in colour, of several frames, of poor headers, of a
name in several scripts."""
SHOWN_LEVELS = 2
"""By how much dcmtk's gray may be off, of 255: one for rounding, one for a window's end taken as 149 or 150 HU."""


@dataclass(frozen=True)
class Study:
    """A source's files, and the files of all objects that it can have."""

    result: CaseResult
    sources: list[Path]
    objects: list[tuple[Kind, Path]]

    @property
    def files(self) -> list[Path]:
        return [*self.sources, *(path for _, path in self.objects)]


@pytest.fixture
def pacs(orthanc: Orthanc) -> Iterator[Orthanc]:
    """Empty."""
    orthanc.delete_all()
    yield orthanc
    orthanc.delete_all()


@pytest.fixture(scope="module", params=STORED)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return _study(request.param, tmp_path_factory.mktemp(request.param))


def _study(name: str, folder: Path, **changes: Any) -> Study:
    sources = SOURCES[name](folder / "source")
    result = case_result(sources, **changes)
    return Study(result, sources, _written(result, folder / "out"))


def _written(result: CaseResult, out: Path) -> list[tuple[Kind, Path]]:
    made = [outcome for outcome in objects_of(result, KINDS) if isinstance(outcome, Made)]
    return [(one.kind, write_object(one.dataset, out)) for one in made]


@pytest.mark.orthanc
def test_stow_takes_every_kind_and_wado_gives_the_same_file_back(pacs: Orthanc, study: Study):
    answer = pacs.stow(study.files)
    assert len(answer["00081199"]["Value"]) == len(study.files)  # ReferencedSOPSequence: what is stored now
    assert not answer.get("00081198", {}).get("Value")  # FailedSOPSequence
    assert pacs.count() == len(study.files)
    for path in study.files:
        assert _given_back(pacs, path) == path.read_bytes(), dcmread(path).SOPClassUID.name


@pytest.mark.orthanc
def test_c_store_takes_every_kind_and_changes_no_attribute(pacs: Orthanc, study: Study, tmp_path: Path):
    for number, path in enumerate(study.files):
        shutil.copyfile(path, tmp_path / f"{number}.dcm")
    sent = pacs.c_store(tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert pacs.count() == len(study.files)
    for path in study.files:
        written, back = dcmread(path), dcmread(DicomBytesIO(_given_back(pacs, path)))
        assert back == written, written.SOPClassUID.name
        assert back.file_meta.TransferSyntaxUID == written.file_meta.TransferSyntaxUID


@pytest.mark.orthanc
def test_what_is_sent_or_inferred_twice_is_there_once(pacs: Orthanc, study: Study, tmp_path: Path):
    pacs.stow(study.files)
    pacs.stow(study.files)
    later = case_result(study.sources, created=CREATED + datetime.timedelta(days=1))
    pacs.stow([path for _, path in _written(later, tmp_path / "again")])
    pacs.c_store(tmp_path / "again")
    assert pacs.count() == len(study.files)
    others = case_result(study.sources, profile=Profile(region=0.6), configuration_digest="ef" * 32)
    changed = [path for _, path in _written(others, tmp_path / "changed")]
    pacs.stow(changed)
    assert pacs.count() == len(study.files) + len(changed)


@pytest.mark.orthanc
def test_they_are_filed_in_the_study_of_their_source_each_kind_in_its_series(pacs: Orthanc, study: Study):
    pacs.stow(study.files)
    source = dcmread(study.sources[0], stop_before_pixels=True)
    (found,) = pacs.qido("studies")
    assert found["0020000D"]["Value"] == [source.StudyInstanceUID]
    series = pacs.qido(f"studies/{source.StudyInstanceUID}/series?includefield=SeriesNumber,SeriesDescription")
    assert len(series) == 1 + len({dcmread(path).SeriesInstanceUID for _, path in study.objects})
    described = {
        int(one["00200011"]["Value"][0]): one["0008103E"]["Value"][0]
        for one in series
        if one["0020000E"]["Value"] != [source.SeriesInstanceUID]
    }
    assert set(described) == {study.result.profile.series_number_of(kind) for kind, _ in study.objects}
    assert all(description.endswith("(research use only)") for description in described.values())


@pytest.mark.orthanc
@pytest.mark.parametrize("compression", ["none", "rle", "jpeg-ls"])
def test_previews_of_captures_are_the_pictures_written(pacs: Orthanc, tmp_path: Path, compression: str):
    """JPEG 2000 this Orthanc stores, but draws it only with a plugin that it has not."""
    study = _study("ct", tmp_path, profile=Profile(compression=compression))  # type: ignore[arg-type]
    pacs.stow(study.files)
    pictures = {str(image.source.SOPInstanceUID): image.picture_of() for image in study.result.images}
    captures = [dcmread(path) for kind, path in study.objects if kind in ("sc", "sc-multiframe")]
    assert len(captures) == 3
    for capture in captures:
        for frame, source in enumerate(capture.SourceImageSequence, start=1):
            drawn = pacs.rendered(*_uids(capture), frame)
            assert np.array_equal(drawn, pictures[str(source.ReferencedSOPInstanceUID)])


@pytest.mark.skipif(shutil.which("dcmp2pgm") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("name", ["ct", "ct_signed", "cr_monochrome1", "cr_monochrome2", "dx_monochrome1"])
def test_by_its_presentation_state_dcmtk_shows_the_source_as_it_shows_itself(tmp_path: Path, name: str):
    """Window, modality LUT and the direction of the gray scale come from the state alone; graphics and text this program does not draw."""
    study = _study(name, tmp_path)
    (state,) = [path for kind, path in study.objects if kind == "gsps"]
    drawn = tmp_path / "drawn.pgm"
    subprocess.run(["dcmp2pgm", "-p", str(state), str(study.sources[0]), str(drawn)], check=True, capture_output=True)
    seen = np.asarray(Image.open(drawn)).astype(int)
    expected = 255 * to_unit_range(read_pixels(study.sources[0]), WINDOWS["lung"])
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).max() <= SHOWN_LEVELS
    assert np.ptp(seen) > 100


def _given_back(pacs: Orthanc, path: Path) -> bytes:
    return pacs.wado(*_uids(dcmread(path, stop_before_pixels=True)))


def _uids(dataset: Dataset) -> tuple[str, str, str]:
    return str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)
