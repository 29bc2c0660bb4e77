"""The attributes of one DICOM file for the index: its header only, a named allow-list, nothing that names the patient.

In: a path of a regular file. Out: one row, a value or None for each of `HEADER_COLUMNS` and for frames, rows, columns.
A file that is no usable image raises `Rejected` with its reason. Tolerant in values: what cannot be read as a column's
type is None. Strict in structure: what would decode to wrong pixels is rejected (pixel_element).
Several values of one attribute are joined by backslashes as in the file. PatientID and AccessionNumber leave as HMACs.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydicom import config
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import VR

from pipeline.columns import ATTRIBUTES, TEXT, snake_case
from pipeline.dicom.bounded import Window, inflated, open_window, parsing, read_meta
from pipeline.dicom.pixel_element import PIXEL_TAGS, PixelElement, PixelShape, check_pixels
from pipeline.errors import Rejected, RejectReason
from pipeline.identity import IdentityKey

_COLUMN_OF = {keyword: snake_case(keyword) for keyword in ATTRIBUTES}

REQUIRED_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID")
_IDENTITY = ("PatientID", "IssuerOfPatientID", "AccessionNumber", "PatientName")
_SHAPE = ("NumberOfFrames", "Rows", "Columns")
_DIRECTORY = ("OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity", "DirectoryRecordSequence")
_TAGS = {keyword: int(tag_for_keyword(keyword) or 0) for keyword in (*ATTRIBUTES, *_IDENTITY, *_SHAPE, *_DIRECTORY)}
_VRS = {keyword: str(dictionary_VR(tag)) for keyword, tag in _TAGS.items()}

NATIVE_SYNTAXES = frozenset(
    f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99")
)  # implicit, explicit little, explicit big, deflated
ENCAPSULATED_SYNTAXES = frozenset(
    f"1.2.840.10008.1.2.{end}"
    for end in (
        *(f"4.{number}" for number in (50, 51, 52, 53, 54, 55, 56, 57, 58, 70)),  # JPEG, with its retired processes
        *("4.80", "4.81", "4.90", "4.91", "4.201", "4.202", "4.203"),  # JPEG-LS, JPEG 2000, HTJ2K
        "5",  # RLE
    )
)
"""Transfer syntaxes of single images that radloop decodes: the same as pipeline.dicom.codecs has decoders for."""

MAX_TEXT = 1024
"""Characters kept of a text; the longest that the standard allows in these attributes has 64 a value."""
MIN_IDENTITY_CHARACTERS = 4
"""Shorter IDs stand in paths by chance: they count only as a folder's or file's whole name; shorter names never."""
MAX_EXACT_INTEGER = 2**53
FIRST_ELEMENTS_BYTES = 128
"""A file cut so soon after its meta information may hold none of the attributes yet; longer noise is no cut."""
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q"}
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)
_PLAIN_CODE = re.compile(r"[A-Z0-9_]{1,16}", re.ASCII)
_VR_NAMES = {str(vr) for vr in VR}
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so (132 bytes or more, where it has them) says that it is DICOM.

    Either `DICM` follows the preamble (PS3.10 7.1), or, as old exports have it, a data set begins at once: with an
    element of group 0002 or 0008 that the dictionary knows, in explicit or implicit VR, or with a command group.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    for order in "<>":
        group, element, length = struct.unpack(f"{order}HHI", head[:8])
        if (group, element, length) == (0, 0, 4):
            return True
        if group in (2, 8):
            explicit = head[4:6].decode("iso8859") in _VR_NAMES
            known = dictionary_has_tag(group << 16 | element) or (element, length) == (0, 4)  # a group length
            if known and (explicit or (order == "<" and length <= MAX_TEXT)):
                return True
    return False


def read_header(path: Path, key: IdentityKey, *, shown_path: str | None = None) -> dict[str, Any]:
    """One index row: `HEADER_COLUMNS`, frames, rows, columns. Missing and unreadable values are None.

    `path_holds_identity` is about `shown_path`, the path as tables show it (relative to its source; by default the
    whole). Raises Rejected: not_an_image, unreadable, dicomdir, no_pixels, missing_uid, malformed, truncated,
    size_mismatch, too_large, unsupported_transfer_syntax, unsupported_pixels.
    """
    with open_window(path) as window:
        if not is_dicom(window.pixels(0, 132)):
            raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOM")
        window.seek(0)
        with parsing(window):
            found = _parse(window)
            fields = {keyword: _value(keyword, found) for keyword in _TAGS if keyword not in _DIRECTORY}
        pixels = _usable_pixels(found, fields)
        shape = _shape(fields, pixels.tag)
        check_pixels(found.window, pixels, shape)
    row = {_COLUMN_OF[keyword]: fields[keyword] for keyword in ATTRIBUTES}
    row |= {"frames": shape.frames, "rows": shape.rows, "columns": shape.columns}
    row["samples_per_pixel"], row["bits_allocated"] = shape.samples_per_pixel, shape.bits_allocated
    row["transfer_syntax_uid"] = found.transfer_syntax
    row["patient_key"] = key.patient(fields["PatientID"] or "", fields["IssuerOfPatientID"] or "")
    row["accession_key"] = key.accession(fields["AccessionNumber"] or "")
    row["path_holds_identity"] = _holds_identity(str(path) if shown_path is None else shown_path, fields)
    return row


@dataclass(frozen=True)
class _Found:
    """What the parse left: raw elements, and where pixel data begin in `window` (of a deflated file, its data set)."""

    elements: Mapping[int, Any]
    encodings: list[str]
    little_endian: bool
    transfer_syntax: str
    media_class: str
    meta_end: int
    pixels: PixelElement | None
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

    tags: list[Any] = list(_TAGS.values())
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
    syntax = str(meta.get("TransferSyntaxUID") or guessed)
    return _Found(
        elements={int(tag): element for tag, element in dataset.items()},
        encodings=[encodings] if isinstance(encodings, str) else list(encodings or convert_encodings(None)),
        little_endian=bool(little),
        transfer_syntax=syntax,
        media_class=str(meta.get("MediaStorageSOPClassUID") or ""),
        meta_end=meta_end,
        pixels=PixelElement(*places[-1], encapsulated=syntax in ENCAPSULATED_SYNTAXES) if places else None,
        window=source,
    )


def _usable_pixels(found: _Found, fields: Mapping[str, Any]) -> PixelElement:
    """The pixel data element of an image that radloop can decode and refer to; Rejected with what it is instead."""
    if found.media_class == _DIRECTORY_CLASS or any(_TAGS[keyword] in found.elements for keyword in _DIRECTORY):
        raise Rejected(RejectReason.DICOMDIR, "the directory of a DICOM medium")
    if found.pixels is None:
        raise _without_pixels(found, fields)
    syntax = found.transfer_syntax
    if syntax not in NATIVE_SYNTAXES | ENCAPSULATED_SYNTAXES:
        raise Rejected(RejectReason.UNSUPPORTED_SYNTAX, uid_name(syntax))
    missing = [keyword for keyword in REQUIRED_UIDS if not fields[keyword]]
    if missing:
        raise Rejected(RejectReason.MISSING_UID, ", ".join(missing))
    return found.pixels


def _without_pixels(found: _Found, fields: Mapping[str, Any]) -> Rejected:
    """Why no pixel data were found: cut off before them, noise after the first bytes, or an object that has none."""
    cut = Rejected(RejectReason.TRUNCATED, "the file ends within its header")
    if not any(fields[keyword] is not None for keyword in ATTRIBUTES):
        rest = found.window.size - found.meta_end
        if found.media_class and found.window.ended_early and rest < FIRST_ELEMENTS_BYTES:
            return cut
        if not found.media_class or found.window.ended_early:
            return Rejected(RejectReason.MALFORMED, "begins as DICOM, but no data set follows")
    elif found.window.ended_early:
        return cut
    modality = fields["Modality"] or ""
    shown = modality if _PLAIN_CODE.fullmatch(modality) else "unknown modality"
    name = uid_name(fields["SOPClassUID"] or found.media_class)
    return Rejected(RejectReason.NO_PIXELS, f"{name} ({shown})")


def uid_name(value: str) -> str:
    """The standard's name of a UID, or the UID itself where it has none; never other text that stands in its place."""
    if not _UID.fullmatch(value):
        return "no valid UID" if value else "no UID"
    return UID(value, config.IGNORE).name  # validation would warn, quoting the value


