"""`radloop send`: every object has its answer in the journal, refusals do not stop the others, and nothing is sent twice."""

from __future__ import annotations

import base64
import csv
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from pipeline.cli import main
from pipeline.dicom.phantom import ct_slice, save
from pipeline.dicom.statuses import Outcome, harmless, outcome_of, words_of
from pipeline.errors import ConfigError, PeerError, SourceError
from pipeline.peers import Credentials, DimsePeer, Patience, Tls, WebPeer, credentials, parse_peer
from pipeline.send import SENT_FILE, Commitment, send
from tests.pacs.certificates import Certificates
from tests.pacs.orthanc import AET, Orthanc, free_port
from tests.pacs.peers import UNCOMPRESSED, Archive, running_archive
from tests.pacs.web import WebArchive, running_web
from tests.sources import SOURCES, ct

pytest_plugins = ["tests.pacs.fixtures"]

HURRIED = Patience(attempts=3, first_pause_s=0.05, longest_pause_s=0.1, connect_s=5, answer_s=5)
CANARIES = ("Zebrafish^Quentin", "ID-7734261", "19570613", "ACC-991827")
"""Name, ID, date of birth and accession number of the objects sent."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with three CT images of a patient whose name stands nowhere else."""
    name, patient, born, accession = CANARIES
    ct(
        tmp_path / "out" / "study",
        PatientName=name,
        PatientID=patient,
        PatientBirthDate=born,
        AccessionNumber=accession,
    )
    (tmp_path / "out" / "predictions.csv").write_text("case_id\n")
    return tmp_path / "out"


def rows(out: Path) -> list[dict[str, str]]:
    with (out / SENT_FILE).open(newline="") as file:
        return list(csv.DictReader(file))


def sent(out: Path, archive: Archive, **how: object):
    return send(out, archive.name, patience=HURRIED, progress=False, **how)  # type: ignore[arg-type]


def test_what_is_sent_arrives_as_it_was_and_is_not_sent_again(out: Path):
    with running_archive() as archive:
        summary = sent(out, archive)
        assert (summary.statuses[Outcome.STORED], summary.failed) == (3, 0)
        for path in (out / "study").iterdir():
            (arrived,) = [one for one in archive.stored if one.SOPInstanceUID == dcmread(path).SOPInstanceUID]
            assert arrived == dcmread(path)
            assert arrived.file_meta.TransferSyntaxUID == dcmread(path).file_meta.TransferSyntaxUID
        assert sent(out, archive).before == 3
        assert archive.attempts == 3
        ct(out / "study", PatientComments="changed")
        assert sent(out, archive).statuses[Outcome.STORED] == 3
    assert {row["status"] for row in rows(out)} == {"stored"}
    text = (out / SENT_FILE).read_text()
    assert not any(canary in text for canary in CANARIES)


def test_a_refused_object_is_listed_with_the_reason_and_the_others_go_on(out: Path):
    def answer(dataset: Dataset) -> Dataset | int:
        if dataset.InstanceNumber != 2:
            return 0x0000
        status = Dataset()
        status.Status = 0xA900
        status.ErrorComment = f"PatientID {CANARIES[1]} of Quentin differs in series 1.2.3.4.5"
        return status

    with running_archive(Archive(answer=answer)) as archive:
        summary = sent(out, archive)
    assert (summary.statuses[Outcome.STORED], summary.statuses[Outcome.REFUSED]) == (2, 1)
    (refused,) = [row for row in rows(out) if row["status"] == "refused"]
    assert (
        refused["reason"]
        == "0xA900 data set does not match the SOP class (PatientID ... of ... differs in series 1.2.3.4.5)"
    )


def test_a_peer_without_room_is_asked_again_with_pauses_and_then_left(out: Path):
    refusals = iter([0xA700, 0xA700, 0xA700])
    with running_archive(Archive(answer=lambda _: next(refusals, 0x0000))) as archive:
        summary = sent(out, archive, associations=1)
        assert summary.statuses[Outcome.STORED] == 3
        assert archive.attempts == 6
    assert {row["attempts"] for row in rows(out)} == {"2"}
    shutil.rmtree(out / "study")
    ct(out / "study", PatientComments="other")
    with running_archive(Archive(answer=lambda _: 0xA700)) as archive:
        summary = sent(out, archive)
        assert (summary.left, summary.failed, archive.attempts) == (3, 3, 9)
    assert rows(out)[-1]["reason"] == "0xA700 out of resources"


