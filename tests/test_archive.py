"""pipeline.archive: a .zip read in place gives what a folder gives, and nothing that it says about itself is believed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import archive
from pipeline.archive import Member, is_archive, list_members, open_member
from pipeline.dicom.phantom import ct_slice, save
from pipeline.dicom.pixels import read_pixels
from pipeline.dicom.source import read_source
from pipeline.errors import Rejected, RejectReason
from pipeline.files import file_digest, open_regular, status_of
from tests.conftest import SMALL

TEXT = b"a file that is in an archive " * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "export.zip"


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", method, **options) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


def changed(path: Path, change: Callable[[bytearray], object]) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(bytes(content))
    return path


def entry(content: bytes | bytearray) -> int:
    """Where the first entry of the central directory begins."""
    return content.index(b"PK\x01\x02")


def put(form: str, offset: int, value: Any) -> Callable[[bytearray], object]:
    """A change of one field of the first entry of the central directory."""
    return lambda content: struct.pack_into(form, content, entry(content) + offset, value)


def reason(call: Callable[[], object]) -> RejectReason:
    with pytest.raises(Rejected) as caught:
        call()
    return caught.value.reason


def only(path: Path) -> Member:
    (member,) = list_members(path)
    return member


NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\:"), min_size=1, max_size=12)
PATHS = st.lists(NAMES.filter(lambda part: part not in (".", "..")), min_size=1, max_size=4).map("/".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(PATHS, st.binary(max_size=300), max_size=8), method=st.sampled_from([0, 8]))
def test_every_member_is_listed_and_read(path: Path, files: dict[str, bytes], method: int) -> None:
    zipped(path, files, method)
    found = list_members(path)
    assert [member.name for member in found] == sorted(files, key=lambda name: name.split("/"))
    for member in found:
        assert (member.bytes, member.refusal) == (len(files[member.name]), None)
        assert open_member(path, member.name).read() == files[member.name]
        assert status_of(path / member.name) == (member.bytes, path.stat().st_mtime_ns)
        if member.bytes:
            with open_regular(path / member.name) as file:
                assert file.read() == files[member.name]
        else:
            assert reason(lambda member=member: open_regular(path / member.name).__enter__()) is RejectReason.EMPTY


def test_a_long_archive_comes_in_pieces(path: Path) -> None:
    content = os.urandom(3 * 2**20) + bytes(2**20)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        zipped(path, {"film": content}, method)
        assert open_member(path, "film").read() == content


def test_is_archive(path: Path, tmp_path: Path) -> None:
    assert is_archive(zipped(path, {"a": b"1"}))
    assert is_archive(zipped(path, {}))
    assert list_members(path) == []
    path.write_bytes(b"PK, and no archive")
    assert not is_archive(path)
    os.mkfifo(tmp_path / "fifo")
    assert not is_archive(tmp_path / "fifo")


def test_folders_are_left_out(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.mkdir("DICOM")
        made.writestr("DICOM/IM1", TEXT)
    assert only(path) == Member("DICOM/IM1", len(TEXT))
    zipped(path, {"DICOM/": TEXT})
    assert only(path).refusal == (RejectReason.NOT_REGULAR, "a folder that holds bytes")


@pytest.mark.parametrize(
    "name",
    ["../up", "a/../../up", "/etc/passwd", "a//b", "./a", "a/.", "C:/windows", "c:x", "a\\b", "..\\up", "a\0b", "a\nb", "a\x85b"],
)  # fmt: skip
def test_names_that_lead_anywhere_else_are_refused(path: Path, name: str) -> None:
    zipped(path, {"x" * len(name.encode()): TEXT})
    raw, old = name.encode(), b"x" * len(name.encode())

    def rename(content: bytearray) -> None:
        content[:] = content.replace(old, raw) if raw else content
        struct.pack_into("<H", content, entry(content) + 8, 0x800)

    member = only(changed(path, rename))
    assert member.name == name
    assert member.refusal is not None
    assert member.refusal[0] is RejectReason.UNSAFE_NAME
    assert reason(lambda: open_member(path, name)) is RejectReason.UNSAFE_NAME


def test_no_name_is_no_name(path: Path) -> None:
    zipped(path, {"x": TEXT})
    changed(path, lambda content: struct.pack_into("<2H", content, entry(content) + 28, 0, 1))
    member = only(path)
    assert (member.name, member.refusal and member.refusal[0]) == ("", RejectReason.UNSAFE_NAME)


@pytest.mark.parametrize(
    ("raw", "flag", "name"),
    [
        ("Lunge ü".encode(), 0x800, "Lunge ü"),
        ("Lunge ü".encode(), 0, "Lunge ü"),  # many writers leave UTF-8 undeclared
        ("Lunge ü".encode("cp437"), 0, "Lunge ü"),
        ("肺".encode("cp932"), 0, "肺".encode("cp932").decode("cp437")),
    ],
)
def test_names_in_other_alphabets(path: Path, raw: bytes, flag: int, name: str) -> None:
    zipped(path, {"x" * len(raw): TEXT})

    def rename(content: bytearray) -> None:
        content[:] = content.replace(b"x" * len(raw), raw)
        struct.pack_into("<H", content, entry(content) + 8, flag)

    assert only(changed(path, rename)) == Member(name, len(TEXT))
    assert open_member(path, name).read() == TEXT


def test_a_name_that_lies_about_its_alphabet_costs_itself(path: Path) -> None:
    zipped(path, {"xxxx": TEXT, "good": TEXT})

    def rename(content: bytearray) -> None:
        content[:] = content.replace(b"xxxx", b"a\xff\xfeb")
        struct.pack_into("<H", content, entry(content) + 8, 0x800)

    bad, good = list_members(changed(path, rename))
    assert (bad.name, good) == ("a\\xff\\xfeb", Member("good", len(TEXT)))
    assert bad.refusal is not None
    assert bad.refusal[0] is RejectReason.UNSAFE_NAME


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_all_twins_are_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for content in (b"benign", b"other", b"third"):
            made.writestr("IM1", content)
        made.writestr("IM2", TEXT)
    *twins, last = list_members(path)
    assert [twin.name for twin in twins] == ["IM1"] * 3
    assert {twin.refusal for twin in twins} == {(RejectReason.UNSAFE_NAME, "its name stands in the archive twice")}
    assert last.refusal is None
    assert reason(lambda: open_member(path, "IM1")) is RejectReason.UNSAFE_NAME


@pytest.mark.parametrize(
    ("form", "offset", "value", "expected"),
    [
        ("<L", 38, (stat.S_IFLNK | 0o777) << 16, RejectReason.NOT_REGULAR),
        ("<L", 38, (stat.S_IFIFO | 0o600) << 16, RejectReason.NOT_REGULAR),
        ("<L", 38, (stat.S_IFDIR | 0o700) << 16, RejectReason.NOT_REGULAR),
        ("<H", 8, 0x1, RejectReason.UNREADABLE),  # encrypted
        ("<H", 10, 9, RejectReason.UNREADABLE),  # Deflate64
        ("<H", 10, 14, RejectReason.UNREADABLE),  # LZMA, whose dictionary may be of any size
        ("<L", 24, 2**30 + 1, RejectReason.TOO_LARGE),
        ("<L", 24, 2**21, RejectReason.TOO_LARGE),  # over 1000 times what is stored
    ],
)
def test_members_that_are_not_to_be_opened(
    path: Path, form: str, offset: int, value: int, expected: RejectReason
) -> None:
    member = only(changed(zipped(path, {"IM1": TEXT}), put(form, offset, value)))
    assert member.refusal is not None
    assert member.refusal[0] is expected
    assert reason(lambda: open_member(path, "IM1")) is expected


@pytest.mark.parametrize(
    ("method", "form", "offset", "value", "expected"),
    [
        (8, "<L", 24, len(TEXT) - 1, RejectReason.SIZE_MISMATCH),
        (8, "<L", 24, len(TEXT) + 1, RejectReason.SIZE_MISMATCH),
        (8, "<L", 20, 12, RejectReason.TRUNCATED),
        (8, "<L", 16, 0, RejectReason.DECODE_FAILED),  # CRC
        (8, "<L", 42, 3, RejectReason.MALFORMED),  # where its local header is
        (8, "<L", 42, 2**31, RejectReason.MALFORMED),
        (0, "<L", 24, len(TEXT) - 1, RejectReason.SIZE_MISMATCH),
        (0, "<L", 16, 0, RejectReason.DECODE_FAILED),
    ],
)
def test_lies_cost_the_member(
    path: Path, method: int, form: str, offset: int, value: int, expected: RejectReason
) -> None:
    changed(zipped(path, {"IM1": TEXT, "IM2": TEXT[::-1]}, method), put(form, offset, value))
    assert reason(lambda: open_member(path, "IM1")) is expected
    assert open_member(path, "IM2").read() == TEXT[::-1]


def test_a_bomb_is_inflated_no_further_than_it_declares(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(path, {"bomb": bytes(64 * 2**20)})
    assert only(path).refusal is not None
    inflated = 0
    plain = zlib.decompressobj

    class Counting:
        def __init__(self, *arguments: Any) -> None:
            self.inner = plain(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def decompress(self, *arguments: Any) -> bytes:
            nonlocal inflated
            data = self.inner.decompress(*arguments)
            inflated += len(data)
            return data

    monkeypatch.setattr(archive.zlib, "decompressobj", Counting)
    changed(path, put("<L", 24, 1000))  # a small file, it says
    assert reason(lambda: open_member(path, "bomb")) is RejectReason.SIZE_MISMATCH
    assert inflated == 1001


def test_overlapping_members_are_refused(path: Path) -> None:
    """Entries that share one local file would inflate the same bytes over and over: a bomb of any size from a small archive."""
    zipped(path, {"IM0": TEXT})
    content = path.read_bytes()
    start = entry(content)
    end = content.index(b"PK\x05\x06")
    one = content[start:end]
    entries = b"".join(one.replace(b"IM0", f"IM{number}".encode()) for number in range(10))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 10, 10, len(entries), start, 0)
    path.write_bytes(content[:start] + entries + tail)
    refusals = {member.refusal for member in list_members(path)}
    assert refusals == {(RejectReason.UNSAFE_NAME, "its bytes in the archive are another file's too")}
    assert reason(lambda: open_member(path, "IM7")) is RejectReason.UNSAFE_NAME


def test_zip64(path: Path) -> None:
    """As writers make it that do not know the size beforehand, and with the directory's place in the zip64 record."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made, made.open("IM1", "w", force_zip64=True) as file:
        file.write(TEXT)
    assert open_member(path, "IM1").read() == TEXT
    content = path.read_bytes()
    place = content.index(b"PK\x05\x06")
    _, _, _, _, count, size, offset, _ = struct.unpack("<4s4H2LH", content[place:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(content[:place] + record + locator + end)
    assert only(path) == Member("IM1", len(TEXT))
    large = struct.pack("<2H2Q", 1, 16, 2**33, len(TEXT))
    entries = archive._zip64(struct.pack("<2H", 7, 2) + b"ab" + large, 0xFFFFFFFF, 0xFFFFFFFF, 5)
    assert entries == (2**33, len(TEXT), 5)


def test_a_comment_may_follow(path: Path) -> None:
    zipped(path, {"IM1": TEXT})
    with zipfile.ZipFile(path, "a") as made:
        made.comment = b"burnt by a PACS, PK\x05\x06 " * 1000
    assert only(path) == Member("IM1", len(TEXT))


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda content: content[: len(content) // 2], RejectReason.TRUNCATED),
        (lambda content: content.replace(b"PK\x01\x02", b"PK\x01\x03"), RejectReason.MALFORMED),
        (lambda content: content[:-10] + struct.pack("<2LH", 40, entry(content), 0), RejectReason.MALFORMED),
        (lambda content: content[:-6] + struct.pack("<LH", 2**31, 0), RejectReason.MALFORMED),
        (lambda content: content[:-10] + struct.pack("<2LH", 0xFFFFFFFF, 0, 0), RejectReason.MALFORMED),
        (lambda content: content[:-18] + struct.pack("<2H", 1, 1) + content[-14:], RejectReason.UNREADABLE),
        (lambda content: b"PK\x03\x04", RejectReason.TRUNCATED),
    ],
    ids=["cut", "no entries", "half an entry", "beyond the end", "no zip64", "a volume of several", "magic alone"],
)
def test_broken_archives(path: Path, break_it: Callable[[bytes], bytes], expected: RejectReason) -> None:
    zipped(path, {"IM1": TEXT})
    path.write_bytes(break_it(path.read_bytes()))
    assert reason(lambda: list_members(path)) is expected


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutants_are_rejected_or_read(path: Path, data: st.DataObject) -> None:
    """Whatever bytes change: nothing but Rejected, and what is read has the checksum that the archive says."""
    zipped(path, {"A/IM1": TEXT, "A/IM2": bytes(range(50)), "B": b""})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 60))
    path.write_bytes(bytes(content[: len(content) - cut] if cut < 20 else content))
    try:
        members = list_members(path)
    except Rejected:
        return
    for member in members:
        member.name.encode()
        if member.refusal is not None:
            assert reason(lambda member=member: open_member(path, member.name)) is member.refusal[0]
            continue
        with contextlib.suppress(Rejected):
            assert len(open_member(path, member.name).read()) == member.bytes


