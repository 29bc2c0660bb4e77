"""The index accounts for every file: folders, single files, DICOMDIRs, links, noise, and files of the same instance."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from pipeline.columns import COLUMNS, FLAG, INTEGER, REAL, REJECT_COLUMNS, REPEATING, TEXT
from pipeline.dicom.phantom_objects import ct_slice, radiograph, save, structured_report
from pipeline.errors import RejectReason, SourceError
from pipeline.identity import IdentityKey
from pipeline.indexing.header_jobs import Files, read_files
from pipeline.indexing.index import Index, index_source, index_sources, read_index
from pipeline.indexing.listing import walk
from pipeline.indexing.summary import summary_text

KEY = IdentityKey(b"a key for tests only")
PANDAS = {TEXT: "string", INTEGER: "Int64", REAL: "Float64", FLAG: "boolean"}
DTYPES = {name: "category" if name in REPEATING else PANDAS[kind] for name, kind in COLUMNS.items()}


def indexed(source: Path, **options: object) -> Index:
    return index_source(source, key=KEY, workers=0, **options)  # type: ignore[arg-type]


def reasons(index: Index) -> dict[str, str]:
    return dict(zip(index.rejects["path"], index.rejects["reason"], strict=True))


def regular_files(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and not path.is_symlink()]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    root = tmp_path / "export"
    save(ct_slice(16, instance_number=1), root / "b" / "IM1")
    save(ct_slice(16, instance_number=2), root / "b" / "IM2", uid.JPEG2000Lossless)
    save(radiograph(16), root / "a" / "CR")
    save(structured_report(), root / "a" / "SR")
    Image.new("L", (5, 4)).save(root / "picture.png")
    Image.new("RGB", (5, 4)).save(root / "a" / "picture.jpg")
    (root / "note.txt").write_text("nothing")
    (root / "empty").touch()
    (root / "cut").write_bytes((root / "b" / "IM1").read_bytes()[:-10])
    return root


def test_every_file_is_in_one_table(export: Path) -> None:
    index = indexed(export)
    assert list(index.table["path"]) == ["a/CR", "a/picture.jpg", "b/IM1", "b/IM2", "picture.png"]
    assert list(index.table["format"]) == ["dicom", "jpeg", "dicom", "dicom", "png"]
    assert reasons(index) == {
        "a/SR": "no_pixels",
        "cut": "truncated",
        "empty": "empty",
        "note.txt": "not_an_image",
    }
    assert sorted([*index.table["path"], *index.rejects["path"]]) == sorted(regular_files(export))
    assert set(index.table["source"]) == {"export"}
    row = index.table.set_index("path").loc["picture.png"]
    assert (row["rows"], row["columns"], row["frames"]) == (4, 5, 1)
    status = (export / "picture.png").stat()
    assert (row["bytes"], row["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
    assert index.roots == {"export": export.resolve()}


def test_workers_and_this_process_agree(export: Path) -> None:
    alone, together = indexed(export), index_source(export, key=KEY, workers=2)
    pd.testing.assert_frame_equal(alone.table, together.table)
    pd.testing.assert_frame_equal(alone.rejects, together.rejects)
    assert alone.summary == together.summary


def test_columns_and_dtypes_also_of_empty_tables(export: Path, tmp_path: Path) -> None:
    only_text = tmp_path / "text"
    only_text.mkdir()
    (only_text / "t").write_text("t")
    for index in (indexed(export), indexed(only_text), indexed(export / "picture.png")):
        assert list(index.table.columns) == list(COLUMNS)
        assert {name: str(dtype) for name, dtype in index.table.dtypes.items()} == DTYPES
        assert tuple(index.rejects.columns) == REJECT_COLUMNS


def test_write_and_read(export: Path, tmp_path: Path) -> None:
    (export / 'od"d,\n\r name.txt').write_text("NA")
    (export / "NA").write_text("NA")
    (export / "ünïcode").write_text("x")
    out = tmp_path / "out" / "index"
    index = index_sources([("NA", export)], key=KEY, out=out, workers=0)
    in_memory = indexed(export, name="NA")
    pd.testing.assert_frame_equal(index.table, in_memory.table)
    pd.testing.assert_frame_equal(index.rejects, in_memory.rejects)
    assert (index.summary, index.roots) == (in_memory.summary, in_memory.roots)
    assert sorted(path.name for path in out.iterdir()) == [
        "index.parquet", "rejects.csv", "stacks.csv", "summary.json",
    ]  # fmt: skip
    some = read_index(out, ["path", "modality"]).table
    pd.testing.assert_frame_equal(some, index.table[["path", "modality"]])
    with pytest.raises(SourceError, match="index the source again"):
        read_index(tmp_path)
    (out / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="index the source again"):
        read_index(out)


def test_a_single_file(export: Path) -> None:
    index = indexed(export / "b" / "IM1")
    assert list(index.table["path"]) == ["IM1"]
    assert index.roots == {"b": (export / "b").resolve()}
    assert reasons(indexed(export / "note.txt")) == {"note.txt": "not_an_image"}


def test_unusable_sources(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        indexed(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="without any file"):
        indexed(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match="device or a FIFO"):
        indexed(tmp_path / "fifo")


def test_what_is_no_regular_file(export: Path, tmp_path: Path) -> None:
    outside = save(ct_slice(16, instance_number=9), tmp_path / "outside" / "IM9")
    (export / "out").symlink_to(outside)
    (export / "out_folder").symlink_to(outside.parent)
    (export / "in").symlink_to(export / "b" / "IM1")
    (export / "loop").symlink_to(export)
    (export / "broken").symlink_to(export / "nothing")
    os.mkfifo(export / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(export / "socket"))
        index = indexed(export)
    links = {"out", "out_folder", "in", "loop", "broken", "fifo", "socket"}
    assert {path for path, reason in reasons(index).items() if reason == RejectReason.NOT_REGULAR} == links
    assert "outside" not in index.rejects.to_csv()
    assert len(index.table) == 5


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(export: Path) -> None:
    (export / "b" / "IM1").chmod(0)
    (export / "a").chmod(0)
    try:
        found = reasons(indexed(export))
    finally:
        (export / "a").chmod(0o755)
    assert (found["b/IM1"], found["a"]) == ("unreadable", "unreadable")


def test_names_that_are_no_utf8(export: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(export / "latin-") + b"\xe9")).write_bytes((export / "b" / "IM1").read_bytes())
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    assert reasons(indexed(export))["latin-\\xe9"] == "unreadable"


def test_deep_folders_do_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    for _ in range(400):
        folder = folder / "d"
    folder.mkdir(parents=True)
    (folder / "f").write_text("x")
    assert len(indexed(tmp_path).rejects) == 1


def test_walk_is_sorted_by_folder(tmp_path: Path) -> None:
    for name in ("b/2", "b/10", "b-c/1", "a", "B/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [entry.path for entry in walk(tmp_path)] == ["B/x", "a", "b/10", "b/2", "b-c/1"]


def test_collisions(tmp_path: Path) -> None:
    root = tmp_path / "s"
    same = save(ct_slice(16, sop_instance_uid="1.2.1"), root / "a1")
    for name in ("a2", "c/a3"):
        save(ct_slice(16, sop_instance_uid="1.2.1"), root / name)
    save(ct_slice(16, sop_instance_uid="1.2.2"), root / "b1")
    save(ct_slice(16, sop_instance_uid="1.2.2"), root / "b2", uid.ImplicitVRLittleEndian)
    save(ct_slice(16, sop_instance_uid="1.2.3", KVP=120), root / "d1")
    save(ct_slice(16, sop_instance_uid="1.2.3", KVP=140), root / "d2")
    save(ct_slice(16, sop_instance_uid="1.2.3", KVP=140), root / "d3")
    save(ct_slice(16, sop_instance_uid="1.2.4"), root / "e")
    index = indexed(root)
    found = dict(zip(index.table["path"], index.table["collision"], strict=True))
    assert found == {
        "a1": "",
        "a2": "duplicate",
        "c/a3": "duplicate",
        **dict.fromkeys(("b1", "b2", "d1", "d2", "d3"), "conflict"),
        "e": "",
    }
    assert index.summary["collisions"] == {"conflict": 5, "duplicate": 2}
    assert same.exists()


def test_collisions_across_sources(tmp_path: Path) -> None:
    save(ct_slice(16, sop_instance_uid="1.2.1"), tmp_path / "one" / "x")
    save(ct_slice(16, sop_instance_uid="1.2.1"), tmp_path / "two" / "y")
    (tmp_path / "two" / "t").write_text("t")
    places = [(None, tmp_path / "one"), (None, tmp_path / "two")]
    both = index_sources(places, key=KEY, workers=0)
    assert list(both.table["collision"]) == ["", "duplicate"]
    assert both.table["sha256"].nunique() == 1
    assert list(indexed(tmp_path / "one").table["collision"]) == [""]
    assert both.summary["found"] == 3
    assert set(both.roots) == {"one", "two"}
    with pytest.raises(SourceError, match="two sources are called one"):
        index_sources([places[0], ("one", tmp_path / "two")], key=KEY, workers=0)


def write_directory(path: Path, files: list[list[str]]) -> None:
    records = []
    for file in files:
        record = Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", file
        records.append(record)
    dataset = Dataset()
    dataset.DirectoryRecordSequence = Sequence(records)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.MediaStorageDirectoryStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2"
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dicomdir(export: Path, workers: int) -> None:
    write_directory(export / "DICOMDIR", [["B", "IM1"], ["B", "IM7"], ["C", "SECRET"], ["A", "SR"]])
    index = index_source(export / "DICOMDIR", key=KEY, workers=workers)
    found = reasons(index)
    assert found["DICOMDIR"] == "dicomdir"
    assert (found["B/IM7"], found["C/SECRET"]) == ("missing", "missing")
    assert "b/IM1" in set(index.table["path"])
    assert index.summary["directories"] == {"export": {"listed": 4, "missing": 2, "unlisted": 4}}
    assert list(index.table.loc[index.table["listed"], "path"]) == ["b/IM1"]
    assert "4 files listed" in summary_text(index.summary)
    assert index.summary["found"] == len(regular_files(export)) + 2


def test_a_dicomdir_that_cannot_be_read(export: Path) -> None:
    (export / "DICOMDIR").write_text("broken")
    with pytest.raises(SourceError, match="give its folder instead"):
        indexed(export / "DICOMDIR")


def test_summary(export: Path) -> None:
    summary = indexed(export).summary
    assert summary["found"] == summary["indexed"] + summary["rejected"] == 9
    assert sum(summary["rejected_by_reason"].values()) == summary["rejected"]
    for breakdown in ("formats", "modalities", "sop_classes", "transfer_syntaxes", "manufacturers"):
        assert sum(summary[breakdown].values()) == summary["indexed"]
    assert summary["sop_classes"]["CT Image Storage"] == 2
    text = summary_text(summary)
    assert "Found 9 → indexed 5, rejected 4" in text
    assert "truncated" in text


def test_identity_is_in_no_file(tmp_path: Path) -> None:
    export = tmp_path / "export"
    attributes = {"PatientName": "Quixote^Alonso", "AccessionNumber": "ACC4711", "PatientBirthDate": "19470929"}
    save(ct_slice(16, patient_id="MRN778899", **attributes), export / "im1")
    save(structured_report(patient_id="MRN778899", **attributes), export / "sr")
    (export / "cut").write_bytes((export / "im1").read_bytes()[:-10])
    save(ct_slice(16, patient_id="MRN778899", instance_number=2), export / "im2")
    index = index_sources([(None, export)], key=KEY, out=tmp_path / "out", workers=0)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    everything += (index.table.to_csv() + index.rejects.to_csv() + summary_text(index.summary)).encode()
    for word in (b"MRN778899", b"Quixote", b"Alonso", b"ACC4711", b"19470929"):
        assert word.lower() not in everything.lower()
    assert index.summary["patients"] == 1


def test_a_path_with_the_patients_number_is_warned_about(tmp_path: Path) -> None:
    save(ct_slice(16, patient_id="MRN778899"), tmp_path / "e" / "mrn778899" / "im1")
    index = indexed(tmp_path / "e")
    assert list(index.table["path_holds_identity"]) == [True]
    assert "Warning" in summary_text(index.summary)


def test_a_file_that_kills_its_reader_is_one_reject(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.indexing.inventory.read_files", dies_at_cut)
    index = index_source(export, key=KEY, workers=2)
    assert reasons(index)["cut"] == "crashed"
    assert len(index.table) + len(index.rejects) == len(regular_files(export))


def dies_at_cut(files: Files, **options: Any) -> bytes:
    if "cut" in files[0]:
        os.abort()
    return read_files(files, **options)


def test_the_index_needs_no_torch() -> None:
    code = "import sys, pipeline.indexing.index, pipeline.work, pipeline.dicom.header, pipeline.indexing.entries\n"
    code += "print([name for name in ('torch', 'monai', 'transforms') if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("samples")
    syntaxes = [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEG2000Lossless,
    ]
    files = [save(ct_slice(8), folder / f"{number}", syntax) for number, syntax in enumerate(syntaxes)]
    files.append(save(structured_report(), folder / "sr"))
    files.append(folder / "p.png")
    Image.new("L", (9, 9)).save(files[-1])
    write_directory(folder / "DICOMDIR", [["A", "B"]])
    return [path.read_bytes() for path in [*files, folder / "DICOMDIR"]]


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    kind = st.sampled_from(["overwrite", "insert", "delete", "cut"])
    lengths = st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xf0\xff\xff\xff", b"\xfe\xff\x0d\xe0", b"SQ\0\0"])
    payload = st.one_of(st.binary(min_size=1, max_size=6), lengths)
    place = st.one_of(st.floats(0, 1), st.floats(0, 0.3))
    return draw(st.lists(st.tuples(kind, place, payload), min_size=1, max_size=4))


def edited(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, place, payload in changes:
        start = int(place * len(content))
        match kind:
            case "overwrite":
                content = content[:start] + payload + content[start + len(payload) :]
            case "insert":
                content = content[:start] + payload + content[start:]
            case "delete":
                content = content[:start] + content[start + len(payload) :]
            case _:
                content = content[:start]
    return content


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("playground")


@settings(max_examples=300, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 8), edits()), min_size=1, max_size=3))
def test_broken_files_never_raise_and_are_all_accounted_for(
    changes: list[tuple[int, list[tuple[str, float, bytes]]]], samples: list[bytes], playground: Path
) -> None:
    for path in playground.iterdir():
        path.unlink()
    for number, (sample, edit) in enumerate(changes):
        (playground / f"f{number}").write_bytes(edited(samples[sample], edit))
    index = indexed(playground)
    found = Counter([*index.table["path"], *index.rejects["path"]])
    assert found == Counter(regular_files(playground))
    assert set(index.rejects["reason"]) <= {str(reason) for reason in RejectReason}
    assert not index.rejects["detail"].str.contains("the parser raised").any()


@pytest.mark.real_data
def test_real_files() -> None:
    place = os.environ.get("RADLOOP_DATA", "")
    if not place or not (Path(place) / "dicom").is_dir():
        pytest.skip("RADLOOP_DATA names no folder with the real images")
    root = Path(place) / "dicom"
    index = index_source(root, key=KEY)
    assert sorted([*index.table["path"], *index.rejects["path"]]) == sorted(regular_files(root))
    found = reasons(index)
    expected = {
        "pydicom_test_files/MR_truncated.dcm": "truncated",
        "pydicom_test_files/rtplan_truncated.dcm": "truncated",
        "pydicom_test_files/rtplan.dcm": "no_pixels",
        "pydicom_test_files/dicomdirtests/DICOMDIR": "dicomdir",
        "pydicom_test_files/README.txt": "not_an_image",
        "pydicom_test_files/badVR.dcm": "size_mismatch",
        "highdicom/sr_document.dcm": "no_pixels",
        "pydicom_test_files/JPEGLSNearLossless_16.dcm": "missing_uid",
    }
    assert {path: found.get(path) for path in expected} == expected
    table = index.table.set_index("path")
    assert table.loc["cr_mono1/CR-MONO1-10-chest", "photometric_interpretation"] == "MONOCHROME1"
    syntaxes = table[table.index.str.startswith("cornerstone_ct_syntaxes/")]
    assert len(syntaxes) == 16
    assert syntaxes["transfer_syntax_uid"].nunique() >= 14
    tilted = table[table.index.str.startswith("ct_series_ge_tilt/")]
    assert (tilted["gantry_detector_tilt"] != 0).all()
