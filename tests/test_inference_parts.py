"""Inference in parts: whole cases, found again by what they depend on, put together in order."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.prediction import inference_parts
from pipeline.prediction.deliver import Delivered, ObjectRow
from pipeline.prediction.inference_parts import Ledger, Part, parts_of


def images(sizes: list[int]) -> pd.DataFrame:
    """Cases of these many images each."""
    rows = [
        {"case_id": f"c{case:03d}", "source": "s", "path": f"{case}-{number}", "frame": 0, "bytes": 10, "mtime_ns": 1, "rule": ""}
        for case, count in enumerate(sizes)
        for number in range(count)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_parts_are_whole_cases_and_all_of_them(sizes: list[int]):
    table = images(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_parts, "PART_IMAGES", 16)
        parts = list(parts_of(table, "model"))
    assert [part.first_image for part in parts] == [0, *(part.last_image for part in parts[:-1])]
    assert [part.first_case for part in parts] == [0, *(part.last_case for part in parts[:-1])]
    assert (parts[-1].last_image, parts[-1].last_case) == (len(table), len(sizes))
    for part in parts:
        found = table["case_id"].iloc[part.first_image : part.last_image]
        assert found.nunique() == part.cases
        assert sum(sizes[part.first_case : part.last_case]) == len(found)
    assert all(part.last_image - part.first_image >= 16 for part in parts[:-1])


def test_a_part_is_known_by_its_files_and_by_what_is_asked():
    table = images([3, 3])
    (part,) = parts_of(table, "model")
    assert part == next(parts_of(table, "model"))
    assert part.name != next(parts_of(table, "another model")).name
    for column, value in (("mtime_ns", 2), ("bytes", 11), ("path", "x"), ("rule", "modality")):
        other = table.copy()
        other.loc[4, column] = value
        assert next(parts_of(other, "model")).name != part.name


def test_no_images_no_parts():
    assert list(parts_of(images([1]).iloc[:0], "model")) == []


def tables(part: Part) -> tuple[pd.DataFrame, pd.DataFrame]:
    of_images = pd.DataFrame({"path": [f"p{row}" for row in range(part.first_image, part.last_image)]})
    ids = [f"c{row}" for row in range(part.first_case, part.last_case)]
    of_cases = pd.DataFrame({"case_id": ids, "in_scope": True, "status": "ok", "reason": ""})
    return of_images, of_cases


def kept(ledger: Ledger, part: Part, out: Path, problem: str = "") -> None:
    rows = []
    for case in range(part.first_case, part.last_case):
        (out / f"o{case}.dcm").touch()
        row = ObjectRow("sc", f"c{case}", f"o{case}.dcm", f"1.{case}", "d", ("2.1", "2.2"))
        rows.append((f"c{case}", Delivered((row,), 0, (("seg", "no position"),), problem)))
    ledger.keep(part, *tables(part), rows)


PARTS = [Part(0, 0, 4, 0, 2, "00000000-a"), Part(1, 4, 6, 2, 3, "00000001-b")]


def test_what_was_done_is_found_again_and_joined_in_order(tmp_path: Path):
    kept(Ledger(tmp_path, PARTS), PARTS[1], tmp_path)
    ledger = Ledger(tmp_path, PARTS)
    assert [ledger.has(part) for part in PARTS] == [False, True]
    kept(ledger, PARTS[0], tmp_path)
    counts, unmade = ledger.finish()
    assert (counts.cases, counts.failed, counts.objects) == (3, 0, 3)
    assert unmade == {("seg", "no position"): 3}
    assert pd.read_csv(tmp_path / "predictions.csv")["case_id"].tolist() == ["c0", "c1", "c2"]
    assert pd.read_csv(tmp_path / "image_predictions.csv")["path"].tolist() == [f"p{row}" for row in range(6)]
    assert pd.read_csv(tmp_path / "objects.csv")["path"].tolist() == ["o0.dcm", "o1.dcm", "o2.dcm"]
    assert len(pd.read_csv(tmp_path / "references.csv")) == 6
    assert not (tmp_path / ".inference").exists()


def test_a_part_of_something_else_or_without_its_objects_is_done_again(tmp_path: Path):
    ledger = Ledger(tmp_path, PARTS)
    for part in PARTS:
        kept(ledger, part, tmp_path)
    (tmp_path / "o2.dcm").unlink()
    half = tmp_path / ".inference" / ".00000002-c"
    half.mkdir()
    again = Ledger(tmp_path, PARTS)
    assert [again.has(part) for part in PARTS] == [True, False]
    assert not half.exists()
    other = [Part(0, 0, 4, 0, 2, "00000000-z")]
    assert not Ledger(tmp_path, other).has(other[0])
    assert not any((tmp_path / ".inference").iterdir())


def test_a_case_without_its_object_is_said(tmp_path: Path):
    ledger = Ledger(tmp_path, PARTS[:1])
    kept(ledger, PARTS[0], tmp_path, problem="no object: the disk is full")
    counts, _ = ledger.finish()
    assert counts.failed == 2
    cases = pd.read_csv(tmp_path / "predictions.csv")
    assert cases["status"].tolist() == ["object_failed"] * 2
    assert cases["reason"].tolist() == ["no object: the disk is full"] * 2


def test_an_object_that_two_files_made_has_its_references_once(tmp_path: Path):
    ledger = Ledger(tmp_path, PARTS[:1])
    (tmp_path / "o.dcm").touch()
    row = ObjectRow("sc", "c0", "o.dcm", "1.1", "d", ("2.1",))
    twin = ObjectRow("sc", "c0@2", "o.dcm", "1.1", "d", ("2.1",))
    ledger.keep(PARTS[0], *tables(PARTS[0]), [("c0", Delivered((row,))), ("c1", Delivered((twin,)))])
    ledger.finish()
    assert len(pd.read_csv(tmp_path / "objects.csv")) == 2
    assert len(pd.read_csv(tmp_path / "references.csv")) == 1
