"""Every kind of source × every kind of object: valid by all validators, one consistent study, readable by other people's readers.

The objects of a source are made once, when a test first asks for them; results come from tests/case_results.py, so that no network is
needed. That the validators would notice is tested, too: each is given an object with one thing wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from pipeline.check import Status, check
from pipeline.dicom.case_result import CaseResult
from pipeline.dicom.conformance import check_references
from pipeline.dicom.derived import write_object
from pipeline.dicom.secondary_capture import read_picture
from pipeline.prediction.object_set import Made, Unmade, objects_of
from pipeline.profile_settings import KINDS, Profile
from tests.case_results import case_result
from tests.sources import INVALID, NAMES, SOURCES
from tests.validators import (
    dcentvfy_errors,
    dciodvfy_errors,
    dcmpschk_complaints,
    dcmqi_map,
    dcmqi_measurements,
    dcmqi_segments,
    dcmtk_frames,
    dcmtk_text,
    dicom_validator_errors,
    dsrdump,
    is_dicom_file,
    template_complaints,
)

WITHOUT_FRAME_OF_REFERENCE = {"seg", "pmap"}
NOT_MADE: dict[str, set[str]] = {
    **{name: WITHOUT_FRAME_OF_REFERENCE for name in SOURCES if name.startswith(("cr_", "dx_", "burned_in"))},
    "us_color": WITHOUT_FRAME_OF_REFERENCE | {"gsps"},
    "enhanced_ct": {"overlay"},
    "enhanced_mr": {"overlay"},
}
"""Kinds of objects that a kind of source cannot have; all others it has all of."""

IN_PATIENT = ("ct", "ct_signed", "ct_not_square", "ct_of_no_axis", "enhanced_ct", "enhanced_mr")
TEMPLATED = ("ct", "cr_monochrome1", "enhanced_ct")
"""Sources whose reports pixelmed judges, as it takes 10 seconds each: regions in 2D, without a frame of reference, of several frames."""

YEAR_2020 = (
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.7.4",
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.6.1",
    "1.2.840.10008.5.1.4.1.1.11.1",
    "1.2.840.10008.5.1.4.1.1.30",
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.88.34",
    "1.2.840.10008.5.1.4.1.1.88.59",
    "1.2.840.10008.5.1.4.1.1.104.1",
)
"""SOP classes of all objects, copies of sources among them."""


@dataclass(frozen=True)
class Study:
    """A source's files, and the objects of its case on the disk."""

    sources: list[Path]
    result: CaseResult
    made: list[Made]
    unmade: list[Unmade]
    out: Path

    def files(self, *kinds: str) -> list[Path]:
        """The objects of these kinds, of all where none is named."""
        return [self.path(made) for made in self.made if not kinds or made.kind in kinds]

    def path(self, made: Made) -> Path:
        dataset = made.dataset
        return self.out / dataset.StudyInstanceUID / dataset.SeriesInstanceUID / f"{dataset.SOPInstanceUID}.dcm"

    @cached_property
    def everything(self) -> list[Path]:
        return [*self.sources, *self.files()]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Study]:
    """A source's study, made when it is first asked for."""
    done: dict[str, Study] = {}
    folder = tmp_path_factory.mktemp("matrix")

    def of(name: str) -> Study:
        if name not in done:
            sources = SOURCES[name](folder / name / "source")
            result = case_result(sources)
            outcomes = list(objects_of(result, KINDS))
            made = [outcome for outcome in outcomes if isinstance(outcome, Made)]
            for one in made:
                write_object(one.dataset, folder / name / "objects")
            unmade = [outcome for outcome in outcomes if isinstance(outcome, Unmade)]
            done[name] = Study(sources, result, made, unmade, folder / name / "objects")
        return done[name]

    return of


@pytest.mark.parametrize("name", SOURCES)
def test_each_source_has_what_it_supports_and_no_more(name: str, study: Callable[[str], Study]) -> None:
    made, unmade = study(name).made, study(name).unmade
    assert {one.kind for one in made} == set(KINDS) - NOT_MADE.get(name, set())
    assert {one.kind for one in unmade} == NOT_MADE.get(name, set())
    assert not [one for one in unmade if one.failed]


