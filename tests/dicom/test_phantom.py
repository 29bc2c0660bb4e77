"""The generated export: complete, the same each time, valid, and telling its labels by nothing but the opacities."""

from __future__ import annotations

import csv
import filecmp
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.fileset import FileSet
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, MediaStorageDirectoryStorage

from pipeline.dicom.phantom import NOT_A_PATIENT, Export, make_export
from pipeline.dicom.phantom_plan import plan
from pipeline.errors import ConfigError

ODDITIES = {"README.TXT", "RESENT/IM000000", "RESENT/IM000001", "DICOMDIR"}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return make_export(tmp_path_factory.mktemp("phantoms"), patients=4, slices=2, size=64, seed=5)


@pytest.fixture(scope="module")
def headers(export: Export) -> dict[str, Dataset]:
    """Headers of the valid instances by their path in the export."""
    paths = sorted(path for path in (export.folder / "DICOM").rglob("*") if path.is_file())
    return {str(path.relative_to(export.folder)): dcmread(path) for path in paths}


def sheet(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_holds_what_a_pacs_exports(export: Export, headers: dict[str, Dataset]) -> None:
    found = {str(path.relative_to(export.folder)) for path in export.folder.rglob("*") if path.is_file()}
    assert found == set(headers) | ODDITIES
    assert export.files == len(found)
    assert all("." not in name for name in headers)
    kinds = Counter((each.Modality, each.get("PhotometricInterpretation")) for each in headers.values())
    assert kinds["CT", "MONOCHROME2"] >= 16
    assert kinds["CR", "MONOCHROME1"] == kinds["DX", "MONOCHROME2"] == kinds["SR", None] == 2
    assert {each.file_meta.TransferSyntaxUID for each in headers.values()} == {ExplicitVRLittleEndian, JPEGLSLossless}
    assert {each.Manufacturer for each in headers.values()} == {"Phantom Scanners A", "Phantom Scanners B"}
    assert sum("LOCALIZER" in each.get("ImageType", []) for each in headers.values()) == 6
    assert len({each.SOPInstanceUID for each in headers.values()}) == len(headers)


def test_says_everywhere_that_it_is_a_phantom(export: Export, headers: dict[str, Dataset]) -> None:
    for each in headers.values():
        assert str(each.PatientName).startswith("PHANTOM^")
        assert NOT_A_PATIENT in each.SeriesDescription
        assert NOT_A_PATIENT in each.StudyDescription
        assert NOT_A_PATIENT in each.PatientComments
    assert NOT_A_PATIENT in (export.folder / "README.TXT").read_text()


def test_oddities_are_what_they_are_called(export: Export, headers: dict[str, Dataset]) -> None:
    copy = export.folder / "RESENT/IM000000"
    twins = [name for name in headers if filecmp.cmp(export.folder / name, copy, shallow=False)]
    assert len(twins) == 1
    cut = export.folder / "RESENT/IM000001"
    header = dcmread(cut, stop_before_pixels=True)
    assert header.SOPInstanceUID not in {each.SOPInstanceUID for each in headers.values()}
    assert header.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert cut.stat().st_size < header.Rows * header.Columns * 2
    with pytest.raises(InvalidDicomError):
        dcmread(export.folder / "README.TXT")


def test_dicomdir_lists_the_valid_instances(export: Export, headers: dict[str, Dataset]) -> None:
    directory = dcmread(export.folder / "DICOMDIR")
    assert directory.file_meta.MediaStorageSOPClassUID == MediaStorageDirectoryStorage
    listed = {Path(instance.path).relative_to(export.folder).as_posix(): instance for instance in FileSet(directory)}
    assert set(listed) == set(headers)
    assert all(listed[name].SOPInstanceUID == headers[name].SOPInstanceUID for name in headers)


def test_each_study_has_one_label_and_a_patient_one_finding(export: Export, headers: dict[str, Dataset]) -> None:
    rows = sheet(export.labels)
    keys = {(row["AccessionNumber"], row["StudyInstanceUID"]) for row in rows}
    assert len(keys) == len(rows) == len({row["StudyInstanceUID"] for row in rows})
    assert keys == {(each.AccessionNumber, each.StudyInstanceUID) for each in headers.values()}
    finding = {row["StudyInstanceUID"]: row["finding"] for row in rows}
    by_patient = defaultdict(set)
    for each in headers.values():
        by_patient[each.PatientID].add(finding[each.StudyInstanceUID])
    assert sorted(map(sorted, by_patient.values())) == [["normal"], ["normal"], ["opacity"], ["opacity"]]


def test_lesions_lie_in_every_axial_slice_of_the_affected_and_in_no_other(
    export: Export, headers: dict[str, Dataset]
) -> None:
    finding = {row["StudyInstanceUID"]: row["finding"] for row in sheet(export.labels)}
    axial = {each.SOPInstanceUID for each in headers.values() if each.Modality == "CT" and "AXIAL" in each.ImageType}
    affected = {each.SOPInstanceUID for each in headers.values() if finding[each.StudyInstanceUID] == "opacity"}
    places = sheet(export.lesions)
    assert {row["sop_instance_uid"] for row in places} == axial & affected
    for row in places:
        assert 0 < float(row["row"]) < 64
        assert 0 < float(row["column"]) < 64
    widest: dict[str, float] = defaultdict(float)
    for row in places:
        widest[row["sop_instance_uid"]] = max(widest[row["sop_instance_uid"]], float(row["radius_columns"]))
    assert min(widest.values()) >= 0.04 * 64


def test_series_are_geometrically_sound(headers: dict[str, Dataset]) -> None:
    series = defaultdict(list)
    for each in headers.values():
        if each.Modality == "CT" and "AXIAL" in each.ImageType:
            series[each.SeriesInstanceUID].append(each)
    assert {len(slices) for slices in series.values()} == {2}
    for slices in series.values():
        slices.sort(key=lambda each: each.InstanceNumber)
        levels = [float(each.ImagePositionPatient[2]) for each in slices]
        assert levels == sorted(levels, reverse=True)
        assert len({each.FrameOfReferenceUID for each in slices}) == 1
        assert len({tuple(each.PixelSpacing) for each in slices}) == 1


def test_nothing_but_the_opacities_tells_the_class() -> None:
    patients = list(plan(40, seed=0))
    assert len({patient.name for patient in patients}) == 40

    def shared(positive: bool) -> Counter[tuple[object, ...]]:
        return Counter(
            (p.scanner, p.transfer_syntax, p.contrast, p.soft_series, p.studies, p.radiograph, p.report, p.female)
            for p in patients
            if p.positive is positive
        )

    assert shared(True) == shared(False)


def test_number_of_files_does_not_tell_the_class(export: Export, headers: dict[str, Dataset]) -> None:
    finding = {row["StudyInstanceUID"]: row["finding"] for row in sheet(export.labels)}
    files = Counter(finding[each.StudyInstanceUID] for each in headers.values())
    assert files["opacity"] == files["normal"]


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, export: Export) -> None:
    again = make_export(tmp_path, patients=4, slices=2, size=64, seed=5)
    for path in (p for p in export.folder.rglob("*") if p.is_file()):
        assert filecmp.cmp(path, again.folder / path.relative_to(export.folder), shallow=False), path
    assert export.labels.read_bytes() == again.labels.read_bytes()
    assert export.lesions.read_bytes() == again.lesions.read_bytes()


