"""What header elements say, as values of the index: raw bytes in, a column's value out. Tolerant: what cannot be read is None.

`WANTED` are the attributes that are read of a header. Both readers (walker, header_by_pydicom) convert with `value_of`, so that
they agree. Text outside ASCII goes through pydicom, which is imported only then. Nothing here is written anywhere in clear but
by its caller: PatientID, AccessionNumber and PatientName are among the values.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from pipeline.columns import ATTRIBUTES, TEXT
from pipeline.dicom.syntaxes import CODEC_BY_SYNTAX, NATIVE

WANTED: Mapping[str, tuple[int, str]] = {
    "SOPClassUID": (0x00080016, "UI"),
    "SOPInstanceUID": (0x00080018, "UI"),
    "SeriesInstanceUID": (0x0020000E, "UI"),
    "StudyInstanceUID": (0x0020000D, "UI"),
    "FrameOfReferenceUID": (0x00200052, "UI"),
    "Modality": (0x00080060, "CS"),
    "ImageType": (0x00080008, "CS"),
    "PhotometricInterpretation": (0x00280004, "CS"),
    "SamplesPerPixel": (0x00280002, "US"),
    "BitsAllocated": (0x00280100, "US"),
    "BitsStored": (0x00280101, "US"),
    "PixelRepresentation": (0x00280103, "US"),
    "RescaleSlope": (0x00281053, "DS"),
    "RescaleIntercept": (0x00281052, "DS"),
    "RescaleType": (0x00281054, "LO"),
    "ImagePositionPatient": (0x00200032, "DS"),
    "ImageOrientationPatient": (0x00200037, "DS"),
    "PixelSpacing": (0x00280030, "DS"),
    "ImagerPixelSpacing": (0x00181164, "DS"),
    "SliceThickness": (0x00180050, "DS"),
    "SpacingBetweenSlices": (0x00180088, "DS"),
    "GantryDetectorTilt": (0x00181120, "DS"),
    "InstanceNumber": (0x00200013, "IS"),
    "AcquisitionNumber": (0x00200012, "IS"),
    "SeriesNumber": (0x00200011, "IS"),
    "TemporalPositionIdentifier": (0x00200100, "IS"),
    "EchoTime": (0x00180081, "DS"),
    "TriggerTime": (0x00181060, "DS"),
    "StudyDate": (0x00080020, "DA"),
    "SeriesDate": (0x00080021, "DA"),
    "AcquisitionDate": (0x00080022, "DA"),
    "AcquisitionTime": (0x00080032, "TM"),
    "PatientSex": (0x00100040, "CS"),
    "PatientAge": (0x00101010, "AS"),
    "BodyPartExamined": (0x00180015, "CS"),
    "ViewPosition": (0x00185101, "CS"),
    "Laterality": (0x00200060, "CS"),
    "ImageLaterality": (0x00200062, "CS"),
    "PatientPosition": (0x00185100, "CS"),
    "Manufacturer": (0x00080070, "LO"),
    "ManufacturerModelName": (0x00081090, "LO"),
    "InstitutionName": (0x00080080, "LO"),
    "StationName": (0x00081010, "SH"),
    "StudyDescription": (0x00081030, "LO"),
    "SeriesDescription": (0x0008103E, "LO"),
    "ProtocolName": (0x00181030, "LO"),
    "ContrastBolusAgent": (0x00180010, "LO"),
    "ConvolutionKernel": (0x00181210, "SH"),
    "KVP": (0x00180060, "DS"),
    "BurnedInAnnotation": (0x00280301, "CS"),
    "PresentationIntentType": (0x00080068, "CS"),
    "LossyImageCompression": (0x00282110, "CS"),
    "PatientID": (0x00100020, "LO"),
    "IssuerOfPatientID": (0x00100021, "LO"),
    "AccessionNumber": (0x00080050, "SH"),
    "PatientName": (0x00100010, "PN"),
    "NumberOfFrames": (0x00280008, "IS"),
    "Rows": (0x00280010, "US"),
    "Columns": (0x00280011, "US"),
}
"""Keyword: tag and VR (PS3.6). First the columns in their order, then what becomes hashes, counts and sizes."""

PLACE = {keyword: place for place, keyword in enumerate(WANTED)}
"""Where a keyword's value stands in a list of all values."""

DIRECTORY_TAGS = (0x00041200, 0x00041220)
"""OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity and DirectoryRecordSequence: only a DICOMDIR has them."""

NATIVE_SYNTAXES = frozenset(NATIVE)
ENCAPSULATED_SYNTAXES = frozenset(CODEC_BY_SYNTAX)
"""Transfer syntaxes of images that radloop decodes."""

MAX_TEXT = 1024
"""Characters kept of a text; the longest that the standard allows in these attributes has 64 a value."""
MIN_IDENTITY_CHARACTERS = 4
"""Shorter IDs stand in paths by chance: they count only as a folder's or file's whole name; shorter names never."""
MAX_EXACT_INTEGER = 2**53
BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q"}
"""VRs of integers that are not text, with struct's letter."""
REMEMBERED = 512
"""Values of one attribute that are kept converted: within a series most repeat."""

_IN_CHARACTER_SET = ("LO", "SH", "PN")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DEFAULT_ENCODING = "iso8859"
_ENCODINGS = {None: [_DEFAULT_ENCODING], b"": [_DEFAULT_ENCODING], b"ISO_IR 100": ["latin_1"], b"ISO_IR 192": ["UTF8"]}
_ASCII_SUPERSETS = {_DEFAULT_ENCODING, "latin_1", "iso8859_2", "iso8859_3", "iso8859_4", "UTF8", "GB18030", "GBK"}
_PADDING = " \0\t\r\n"
_ESCAPE = b"\x1b"
_CONTROL = re.compile(
    r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]"
)  # not ESC, which code extensions leave where nothing reads them
CHARACTER_SETS = 32