def test_a_peer_that_aborts_or_is_slow_costs_time_but_no_object(out: Path):
    count = 0

    def answer(dataset: Dataset, event: object) -> int:
        nonlocal count
        count += 1
        if count in (1, 3):
            event.assoc.abort()  # type: ignore[attr-defined]
        return 0x0000

    with running_archive(Archive(answer=answer)) as archive:
        assert sent(out, archive, associations=1).statuses[Outcome.STORED] == 3
    waiting = threading.Event()
    slow = Patience(attempts=1, first_pause_s=0.05, connect_s=2, answer_s=0.5)
    with running_archive(Archive(answer=lambda _: waiting.wait(3) and 0x0000)) as archive:
        summary = send(out, archive.name, patience=slow, progress=False)
        waiting.set()
    assert summary.left == 3


def test_nobody_there(out: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        summary = send(out, f"ARCHIVE@127.0.0.1:{port}", patience=HURRIED, progress=False)
    assert summary.left == 3
    assert "cannot be reached" in rows(out)[0]["reason"]
    assert main(["send", str(out), "--to", "ARCHIVE@no.such.host.invalid:104"]) == 2


def test_a_peer_that_rejects_us_is_one_error(out: Path, capsys: pytest.CaptureFixture[str]):
    with running_archive(calling=["OTHER"]) as archive:
        assert main(["send", str(out), "--to", archive.name]) == 2
        assert "does not know our AE title" in capsys.readouterr().err
        assert main(["send", str(out), "--to", archive.name, "--aet", "OTHER"]) == 0
        wrong = archive.name.replace("ARCHIVE", "ELSEWHERE")
        assert main(["send", str(out), "--to", wrong, "--aet", "OTHER"]) == 2
        assert "called by" in capsys.readouterr().err


def test_an_object_goes_in_a_syntax_that_the_peer_takes(tmp_path: Path):
    """Compressed and explicit ones to peers that take implicit VR alone: the same values."""
    out = tmp_path / "out"
    syntaxes = (ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless)
    sources = [
        save(ct_slice(64, instance_number=number), out / f"{number}", syntax)
        for number, syntax in enumerate(syntaxes, 1)
    ]
    with running_archive(syntaxes=[ImplicitVRLittleEndian]) as archive:
        summary = sent(out, archive)
        assert summary.statuses[Outcome.STORED] == len(sources)
    for path in sources:
        source = dcmread(path)
        (arrived,) = [one for one in archive.stored if one.SOPInstanceUID == source.SOPInstanceUID]
        assert arrived.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert (arrived.Rows, arrived.PatientName) == (source.Rows, source.PatientName)
        assert np.array_equal(arrived.pixel_array, source.pixel_array)
    assert {row["reason"] for row in rows(out)} == {
        f"sent as Implicit VR Little Endian, the peer takes no {syntax.name}" for syntax in syntaxes
    }


def test_a_class_that_the_peer_does_not_take_is_refused_alone(out: Path):
    radiographs = SOURCES["cr_monochrome1"](out / "cr")
    only = [str(dcmread(radiographs[0]).SOPClassUID)]
    with running_archive(classes=only, syntaxes=UNCOMPRESSED) as archive:
        summary = sent(out, archive)
    assert (summary.statuses[Outcome.STORED], summary.statuses[Outcome.REFUSED]) == (1, 3)
    assert {row["reason"] for row in rows(out)} == {"", "0x0122 it does not support the SOP class"}


def test_several_associations_at_once(tmp_path: Path):
    for number in range(6):
        ct(tmp_path / "out" / str(number), SeriesInstanceUID=f"1.2.3.{number}", SOPInstanceUID=f"1.2.3.4.{number}")
    barrier = threading.Barrier(3, timeout=20)
    first = threading.local()

    def answer(_dataset: Dataset) -> int:
        if not hasattr(first, "met"):
            first.met = barrier.wait()
        return 0x0000

    with running_archive(Archive(answer=answer)) as archive:
        assert sent(tmp_path / "out", archive, associations=3).failed == 0
    assert archive.most_at_once == 3


def test_what_is_no_dicom_is_passed_over_and_what_lies_is_listed(out: Path):
    path = out / "study" / "IM0"
    path.write_bytes(path.read_bytes()[:140])
    with running_archive() as archive:
        summary = sent(out, archive)
    assert (summary.statuses[Outcome.STORED], summary.statuses["unsendable"]) == (2, 1)
    assert "no DICOM that can be sent: 1" in "\n".join(summary.lines())


def test_storage_commitment_on_our_association(out: Path):
    refused = str(dcmread(out / "study" / "IM1").SOPInstanceUID)
    archive = Archive(commits=lambda uid: 0x0110 if uid == refused else 0)
    with running_archive(archive):
        summary = sent(out, archive, commitment=Commitment(wait_s=10))
    assert (summary.uncommitted, summary.failed) == (1, 1)
    assert {row["sop_instance_uid"]: row["committed"] for row in rows(out)}[refused] == "no"
    assert sorted(row["committed"] for row in rows(out)) == ["no", "yes", "yes"]


def test_a_peer_without_storage_commitment_is_said(out: Path):
    with running_archive() as archive:
        summary = sent(out, archive, commitment=Commitment(wait_s=1))
    assert summary.failed == 0
    assert summary.lines()[-1].endswith("offers no storage commitment")


def test_tls_with_client_certificates(out: Path, certificates: Certificates):
    with running_archive(tls=certificates.server()) as archive:
        peer = archive.name.replace("127.0.0.1", "localhost")
        how = {"patience": HURRIED, "progress": False, "with_tls": True}
        summary = send(out, peer, tls=Tls(certificates.ca, certificates.certificate, certificates.key), **how)  # type: ignore[arg-type]
        assert summary.failed == 0
        other = send(out, peer, tls=Tls(certificates.ca), aet="NOBODY", **how)  # type: ignore[arg-type]
        assert other.before == 3
        (out / SENT_FILE).unlink()
        assert send(out, peer, tls=Tls(certificates.ca), **how).left == 3  # type: ignore[arg-type]
        assert send(out, peer, tls=Tls(), **how).left == 3  # type: ignore[arg-type]


def test_https_with_client_certificates_and_a_password(
    out: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
):
    """The password goes to nobody whose certificate is not signed by whom we trust."""
    monkeypatch.setenv("RADLOOP_PACS_USER", "radloop")
    monkeypatch.setenv("RADLOOP_PACS_PASSWORD", "a-secret")
    with running_web(WebArchive(lambda _: (200, "application/dicom+json", b"{}")), certificates.server()) as archive:
        for untrusted in (Tls(certificates.ca), Tls()):
            with pytest.raises(PeerError, match="certificate"):
                send(out, archive.url, tls=untrusted, patience=HURRIED, progress=False)
        assert archive.asked == []
        ours = Tls(certificates.ca, certificates.certificate, certificates.key)
        assert send(out, archive.url, tls=ours, patience=HURRIED, progress=False).failed == 0
        expected = "Basic " + base64.b64encode(b"radloop:a-secret").decode()
        assert {one.headers["Authorization"] for one in archive.asked} == {expected}
    assert "a-secret" not in (out / SENT_FILE).read_text()


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("PACS@host:104", DimsePeer("PACS", "host", 104)),
        ("MY PACS@[::1]:11112", DimsePeer("MY PACS", "::1", 11112)),
        ("https://host/dicom-web/", WebPeer("https://host/dicom-web")),
    ],
)
def test_peers(text: str, peer: object):
    assert parse_peer(text) == peer
    assert parse_peer(str(peer)) == peer


