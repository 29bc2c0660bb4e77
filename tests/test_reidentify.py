"""`radloop reidentify`: what was made of a de-identified study goes back into the original one, or a row says why not."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

import pipeline.reidentify as stage
from pipeline.cli import main
from pipeline.deidentify import deidentify
from pipeline.dicom.conformance import check, check_references
from pipeline.dicom.phantom import save
from pipeline.dicom.source import PATIENT_AND_STUDY
from pipeline.errors import ConfigError, SourceError
from pipeline.infer import infer
from pipeline.profile_settings import KINDS
from pipeline.reidentify import ReidentifySummary, reidentify
from tests.sources import ct

LOCALIZER = "1.2.826.0.1.3680043.8.498.77"
STUDY: dict[str, Any] = {
    "PatientName": "Müller^Jörg",
    "SpecificCharacterSet": "ISO_IR 100",
    "IssuerOfPatientID": "WARD",
    "PatientWeight": "70.50",
    "PatientAge": "093Y",
    "TimezoneOffsetFromUTC": "+0900",
    "StationName": "CT-ROOM-4",
    "InstitutionName": "Klinik am See",
    "AcquisitionDate": "20240103",
    "ContentDate": "20240104",
    "ContentTime": "101112",
}
PRIVATE = ("Müller", "WARD", "CT-ROOM-4", "Klinik")


@dataclass(frozen=True)
class Way:
    """An export, inferred as it is, and de-identified, inferred and re-identified."""

    export: Path
    direct: Path
    clean: Path
    results: Path
    crosswalk: Path
    back: Path
    summary: ReidentifySummary


def _export(folder: Path) -> Path:
    """A series whose images refer to a localizer that is not there."""
    for path in ct(folder, **STUDY):
        dataset = dcmread(path)
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, LOCALIZER
        dataset.ReferencedImageSequence = [item]
        save(dataset, path)
    return folder


OPTIONS: dict[str, Any] = {"profile": "complete", "progress": False, "workers": 0}


@pytest.fixture(scope="module")
def identified(looped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and what inference writes of it as it is."""
    folder = tmp_path_factory.mktemp("identified")
    infer(looped / "run", str(_export(folder / "export")), folder / "direct", **OPTIONS)
    return folder


@pytest.fixture(scope="module", params=["shifted-dates", ""], ids=["dates moved", "dates removed"])
def way(
    request: pytest.FixtureRequest, looped: Path, identified: Path, tmp_path_factory: pytest.TempPathFactory
) -> Way:
    folder, export = tmp_path_factory.mktemp("way"), identified / "export"
    keep = [request.param] if request.param else []
    crosswalk = folder / "crosswalk.csv"
    deidentify(str(export), folder / "clean", keep=keep, crosswalk=crosswalk, workers=0, progress=False)
    infer(looped / "run", str(folder / "clean"), folder / "results", **OPTIONS)
    summary = reidentify(folder / "results", folder / "back", crosswalk=crosswalk, workers=0, progress=False)
    return Way(export, identified / "direct", folder / "clean", folder / "results", crosswalk, folder / "back", summary)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _objects(out: Path) -> dict[str, list[Dataset]]:
    """By kind, in the order of what they are about."""
    found: dict[str, list[Dataset]] = {}
    for row in _rows(out / "objects.csv"):
        found.setdefault(row["kind"], []).append(dcmread(out / row["path"]))
    return {kind: sorted(some, key=lambda one: int(one.InstanceNumber)) for kind, some in found.items()}


def _references(dataset: Dataset, made: set[str]) -> Iterator[tuple[str, str]]:
    """Every UID but what objects give themselves, with its keyword, in order."""
    for element in dataset.iterall():
        own = ("SOPInstanceUID", "DimensionOrganizationUID", "TrackingUID", "UID", "ReferencedSOPInstanceUID")
        if element.VR == "UI" and (element.keyword not in own or element.value not in made):
            yield element.keyword, str(element.value)


def test_every_kind_goes_back(way: Way):
    assert way.summary.left == {}
    assert set(_objects(way.back)) == set(_objects(way.direct)) == set(KINDS)
    assert (way.summary.objects, way.summary.studies) == (len(_rows(way.results / "objects.csv")), 1)
    assert _rows(way.back / "not_reidentified.csv") == []
    listed = {row["path"] for row in _rows(way.back / "objects.csv")}
    assert listed == {path.relative_to(way.back).as_posix() for path in way.back.rglob("*.dcm")}


