"""`radloop fetch`: every instance that the PACS says it has is there, or listed; DICOMweb, C-GET and C-MOVE bring the same files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom import dcmread

from pipeline.cli import main
from pipeline.dicom.phantom import ct_slice, save
from pipeline.errors import ConfigError, PeerError
from pipeline.exchange.catalog import Wanted
from pipeline.fetch import FETCHED_FILE, fetch
from pipeline.peers import Patience
from tests.pacs.orthanc import AET, Orthanc, free_port
from tests.pacs.peers import running_archive
from tests.pacs.web import Answer, Asked, WebArchive, running_web
from tests.sources import SOURCES, ct

pytest_plugins = ["tests.pacs.fixtures"]

HURRIED = Patience(attempts=2, first_pause_s=0.05, longest_pause_s=0.1, connect_s=5, answer_s=10)
CANARIES = ("Zebrafish^Quentin", "ID-7734261", "19570613", "ACC-991827")
STUDY, SERIES = "1.2.826.0.1", "1.2.826.0.1.1"
JSON = "application/dicom+json"


def rows(to: Path) -> list[dict[str, str]]:
    with (to / FETCHED_FILE).open(newline="") as file:
        return list(csv.DictReader(file))


def files(to: Path) -> list[Path]:
    return sorted(to.glob("*/*/*.dcm"))


@pytest.fixture
def stored(pacs: Orthanc, tmp_path: Path) -> list[Path]:
    """A CT study and a radiograph in the PACS, of a patient whose name stands nowhere else."""
    name, patient, born, accession = CANARIES
    identity = {"PatientName": name, "PatientID": patient, "PatientBirthDate": born, "AccessionNumber": accession}
    sources = [*ct(tmp_path / "ct", **identity), *SOURCES["cr_monochrome1"](tmp_path / "cr")]
    pacs.stow(sources)
    return sources


def _wanted(sources: Sequence[Path]) -> Wanted:
    return Wanted(tuple(dict.fromkeys(str(dcmread(path).StudyInstanceUID) for path in sources)))


@pytest.mark.orthanc
@pytest.mark.parametrize("way", ["web", "get", "move"])
def test_orthanc_gives_what_it_has_and_only_what_is_not_there(
    pacs: Orthanc, stored: list[Path], tmp_path: Path, way: str
):
    to, port = tmp_path / "to", free_port()
    pacs.know("RADLOOP", port)
    peer = pacs.dicom_web if way == "web" else f"{AET}@127.0.0.1:{pacs.dicom_port}"
    how = {"by_move": way == "move", "port": port, "patience": HURRIED, "progress": False}
    summary = fetch(peer, to, _wanted(stored), **how)  # type: ignore[arg-type]
    assert (summary.asked, summary.failed, summary.before) == (4, 0, 0)
    for path in stored:
        sent = dcmread(path)
        back = dcmread(to / sent.StudyInstanceUID / sent.SeriesInstanceUID / f"{sent.SOPInstanceUID}.dcm")
        assert back == sent
        assert back.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    gone, kept = files(to)[0], {path: path.stat().st_mtime_ns for path in files(to)[1:]}
    gone.unlink()
    summary = fetch(peer, to, _wanted(stored), **how)  # type: ignore[arg-type]
    assert (summary.before, summary.failed) == (3, 0)
    assert gone.is_file()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not any(canary in (to / FETCHED_FILE).read_text() for canary in CANARIES)
    assert sorted(path.name for path in to.iterdir() if path.name.startswith(".")) == []


@pytest.mark.orthanc
@pytest.mark.parametrize("way", ["web", "get"])
def test_by_date_and_modality(pacs: Orthanc, stored: list[Path], tmp_path: Path, way: str):
    peer = pacs.dicom_web if way == "web" else f"{AET}@127.0.0.1:{pacs.dicom_port}"
    pacs.know("RADLOOP", 104)
    day = str(dcmread(stored[0]).StudyDate)
    for number, (wanted, count) in enumerate(
        (
            (Wanted(date=f"{day}-{day}", modalities=("CT",)), 3),
            (Wanted(date=day, modalities=("CT", "CR")), 4),
            (Wanted(date="19000101"), 0),
            (Wanted(_wanted(stored).studies, modalities=("CR",)), 1),
        )
    ):
        summary = fetch(peer, tmp_path / f"to{number}", wanted, patience=HURRIED, progress=False)
        assert (summary.asked, summary.failed) == (count, 0)


@pytest.mark.orthanc
def test_a_move_to_a_title_that_the_pacs_does_not_know_is_listed(pacs: Orthanc, stored: list[Path], tmp_path: Path):
    pacs.know("RADLOOP", 104)
    peer = f"{AET}@127.0.0.1:{pacs.dicom_port}"
    how = {"by_move": True, "port": free_port(), "patience": HURRIED, "progress": False}
    summary = fetch(peer, tmp_path / "to", _wanted(stored), **how)  # type: ignore[arg-type]
    assert summary.failed == 4
    assert {row["status"] for row in rows(tmp_path / "to")} == {"missing"}
    assert all(row["reason"] for row in rows(tmp_path / "to"))


def _element(tag: str, value: str) -> dict[str, object]:
    return {tag: {"vr": "UI", "Value": [value]}}


def _archive(instances: dict[str, bytes | int]) -> WebArchive:
    """One series; the body of each instance, or the status in its place."""

    def answer(asked: Asked) -> Answer:
        path = asked.path.split("?")[0].removeprefix("/dicom-web/")
        if path.endswith("/series"):
            return 200, JSON, json.dumps([_element("0020000E", SERIES)]).encode()
        if path.endswith("/instances"):
            offset = int(asked.path.split("offset=")[1])
            found = [_element("00080018", uid) for uid in list(instances)[offset : offset + 500]]
            return 200, JSON, json.dumps(found).encode()
        body = instances[path.rsplit("/", 1)[1]]
        if isinstance(body, int):
            return body, "text/plain", b"no"
        head = b"--limit\r\nContent-Type: application/dicom\r\n\r\n"
        return 200, 'multipart/related; type="application/dicom"; boundary="limit"', head + body + b"\r\n--limit--\r\n"

    return WebArchive(answer)


def test_what_does_not_come_is_listed_with_the_reason(tmp_path: Path):
    instances: dict[str, bytes | int] = {
        "1.2.1": b"x" * 1_000_000,
        "1.2.2": 404,
        "1.2.3": 503,
        "1.2.4": b"\r\n--lim" * 3,
    }
    to = tmp_path / "to"
    with running_web(_archive(instances)) as archive:
        summary = fetch(archive.url, to, Wanted((STUDY,)), patience=HURRIED, progress=False)
        assert (summary.asked, summary.failed) == (4, 2)
        assert (to / STUDY / SERIES / "1.2.1.dcm").read_bytes() == instances["1.2.1"]
        assert (to / STUDY / SERIES / "1.2.4.dcm").read_bytes() == instances["1.2.4"]
        reasons = {row["sop_instance_uid"]: row["reason"] for row in rows(to) if row["status"] == "missing"}
        assert set(reasons) == {"1.2.2", "1.2.3"}
        assert "HTTP 404" in reasons["1.2.2"]
        instances["1.2.3"] = b"now"
        assert main(["fetch", "--from", archive.url, "--study", STUDY, "--to", str(to)]) == 1
        assert fetch(archive.url, to, Wanted((STUDY,)), patience=HURRIED, progress=False).before == 3


def test_an_answer_that_is_cut_leaves_no_file(tmp_path: Path):
    instances: dict[str, bytes | int] = {"1.2.1": b"x" * 10_000}
    archive = _archive(instances)
    with running_web(archive):
        plain = archive.answer

        def answer(asked: Asked) -> Answer:
            archive.cut = 20 if "/instances/" in asked.path else 0
            return plain(asked)

        archive.answer = answer
        summary = fetch(archive.url, tmp_path / "to", Wanted((STUDY,)), patience=HURRIED, progress=False)
    assert summary.failed == 1
    assert files(tmp_path / "to") == []
    assert not list((tmp_path / "to").rglob("*.part"))


def test_more_instances_than_a_page(tmp_path: Path):
    with running_web(_archive({f"1.2.{number}": b"x" for number in range(1201)})) as archive:
        summary = fetch(archive.url, tmp_path / "to", Wanted((STUDY,)), patience=HURRIED, progress=False)
    assert (summary.asked, summary.failed) == (1201, 0)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[" * 100_000, b'[{"0020000E": {"Value": ["../../etc"]}}, 3]'])
def test_answers_that_are_none(tmp_path: Path, body: bytes):
    with running_web(WebArchive(lambda _: (200, JSON, body))) as archive:
        if body.startswith(b"[{"):
            assert fetch(archive.url, tmp_path / "to", Wanted((STUDY,)), patience=HURRIED, progress=False).asked == 0
            return
        with pytest.raises(PeerError, match=r"no JSON|no list"):
            fetch(archive.url, tmp_path / "to", Wanted((STUDY,)), patience=HURRIED, progress=False)


def test_a_peer_that_offers_no_query_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with running_archive() as archive:
        assert main(["fetch", "--from", archive.name, "--study", STUDY, "--to", str(tmp_path)]) == 2
    assert "offers no C-FIND" in capsys.readouterr().err


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"date": "yesterday"},
        {"date": "2026"},
        {"studies": ("1.2.3/..",)},
        {"studies": ("1.2",), "modalities": ("c*",)},
    ],
)
def test_what_cannot_be_asked_for(how: dict[str, object]):
    with pytest.raises(ConfigError):
        Wanted(**how)  # type: ignore[arg-type]


def _stow(status: int, body: object = None) -> WebArchive:
    content = json.dumps(body).encode() if body is not None else b"<html>no</html>"
    return WebArchive(lambda _: (status, JSON, content))


def test_stow_reads_refusals_where_they_stand_and_sends_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pipeline.send import send

    sources = [save(ct_slice(32, instance_number=number), tmp_path / "out" / f"{number}") for number in (1, 2)]
    first, second = (str(dcmread(path).SOPInstanceUID) for path in sources)
    refused = {**_element("00081155", second), "00081197": {"vr": "US", "Value": [0xA900]}}
    answer = {
        "00081199": {"vr": "SQ", "Value": [_element("00081155", first)]},
        "00081198": {"vr": "SQ", "Value": [refused]},
    }
    monkeypatch.setenv("RADLOOP_PACS_TOKEN", "a-secret")
    with running_web(_stow(409, answer)) as archive:
        summary = send(tmp_path / "out", archive.url, patience=HURRIED, progress=False)
        assert (summary.statuses["stored"], summary.statuses["refused"]) == (1, 1)
        assert {one.headers["Authorization"] for one in archive.asked} == {"Bearer a-secret"}
        assert all(sources[0].read_bytes() in one.body or sources[1].read_bytes() in one.body for one in archive.asked)
    text = (tmp_path / "out" / "sent.csv").read_text()
    assert "0xA900" in text
    assert "a-secret" not in text
    with running_web(_stow(401)) as archive, pytest.raises(PeerError, match="let us in") as raised:
        send(tmp_path / "out", archive.url, patience=HURRIED, progress=False)
    assert "a-secret" not in str(raised.value)
    with running_web(_stow(503)) as archive:
        assert send(tmp_path / "out", archive.url, patience=HURRIED, progress=False).left == 2
    with running_web(_stow(413)) as archive:
        assert send(tmp_path / "out", archive.url, patience=HURRIED, progress=False).statuses["refused"] == 2
    with running_web(_stow(200)) as archive:
        assert send(tmp_path / "out", archive.url, patience=HURRIED, progress=False).failed == 0
