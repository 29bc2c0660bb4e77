"""What docs/conformance.md states of the objects is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydicom.uid import UID

from pipeline.dicom.conformance_item import Item
from pipeline.dicom.conformance_tables import iod_of
from pipeline.dicom.derived import IMPLEMENTATION_CLASS_UID
from pipeline.prediction.object_set import Made, objects_of
from pipeline.profile_settings import KINDS
from tests.case_results import case_result
from tests.sources import ct

STATEMENT = (Path(__file__).parent.parent / "docs" / "conformance.md").read_text()


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Item]:
    """One of each kind, of a CT."""
    outcomes = list(objects_of(case_result(ct(tmp_path_factory.mktemp("ct"))), KINDS))
    return {outcome.kind: Item(outcome.dataset) for outcome in reversed(outcomes) if isinstance(outcome, Made)}


def _rows(title: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    part = STATEMENT.split(title, 1)[1]
    lines = re.search(r"(?m)(^\|.*\n)+", part)
    assert lines is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()][2:]


def test_sop_classes(objects: dict[str, Item]) -> None:
    rows = {key.strip("`"): (name, uid) for name, uid, key in _rows("## 1 Overview")}
    assert set(rows) == set(KINDS)
    for kind, (name, uid) in rows.items():
        if kind != "overlay":
            assert objects[kind].text("SOPClassUID") == uid
            assert UID(uid).name == name


def test_optional_modules(objects: dict[str, Item]) -> None:
    """Those with Type 1 or 2 attributes, by which the tables tell them; the table names some others, too."""
    for kinds, modules in _rows("### 4.1"):
        said = {
            re.sub(r"\(.*\)|\*", "", name).strip().lower().replace(" ", "-") for name in re.split(r", | and ", modules)
        }
        for kind in kinds.replace("`", "").split(", "):
            iod = iod_of(objects[kind].text("SOPClassUID"))
            assert iod is not None
            there = {module.name for module in iod.optional if not module.own.isdisjoint(objects[kind].elements)}
            if kind != "overlay":
                assert there <= said, kind


def test_no_private_attributes(objects: dict[str, Item]) -> None:
    for item in objects.values():
        assert not [tag for _, inner in item.walk() for tag in inner.elements if (tag >> 16) % 2]


def test_implementation_class() -> None:
    assert IMPLEMENTATION_CLASS_UID in STATEMENT


def test_modalities(objects: dict[str, Item]) -> None:
    [row] = [cells for cells in _rows("### 4.2") if cells[0] == "Modality"]
    for kind, item in objects.items():
        if kind != "overlay":
            assert item.text("Modality") in row[1]
