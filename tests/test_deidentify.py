"""`radloop deidentify`: every file accounted for, the same bytes each time, nothing of anybody in what is given away."""

from __future__ import annotations

import csv
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

import pipeline.deidentify as stage
from pipeline.cli import main
from pipeline.crosswalk import COLUMNS, read_crosswalk
from pipeline.deidentify import DeidentifySummary, deidentify
from pipeline.deidentify_settings import KEEP, load_deidentification
from pipeline.deidentifying.tables import DEIDENTIFIED_FILE, HELD_FILE, REJECTS_FILE
from pipeline.dicom.conformance import is_uid
from pipeline.dicom.phantom import ct_slice, radiograph, save, structured_report
from pipeline.errors import ConfigError, SourceError

NAME = "QXSURNAME"


def export(folder: Path) -> Path:
    """Two patients, in folders of their names: slices, one of them twice, a radiograph, a report, and what is no image."""
    for number in (1, 2):
        save(ct_slice(32, instance_number=number, PatientName=f"{NAME}^A"), folder / f"{NAME}_A" / f"IM{number}")
    shutil.copy(folder / f"{NAME}_A" / "IM1", folder / f"{NAME}_A" / "IM1 again")
    save(radiograph(32, patient_id="PH-0002", PatientName=f"{NAME}^B"), folder / f"{NAME}_B" / "CR")
    save(structured_report(PatientName=f"{NAME}^A"), folder / f"{NAME}_A" / "SR")
    (folder / f"{NAME}_B" / "notes.txt").write_text(f"{NAME} has a cough")
    content = (folder / f"{NAME}_B" / "CR").read_bytes()
    (folder / f"{NAME}_B" / "cut").write_bytes(content[: len(content) - 300])
    os.mkfifo(folder / "fifo")
    return folder


