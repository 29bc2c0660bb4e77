"""An export in which every attribute that holds text, dates or UIDs has a mark of its own, and where such marks are found again.

A mark names its attribute and the place where it stands: X at the root, N in items, P in private attributes, O outside the data set. What
pixels mean and where they lie is true, so that all commands can work with the files. `marks_by_file` looks into whatever radloop writes.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pydicom import config, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from pipeline.dicom.phantom import ct_slice, save
from tests.dicom.marked import FREE, _vr, marked_tags

SIDE = 48
FIRST_DAY = date(1905, 1, 1)
TRUE = (
    *(
        "SpecificCharacterSet",
        "ImageType",
        "SOPClassUID",
        "Modality",
        "ImagePositionPatient",
        "ImageOrientationPatient",
    ),
    *("SliceThickness", "SpacingBetweenSlices", "InstanceNumber", "SeriesNumber", "AcquisitionNumber", "KVP"),
    *("GantryDetectorTilt", "BurnedInAnnotation", "LossyImageCompression", "PatientIdentityRemoved", "NumberOfFrames"),
    *("TemporalPositionIdentifier", "EchoTime", "TriggerTime", "TimezoneOffsetFromUTC", "BodyPartExamined"),
)
"""Attributes that mean something, and stay what they are in a phantom."""
OF_EACH = ("PatientID", "PatientName", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
"""Different in each file."""
TEXTS = ("LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE", "UR", "PN")
TEXT_MARK = re.compile(rb"Q[XNPO][0-9A-F]{8}Z")
UID_MARK = re.compile(rb"1\.2\.77777\.[0-9]+(\.[0-9]+)*")
NUMBER_MARK = re.compile(
    r"(?<![0-9.])(77[0-9]{4}777|231117\.[0-9]{6}|19(?:0[5-9]|1[0-9])(?:0[1-9]|1[0-2])[0-3][0-9])(?![0-9])"
)
LARGE_BYTES = 10 * 2**20
ROOT, NESTED, PRIVATE, OUTSIDE = "XNPO"


def mark(tag: int, place: str = ROOT) -> str:
    return f"Q{place}{tag:08X}Z"


@cache
def _numbers() -> dict[int, int]:
    return {tag: number for number, tag in enumerate(marked_tags())}


def marked_value(tag: int, vr: str, place: str = ROOT) -> Any:
    """What stands in an attribute; None for a VR that can hold no mark."""
    number = _numbers().get(tag, 0)
    if vr == "PN":
        return f"{mark(tag, place)}^{mark(tag, place)}"
    if vr == "UR":
        return f"http://{mark(tag, place)}.example"
    if vr in TEXTS:
        return mark(tag, place)
    if vr == "UI":
        return f"1.2.77777.{tag}"
    if vr in ("DA", "DT"):
        return f"{FIRST_DAY + timedelta(days=number):%Y%m%d}"
    if vr == "TM":
        return f"231117.{number:06d}"
    if vr in ("DS", "IS"):
        return f"77{number:04d}777"
    return mark(tag, place).encode() if vr in ("OB", "UN", "OW", "OB or OW") else None


def marked_dataset(number: int, **attributes: Any) -> Dataset:
    """A CT slice of a patient of its own with a mark in every attribute, in items, and private ones."""
    dataset = ct_slice(SIDE, instance_number=1 + number % 3)
    true = {keyword: dataset.get_item(keyword) for keyword in TRUE if keyword in dataset}
    for tag in marked_tags():
        keyword, vr = keyword_for_tag(tag), _vr(tag)
        if keyword in TRUE or tag >> 16 == 0x0028:
            continue
        value = marked_value(tag, vr)
        if vr == "SQ":
            dataset.add(DataElement(Tag(tag), "SQ", Sequence([_item()])))
        elif value is not None:
            dataset.add(DataElement(Tag(tag), "OB" if vr == "OB or OW" else vr, value, validation_mode=config.IGNORE))
    for keyword in OF_EACH:
        value = marked_value(int(Tag(keyword)), dataset[keyword].VR)
        if keyword.endswith("UID"):
            value = f"{value}.{number}"
        elif keyword == "PatientName":
            value = f"{value}{number}"
        else:
            value = f"{value}{number:03d}"
        dataset[keyword] = DataElement(Tag(keyword), dataset[keyword].VR, value, validation_mode=config.IGNORE)
    for element in true.values():
        dataset[element.tag] = element
    _add_private(dataset)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def _item() -> Dataset:
    """Marks of every VR that can hold one."""
    item = Dataset()
    for tag in sorted({_vr(tag): tag for tag in marked_tags() if _vr(tag) in FREE}.values()):
        value = marked_value(tag, _vr(tag), NESTED)
        if value is not None:
            item.add(DataElement(Tag(tag), _vr(tag), value, validation_mode=config.IGNORE))
    return item


def _add_private(dataset: Dataset) -> None:
    block = dataset.private_block(0x0029, mark(0x00290010, PRIVATE), create=True)
    for place, vr in ((0x10, "LO"), (0x11, "OB"), (0x12, "UN"), (0x13, "PN")):
        tag = 0x00291000 | place
        block.add_new(place, vr, mark(tag, PRIVATE).encode() if vr in ("OB", "UN") else mark(tag, PRIVATE))
    item = Dataset()
    item.add_new(0x00100010, "PN", mark(0x00100010, PRIVATE))
    block.add_new(0x14, "SQ", Sequence([item]))


def write_marked(dataset: Dataset, path: Path) -> Path:
    """With marks in the preamble and the file meta information."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        save(dataset, path)
    finally:
        config.settings.writing_validation_mode = before
    content = path.read_bytes()
    path.write_bytes((mark(0x00020000, OUTSIDE) * 12).encode()[:128] + content[128:])
    return path