@pytest.mark.parametrize("name", SOURCES)
def test_references_lead_to_sources_or_to_each_other(name: str, study: Callable[[str], Study]) -> None:
    of = study(name)
    check_references([dcmread(path) for path in of.files()], [image.source for image in of.result.images])


@pytest.mark.parametrize("name", SOURCES)
def test_radloops_own_check(name: str, study: Callable[[str], Study]) -> None:
    """Of the files as they are on the disk, with the sources that they refer to."""
    of = study(name)
    verdicts = {Path(file.path): file for file in check(of.everything, workers=0, progress=False).files}
    wrong = {path: file.findings for path, file in verdicts.items() if file.status != Status.OK}
    assert set(wrong) == (set(of.sources) if name in INVALID else set())


@pytest.mark.dciodvfy
@pytest.mark.parametrize("name", SOURCES)
def test_dciodvfy(name: str, study: Callable[[str], Study]) -> None:
    found = {path.name: errors for path in study(name).files() if (errors := dciodvfy_errors(path))}
    assert found == {}


@pytest.mark.dciodvfy
@pytest.mark.parametrize("name", SOURCES)
def test_one_consistent_study(name: str, study: Callable[[str], Study]) -> None:
    assert dcentvfy_errors(study(name).everything) == []


@pytest.mark.dicom_validator
@pytest.mark.parametrize("name", SOURCES)
def test_dicom_validator(name: str, study: Callable[[str], Study]) -> None:
    found = {path.name: errors for path in study(name).files() if (errors := dicom_validator_errors(path, YEAR_2020))}
    assert found == {}


@pytest.mark.dcmtk
@pytest.mark.parametrize("name", SOURCES)
def test_dcmtk_takes_the_files_and_draws_the_pixels_written(
    name: str, study: Callable[[str], Study], tmp_path: Path
) -> None:
    of = study(name)
    assert [path for path in of.files() if not is_dicom_file(path)] == []
    [capture, *_] = of.files("sc")
    np.testing.assert_array_equal(dcmtk_frames(capture, tmp_path / "one")[0], read_picture(capture))
    [frames] = of.files("sc-multiframe")
    drawn = dcmtk_frames(frames, tmp_path / "all")
    assert len(drawn) == len(of.result.images)
    for image, picture in zip(of.result.images, drawn, strict=True):
        np.testing.assert_array_equal(picture, image.picture_of())


@pytest.mark.dcmtk
@pytest.mark.parametrize("name", SOURCES)
def test_dcmtk_reads_documents_and_presentation_states(name: str, study: Callable[[str], Study]) -> None:
    for path in study(name).files("gsps"):
        assert dcmpschk_complaints(path) == []
    for path in study(name).files("sr", "kos"):
        tree, complaints = dsrdump(path)
        assert complaints == []
        assert "<CONTAINER:(" in tree


@pytest.mark.dcmqi
@pytest.mark.parametrize("name", IN_PATIENT)
def test_dcmqi_reads_the_same_voxels(name: str, study: Callable[[str], Study], tmp_path: Path) -> None:
    """Slices in their order along the normal, which is the order of these sources or its reverse."""
    of = study(name)
    evidence = np.stack([image.evidence_of() for image in of.result.images])
    [parametric_map] = of.files("pmap")
    voxels, spacing = dcmqi_map(parametric_map, tmp_path / "pmap")
    assert _same(voxels, evidence)
    measured = dcmread(parametric_map).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    np.testing.assert_allclose(spacing[:2], [float(value) for value in reversed(measured)], rtol=1e-5)
    [segmentation] = of.files("seg")
    [segment] = dcmqi_segments(segmentation, tmp_path / "seg").values()
    assert _same(segment > 0, evidence >= of.result.region_threshold)


@pytest.mark.dcmqi
@pytest.mark.parametrize("name", IN_PATIENT)
def test_dcmqi_reads_the_report(name: str, study: Callable[[str], Study], tmp_path: Path) -> None:
    [report] = study(name).files("sr")
    said = dcmqi_measurements(report, tmp_path)
    assert '"COVID"' in said
    assert "TrackingUniqueIdentifier" in said