def run(source: Path, out: Path, **options: Any) -> DeidentifySummary:
    return deidentify(str(source), out, workers=0, progress=False, **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def objects(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.dcm"))}


def everything(out: Path) -> bytes:
    """Names and bytes of all that is in a folder."""
    return b"\n".join(
        str(path.relative_to(out)).encode() + b"\n" + (path.read_bytes() if path.is_file() else b"")
        for path in sorted(out.rglob("*"))
    )


def test_every_file_is_in_one_table_and_nobody_in_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = export(tmp_path / "export"), tmp_path / "clean"
    summary = run(source, out)
    tables = {name: rows(out / name) for name in (DEIDENTIFIED_FILE, HELD_FILE, REJECTS_FILE)}
    files = [row["file"] for table in tables.values() for row in table]
    assert len(files) == len(set(files)) == 8
    assert (summary.deidentified, summary.duplicates, summary.patients, summary.studies) == (3, 1, 2, 2)
    assert [row["reason"] for row in tables[HELD_FILE]] == ["text_object"]
    assert sorted(row["reason"] for row in tables[REJECTS_FILE]) == ["not_a_regular_file", "not_an_image", "truncated"]
    assert summary.failed == 1
    assert "not all went well: 1 file might be images and came to nothing (rejects.csv)" in summary.lines()
    for row in tables[DEIDENTIFIED_FILE]:
        dataset = dcmread(out / row["path"])
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        assert row["path"] == f"{uids[0]}/{uids[1]}/{uids[2]}.dcm"
        assert all(is_uid(uid) for uid in uids)
        assert dataset.PatientID == row["patient_id"]
    given = everything(out) + "\n".join(summary.lines()).encode() + capsys.readouterr().err.encode()
    for mark in (NAME, "PHANTOM", "PH-0001", "ACC0001", "19600501", "20240102", str(tmp_path)):
        assert mark.encode() not in given, mark
    assert not list(out.rglob("*.part"))


def test_the_same_key_gives_the_same_bytes_and_another_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = export(tmp_path / "export")
    run(source, tmp_path / "one")
    run(source, tmp_path / "two")
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    monkeypatch.setenv("RADLOOP_KEY", "another key of a project")
    run(source, tmp_path / "three")
    assert not objects(tmp_path / "one").keys() & objects(tmp_path / "three").keys()


def test_worker_processes_give_the_same(tmp_path: Path):
    source = export(tmp_path / "export")
    run(source, tmp_path / "alone")
    deidentify(str(source), tmp_path / "workers", workers=2, progress=False)
    assert everything(tmp_path / "alone") == everything(tmp_path / "workers")


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = export(tmp_path / "export"), tmp_path / "clean"
    run(source, out)
    before = everything(out)
    monkeypatch.setattr(stage, "deidentify_file", _no_file)
    summary = run(source, out)
    assert summary.kept == 4
    assert everything(out) == before


def _no_file(*_: Any, **__: Any) -> Any:
    raise AssertionError("no file was to be read")


def test_a_call_that_was_killed_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = export(tmp_path / "export"), tmp_path / "clean"
    run(source, tmp_path / "whole", crosswalk=tmp_path / "whole.csv")
    real, done = stage.deidentify_file, []

    def until(*arguments: Any, **options: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(stage, "deidentify_file", until)
    with pytest.raises(KeyboardInterrupt):
        run(source, out, crosswalk=tmp_path / "crosswalk.csv")
    journal = out / ".deidentify" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"file": "torn')
    monkeypatch.setattr(stage, "deidentify_file", real)
    summary = run(source, out, crosswalk=tmp_path / "crosswalk.csv")
    assert summary.kept >= 1
    assert everything(out) == everything(tmp_path / "whole")
    assert (tmp_path / "crosswalk.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_what_is_not_made_any_more_is_removed(tmp_path: Path):
    source, out = export(tmp_path / "export"), tmp_path / "clean"
    run(source, out, keep=["uids"])
    retained = objects(out)
    (source / f"{NAME}_B" / "CR").unlink()
    summary = run(source, out)
    assert summary.removed == len(retained)
    assert not retained.keys() & objects(out).keys()
    assert len(list(out.glob("2.25.*"))) == 1


def test_an_object_that_was_deleted_is_made_again(tmp_path: Path):
    source, out = export(tmp_path / "export"), tmp_path / "clean"
    run(source, out)
    before = objects(out)
    (out / next(iter(before))).unlink()
    run(source, out)
    assert objects(out) == before


def test_two_images_of_one_uid_are_not_mixed(tmp_path: Path):
    source, out = tmp_path / "export", tmp_path / "clean"
    save(ct_slice(32), source / "a")
    save(ct_slice(32, KVP=80), source / "b")
    save(ct_slice(32), source / "c")
    summary = run(source, out)
    assert (summary.deidentified, summary.duplicates, dict(summary.held)) == (1, 1, {"same_uid_other_content": 1})
    [(_, content)] = objects(out).items()
    assert content == next(iter(objects(_alone(tmp_path, source / "a")).values()))
    again = run(source, out)
    assert dict(again.held) == {"same_uid_other_content": 1}


def _alone(folder: Path, path: Path) -> Path:
    run(path, folder / "single")
    return folder / "single"


def test_the_crosswalk_is_the_owners_and_says_all(tmp_path: Path):
    source, out, crosswalk = export(tmp_path / "export"), tmp_path / "clean", tmp_path / "crosswalk.csv"
    run(source, out)
    assert not crosswalk.exists()
    run(source, out, crosswalk=crosswalk, keep=["shifted-dates"])
    assert stat.S_IMODE(crosswalk.stat().st_mode) == 0o600
    walked = read_crosswalk(crosswalk)
    assert len(walked) == 8
    for row in rows(out / DEIDENTIFIED_FILE):
        was = walked[row["file"]]
        original = dcmread(source / was["path"])
        assert (was["sop_instance_uid"], was["new_sop_instance_uid"]) == (
            original.SOPInstanceUID,
            row["sop_instance_uid"],
        )
        assert (was["patient_id"], was["new_patient_id"]) == (original.PatientID, row["patient_id"])
        assert was["patient_name"] == str(original.PatientName)
        assert -3650 <= int(was["days"]) < 0
    for row in rows(out / HELD_FILE):
        assert walked[row["file"]]["path"].endswith("SR")
    before = crosswalk.read_bytes()
    summary = run(source, out, crosswalk=crosswalk, keep=["shifted-dates"])
    assert summary.kept == 4
    assert crosswalk.read_bytes() == before


def test_a_crosswalk_that_others_may_read_is_refused(tmp_path: Path):
    source, crosswalk = export(tmp_path / "export"), tmp_path / "crosswalk.csv"
    run(source, tmp_path / "clean", crosswalk=crosswalk)
    crosswalk.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        run(source, tmp_path / "clean", crosswalk=crosswalk)
    crosswalk.chmod(0o600)
    crosswalk.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="expected a crosswalk"):
        run(source, tmp_path / "clean", crosswalk=crosswalk)
    crosswalk.write_text(",".join(COLUMNS) + "\n1,2\n")
    with pytest.raises(ConfigError, match="damaged"):
        run(source, tmp_path / "clean", crosswalk=crosswalk)


def test_nothing_that_identifies_may_lie_in_what_is_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = export(tmp_path / "export")
    with pytest.raises(ConfigError, match="given away"):
        run(source, tmp_path / "clean", crosswalk=tmp_path / "clean" / "crosswalk.csv")
    with pytest.raises(ConfigError, match="inside the source"):
        run(source, source / "clean")
    with pytest.raises(ConfigError, match="does not exist"):
        run(source, tmp_path / "clean", crosswalk=tmp_path / "nowhere" / "crosswalk.csv")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("to whom")
    with pytest.raises(ConfigError, match="other files"):
        run(source, tmp_path / "full")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("RADLOOP_KEY")
    with pytest.raises(ConfigError, match="key"):
        run(source, tmp_path / "here")
    assert not list((tmp_path / "here").iterdir())
    run(source, tmp_path / "clean")
    assert (tmp_path / "here" / ".radloop-key").is_file()


def test_other_kinds_of_sources(tmp_path: Path):
    source = export(tmp_path / "export")
    (source / "fifo").unlink()
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(source))
    run(source, tmp_path / "of folder")
    zipped = run(tmp_path / "export.zip", tmp_path / "of zip")
    assert zipped.deidentified == 3
    assert objects(tmp_path / "of folder") == objects(tmp_path / "of zip")
    single = run(source / f"{NAME}_A" / "IM1", tmp_path / "of file")
    assert single.deidentified == 1
    with pytest.raises(SourceError):
        run(tmp_path / "nowhere", tmp_path / "of nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="without any file"):
        run(tmp_path / "empty", tmp_path / "of nothing")


def test_settings_from_a_file_and_the_command_line(tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "keep: [device]\ndescriptors: ['Chest  CT']\n"
        "masks:\n- {rows: 32, columns: 32, modality: CT, regions: [[0, 0, 32, 4]]}\n"
    )
    settings = load_deidentification(path, ["shifted-dates", "uids"])
    assert settings.keep == ["uids", "device", "shifted-dates"]
    assert settings.descriptors == ["chest ct"]
    source = tmp_path / "export"
    save(ct_slice(32, StudyDescription="CHEST CT", BurnedInAnnotation="YES", PatientName="Q^Q"), source / "ct")
    summary = run(source, tmp_path / "clean", settings=path)
    assert summary.masked == 1
    [name] = objects(tmp_path / "clean")
    dataset = dcmread(tmp_path / "clean" / name)
    assert dataset.StudyDescription == "CHEST CT"
    assert (dataset.pixel_array[:4] == 0).all()
    assert dataset.pixel_array[4:].any()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("keep: [dates, shifted-dates]", "not both"),
        ("keep: [everything]", "uids"),
        ("keep: uids", "expected a list"),
        ("mask: []", "did you mean masks"),
        ("masks: [{rows: 10, columns: 10, regions: [[5, 5, 6, 1]]}]", "does not lie in"),
        ("masks: [{rows: 10, columns: 10, regions: [[5, 5, 0, 1]]}]", "does not lie in"),
        ("masks: [{rows: 10, columns: 10}]", "regions"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, content: str, said: str):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_deidentification(path, [])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage, "default_workers", lambda: 0)
    source = tmp_path / "export"
    save(ct_slice(32), source / "ct")
    arguments = ["deidentify", str(source), "--out", str(tmp_path / "clean")]
    assert main([*arguments, "--keep", "patient, shifted-dates"]) == 0
    assert "1 image of 1 patient, 1 study" in capsys.readouterr().out
    assert main([*arguments, "--keep", "names"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in KEEP)
    save(structured_report(), tmp_path / "reports" / "sr")
    assert main(["deidentify", str(tmp_path / "reports"), "--out", str(tmp_path / "none")]) == 1
    assert "held back: 1 file (text_object 1; held_back.csv)" in capsys.readouterr().out