def test_patient_study_and_scanner_are_those_that_inference_would_have_written(way: Way):
    direct, back = _objects(way.direct), _objects(way.back)
    keywords = [*PATIENT_AND_STUDY, "SpecificCharacterSet", "DeidentificationMethodCodeSequence"]
    for kind in KINDS:
        for one, other in zip(back[kind], direct[kind], strict=True):
            for keyword in keywords:
                if keyword == "TimezoneOffsetFromUTC" and keyword not in one:  # nobody knows in which zone it was made
                    continue
                assert one.get(keyword) == other.get(keyword), (kind, keyword)
            assert str(one.get("PatientWeight")) == "70.50"
            scanners = [item.ContributingEquipmentSequence[-2] for item in (one, other)]
            assert scanners[0] == scanners[1]


def test_references_are_those_that_inference_would_have_written(way: Way):
    direct, back = _objects(way.direct), _objects(way.back)
    made = [{str(one.SOPInstanceUID) for some in each.values() for one in some} for each in (direct, back)]
    series = [{str(one.SeriesInstanceUID) for some in each.values() for one in some} for each in (direct, back)]
    for kind in KINDS:
        for one, other in zip(back[kind], direct[kind], strict=True):
            told = [
                [pair for pair in _references(dataset, made[place]) if pair[1] not in series[place] | made[place]]
                for place, dataset in ((1, one), (0, other))
            ]
            for pairs in told:  # what an object gives itself
                pairs[:] = [pair for pair in pairs if not (pair[0] in _OWN and pair[1].startswith("2.25."))]
            assert told[0] == told[1], kind
    sources = {str(dcmread(path).SOPInstanceUID) for path in way.export.iterdir()}
    for folder in (way.back, way.direct):
        assert {row["source"] for row in _rows(folder / "references.csv")} - {LOCALIZER} == sources


_OWN = ("SOPInstanceUID", "DimensionOrganizationUID", "TrackingUID", "UID")


def test_uids_are_new_and_the_same_each_time(way: Way, tmp_path: Path):
    direct, results, back = (
        {row["sop_instance_uid"] for row in _rows(folder / "objects.csv")}
        for folder in (way.direct, way.results, way.back)
    )
    assert not back & direct
    assert not back & results
    before = {path: path.read_bytes() for path in way.back.rglob("*.dcm")}
    again = reidentify(way.results, tmp_path / "again", crosswalk=way.crosswalk, workers=0, progress=False)
    assert again.objects == len(before)
    for path, content in before.items():
        assert (tmp_path / "again" / path.relative_to(way.back)).read_bytes() == content


def test_nothing_says_any_more_that_it_was_deidentified(way: Way):
    pseudonyms = {row["patient_id"] for row in _rows(way.clean / "deidentified.csv")}
    uids = {row[name] for row in _rows(way.clean / "deidentified.csv") for name in row if name.endswith("instance_uid")}
    for path in way.back.rglob("*.dcm"):
        content = path.read_bytes()
        for mark in (*pseudonyms, *uids, "De-identif", "DEIDENT", "113100"):
            assert mark.encode() not in content, mark


def test_they_are_valid_and_lead_somewhere(way: Way):
    made = [one for some in _objects(way.back).values() for one in some]
    for one in made:
        check(one)
    check_references(made, [dcmread(path) for path in way.export.iterdir()])


@pytest.mark.dciodvfy
def test_they_pass_dciodvfy(way: Way):
    for path in sorted(way.back.rglob("*.dcm")):
        checked = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        assert not [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("Error")], path


def test_dates_of_a_copy_are_those_of_its_source(way: Way):
    moved = any(row["days"] != "0" for row in _rows(way.crosswalk))
    copies, direct = [_objects(folder)["overlay"] for folder in (way.back, way.direct)]
    for one, other in zip(copies, direct, strict=True):
        assert one.InstanceCreationDate >= "2025"
        if moved:
            for keyword in ("AcquisitionDate", "ContentDate", "ContentTime", "TimezoneOffsetFromUTC"):
                assert one.get(keyword) == other.get(keyword), keyword
        else:
            assert "AcquisitionDate" not in one
        assert one.PixelData == other.PixelData


def test_results_on_the_clean_side_name_nobody(way: Way):
    content = b"".join(path.read_bytes() for path in way.results.rglob("*") if path.is_file())
    for mark in PRIVATE:
        assert mark.encode() not in content
        assert mark.encode("latin-1") not in content


