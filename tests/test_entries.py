"""Batches of files as Arrow: each file a row, whatever it is; the same row whichever way it was read."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydicom import uid

from pipeline.columns import BATCH_SCHEMA
from pipeline.dicom.header import HeaderReader, read_header
from pipeline.dicom.phantom_objects import ct_slice, save, structured_report
from pipeline.errors import Rejected, RejectReason
from pipeline.identity import IdentityKey
from pipeline.indexing.entries import Entry, read_batch, read_entry

KEY = IdentityKey(b"a key for tests only")


def batch(root: Path, entries: list[Entry]) -> pa.Table:
    with pa.ipc.open_stream(read_batch(entries, root=str(root), source="s", key=KEY)) as reader:
        found = reader.read_all()
    found.validate(full=True)
    assert found.schema == BATCH_SCHEMA
    return found


def listed(root: Path) -> list[Entry]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    found = []
    for path in paths:
        status = path.stat()
        found.append(Entry(path.relative_to(root).as_posix(), None, status.st_size, status.st_mtime_ns))
    return found


def nifti() -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 4, 5, 6, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return bytes(header) + bytes(4 * 5 * 6 * 2)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    root = tmp_path / "export"
    for number in range(3):
        save(ct_slice(16, instance_number=number, KVP=None if number else 120), root / "b" / f"IM{number}")
    save(ct_slice(16, patient_id="Ü"), root / "big", uid.ExplicitVRBigEndian)
    save(structured_report(), root / "SR")
    Image.new("RGBA", (5, 4)).save(root / "ünïcode.png")
    (root / "a.nii").write_bytes(nifti())
    (root / "a.nii.gz").write_bytes(gzip.compress(nifti()))
    (root / "a.gz").write_bytes(gzip.compress(nifti()))
    (root / "note.txt").write_text("nothing")
    (root / "empty").touch()
    (root / "cut").write_bytes((root / "b" / "IM1").read_bytes()[:-10])
    return root


def test_every_entry_is_a_row(export: Path) -> None:
    refused = Entry("fifo", (RejectReason.NOT_REGULAR, "a FIFO"))
    rows = {row["path"]: row for row in batch(export, [*listed(export), refused]).to_pylist()}
    assert {path: row["reason"] for path, row in rows.items() if row["reason"]} == {
        "SR": "no_pixels",
        "a.gz": "not_an_image",
        "note.txt": "not_an_image",
        "empty": "empty",
        "cut": "truncated",
        "fifo": "not_a_regular_file",
    }
    images = {path: row["format"] for path, row in rows.items() if not row["reason"]}
    dicom = dict.fromkeys(("b/IM0", "b/IM1", "b/IM2", "big"), "dicom")
    assert images == dicom | {"ünïcode.png": "png", "a.nii": "nifti", "a.nii.gz": "nifti"}
    assert {row["source"] for row in rows.values()} == {"s"}
    assert rows["ünïcode.png"]["color_mode"] == "RGBA"
    assert [rows[f"b/IM{number}"]["kvp"] for number in range(3)] == [120.0, None, None]
    assert all(row["collision"] == "" and row["detail"] is None for path, row in rows.items() if path in images)
    kept = {"source", "path", "bytes", "mtime_ns", "reason", "detail"}
    for path in rows.keys() - images.keys():
        assert {name for name, value in rows[path].items() if value is not None} <= kept


def test_rows_are_what_read_header_and_read_entry_say(export: Path) -> None:
    for entry, row in zip(listed(export), batch(export, listed(export)).to_pylist(), strict=True):
        if row["reason"]:
            with pytest.raises(Rejected) as caught:
                read_entry(entry, root=str(export), key=KEY)
            assert (caught.value.reason, caught.value.detail) == (row["reason"], row["detail"])
            continue
        assert (row["bytes"], row["mtime_ns"]) == (entry.bytes, entry.mtime_ns)
        known = {name: value for name, value in row.items() if value not in (None, "")}
        assert read_entry(entry, root=str(export), key=KEY) | {"source": "s"} == known
        if row["format"] == "dicom":
            header = read_header(export / entry.path, KEY, shown_path=entry.path)
            assert {name: row[name] for name in header} == header


def test_members_of_an_archive_are_read_as_files_are(export: Path, tmp_path: Path) -> None:
    entries = listed(export)
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in entries:
            made.write(export / entry.path, entry.path)
    packed = [Entry(entry.path, None, entry.bytes, archive.stat().st_mtime_ns) for entry in entries]
    apart = ["mtime_ns"]
    assert batch(archive, packed).drop_columns(apart).equals(batch(export, entries).drop_columns(apart))


def test_order_and_company_do_not_matter(export: Path) -> None:
    entries = listed(export)
    together = batch(export, entries)
    assert batch(export, entries[::-1]).to_pylist() == together.to_pylist()[::-1]
    assert pa.concat_tables(batch(export, [entry]) for entry in entries).equals(together)
    assert len(batch(export, [])) == 0


@pytest.mark.parametrize("name", ["b/IM0", "big", "ünïcode.png", "note.txt"])
@pytest.mark.parametrize("change", [{"bytes": 1}, {"mtime_ns": 1}])
def test_a_file_that_is_not_the_one_listed(export: Path, name: str, change: dict[str, int]) -> None:
    entry = next(entry for entry in listed(export) if entry.path == name)
    other = Entry(name, None, change.get("bytes", entry.bytes), change.get("mtime_ns", entry.mtime_ns))
    assert batch(export, [other])["reason"].to_pylist() == ["changed"]
    assert batch(export, [Entry(name)])["bytes"].to_pylist() in ([entry.bytes], [None])


def test_what_cannot_be_opened(export: Path) -> None:
    os.mkfifo(export / "fifo")
    (export / "link").symlink_to("nothing")
    entries = [Entry(name, None, 5, 5) for name in ("fifo", "link", "gone", "b", "note.txt/x")]
    reasons = batch(export, entries)["reason"].to_pylist()
    assert reasons[:3] == ["not_a_regular_file", "changed", "changed"]
    assert None not in reasons


def test_a_fault_of_ours_costs_one_file(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = HeaderReader.ordinary

    def fails_at_1(reader: HeaderReader, source: object, shown: str) -> list[object] | None:
        if shown.endswith("IM1"):
            raise KeyError("a value that nobody may see")
        return ordinary(reader, source, shown)  # type: ignore[arg-type]

    monkeypatch.setattr(HeaderReader, "ordinary", fails_at_1)
    rows = batch(export, listed(export)).to_pylist()
    broken = [row for row in rows if row["path"] == "b/IM1"]
    assert [(row["reason"], row["detail"]) for row in broken] == [("malformed", "the parser raised KeyError")]
    assert sum(row["reason"] is None for row in rows) == 6


def test_memory_errors_pass(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(HeaderReader, "ordinary", runs_out)
    with pytest.raises(MemoryError):
        batch(export, listed(export))


def test_ordinary_files_need_no_pandas(export: Path) -> None:
    code = (
        "import sys; from pipeline.indexing.entries import Entry, read_batch; from pipeline.identity import IdentityKey\n"
        f"read_batch([Entry(f'IM{{n}}') for n in range(3)], root={str(export / 'b')!r}, source='s', key=IdentityKey(b'k'))\n"
        "print([name for name in ('pandas', 'torch', 'nibabel', 'pydicom', 'PIL') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_pixel_values_do_not_matter(export: Path) -> None:
    """The header is all that is read: the row of a file with other pixels is the same."""
    path = export / "b" / "IM0"
    before = read_header(path, KEY)
    content = bytearray(path.read_bytes())
    content[-64:] = np.random.default_rng(1).bytes(64)
    path.write_bytes(content)
    assert read_header(path, KEY) == before