def value_of(keyword: str, raw: bytes, written_vr: str, encodings: list[str], little_endian: bool = True) -> Any:
    """The attribute as its column's type; None where it is empty or not of that type. `written_vr`: the file's own."""
    vr = WANTED[keyword][1]
    if vr in ("US", "IS"):
        return _integer(raw, written_vr if written_vr in BINARY else vr, little_endian)
    text = _before_controls(_decoded(raw, encodings if vr in _IN_CHARACTER_SET else [_DEFAULT_ENCODING]))
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


def _before_controls(text: str) -> str:
    """Text up to its first control character, which no value may hold (PS3.5 6.1.3).

    There the next element begins where a length lies: its tag has one at least, and it may be the patient's name.
    """
    found = _CONTROL.search(text)
    return text if found is None else text[: found.start()].rstrip(_PADDING)


class Remembered(dict[bytes | None, Any]):
    """Raw bytes of one attribute (None: it is absent) → its value; converts what it has not met, and forgets now and then."""

    def __init__(self, convert: Callable[[bytes], Any]) -> None:
        super().__init__({None: None})
        self._convert = convert

    def __missing__(self, raw: bytes) -> Any:
        if len(self) > REMEMBERED:
            self.clear()
            self[None] = None
        value = self[raw] = self._convert(raw)
        return value


def _remembered(keyword: str, encodings: list[str]) -> Remembered:
    vr = WANTED[keyword][1]
    return Remembered(lambda raw: value_of(keyword, raw, vr, encodings))


_by_character_set: dict[bytes | None, tuple[Remembered, ...]] = {
    None: tuple(_remembered(keyword, [_DEFAULT_ENCODING]) for keyword in WANTED)
}


def remembered_values(character_set: bytes | None) -> tuple[Remembered, ...]:
    """For each of `WANTED` what turns raw little endian bytes into a value, under the raw value of SpecificCharacterSet.

    Raises what pydicom raises for a character set that it cannot make sense of.
    """
    known = _by_character_set.get(character_set)
    if known is None:
        encodings = _encodings(character_set)
        if len(_by_character_set) > CHARACTER_SETS:
            for name in [name for name in _by_character_set if name is not None]:
                del _by_character_set[name]
        known = _by_character_set[character_set] = tuple(
            _remembered(keyword, encodings) if WANTED[keyword][1] in _IN_CHARACTER_SET else shared
            for keyword, shared in zip(WANTED, _by_character_set[None], strict=True)
        )
    return known


def _encodings(character_set: bytes | None) -> list[str]:
    """Python's names of the encodings, by pydicom's reading of the element."""
    if character_set in _ENCODINGS:
        return _ENCODINGS[character_set]
    from pydicom.charset import convert_encodings
    from pydicom.dataelem import RawDataElement, convert_raw_data_element
    from pydicom.tag import BaseTag
    from pydicom.values import convert_string

    from pipeline.dicom.bounded import quietly

    raw = character_set or b""
    with quietly():
        convert_encodings(convert_string(raw, True))  # which pydicom does first, and may raise
        element = RawDataElement(BaseTag(0x00080005), "CS", len(raw), raw, 0, False, True)
        return list(convert_encodings(convert_raw_data_element(element).value))


def _decoded(raw: bytes, encodings: list[str]) -> str:
    """Text with the padding of each of its values removed (PS3.5 6.2), bytes outside the character set replaced."""
    if raw.isascii() and _ESCAPE not in raw and encodings[0] in _ASCII_SUPERSETS:
        text = raw.decode("ascii")
    else:
        text = _decoded_by_pydicom(raw, encodings)
    if "\\" not in text:
        return text.strip(_PADDING)
    return "\\".join([part.strip(_PADDING) for part in text.split("\\")])


def _decoded_by_pydicom(raw: bytes, encodings: list[str]) -> str:
    from pydicom.charset import decode_bytes

    from pipeline.dicom.bounded import quietly

    try:
        with quietly():
            return decode_bytes(raw, encodings, {0x5C, 0x5E, 0x3D})
    except (LookupError, ValueError):
        return raw.decode("iso8859")


def _integer(raw: bytes, vr: str, little_endian: bool) -> int | None:
    number: float | None
    if vr in BINARY:
        form = ("<" if little_endian else ">") + BINARY[vr]
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


IdentityWords = tuple[tuple[str, ...], tuple[str, ...]]
"""Folded: those that count anywhere in a path, and those that count as a whole name only."""


def identity_words(patient_id: str | None, accession_number: str | None, patient_name: str | None) -> IdentityWords:
    """What must not stand in a path: PatientID, AccessionNumber, the components of PatientName."""
    words = [_folded(word) for word in (patient_id, accession_number) if word]
    components = [_folded(word) for word in re.split(r"[\^=,\s\\]+", patient_name or "")]
    long = [word for word in (*words, *components) if len(word) >= MIN_IDENTITY_CHARACTERS]
    return tuple(long), tuple(word for word in words if len(word) < MIN_IDENTITY_CHARACTERS)


def holds_identity(path: str, words: IdentityWords) -> bool:
    """Whether the path holds one of the words, whatever the case or accents."""
    anywhere, whole = words
    shown = _folded(path)
    for word in anywhere:
        if word in shown:
            return True
    if not whole:
        return False
    names = {part for step in shown.split("/") for part in (step, step.partition(".")[0])}
    return any(word in names for word in whole)


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter)).casefold()