def _changed(way: Way, folder: Path, change: Callable[[Dataset], None], kind: str = "sc") -> list[dict[str, str]]:
    """The rows of `not_reidentified.csv` where objects of a kind are changed so."""
    shutil.copytree(way.results, folder / "results")
    for row in _rows(folder / "results" / "objects.csv"):
        if row["kind"] == kind:
            path = folder / "results" / row["path"]
            dataset = dcmread(path)
            change(dataset)
            dataset.save_as(path)
    reidentify(folder / "results", folder / "back", crosswalk=way.crosswalk, workers=0, progress=False)
    return _rows(folder / "back" / "not_reidentified.csv")


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("Manufacturer", "ACME", "not_a_radloop_object"),
        ("StudyInstanceUID", "1.2.3", "unknown_study"),
        ("PatientID", "RL-ANOTHER", "another_patient"),
        ("FrameOfReferenceUID", "1.2.3", "unknown_uid"),
        ("ImageComments", "REMOVED", "dummy_value"),
        ("Modality", "", "invalid"),
    ],
)
def test_what_cannot_go_back_says_why(way: Way, tmp_path: Path, keyword: str, value: str, reason: str):
    left = _changed(way, tmp_path, lambda dataset: setattr(dataset, keyword, value))
    kinds = {row["path"]: row["kind"] for row in _rows(way.results / "objects.csv")}
    assert {row["reason"] for row in left if kinds[row["path"]] == "sc"} == {reason}
    others = {row["reason"] for row in left if kinds[row["path"]] != "sc"}
    assert others <= {"refers_to_one_that_is_left", "unknown_uid"}
    assert {kinds[row["path"]] for row in left if row["reason"] == "refers_to_one_that_is_left"} <= {"sr", "kos"}


def test_a_source_that_the_crosswalk_does_not_know(way: Way, tmp_path: Path):
    lines = way.crosswalk.read_text().splitlines(keepends=True)
    crosswalk = tmp_path / "crosswalk.csv"
    crosswalk.write_text("".join(lines[:2]))
    crosswalk.chmod(0o600)
    summary = reidentify(way.results, tmp_path / "back", crosswalk=crosswalk, workers=0, progress=False)
    assert summary.left["unknown_uid"] > 0
    assert set(summary.left) <= {"unknown_uid", "refers_to_one_that_is_left"}


def test_files_that_are_gone_or_broken(way: Way, tmp_path: Path):
    shutil.copytree(way.results, tmp_path / "results")
    paths = [row["path"] for row in _rows(way.results / "objects.csv") if row["kind"] == "pdf"]
    (tmp_path / "results" / paths[0]).write_bytes(b"no DICOM")
    pages = [row["path"] for row in _rows(way.results / "objects.csv") if row["kind"] == "pmap"]
    (tmp_path / "results" / pages[0]).unlink()
    reidentify(tmp_path / "results", tmp_path / "back", crosswalk=way.crosswalk, workers=0, progress=False)
    left = {row["path"]: row["reason"] for row in _rows(tmp_path / "back" / "not_reidentified.csv")}
    assert left[paths[0]] == left[pages[0]] == "unreadable"


def test_places_that_cannot_be(way: Way, tmp_path: Path):
    with pytest.raises(ConfigError, match="apart from"):
        reidentify(way.results, way.results / "back", crosswalk=way.crosswalk)
    with pytest.raises(SourceError, match="OUT of radloop infer"):
        reidentify(tmp_path / "nowhere", tmp_path / "back", crosswalk=way.crosswalk)
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "objects.csv").write_text("kind,case_id,path\nsc,a,../../x.dcm\n")
    with pytest.raises(SourceError, match="expected paths"):
        reidentify(tmp_path / "hostile", tmp_path / "back", crosswalk=way.crosswalk)


def test_the_command_in_worker_processes(
    way: Way, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stage, "default_workers", lambda: 1)
    arguments = ["reidentify", str(way.results), "--crosswalk", str(way.crosswalk), "--out", str(tmp_path / "back")]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert f"{way.summary.objects} objects of 1 study" in told
    assert not any(mark in told for mark in PRIVATE)
    assert (tmp_path / "back" / "objects.csv").read_bytes() == (way.back / "objects.csv").read_bytes()


def test_rejection_notes_go_back_and_reject_what_went_back(way: Way, looped: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(looped / "run", run)
    options: dict[str, Any] = {"progress": False, "workers": 0}
    infer(run, str(way.clean), tmp_path / "new", write=["sr"], profile="german", replaces=way.results, **options)
    summary = reidentify(tmp_path / "new", tmp_path / "back", crosswalk=way.crosswalk, workers=0, progress=False)
    assert summary.left == {}
    [note] = _objects(tmp_path / "back")["retraction"]
    rejected = {str(e.value) for e in note.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    assert rejected <= {row["sop_instance_uid"] for row in _rows(way.back / "objects.csv")}
