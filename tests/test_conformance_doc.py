"""What docs/conformance.md states of the objects is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydicom.uid import UID

from pipeline.dicom import commitment, dicom_web, query_scu, storage_scp
from pipeline.dicom.association import PDU_BYTES, VERIFICATION
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


def test_network_services() -> None:
    """SOP classes by their UIDs and roles, what is proposed and answered."""
    rows = {(command.strip("`"), role): set() for command, _, _, role in _rows("### 3.1")}
    for command, name, uid, role in _rows("### 3.1"):
        if uid.startswith("1.2"):
            assert UID(uid).name in (name, f"{name} SOP Class")
            rows[command.strip("`"), role].add(uid)
    assert rows["send", "SCU"] == {commitment.PUSH_MODEL}
    assert rows["fetch", "SCU"] == {query_scu.FIND, query_scu.GET, query_scu.MOVE}
    assert rows["receive", "SCP"] == {VERIFICATION}
    assert f"up to {PDU_BYTES:,} bytes" in STATEMENT
    statuses = {int(code, 16) for code, _ in _rows("### 3.3")}
    taken = {storage_scp.STORED, storage_scp.OUT_OF_RESOURCES, storage_scp.WRONG_CLASS, storage_scp.NOT_UNDERSTOOD}
    assert statuses == taken
    batch = f"up to {dicom_web.MOST_FILES_A_REQUEST} instances of {dicom_web.MOST_BYTES_A_REQUEST >> 20} MiB"
    assert batch in STATEMENT


def test_no_transfer_syntax_but_the_deflated_one_is_refused() -> None:
    offered = {str(syntax) for context in storage_scp.supported() for syntax in context.transfer_syntax}
    assert "1.2.840.10008.1.2.1.99" not in offered
    assert {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.201"} <= offered


def test_implementation_class() -> None:
    assert IMPLEMENTATION_CLASS_UID in STATEMENT


def test_modalities(objects: dict[str, Item]) -> None:
    [row] = [cells for cells in _rows("### 4.2") if cells[0] == "Modality"]
    for kind, item in objects.items():
        if kind != "overlay":
            assert item.text("Modality") in row[1]
