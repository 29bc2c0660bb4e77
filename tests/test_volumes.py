"""`radloop volume`: every stack is a NIfTI or a reason, every image a row, and what stands is kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from pipeline import volumes
from pipeline.cli import main
from pipeline.dicom.phantom import make_export, radiograph, save
from pipeline.dicom.series import read_volume
from pipeline.errors import ConfigError, SourceError
from pipeline.files import file_digest
from pipeline.volumes import IMAGE_COLUMNS, VOLUME_COLUMNS, write_volumes
from tests.series_files import AXIAL, GANTRY_TILT, positions, values_hu, write_enhanced, write_series


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _write(source: Path, out: Path, **other):
    return write_volumes(str(source), out, workers=0, progress=False, **other)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Series of every kind, in one folder."""
    folder = tmp_path / "source"
    tilted = positions(GANTRY_TILT, np.arange(3) * 3.0, along=(0, 0, 1))
    write_series(folder / "plain", positions(AXIAL, [0, 2, 4]), series_number=1)
    write_series(folder / "gap", positions(AXIAL, [0, 2, 4, 8]), series_number=2)
    write_series(folder / "tilt", tilted, GANTRY_TILT, series_number=3)
    phases = [{"AcquisitionNumber": 1 + n // 3} for n in range(6)]
    write_series(folder / "phases", positions(AXIAL, [0, 2, 4] * 2), series_number=4, each=phases)
    content = [{"TemporalPositionIndex": 1 + n // 2} for n in range(4)]
    (folder / "enhanced").mkdir()
    write_enhanced(folder / "enhanced" / "e", positions(AXIAL, [0, 2] * 2), content=content, SeriesInstanceUID="2.25.9")
    cut = write_series(folder / "broken", positions(AXIAL, [0, 2, 4]), series_number=6, syntax="1.2.840.10008.1.2.5")
    content_ = cut[1].read_bytes()  # RLE: its header still adds up, its frame does not
    cut[1].write_bytes(content_[:-60] + b"\x81" * 52 + content_[-8:])
    save(radiograph(16, series_number=7), folder / "radiograph" / "r")
    twin = write_series(folder / "twin", positions(AXIAL, [0, 2]), series_number=8)
    (folder / "twin" / "copy").write_bytes(twin[0].read_bytes())
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def written(source: Path, tmp_path: Path):
    summary = _write(source, tmp_path / "out")
    return summary, tmp_path / "out", _table(tmp_path / "out" / "volumes.csv"), source


def test_each_stack_is_a_volume_or_has_a_reason(written):
    summary, out, table, _ = written
    assert list(table.columns) == VOLUME_COLUMNS
    assert Counter(table["status"]) == {"ok": 8, "failed": 1, "no_volume": 1}
    assert (summary.volumes, summary.failed, summary.without, summary.rejected) == (8, 1, 1, 1)
    for row in table[table["status"] == "ok"].to_dict("records"):
        image = nibabel.load(out / row["path"])
        assert image.shape == (int(row["columns"]), int(row["rows"]), int(row["slices"]))
        assert str(image.get_data_dtype()) == row["type"]
        told = [float(row[name]) for name in ("column_spacing_mm", "row_spacing_mm", "slice_spacing_mm")]
        assert image.header.get_zooms() == pytest.approx(told, abs=1e-4)
        assert row["path"].startswith(f"{row['study_instance_uid']}/{row['series_instance_uid']}_{row['stack']}")
    assert (table.loc[table["status"] != "ok", "reason"] != "").all()
    found = " ".join(table["findings"])
    for word in (
        "gap (after_slice 2, missing 1, distance_mm 4)",
        "over_gaps 1",
        "tilt (degrees 20)",
        "phases (phase 1",
    ):
        assert word in found
    lines = "\n".join(summary.lines())
    assert "failed: 1 stacks" in lines
    assert "tilt 1" in lines


def test_every_file_is_in_one_table(written):
    _, out, _, source = written
    images, rejects = _table(out / "volume_images.csv"), _table(out / "rejects.csv")
    assert list(images.columns) == IMAGE_COLUMNS
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert set(images["path"]) | set(rejects["path"]) == files
    assert not set(images["path"]) & set(rejects["path"])
    assert ((images["volume"] == "") != (images["reason"] == "")).all()
    copies = images[images["path"].str.startswith("twin/") & images["reason"].str.startswith("duplicate")]
    assert len(copies) == 1
    broken = images[images["path"].str.startswith("broken/")]
    assert broken["reason"].str.contains("undecodable: 1 of 3 images cannot be read").sum() == 2
    assert broken["reason"].str.match("decode_failed|truncated|size_mismatch").sum() == 1


def test_each_slice_of_a_volume_is_found_in_the_file_that_its_row_names(written):
    _, out, _, source = written
    images = _table(out / "volume_images.csv")
    gap = images[images["path"].str.startswith("gap/")].sort_values("slice")
    assert list(gap["slice"]) == ["0", "1", "2", "4"]
    enhanced = images[images["path"] == "enhanced/e"]
    assert sorted(zip(enhanced["frame"], enhanced["phase"], enhanced["slice"], strict=True)) == [
        ("0", "0", "0"), ("1", "0", "1"), ("2", "1", "0"), ("3", "1", "1"),
    ]  # fmt: skip
    for row in images[images["path"].str.match("gap/|plain/|enhanced/")].to_dict("records"):
        voxels = np.asarray(nibabel.load(out / row["volume"]).dataobj)
        several = row["path"] == "enhanced/e"
        alone = None if several else read_volume([source / row["path"]], workers=0).voxels[0]
        expected = values_hu(int(row["frame"])) if several else alone
        assert np.array_equal(voxels[:, :, int(row["slice"])].T, expected)


def test_nothing_of_the_patient_stands_in_the_tables(written):
    _, out, _, _ = written
    for path in out.rglob("*"):
        if path.is_file() and path.suffix in (".csv", ".json", ".nii"):
            content = path.read_text()
            for word in ("PHANTOM", "PH-0001", "ACC0001", "19600501"):
                assert word not in content, path


def test_what_stands_is_kept_and_what_failed_is_tried_again(written, monkeypatch):
    summary, out, _, source = written
    before = {path: (path.stat().st_mtime_ns, file_digest(path)) for path in out.rglob("*.nii.gz")}
    tables = {name: (out / name).read_bytes() for name in ("volumes.csv", "volume_images.csv")}
    built = []
    monkeypatch.setattr(volumes, "build", lambda plan, pool, build=volumes.build: built.append(1) or build(plan, pool))
    again = _write(source, out)
    assert again.kept == len(before) - 1  # an enhanced file's two volumes are one stack
    assert len(built) == 1  # the broken series; that the radiograph has no place is seen without a pixel
    assert {path: (path.stat().st_mtime_ns, file_digest(path)) for path in out.rglob("*.nii.gz")} == before
    assert {name: (out / name).read_bytes() for name in tables} == tables
    assert again.volumes == summary.volumes


def test_a_lost_or_changed_file_is_made_anew(written, monkeypatch):
    _, out, table, source = written
    row = table[table["status"] == "ok"].iloc[0]
    content = (out / row["path"]).read_bytes()
    (out / row["path"]).write_bytes(content[:-1])
    _write(source, out)
    assert (out / row["path"]).read_bytes() == content


def test_other_arguments_replace_what_stands(written):
    _, out, table, source = written
    tilted = table[table["findings"].str.contains("tilt")].iloc[0]
    before = (out / tilted["path"]).read_bytes()
    before = len(list(out.rglob("*.nii.gz")))
    summary = _write(source, out, tilt="deskew", uneven="refuse")
    assert summary.removed == before > 0
    assert f"removed: {before} volumes that an earlier call made" in "\n".join(summary.lines())
    assert summary.failed == 2  # the series with a gap, too
    after = _table(out / "volumes.csv")
    assert (out / tilted["path"]).read_bytes() != before
    gap = table[table["findings"].str.contains("gap")].iloc[0]
    assert not (out / gap["path"]).exists()
    refused = after[after["series_instance_uid"] == gap["series_instance_uid"]].iloc[0]
    assert refused["reason"].startswith("uneven: gap")
    assert set(after.loc[after["status"] == "ok", "path"]) == {
        path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")
    }


def test_a_file_that_changes_meanwhile_fails_its_stack(source: Path, tmp_path: Path, monkeypatch):
    def changed(stack):
        if "plain" in stack.files[0][1]:
            stack.files[0][2].write_bytes(stack.files[0][2].read_bytes() + b"\0\0")
        return unchanged(stack)

    unchanged = volumes._unchanged
    monkeypatch.setattr(volumes, "_unchanged", changed)
    _write(source, tmp_path / "out")
    table = _table(tmp_path / "out" / "volumes.csv")
    assert table["reason"].str.contains("changed: a file is not the one that was indexed").sum() == 1


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_that_is_none_leads_nowhere(tmp_path: Path):
    attributes = {"study_instance_uid": "../../escape", "series_instance_uid": "a/b"}
    write_series(tmp_path / "source", positions(AXIAL, [0, 2]), **attributes)
    _write(tmp_path / "source", tmp_path / "out")
    [path] = tmp_path.rglob("*.nii.gz")
    assert path.is_relative_to(tmp_path / "out")


def test_what_is_too_large_to_inflate_is_not_compressed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(volumes, "MAX_COMPRESSED_BYTES", 2**16 + 2 * 10 * 14 * 2)
    write_series(tmp_path / "source", positions(AXIAL, [0, 2]))
    _write(tmp_path / "source", tmp_path / "out")
    [path] = (tmp_path / "out").rglob("*.nii*")
    assert path.suffix == ".nii"


def test_out_is_not_within_the_source(source: Path):
    with pytest.raises(ConfigError, match="lies inside the source"):
        _write(source, source / "out")
    with pytest.raises(SourceError):
        _write(source / "nothing", source.parent / "out")


@pytest.mark.slow
def test_an_export_gives_the_same_with_worker_processes(tmp_path: Path):
    make_export(tmp_path, patients=2, slices=4, size=32)
    here = _write(tmp_path / "export", tmp_path / "here")
    assert write_volumes(str(tmp_path / "export"), tmp_path / "there", workers=1, progress=False) == here
    written = [path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*.*") if path.is_file()]
    assert sum(path.suffix == ".gz" for path in written) == here.volumes > 0
    for path in written:
        assert file_digest(tmp_path / "here" / path) == file_digest(tmp_path / "there" / path)


@pytest.mark.real_data
@pytest.mark.slow
def test_every_real_file_is_accounted_for(real_data: Path, tmp_path: Path):
    _write(real_data / "dicom", tmp_path / "out")
    images, rejects = _table(tmp_path / "out" / "volume_images.csv"), _table(tmp_path / "out" / "rejects.csv")
    files = {
        path.relative_to(real_data / "dicom").as_posix() for path in (real_data / "dicom").rglob("*") if path.is_file()
    }
    assert set(images["path"]) | set(rejects["path"]) == files
    assert not set(images["path"]) & set(rejects["path"])
    table = _table(tmp_path / "out" / "volumes.csv")
    assert Counter(table["status"])["ok"] > 25
    assert (table.loc[table["status"] != "ok", "reason"] != "").all()


def test_a_source_without_a_volume_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save(radiograph(16), tmp_path / "source" / "r")
    assert main(["volume", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 1
    assert "volumes: none (volumes.csv and volume_images.csv say why)" in capsys.readouterr().out