def _shape(fields: Mapping[str, Any], tag: int) -> PixelShape:
    frames = fields["NumberOfFrames"]
    shape = PixelShape(
        frames=1 if frames is None else max(frames, min(1, 1 + frames)),  # 0 means that nobody counted
        rows=fields["Rows"] or 0,
        columns=fields["Columns"] or 0,
        samples_per_pixel=1 if fields["SamplesPerPixel"] is None else fields["SamplesPerPixel"],
        bits_allocated=fields["BitsAllocated"] or PIXEL_TAGS[tag] or 0,
        photometric_interpretation=fields["PhotometricInterpretation"] or "",
    )
    counts = (shape.frames, shape.rows, shape.columns, shape.samples_per_pixel, shape.bits_allocated)
    names = ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    unusable = [name for name, count in zip(names, counts, strict=True) if count < 1]
    if unusable:
        raise Rejected(RejectReason.MALFORMED, f"missing or not positive: {', '.join(unusable)}")
    return shape


def _value(keyword: str, found: _Found) -> Any:
    """The attribute as its column's type; None where it is absent, empty or not of that type."""
    element = found.elements.get(_TAGS[keyword])
    raw = getattr(element, "value", None)
    if not isinstance(raw, bytes):
        return None
    vr = _VRS[keyword]
    written = str(getattr(element, "VR", None) or vr)
    if vr in ("US", "IS"):
        return _integer(raw, written if written in _BINARY else vr, found.little_endian)
    text = _decoded(raw, found.encodings if vr in ("LO", "SH", "PN") else ["iso8859"])
    if vr == "DA":
        return _date(text)
    if vr != "DS":
        return text[:MAX_TEXT] or None
    parts = text.split("\\")
    if not all(_DECIMAL.fullmatch(part) for part in parts):
        return None
    if ATTRIBUTES.get(keyword) == TEXT:
        return text
    return _finite(float(parts[0])) if len(parts) == 1 else None