def make_export(folder: Path, patients: int) -> Path:
    """`export`, with a slice a patient; `sheet.csv`, a label a slice, and a line of somebody else; `manifest.yaml`, `config.yaml`."""
    lines = ["accession,label"]
    for number in range(patients):
        dataset = marked_dataset(number)
        stored = np.frombuffer(dataset.PixelData, np.uint16).reshape(SIDE, SIDE).copy()
        stored[8:20, 8:20] += 300 * (number % 2)
        dataset.PixelData = stored.tobytes()
        write_marked(dataset, folder / "export" / f"file{number:03d}")
        lines.append(f"{dataset.AccessionNumber},{'opacity' if number % 2 else 'normal'}")
    lines += [f"{mark(0x00080050, OUTSIDE)},normal", f"{mark(0x00080050)}000,opacity", f"{mark(0x00080050)}001,?"]
    (folder / "sheet.csv").write_text("\n".join(lines) + "\n")
    (folder / "manifest.yaml").write_text(
        "name: marked\nclasses: [normal, opacity]\nsources: [{path: export}]\nunit: image\n"
        "sheet: {path: sheet.csv, join: AccessionNumber, column: accession}\n"
        "labels: {source: sheet, column: label}\npatients: {source: dicom}\n"
    )
    (folder / "config.yaml").write_text("name: marked\nmanifest: manifest.yaml\n")
    return folder


# --- where marks are


def marks_in(content: bytes) -> set[str]:
    """Marks that are text, UIDs, or numbers and dates that stand alone."""
    found = {match.group().decode() for match in TEXT_MARK.finditer(content)}
    if len(content) < LARGE_BYTES:  # weights hold no text in another case
        found |= {match.group().decode() for match in TEXT_MARK.finditer(content.upper())}
    return found | {match.group().decode() for match in UID_MARK.finditer(content)}


def numbers_in(text: str) -> set[str]:
    """Marks of numbers and dates in a text: in binary files such digits stand by chance."""
    return set(NUMBER_MARK.findall(text))


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what is compressed in it: archives, PNG texts, streams of a PDF, tables of Parquet."""
    content = path.read_bytes()
    yield path.name.encode()
    yield content
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                yield member.filename.encode()
                if member.compress_type != zipfile.ZIP_STORED:  # else it stood in the bytes already
                    yield archive.read(member)
    elif content.startswith(b"\x89PNG"):
        image = Image.open(BytesIO(content))
        image.load()
        yield repr(getattr(image, "text", {})).encode() + repr(image.info).encode()
    elif path.suffix == ".parquet":
        yield from _columns(path).values()
    if b"%PDF-" not in content:
        return
    for stream in re.finditer(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL):
        try:
            yield zlib.decompress(stream.group(1))
        except zlib.error:
            continue


def _columns(path: Path) -> dict[str, bytes]:
    table = pd.read_parquet(path)
    return {name: " ".join(map(str, table[name].unique())).encode() for name in table.columns}


def marks_in_columns(path: Path) -> dict[str, set[str]]:
    """Of a Parquet file: marks by column."""
    found = {name: marks_in(text) | numbers_in(text.decode()) for name, text in _columns(path).items()}
    return {name: marks for name, marks in found.items() if marks}


def marks_by_file(folder: Path) -> dict[Path, set[str]]:
    """File → its marks, below a folder; text files are asked for numbers and dates, too."""
    found: dict[Path, set[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            marks = set().union(*(marks_in(part) for part in contents(path)))
            if path.suffix in (".csv", ".json", ".yaml", ".md", ".txt", ".html", ".jsonl"):
                marks |= numbers_in(path.read_text(errors="replace"))
            if marks:
                found[path] = marks
    return found


def keywords_of(marks: set[str]) -> set[str]:
    """Which attributes marks are of; a mark that is not of the root's is told as it is."""
    names = set()
    for one in marks:
        if one.startswith("QX"):
            names.add(keyword_for_tag(int(one[2:10], 16)))
        elif one.startswith("1.2.77777."):
            names.add(keyword_for_tag(int(one.split(".")[3])))
        else:
            names.add(_keyword_of_number().get(one, one))
    return names


@cache
def _keyword_of_number() -> dict[str, str]:
    """Marks of numbers, dates and times."""
    found = {}
    for vrs in (("DS", "IS"), ("DA", "DT"), ("TM",)):
        found |= {str(marked_value(tag, vrs[0])): keyword_for_tag(tag) for tag in marked_tags() if _vr(tag) in vrs}
    return found


def header_marks(path: Path) -> dict[str, set[str]]:
    """Of a DICOM file: marks by the keyword of the root's attribute in which they stand, at whatever depth."""
    found: dict[str, set[str]] = {}
    for element in dcmread(path):
        if element.tag.group == 0x7FE0:
            continue
        marks = marks_in(str(element).encode()) | numbers_in(str(element))
        if marks:
            found[element.keyword or str(element.tag)] = marks
    return found
