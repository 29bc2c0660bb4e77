"""`radloop receive`: what is acknowledged is on the disk, whatever happens; who is not allowed is not served; results go on; no loops."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, RLELossless

from pipeline.cli import main
from pipeline.dicom import storage_scp
from pipeline.dicom.phantom import ct_slice, save
from pipeline.dicom.storage_scp import StorageServer
from pipeline.errors import ConfigError
from pipeline.exchange.allow_list import AllowList
from pipeline.exchange.child import Child, ChildDied, ChildError
from pipeline.exchange.spool import Spool
from pipeline.exchange.studies import Record, State, Studies, digest_of
from pipeline.peers import Patience
from tests.pacs.certificates import Certificates
from tests.pacs.child_functions import calculate
from tests.pacs.node import running_node, start_node
from tests.pacs.peers import associate, send_all
from tests.sources import ct

pytest_plugins = ["tests.pacs.fixtures"]

SHORT = Patience(connect_s=5, answer_s=5)
CANARIES = ("Zebrafish^Quentin", "ID-7734261", "19570613", "ACC-991827")
PEERS, EACH = 5, 40


class Served:
    """A spool behind a server in this process."""

    def __init__(self, root: Path, allow: tuple[str, ...] = (), **how: Any) -> None:
        self.allowed = AllowList.of(allow)
        self.arrived: list[str] = []
        limits = {"most_bytes": how.pop("most_bytes", 2**40), "least_free_bytes": how.pop("least_free_bytes", 0)}
        self.spool = Spool(root, **limits, on_image=lambda study, _: self.arrived.append(study))
        self.server = StorageServer(
            "RADLOOP", "127.0.0.1", 0, self, self.spool.arriving, patience=how.pop("patience", SHORT), **how
        )

    @property
    def port(self) -> int:
        return self.server.port

    def may_connect(self, host: str) -> bool:
        return self.allowed.has_host(host)

    def may_associate(self, host: str, aet: str) -> bool:
        return self.allowed.has(host, aet)

    def keep(self, arrived: storage_scp.Arrived) -> int:
        return self.spool.keep(arrived)

    @property
    def files(self) -> list[Path]:
        return sorted(self.spool.studies.glob("*/*/*.dcm"))


@contextmanager
def served(root: Path, *allow: str, **how: Any) -> Iterator[Served]:
    one = Served(root, allow, **how)
    one.server.start()
    try:
        yield one
    finally:
        one.server.stop(2.0)


def test_every_syntax_is_kept_as_it_was_sent(tmp_path: Path):
    files = ct(tmp_path / "ct") + [
        save(ct_slice(64, instance_number=number), tmp_path / f"{number}", syntax)
        for number, syntax in ((8, RLELossless), (9, JPEG2000Lossless))
    ]
    with served(tmp_path / "spool") as node:
        assert send_all(node.port, files) == [0] * len(files)
    assert len(node.files) == len(files)
    for path in files:
        sent = dcmread(path)
        kept = dcmread(node.spool.images(sent.StudyInstanceUID) / f"{sent.SOPInstanceUID}.dcm")
        assert kept == sent
        assert kept.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID


def test_echo_and_what_comes_twice(tmp_path: Path):
    files = ct(tmp_path / "ct")
    with served(tmp_path / "spool") as node:
        association = associate(node.port)
        assert association.send_c_echo().Status == 0
        association.release()
        assert send_all(node.port, files) == [0, 0, 0]
        before = {path: path.stat().st_mtime_ns for path in node.files}
        assert send_all(node.port, files, aet="ANOTHER") == [0, 0, 0]
        assert {path: path.stat().st_mtime_ns for path in node.files} == before
        assert (node.spool.counts.stored, node.spool.counts.again, len(node.arrived)) == (3, 3, 3)
        changed = ct(tmp_path / "ct", PatientComments="changed")
        assert send_all(node.port, changed) == [0, 0, 0]
        assert {dcmread(path).PatientComments for path in node.files} == {"changed"}
        assert node.spool.bytes == sum(path.stat().st_size for path in node.files)


def test_success_is_answered_after_the_file_and_its_folder_were_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}')}")
        real_fsync(descriptor)

    def replace(old: Any, new: Any) -> None:
        done.append(f"rename {new}")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    (file, *_) = ct(tmp_path / "ct")
    with served(tmp_path / "spool") as node:
        assert send_all(node.port, [file]) == [0]
    folder = node.files[0].parent
    rename = done.index(f"rename {node.files[0]}")
    assert done[rename - 1].startswith("fsync ")
    assert done[rename - 1].endswith(".part")
    assert done[rename + 1] == f"fsync {folder}"
    assert {f"fsync {folder.parent}", f"fsync {folder.parent.parent}"} <= set(done[:rename])


def test_large_objects_go_to_the_disk_and_too_large_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage_scp, "IN_MEMORY_BYTES", 1000)
    files = ct(tmp_path / "ct")
    large = save(ct_slice(512, instance_number=7), tmp_path / "large")
    with served(tmp_path / "spool", most_object_bytes=300_000) as node:
        assert send_all(node.port, [files[0], large, files[1]]) == [0, 0xA700, 0]
        assert len(node.files) == 2
        assert list(node.spool.arriving.iterdir()) == []
        assert dcmread(node.files[0]) in [dcmread(files[0]), dcmread(files[1])]
        association = associate(node.port, [large])
        threading.Timer(0.01, lambda: association.dul.socket.socket.shutdown(socket.SHUT_RDWR)).start()
        association.send_c_store(large)
        deadline = time.monotonic() + 10
        while list(node.spool.arriving.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(node.spool.arriving.iterdir()) == []


@pytest.mark.parametrize("how", ["free", "spool", "write"])
def test_a_full_disk_is_0xa700_and_heals_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str):
    files = ct(tmp_path / "ct")
    full = True
    with served(tmp_path / "spool", least_free_bytes=2**20) as node:
        if how == "free":
            usage = shutil.disk_usage(tmp_path)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**19 if full else 2**40))
        elif how == "spool":
            node.spool.most_bytes = 10
        else:
            real = shutil.copyfileobj

            def copy(*arguments: Any) -> None:
                if full:
                    raise OSError(errno.ENOSPC, "No space left on device")
                real(*arguments)

            monkeypatch.setattr(shutil, "copyfileobj", copy)
        assert send_all(node.port, files) == [0xA700] * 3
        assert node.files == []
        assert not list(node.spool.studies.rglob("*.part"))
        full, node.spool.most_bytes = False, 2**40
        assert send_all(node.port, files) == [0, 0, 0]


def test_a_data_set_that_lies_is_refused(tmp_path: Path):
    (file, *_) = ct(tmp_path / "ct")
    other = dcmread(file)
    other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    other.save_as(tmp_path / "other")
    nameless = dcmread(file)
    del nameless.StudyInstanceUID
    nameless.save_as(tmp_path / "nameless")
    climbing = dcmread(file)
    climbing.StudyInstanceUID = "../../1.2"
    climbing.save_as(tmp_path / "climbing")
    with served(tmp_path / "spool") as node:
        statuses = send_all(node.port, [tmp_path / "other", tmp_path / "nameless", tmp_path / "climbing", file])
        assert statuses == [0xA900, 0xC000, 0xC000, 0]
    assert len(node.files) == 1


def test_noise_in_the_place_of_a_data_set(tmp_path: Path):
    random.seed(1)
    (file, *_) = ct(tmp_path / "ct")
    whole = file.read_bytes()
    begin = whole.index(b"\x08\x00\x05\x00") if b"\x08\x00\x05\x00" in whole else 400
    noisy = []
    for number in range(20):
        content = bytearray(whole)
        for _ in range(40):
            content[random.randrange(begin, begin + 600)] = random.randrange(256)
        noisy.append(tmp_path / f"noise{number}")
        noisy[-1].write_bytes(content)
    with served(tmp_path / "spool") as node:
        for path in noisy:
            (status,) = send_all(node.port, [path])
            assert status in (0, 0xC000, 0xA900)
        assert send_all(node.port, [file]) == [0]


def test_who_is_not_on_the_list_is_not_served(tmp_path: Path):
    files = ct(tmp_path / "ct")
    with served(tmp_path / "spool", "PACS@127.0.0.1", "CT1@10.0.0.0/8") as node:
        assert send_all(node.port, files, aet="PACS") == [0, 0, 0]
        for aet, called in (("CT1", "RADLOOP"), ("OTHER", "RADLOOP"), ("PACS", "ANOTHER")):
            association = associate(node.port, files, aet=aet, called=called)
            assert association.is_rejected, aet
    with served(tmp_path / "other", "*@10.0.0.0/8") as node:
        association = associate(node.port, files)
        assert not association.is_established
        assert not association.is_rejected


def test_no_more_associations_than_allowed(tmp_path: Path):
    with served(tmp_path / "spool", most_associations=2) as node:
        first, second = associate(node.port), associate(node.port)
        assert first.is_established
        assert second.is_established
        third = associate(node.port)
        assert third.is_rejected
        first.release()
        deadline = time.monotonic() + 10
        while not (again := associate(node.port)).is_established:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for association in (second, again):
            association.release()


def test_peers_that_say_nothing_too_much_or_no_tls_hold_up_nobody(tmp_path: Path, certificates: Certificates):
    files = ct(tmp_path / "ct")
    impatient = Patience(connect_s=2, answer_s=2)
    with served(tmp_path / "spool", tls=certificates.server(), patience=impatient) as node:
        silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(3)]
        assert send_all(node.port, files, tls=certificates.client()) == [0, 0, 0]
        assert not associate(node.port, files, tls=certificates.client(with_certificate=False)).is_established
        assert not associate(node.port, files).is_established
        for one in silent:
            one.close()
    with served(tmp_path / "plain", patience=impatient) as node:
        with socket.create_connection(("127.0.0.1", node.port)) as huge:
            huge.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + b"\0" * 1000)
            huge.settimeout(10)
            with suppress(ConnectionError):
                while huge.recv(1000):
                    pass
        half = socket.create_connection(("127.0.0.1", node.port))
        half.sendall(struct.pack(">BBL", 1, 0, 500) + b"\0" * 10)
        half.settimeout(15)
        with suppress(ConnectionError):
            while half.recv(1000):
                pass
        assert send_all(node.port, files) == [0, 0, 0]


def test_own_objects_are_kept_apart(tmp_path: Path):
    own = ct(tmp_path / "own", Manufacturer="radloop")
    with served(tmp_path / "spool") as node:
        assert send_all(node.port, own) == [0, 0, 0]
    assert node.arrived == []
    assert {path.parent.name for path in node.files} == {"own"}


@pytest.mark.parametrize(
    ("texts", "host", "aet", "allowed"),
    [
        ((), "127.0.0.1", "ANY", True),
        ((), "::ffff:127.0.0.1", "ANY", True),
        ((), "10.0.0.1", "ANY", False),
        (("PACS@*",), "10.0.0.1", "PACS", True),
        (("PACS@*",), "10.0.0.1", "OTHER", False),
        (("*@10.0.0.0/8", "CT@localhost"), "10.9.9.9", "X", True),
        (("*@10.0.0.0/8", "CT@localhost"), "127.0.0.1", "X", False),
    ],
)
def test_allow_lists(texts: tuple[str, ...], host: str, aet: str, allowed: bool):
    assert AllowList.of(texts).has(host, aet) is allowed


@pytest.mark.parametrize("text", ["PACS", "@host", "PACS@", "PACS@no.such.host.invalid", "SEVENTEEN-LETTERS@*"])
def test_what_is_no_entry_of_it(text: str):
    with pytest.raises(ConfigError):
        AllowList.of([text])


def test_a_study_waits_until_it_is_quiet_and_again_when_an_image_comes_late(tmp_path: Path):
    images = tmp_path / "1.2" / "images"
    images.mkdir(parents=True)
    (images / "1.dcm").write_bytes(b"1")
    os.utime(images / "1.dcm", (time.time() - 100,) * 2)
    studies = Studies(tmp_path, quiet_s=50)
    study = studies.due()
    assert study is not None
    studies.image_arrived("1.2", time.time())
    assert studies.due() is None
    studies.image_arrived("1.2", time.time() - 60)
    studies.keep(study, Record(State.DONE, images=digest_of(images), finished=time.time() - 10))
    assert studies.due() is None
    assert studies.old(5) == ["1.2"]
    assert Studies(tmp_path, quiet_s=50).due() is None
    (images / "2.dcm").write_bytes(b"2")
    assert Studies(tmp_path, quiet_s=0).due() is not None  # it came when the node was about to be killed
    studies.keep(study, Record(State.DONE, images="of others"))
    assert studies.counts()["waiting"] == 1


def test_an_image_that_comes_while_its_study_is_removed_is_not_forgotten(tmp_path: Path):
    images = tmp_path / "1.2" / "images"
    images.mkdir(parents=True)
    (images / "1.dcm").write_bytes(b"1")
    studies = Studies(tmp_path, quiet_s=0)
    study = studies.due()
    assert study is not None
    studies.keep(study, Record(State.DONE, images=digest_of(images)))
    shutil.rmtree(images.parent)
    images.mkdir(parents=True)
    (images / "2.dcm").write_bytes(b"2")
    studies.image_arrived("1.2", time.time() - 1)
    studies.forget("1.2")
    due = studies.due()
    assert due is not None
    assert due.record == Record()


def test_a_child_lives_on_and_is_replaced_when_it_dies():
    child = Child(calculate)
    assert child.call("5", limit_s=60) == 5
    with pytest.raises(ChildError, match="ValueError") as raised:
        child.call("Zebrafish^Quentin", limit_s=60)
    assert "Zebrafish" not in str(raised.value)
    with pytest.raises(ChildDied, match="exit code 3"):
        child.call("die", limit_s=60)
    with pytest.raises(ChildDied, match="longer"):
        child.call("hang", limit_s=2)
    assert child.call("6", limit_s=60) == 6
    child.close()


def _peer_files(folder: Path, peer: int) -> list[Path]:
    """Studies of one peer: `EACH` instances in 4 studies."""
    files = []
    base = ct_slice(64, instance_number=1)
    for number in range(EACH):
        base.StudyInstanceUID = f"1.2.826.{peer}.{number % 4}"
        base.SeriesInstanceUID = f"1.2.826.{peer}.{number % 4}.1"
        base.SOPInstanceUID = f"1.2.826.{peer}.{number}.2"
        files.append(save(base, folder / f"{peer}-{number}"))
    return files


def test_killed_while_five_peers_send_it_loses_nothing_that_it_acknowledged(tmp_path: Path):
    random.seed(7)
    spool, files = tmp_path / "spool", {peer: _peer_files(tmp_path / "sent", peer) for peer in range(PEERS)}
    node = start_node(spool)
    port = node.port
    acknowledged: dict[Path, int] = {}
    over = threading.Event()

    def send(peer: int) -> None:
        left = list(files[peer])
        while left and not over.is_set():
            statuses = send_all(port, left, aet=f"PEER{peer}")
            for path, status in zip(left, statuses, strict=True):
                if status == 0:
                    acknowledged[path] = acknowledged.get(path, 0) + 1
            left = [path for path in left if path not in acknowledged]
            time.sleep(0.1)

    threads = [threading.Thread(target=send, args=(peer,), daemon=True) for peer in files]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(random.uniform(0.3, 1.2))
        node.kill()
        _hold(spool, acknowledged)
        node = start_node(spool, port=port)
    for thread in threads:
        thread.join(120)
    over.set()
    assert set(acknowledged) == {path for some in files.values() for path in some}
    assert node.stop() == 0
    _hold(spool, acknowledged)
    assert len(list(spool.glob("studies/*/images/*.dcm"))) == PEERS * EACH
    assert not list(spool.rglob("*.part"))


def _hold(spool: Path, acknowledged: dict[Path, int]) -> None:
    """All that was acknowledged is there, whole."""
    for path in list(acknowledged):
        sent = dcmread(path)
        kept = spool / "studies" / sent.StudyInstanceUID / "images" / f"{sent.SOPInstanceUID}.dcm"
        assert dcmread(kept) == sent


def test_one_node_a_spool_a_clean_stop_and_the_status_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    name, patient, born, accession = CANARIES
    identity = {"PatientName": name, "PatientID": patient, "PatientBirthDate": born, "AccessionNumber": accession}
    files = ct(tmp_path / "ct", **identity)
    with running_node(tmp_path / "spool") as node:
        assert send_all(node.port, files) == [0, 0, 0]
        status = node.status()
        assert status["instances"]["stored"] == 3
        assert status["studies"]["waiting"] == 1
        with urllib.request.urlopen(node.status_url, timeout=10) as answer:
            page = answer.read().decode()
        assert str(dcmread(files[0]).StudyInstanceUID) in page
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{node.status_url}../etc/passwd", timeout=10)
        monkeypatch.setattr("pipeline.exchange.spool.LOCK_PATIENCE_S", 0.2)
        assert main(["receive", "--spool", str(tmp_path / "spool"), "--port", "0", "--status-port", "0"]) == 2
        assert "another radloop receive" in capsys.readouterr().err
        held = associate(node.port, files)
        stopping = threading.Timer(0.3, node.process.terminate)
        stopping.start()
        time.sleep(1.0)
        assert held.send_c_store(files[0]).Status == 0  # what had begun may finish
        held.release()
        assert node.process.wait(60) == 0
        assert node.process.stdout is not None
        told = "\n".join((*node.lines, node.process.stdout.read(), page, json.dumps(status)))
    assert "3 instances stored" in told
    assert not any(canary in told for canary in CANARIES)


@pytest.mark.parametrize(
    "options",
    [
        ["--port", "99999"],
        ["--aet", "A TITLE THAT IS TOO LONG"],
        ["--to", "PACS@localhost:104"],
        ["--run", "nowhere"],
        ["--allow", "PACS"],
        ["--tls-certificate", "nowhere.pem"],
        ["--quiet", "-1"],
        ["--tls"],
    ],
)
def test_wrong_use_is_said_at_once(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["receive", "--spool", str(tmp_path / "spool"), "--port", "0", "--status-port", "-1", *options]) == 2
    assert capsys.readouterr().err.startswith("radloop: ")
