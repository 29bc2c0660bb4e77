"""An image with a marker in every place that a DICOM file has for text, bytes, dates and UIDs: what de-identification must not let through.

`MARKS` are what to look for in the result's bytes, in any form that they might take there.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import config
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.dicom.deidentification_table import table
from pipeline.dicom.phantom import ct_slice, save

WORD = "QXMARKER"
DIGITS, UID_DIGITS = "777123777", "888321888"
DAY, TIME = "19231117", "231117.77"
MARKS = tuple(text.encode() for text in (WORD, WORD.lower(), DIGITS, UID_DIGITS, DAY, TIME))
VALUES: dict[str, Any] = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE"), WORD),
    "PN": f"{WORD}^{WORD}",
    "UR": f"http://{WORD}.example",
    "UI": f"1.2.{UID_DIGITS}",
    "DA": DAY,
    "TM": TIME,
    "DT": f"{DAY}{TIME}",
    "AS": "077Y",
    "DS": DIGITS,
    "IS": DIGITS,
    **dict.fromkeys(("US", "SS", "US or SS"), 7771),
    **dict.fromkeys(("UL", "SL", "UV", "SV"), 7771237),
    "AT": 0x77712377,
    **dict.fromkeys(("FL", "FD"), 7771.2377),
    **dict.fromkeys(("OB", "UN", "OW", "OB or OW"), WORD.encode()),
}
"""By VR. Small whole numbers and ages are no marks: they stand in pixels by chance; such attributes are looked for by their tags."""
FREE = ("LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE", "PN", "DA", "TM", "DT", "UI", "AS")
"""VRs whose attributes are marked whether the table names them or not."""
NESTED = ("AnatomicRegionSequence", "ReferencedImageSequence", "SharedFunctionalGroupsSequence")
"""Sequences that stay, with marks in their items and in an item of these."""
_MEANS_SOMETHING = {0x00080005, 0x00080016, 0x00083002}
_GROUPS_APART = (0x0000, 0x0002, 0x0004, 0x7FE0, 0xFFFA, 0xFFFC, 0xFFFE)


@cache
def marked_tags() -> tuple[int, ...]:
    """Every attribute of the table, and every one of a VR that holds text, dates or UIDs."""
    free = [tag for tag, (vr, *_) in DicomDictionary.items() if vr in FREE]
    tags = {*table(), *free} - _MEANS_SOMETHING
    return tuple(sorted(tag for tag in tags if tag >> 16 not in _GROUPS_APART and not tag >> 16 & 1))


def marked_item(tags: tuple[int, ...]) -> Dataset:
    """All of them in one item, sequences with an item in each that has a mark of every VR."""
    item = Dataset()
    inner = None if tags == _few(tags) else marked_item(_few(tags))
    for tag in tags:
        vr = _vr(tag)
        if vr == "SQ":
            item.add_new(tag, "SQ", Sequence([] if inner is None else [inner]))
        elif vr in VALUES:
            item.add(_element(tag, "US" if vr == "US or SS" else vr, VALUES[vr]))
    return item


def _few(tags: tuple[int, ...]) -> tuple[int, ...]:
    """One of each VR."""
    return tuple(sorted({_vr(tag): tag for tag in tags}.values()))


def marked_file(path: Path, syntax: str = ExplicitVRLittleEndian, **attributes: Any) -> Path:
    """A CT slice, marked: in attributes, in items two deep, private, overlays, curves, before and after the data set."""
    dataset = ct_slice(32, **attributes)
    tags = marked_tags()
    kept = {
        keyword: dataset[keyword]
        for keyword in ("SOPClassUID", "Modality", "ImageType", "PixelSpacing", "BurnedInAnnotation")
    }
    full = marked_item(tags)
    _remove_code(full)
    full_code = marked_item(tags)
    for element in full:
        if element.keyword not in kept:
            dataset.add(element)
    for keyword in NESTED:
        item = Dataset()
        item.update(full_code)
        if keyword == "AnatomicRegionSequence":
            item["CodingSchemeDesignator"] = _element(Tag("CodingSchemeDesignator"), "SH", "DCM")
        else:
            _remove_code(item)  # items that are codes of no public scheme are left out as a whole
        item.PixelMeasuresSequence = [full]
        # a new element, as those of `full` are in its items, too
        dataset.add(DataElement(Tag(keyword), "SQ", Sequence([item])))
    _add_private(dataset)
    _add_private(dataset.ReferencedImageSequence[0])
    _add_planes(dataset)
    mode = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        save(dataset, path, syntax)
    finally:
        config.settings.writing_validation_mode = mode
    return _with_surroundings(path)


def _remove_code(item: Dataset) -> None:
    for keyword in ("CodeValue", "LongCodeValue", "URNCodeValue", "CodeMeaning"):
        del item[keyword]


def _element(tag: int, vr: str, value: Any) -> DataElement:
    return DataElement(Tag(tag), vr, value, validation_mode=config.IGNORE)


def _vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "LO"  # newer than pydicom's dictionary: as whatever a file may write it


def _add_private(dataset: Dataset) -> None:
    block = dataset.private_block(0x0029, f"{WORD} CREATOR", create=True)
    block.add_new(0x10, "LO", WORD)
    block.add_new(0x11, "OB", WORD.encode())
    block.add_new(0x12, "UN", WORD.encode())
    block.add_new(0x13, "SQ", Sequence([marked_item(marked_tags()[:80])]))
    safe = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
    safe.add_new(0x00, "LO", WORD)  # what should be a number
    safe.add_new(0x33, "LO", WORD)


def _add_planes(dataset: Dataset) -> None:
    bits = np.packbits(np.eye(32, dtype=np.uint8)).tobytes()
    for group in (0x6000, 0x601E):
        for place, vr, value in (
            *(
                (0x10, "US", 32),
                (0x11, "US", 32),
                (0x40, "CS", "G"),
                (0x50, "SS", [1, 1]),
                (0x100, "US", 1),
                (0x102, "US", 0),
            ),
            *(
                (0x22, "LO", WORD),
                (0x45, "LO", WORD),
                (0x1500, "LO", WORD),
                (0x4000, "LT", WORD),
                (0x3000, "OW", bits + WORD.encode()),
            ),
        ):
            dataset.add(_element(group << 16 | place, vr, value))
    for place, vr, value in ((0x30, "SH", WORD), (0x2500, "LO", WORD), (0x3000, "OW", WORD.encode())):
        dataset.add(_element(0x5000 << 16 | place, vr, value))


def _with_surroundings(path: Path) -> Path:
    """Preamble, file meta information and what follows the pixels."""
    content = path.read_bytes()
    length = struct.unpack("<I", content[140:144])[0]
    meta = content[144 : 144 + length]
    for element, vr, value in (
        *((0x16, b"AE", WORD), (0x17, b"AE", WORD), (0x18, b"AE", WORD)),
        *((0x26, b"UR", f"http://{WORD}.x"), (0x100, b"UI", f"1.2.{UID_DIGITS}"), (0x102, b"OB", WORD * 2)),
    ):
        data = value.encode() + b"\0" * (len(value) % 2)
        long = vr in (b"OB", b"UR")
        header = struct.pack("<HH2s", 2, element, vr) + (
            struct.pack("<HI", 0, len(data)) if long else struct.pack("<H", len(data))
        )
        meta += header + data
    head = (WORD * 16).encode() + b"DICM" + content[132:140] + struct.pack("<I", len(meta)) + meta
    trailing = struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 8) + WORD.encode()
    body = content[144 + length :]
    implicit = b"1.2.840.10008.1.2\0" in meta
    path.write_bytes(head + body + (struct.pack("<HHI", 0xFFFC, 0xFFFC, 8) + WORD.encode() if implicit else trailing))
    return path


def found_marks(content: bytes) -> list[bytes]:
    """Marks in a file's bytes."""
    return [mark for mark in MARKS if mark in content]