@pytest.mark.parametrize(
    "text",
    [
        "PACS",
        "PACS@host",
        "@host:104",
        "PACS@host:0",
        "PACS@host:99999",
        "SEVENTEEN-LETTERS@host:104",
        "ftp://u:secret@h/x",
        "https://u:secret@host/x",
        "https://u:secret@host:port/x",
        "http://",
        "https://host/x?y",
    ],
)
def test_what_is_no_peer_is_said_without_its_password(text: str):
    with pytest.raises(ConfigError) as raised:
        parse_peer(text)
    assert "secret" not in str(raised.value)


def test_credentials_come_from_the_environment_alone(out: Path, monkeypatch: pytest.MonkeyPatch):
    assert credentials({"RADLOOP_PACS_TOKEN": "t"}) == Credentials(token="t")
    assert credentials({"RADLOOP_PACS_USER": "u", "RADLOOP_PACS_PASSWORD": "p"}) == Credentials("u", "p")
    assert "secret" not in repr(credentials({"RADLOOP_PACS_TOKEN": "secret"}))
    for wrong in (
        {"RADLOOP_PACS_USER": "u"},
        {"RADLOOP_PACS_USER": "u", "RADLOOP_PACS_PASSWORD": "", "RADLOOP_PACS_TOKEN": "t"},
    ):
        with pytest.raises(ConfigError):
            credentials(wrong)
    monkeypatch.setenv("RADLOOP_PACS_TOKEN", "secret")
    with pytest.raises(ConfigError, match="https:// alone") as raised:
        send(out, "http://pacs.example/dicom-web", progress=False)
    assert "secret" not in str(raised.value)