def test_an_archive_is_a_folder_to_those_who_open_files(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "DICOM"
    slice_path = save(ct_slice(32), folder / "IM1")
    nested = zipped(tmp_path / "nested.zip", {"IM2": TEXT}).read_bytes()
    long_name = "x" * 5000
    zipped(path, {"DICOM/IM1": slice_path.read_bytes(), "nested.zip": nested, long_name: TEXT})
    member = path / "DICOM" / "IM1"
    assert file_digest(member) == file_digest(slice_path)
    assert file_digest(path / long_name) != ""
    assert status_of(member) == (slice_path.stat().st_size, path.stat().st_mtime_ns)
    assert (read_pixels(member).values == read_pixels(slice_path).values).all()
    assert read_source(member) == read_source(slice_path)
    assert reason(lambda: open_member(path, "DICOM")) is RejectReason.CHANGED
    for gone in (path / "DICOM/IM9", path / "nested.zip/IM2", tmp_path / "none.zip/IM1", folder / "IM9"):
        assert reason(lambda gone=gone: open_regular(gone).__enter__()) is RejectReason.CHANGED
        assert reason(lambda gone=gone: status_of(gone)) is RejectReason.CHANGED


def test_another_archive_in_its_place_is_read_anew(path: Path) -> None:
    zipped(path, {"IM1": TEXT})
    assert open_member(path, "IM1").read() == TEXT
    zipped(path, {"IM1": TEXT + b"!"})
    assert open_member(path, "IM1").read() == TEXT + b"!"
    path.unlink()
    assert reason(lambda: open_member(path, "IM1")) is RejectReason.CHANGED


def test_nothing_is_kept_beyond_its_budget(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "KEPT_BYTES", len(TEXT) - 1)
    archive._kept_content.cache_clear()
    zipped(path, {"large": TEXT, "small": TEXT[:-1]})
    open_member(path, "large")
    assert archive._kept_content.cache_info().currsize == 0
    open_member(path, "small")
    open_member(path, "small").write(b"what a reader does to its copy")
    assert open_member(path, "small").read() == TEXT[:-1]
    assert archive._kept_content.cache_info().hits == 2


def _zip_folder(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.is_symlink():
                made.write(file, file.relative_to(folder))
    return path


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.mark.slow
def test_inference_on_an_archive_writes_what_it_writes_on_the_folder(looped: Path, tmp_path: Path) -> None:
    from pipeline.infer import infer

    (tmp_path / "in").mkdir()
    source = _zip_folder(looped / "export", tmp_path / "in" / "export.zip")
    infer(looped / "run", str(source), tmp_path / "out", progress=False)
    for name in ("objects.csv", "references.csv", "predictions.csv"):
        pd.testing.assert_frame_equal(_table(tmp_path / "out" / name), _table(looped / "out" / name))
    assert len(_table(tmp_path / "out/objects.csv"))
    paths = [_table(folder / "rejects.csv")[["path", "reason"]] for folder in (tmp_path / "out", looped / "out")]
    pd.testing.assert_frame_equal(*paths)
    assert [file.name for file in (tmp_path / "in").iterdir()] == ["export.zip"]  # nothing was extracted beside it


@pytest.mark.slow
def test_training_from_an_archive(looped: Path, tmp_path: Path) -> None:
    from pipeline.config import load_config
    from pipeline.train import train

    (tmp_path / "in").mkdir()
    _zip_folder(looped / "export", tmp_path / "in" / "export.zip")
    shutil.copy(looped / "labels.csv", tmp_path)
    text = (looped / "manifest.yaml").read_text()
    assert "path: export" in text
    (tmp_path / "manifest.yaml").write_text(text.replace("path: export", "path: in/export.zip"))
    config = load_config("demo", [*SMALL, "training.epochs=1"])
    train(config.model_copy(update={"manifest": str(tmp_path / "manifest.yaml")}), tmp_path / "run", progress=False)
    pd.testing.assert_frame_equal(_table(tmp_path / "run/split.csv"), _table(looped / "run/split.csv"))
    assert len(_table(tmp_path / "run/history.csv")) == 1