def test_another_seed_gives_other_patients_and_replaces_the_export(tmp_path: Path, export: Export) -> None:
    make_export(tmp_path, patients=2, slices=1, size=32, seed=7)
    (tmp_path / "export" / "stale").write_text("left over")
    seen: list[tuple[int, int]] = []
    other = make_export(
        tmp_path, patients=2, slices=1, size=32, seed=6, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]
    assert not (other.folder / "stale").exists()
    uids = {row["StudyInstanceUID"] for row in sheet(other.labels)}
    assert not uids & {row["StudyInstanceUID"] for row in sheet(export.labels)}


def test_what_was_not_generated_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "scan.dcm").write_text("somebody's")
    with pytest.raises(ConfigError, match="found other files"):
        make_export(tmp_path, patients=2, slices=1, size=32)
    assert (tmp_path / "export" / "scan.dcm").read_text() == "somebody's"


def test_too_small_an_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 patients"):
        make_export(tmp_path, patients=1)
    assert not (tmp_path / "export").exists()


@pytest.mark.dciodvfy
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_every_valid_object_passes_dciodvfy(export: Export, headers: dict[str, Dataset]) -> None:
    for name in (*headers, "DICOMDIR"):
        result = subprocess.run(
            ["dciodvfy", "-new", str(export.folder / name)], capture_output=True, text=True, check=False
        )
        said = result.stdout + result.stderr
        assert result.returncode == 0, f"{name}: {said}"
        assert "Error" not in said, f"{name}: {said}"
        assert "Warning" not in said, f"{name}: {said}"