@pytest.mark.pixelmed
@pytest.mark.parametrize("name", TEMPLATED)
def test_pixelmed_finds_the_templates_kept(name: str, study: Callable[[str], Study]) -> None:
    for path in study(name).files("sr"):
        assert template_complaints(path) == []


@pytest.mark.parametrize("name", [*NAMES, "ct"])
def test_names_are_carried(name: str, study: Callable[[str], Study]) -> None:
    of = study(name)
    source = dcmread(of.sources[0])
    for path in of.files():
        assert str(dcmread(path).PatientName) == str(source.PatientName)


@pytest.mark.dcmtk
@pytest.mark.parametrize("name", sorted(NAMES.keys() - {"japanese"}))
def test_names_read_by_another_decoder(name: str, study: Callable[[str], Study]) -> None:
    """Not Japanese: dcmtk, as Debian builds it, has no decoder for ISO 2022 IR 87."""
    for path in study(name).files():
        assert dcmtk_text(path, "PatientName") == NAMES[name][1]


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    return any(np.array_equal(first, order) for order in (second, second[::-1]))


@pytest.mark.dciodvfy
@pytest.mark.dicom_validator
@pytest.mark.parametrize("compression", ["rle", "jpeg-ls", "jpeg2000"])
def test_compressed_objects(compression: str, tmp_path: Path) -> None:
    profile = Profile(compression=compression, segmentation="fractional")  # type: ignore[arg-type]
    result = case_result(SOURCES["ct"](tmp_path / "source"), profile=profile)
    for outcome in objects_of(result, ["sc", "sc-multiframe", "seg"]):
        assert isinstance(outcome, Made)
        path = write_object(outcome.dataset, tmp_path / "objects")
        assert dcmread(path).file_meta.TransferSyntaxUID.is_compressed
        assert dciodvfy_errors(path) == []
        assert dicom_validator_errors(path, YEAR_2020) == []


# --- would they notice?


def _spoiled(path: Path, folder: Path, spoil: Callable[[Dataset], None]) -> Path:
    dataset = dcmread(path)
    spoil(dataset)
    dcmwrite(folder / "spoiled.dcm", dataset, enforce_file_format=True)
    return folder / "spoiled.dcm"


def _forget_equipment(dataset: Dataset) -> None:
    del dataset.Manufacturer


def _forget_conversion(dataset: Dataset) -> None:
    del dataset.ConversionType


def _change_sex(dataset: Dataset) -> None:
    dataset.PatientSex = "M"


def _report_nonsense(dataset: Dataset) -> None:
    """A code of nobody's where TID 1500 wants the procedure."""
    for item in dataset.ContentSequence:
        if item.ConceptNameCodeSequence[0].CodeValue == "121058":
            item.ConceptCodeSequence[0].CodeValue = "NONSENSE"


@pytest.mark.dciodvfy
def test_dicom3tools_would_notice(study: Callable[[str], Study], tmp_path: Path) -> None:
    of = study("ct")
    assert dciodvfy_errors(_spoiled(of.files("sc")[0], tmp_path, _forget_conversion))
    assert dcentvfy_errors([*of.everything, _spoiled(of.files("sc")[0], tmp_path, _change_sex)])


@pytest.mark.dicom_validator
def test_dicom_validator_would_notice(study: Callable[[str], Study], tmp_path: Path) -> None:
    path = _spoiled(study("ct").files("seg")[0], tmp_path, _forget_equipment)
    assert dicom_validator_errors(path, YEAR_2020)


@pytest.mark.dcmtk
def test_dcmtk_would_notice(study: Callable[[str], Study], tmp_path: Path) -> None:
    def forget_images(dataset: Dataset) -> None:
        del dataset.ReferencedSeriesSequence

    def forget_content(dataset: Dataset) -> None:
        del dataset.ContentSequence[0].RelationshipType

    assert dcmpschk_complaints(_spoiled(study("ct").files("gsps")[0], tmp_path, forget_images))
    assert dsrdump(_spoiled(study("ct").files("kos")[0], tmp_path, forget_content))[1]


@pytest.mark.pixelmed
def test_pixelmed_would_notice(study: Callable[[str], Study], tmp_path: Path) -> None:
    assert template_complaints(_spoiled(study("ct").files("sr")[0], tmp_path, _report_nonsense))
