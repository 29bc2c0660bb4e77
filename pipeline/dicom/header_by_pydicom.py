"""A header as pydicom reads it: of files that the walker leaves alone, and the measure of what the walker must find.

Whatever pydicom finds is said to be in the file, so that index and decoder agree. Rejected is what is no image, or broken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pipeline.columns import ATTRIBUTES
from pipeline.dicom.bounded import Window, inflated, open_window, parsing, read_meta
from pipeline.dicom.header import Header, HeaderReader, is_dicom, uid_name
from pipeline.dicom.header_values import (
    DIRECTORY_TAGS,
    ENCAPSULATED_SYNTAXES,
    NATIVE_SYNTAXES,
    PLACE,
    WANTED,
    value_of,
)
from pipeline.dicom.pixel_element import PIXEL_TAGS
from pipeline.errors import Rejected, RejectReason

FIRST_ELEMENTS_BYTES = 128
"""A file cut so soon after its meta information may hold none of the attributes yet; longer noise is no cut."""
_PLAIN_CODE = re.compile(r"[A-Z0-9_]{1,16}", re.ASCII)
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"


def read_row_by_pydicom(path: Path, reader: HeaderReader, shown_path: str) -> list[Any]:
    """As `HeaderReader.row`, of any file. Raises Rejected."""
    with open_window(path) as window:
        if not is_dicom(window.pixels(0, 132)):
            raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOM")
        window.seek(0)
        with parsing(window):
            found = _parse(window)
            values = [_value(keyword, found) for keyword in WANTED]
        place = _usable_pixels(found, values)
        header = Header(values, found.transfer_syntax, *place)
        return reader.row(header, found.window, shown_path)


@dataclass(frozen=True)
class _Found:
    """What the parse left: raw elements, and where pixel data begin in `window` (of a deflated file, its data set)."""

    elements: Mapping[int, Any]
    encodings: list[str]
    little_endian: bool
    transfer_syntax: str
    media_class: str
    meta_end: int
    pixels: tuple[int, int, int] | None
    window: Window


def _parse(window: Window) -> _Found:
    """pydicom's reading of the header, so that index and decoder agree on what a file says."""
    meta = read_meta(window)
    meta_end = window.tell()
    deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    source = inflated(window) if deflated else window
    places: list[tuple[int, int, int]] = []

    def at_pixels(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if tag in PIXEL_TAGS:
            places.append((int(tag), length, source.tell()))
        return tag in PIXEL_TAGS

    tags: list[Any] = [*(tag for tag, _ in WANTED.values()), *DIRECTORY_TAGS]
    dataset: Dataset
    if deflated:
        dataset = read_dataset(source, False, True, stop_when=at_pixels, specific_tags=tags)  # type: ignore[arg-type]
    else:
        window.seek(0)
        dataset = read_partial(window, at_pixels, force=True, specific_tags=tags)  # type: ignore[arg-type]
        meta = dataset.file_meta
    implicit, little = dataset.original_encoding
    encodings = dataset.original_character_set
    guessed = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return _Found(
        elements={int(tag): element for tag, element in dataset.items()},
        encodings=[encodings] if isinstance(encodings, str) else list(encodings or convert_encodings(None)),
        little_endian=bool(little),
        transfer_syntax=str(meta.get("TransferSyntaxUID") or guessed),
        media_class=str(meta.get("MediaStorageSOPClassUID") or ""),
        meta_end=meta_end,
        pixels=places[-1] if places else None,
        window=source,
    )


def _value(keyword: str, found: _Found) -> Any:
    tag, vr = WANTED[keyword]
    element = found.elements.get(tag)
    raw = getattr(element, "value", None)
    if not isinstance(raw, bytes):
        return None
    written_vr = str(getattr(element, "VR", None) or vr)
    return value_of(keyword, raw, written_vr, found.encodings, found.little_endian)


def _usable_pixels(found: _Found, values: list[Any]) -> tuple[int, int, int]:
    """Tag, length and offset of the pixel data of an image that radloop can decode; Rejected with what it is instead."""
    if found.media_class == _DIRECTORY_CLASS or any(tag in found.elements for tag in DIRECTORY_TAGS):
        raise Rejected(RejectReason.DICOMDIR, "the directory of a DICOM medium")
    if found.pixels is None:
        raise _without_pixels(found, values)
    if found.transfer_syntax not in NATIVE_SYNTAXES | ENCAPSULATED_SYNTAXES:
        raise Rejected(RejectReason.UNSUPPORTED_SYNTAX, uid_name(found.transfer_syntax))
    return found.pixels


def _without_pixels(found: _Found, values: list[Any]) -> Rejected:
    """Why no pixel data were found: cut off before them, noise after the first bytes, or an object that has none."""
    cut = Rejected(RejectReason.TRUNCATED, "the file ends within its header")
    if not any(values[PLACE[keyword]] is not None for keyword in ATTRIBUTES):
        rest = found.window.size - found.meta_end
        if found.media_class and found.window.ended_early and rest < FIRST_ELEMENTS_BYTES:
            return cut
        if not found.media_class or found.window.ended_early:
            return Rejected(RejectReason.MALFORMED, "begins as DICOM, but no data set follows")
    elif found.window.ended_early:
        return cut
    modality = values[PLACE["Modality"]] or ""
    shown = modality if _PLAIN_CODE.fullmatch(modality) else "unknown modality"
    name = uid_name(values[PLACE["SOPClassUID"]] or found.media_class)
    return Rejected(RejectReason.NO_PIXELS, f"{name} ({shown})")