def _decoded(raw: bytes, encodings: list[str]) -> str:
    """Text with the padding of each of its values removed (PS3.5 6.2), bytes outside the character set replaced."""
    try:
        text = decode_bytes(raw, encodings, {0x5C, 0x5E, 0x3D})
    except (LookupError, ValueError):
        text = raw.decode("iso8859")
    return "\\".join(part.strip(" \0\t\r\n") for part in text.split("\\"))


def _integer(raw: bytes, vr: str, little_endian: bool) -> int | None:
    number: float | None
    if vr in _BINARY:
        form = ("<" if little_endian else ">") + _BINARY[vr]
        number = struct.unpack(form, raw)[0] if len(raw) == struct.calcsize(form) else None
    else:
        text = raw.decode("iso8859").strip(" \0")
        number = float(text) if _DECIMAL.fullmatch(text) else None
    exact = number is not None and abs(number) < MAX_EXACT_INTEGER and number == int(number)
    return int(number) if number is not None and exact else None


def _finite(number: float) -> float | None:
    return number if abs(number) != float("inf") else None


def _date(text: str) -> str | None:
    """YYYYMMDD, also from the old YYYY.MM.DD; None for no day of the calendar."""
    digits = text.replace(".", "") if re.fullmatch(r"\d{4}\.\d\d\.\d\d", text, re.ASCII) else text
    if not re.fullmatch(r"\d{8}", digits, re.ASCII):
        return None
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
    return digits


def _holds_identity(path: str, fields: Mapping[str, Any]) -> bool:
    """Whether the path holds PatientID, AccessionNumber or a component of PatientName, whatever the case or accents."""
    shown = _folded(path)
    names = {part for step in shown.split("/") for part in (step, step.partition(".")[0])}
    identity = [fields["PatientID"], fields["AccessionNumber"]]
    words = [_folded(word) for word in identity if word]
    components = [_folded(word) for word in re.split(r"[\^=,\s\\]+", fields["PatientName"] or "")]
    words += [word for word in components if len(word) >= MIN_IDENTITY_CHARACTERS]
    return any(word in (shown if len(word) >= MIN_IDENTITY_CHARACTERS else names) for word in words)


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter)).casefold()
