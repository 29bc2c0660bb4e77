"""`radloop check`: anybody's files, judged one by one and by what they say of each other, without a word of a patient."""

from __future__ import annotations

import csv
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.check import CHECK_FILE, Status, check
from pipeline.cli import main
from pipeline.dicom.checked_file import check_file
from pipeline.dicom.phantom import ct_slice, radiograph, save
from pipeline.errors import SourceError
from tests.hostile import CANARIES, IDENTITY
from tests.sources import cr_lossy, ct, png
from tests.validators import dciodvfy_errors


def statuses(folder: Path, **options: object) -> dict[str, Status]:
    summary = check([folder], workers=0, progress=False, **options)  # type: ignore[arg-type]
    return {Path(file.path).name: file.status for file in summary.files}


def test_each_file_has_its_verdict(tmp_path: Path) -> None:
    files = tmp_path / "files"
    ct(files)
    png(files)
    save(ct_slice(16, Modality=None), files / "no_modality")
    whole = save(ct_slice(16, instance_number=9), files / "cut").read_bytes()
    (files / "cut").write_bytes(whole[:-100])
    save(ct_slice(16, instance_number=8, SOPClassUID="1.2.840.10008.5.1.4.1.1.999"), files / "newer")
    os.mkfifo(files / "fifo")
    found = statuses(files)
    assert found == {
        "IM0": Status.OK,
        "IM1": Status.OK,
        "IM2": Status.OK,
        "IM0.png": Status.NOT_JUDGED,
        "no_modality": Status.INVALID,
        "cut": Status.UNREADABLE,
        "newer": Status.UNKNOWN_CLASS,
        "fifo": Status.NOT_JUDGED,
    }


def test_the_table_has_a_row_a_file_and_the_command_says_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    ct(files)
    assert main(["check", str(files), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 files: 3 ok"
    with (tmp_path / "out" / CHECK_FILE).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert {row["sop_class"] for row in rows} == {"CT Image Storage"}
    assert rows[0]["sop_instance_uid"] == str(dcmread(files / "IM0").SOPInstanceUID)

    save(ct_slice(16, Modality=None), files / "wrong")
    assert main(["check", str(files)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("invalid")
    assert "Modality is missing (Type 1)" in said[0]
    assert said[1:] == ["4 files: 3 ok, 1 invalid"]


def test_what_is_ok_or_no_dicom_is_only_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ct(tmp_path)
    for name in ("predictions.csv", "objects.csv"):
        (tmp_path / name).write_text("case_id\n")
    (tmp_path / "empty").touch()
    total = "6 files: 3 ok, 3 not judged (empty 1, not_an_image 2)"
    assert main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [total]
    assert main(["check", str(tmp_path), "--all"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in said[:-1]) == ["not_judged"] * 3 + ["ok"] * 3
    assert said[-1] == total


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png(tmp_path / "pictures")
    assert main(["check", str(tmp_path / "pictures")]) == 2
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert "found none among 1 file" in said
    assert "no such file" in said


def test_archives_and_single_files(tmp_path: Path) -> None:
    paths = ct(tmp_path / "files")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"DICOM/{path.name}")
    (tmp_path / "lossy").mkdir()
    summary = check([tmp_path / "export.zip", *cr_lossy(tmp_path / "lossy")], workers=0, progress=False)
    assert [file.status for file in summary.files] == [Status.OK] * 4
    assert summary.files[0].path.endswith("export.zip/DICOM/IM0")


def test_a_file_that_breaks_the_parser_costs_only_itself(tmp_path: Path) -> None:
    files = tmp_path / "files"
    ct(files)
    deep = Dataset()
    inner = deep
    for _ in range(100):
        inner.ReferencedImageSequence = [Dataset()]
        inner = inner.ReferencedImageSequence[0]
    deep.update(ct_slice(16, instance_number=9))
    save(deep, files / "deep")
    (files / "noise").write_bytes(b"\0" * 128 + b"DICM" + os.urandom(4000))
    summary = check([files], workers=1, progress=False)
    found = {Path(file.path).name: file for file in summary.files}
    assert found["deep"].status == Status.INVALID
    assert "deeper than 64 sequences" in "; ".join(found["deep"].findings)
    assert found["noise"].status in (Status.UNREADABLE, Status.INVALID)
    assert [found[f"IM{number}"].status for number in range(3)] == [Status.OK] * 3


def test_references_between_the_files_are_followed(tmp_path: Path) -> None:
    source = ct_slice(16)
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = source.SeriesInstanceUID, [reference]
    other = ct_slice(16, instance_number=2, ReferencedSeriesSequence=[series])
    save(source, tmp_path / "source")
    save(other, tmp_path / "other")
    assert statuses(tmp_path) == {"source": Status.OK, "other": Status.OK}

    series.SeriesInstanceUID = "1.2.3"
    reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    save(other, tmp_path / "other")
    [verdict] = [file for file in check([tmp_path], workers=0, progress=False).files if file.path.endswith("other")]
    assert verdict.status == Status.INVALID
    assert "by another SOP class than its own" in "; ".join(verdict.findings)
    assert "in another series than its own" in "; ".join(verdict.findings)


def test_two_different_instances_of_one_uid(tmp_path: Path) -> None:
    first = ct_slice(16)
    save(first, tmp_path / "first")
    shutil.copyfile(tmp_path / "first", tmp_path / "again")
    assert statuses(tmp_path) == {"first": Status.OK, "again": Status.OK}, "a copy is no other instance"
    save(radiograph(16, SOPInstanceUID=first.SOPInstanceUID), tmp_path / "other")
    assert set(statuses(tmp_path).values()) == {Status.INVALID}


def test_nothing_of_a_patient_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "CANARY_NAME"
    wrong = ct_slice(16, **IDENTITY, StudyDescription="CANARY\x07", Modality=None)
    wrong.add_new("PatientAge", "AS", "CANARY")
    save(wrong, files / "IM0")
    assert main(["check", str(files), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    text = said.out + said.err
    assert "PatientAge holds a value that AS does not allow" in text
    assert "not shown, as it holds a patient's name or ID" in text
    assert not [word for word in CANARIES if word in text]
    findings = [row["findings"] for row in csv.DictReader((tmp_path / "out" / CHECK_FILE).open())]
    assert not [word for word in CANARIES if word in "".join(findings)]


@pytest.mark.real_data
@pytest.mark.dciodvfy
def test_no_false_alarm_on_real_files(real_data: Path) -> None:
    """Whatever of the real files dciodvfy finds valid is valid here."""
    files = check([real_data / "dicom"], progress=False).files
    assert len([file for file in files if file.status == Status.OK]) > 100
    invalid = [Path(file.path) for file in files if file.status == Status.INVALID]
    alone = [
        path for path in invalid if check_file(path).findings
    ]  # not for a SOPInstanceUID that another file has, too
    assert [path.name for path in alone if not dciodvfy_errors(path)] == []


def test_a_folder_without_files_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found none among 0 files"):
        check([tmp_path], workers=0, progress=False)