def test_what_cannot_be_sent_at_all(tmp_path: Path, out: Path):
    with pytest.raises(SourceError):
        send(tmp_path / "nowhere", "PACS@localhost:104", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        send(tmp_path / "empty", "PACS@localhost:104", progress=False)
    with pytest.raises(ConfigError, match="no TLS"):
        send(out, "PACS@localhost:104", tls=Tls(ca=out / "predictions.csv"), progress=False)
    with pytest.raises(ConfigError, match="PEM"):
        send(out, "PACS@localhost:104", with_tls=True, tls=Tls(ca=out / "predictions.csv"), progress=False)


def test_statuses():
    assert [outcome_of(code) for code in (0, 0xB000, 0xA700, 0xA900, 0xC000, 0x0122)] == [
        *(Outcome.STORED, Outcome.STORED, Outcome.LEFT, Outcome.REFUSED, Outcome.REFUSED, Outcome.REFUSED),
    ]
    assert words_of(0x0122) == "0x0122 it does not support the SOP class"


@pytest.mark.parametrize(
    ("comment", "shown"),
    [
        ("No room for 1.2.840.10008.5.1", "No room for 1.2.840.10008.5.1"),
        ("DOE^JANE born 19570613", "... born ..."),
        ("patient doe unknown", "patient ... unknown"),
        ("two\nlines\x1b[31m", "two lines [31m"),
    ],
)
def test_a_comment_is_told_without_the_patient(comment: str, shown: str):
    assert harmless(comment, ["Doe^John"]) == shown


@pytest.mark.orthanc
def test_orthanc_takes_objects_by_c_store_and_by_stow(pacs: Orthanc, out: Path):
    for peer in (f"{AET}@127.0.0.1:{pacs.dicom_port}", pacs.dicom_web):
        pacs.delete_all()
        assert send(out, peer, patience=HURRIED, progress=False).statuses[Outcome.STORED] == 3
        assert pacs.count() == 3
        for path in (out / "study").iterdir():
            found = dcmread(path)
            back = pacs.wado(str(found.StudyInstanceUID), str(found.SeriesInstanceUID), str(found.SOPInstanceUID))
            if peer.startswith("http"):
                assert back == path.read_bytes()
        assert send(out, peer, patience=HURRIED, progress=False).before == 3


@pytest.mark.orthanc
def test_orthanc_commits_itself_on_an_association_of_its_own(pacs: Orthanc, out: Path):
    port = free_port()
    pacs.know("RADLOOP", port)
    peer = f"{AET}@127.0.0.1:{pacs.dicom_port}"
    summary = send(out, peer, commitment=Commitment(port, 20), patience=HURRIED, progress=False)
    assert (summary.uncommitted, summary.failed, summary.asked_to_commit) == (0, 0, True)
    assert {row["committed"] for row in rows(out)} == {"yes"}


@pytest.mark.orthanc
def test_stow_lists_what_orthanc_refuses_and_who_is_not_let_in(pacs: Orthanc, out: Path):
    path = out / "study" / "IM0"
    path.write_bytes(path.read_bytes()[:400])  # a meta header, and no data set
    summary = send(out, pacs.dicom_web, patience=HURRIED, progress=False)
    assert summary.statuses[Outcome.STORED] == 2
    assert summary.statuses[Outcome.REFUSED] == 1
    with pytest.raises(PeerError):
        send(out, pacs.url + "/nowhere", patience=HURRIED, progress=False)
