"""The attributes of one DICOM file for the index: its header only, a named allow-list, nothing that names the patient.

In: a path of a regular file. Out: one row, a value or None for each of `ROW`. A file that is no usable image raises `Rejected`
with its reason. Tolerant in values: what cannot be read as a column's type is None. Strict in structure: what would decode to wrong
pixels is rejected (pixel_element). Several values of one attribute are joined by backslashes as in the file. PatientID and
AccessionNumber leave as HMACs. Ordinary files are read by the walker, all others by pydicom, which is imported only for them.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from operator import getitem
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipeline.columns import ATTRIBUTES, HEADER_COLUMNS, snake_case
from pipeline.dicom.header_values import (
    ENCAPSULATED_SYNTAXES,
    MAX_TEXT,
    PLACE,
    IdentityWords,
    holds_identity,
    identity_words,
    remembered_values,
)
from pipeline.dicom.pixel_element import PIXEL_TAGS, PixelElement, PixelShape, check_pixels
from pipeline.dicom.walker import LONG_VRS, SHORT_VRS, Source, walk
from pipeline.errors import Rejected, RejectReason
from pipeline.identity import IdentityKey

ROW = ("frames", "rows", "columns", *HEADER_COLUMNS)
"""The columns of a row, in their order."""
REQUIRED_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID")
HASHES_KEPT = 4096
"""Of patients and accessions met under one key; within a series they repeat."""

_SOP, _SERIES, _STUDY, _CLASS = (PLACE[keyword] for keyword in REQUIRED_UIDS)
_FRAMES, _ROWS, _COLUMNS = PLACE["NumberOfFrames"], PLACE["Rows"], PLACE["Columns"]
_SAMPLES, _BITS = PLACE["SamplesPerPixel"], PLACE["BitsAllocated"]
_PHOTOMETRIC = PLACE["PhotometricInterpretation"]
_IDENTITY = slice(PLACE["PatientID"], PLACE["PatientName"] + 1)
_ATTRIBUTES = slice(0, len(ATTRIBUTES))
_ROW_SAMPLES, _ROW_BITS = ROW.index(snake_case("SamplesPerPixel")), ROW.index(snake_case("BitsAllocated"))

_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)
_WITHOUT_PREAD = not hasattr(os, "pread")  # Windows
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


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
            explicit = head[4:6] in LONG_VRS or head[4:6] in SHORT_VRS
            known = (element, length) == (0, 4) or _in_dictionary(group << 16 | element)  # a group length
            if known and (explicit or (order == "<" and length <= MAX_TEXT)):
                return True
    return False


def _in_dictionary(tag: int) -> bool:
    from pydicom.datadict import dictionary_has_tag

    return dictionary_has_tag(tag)


def uid_name(value: str) -> str:
    """The standard's name of a UID, or the UID itself where it has none; never other text that stands in its place."""
    from pydicom import config
    from pydicom.uid import UID

    if not _UID.fullmatch(value):
        return "no valid UID" if value else "no UID"
    return UID(value, config.IGNORE).name  # validation would warn, quoting the value


class OpenFile:
    """A regular file, open; a `walker.Source`, which keeps its first bytes. To be closed by whom it was opened for."""

    __slots__ = ("_descriptor", "_start", "mtime_ns", "size")

    def __init__(self, descriptor: int, size: int, mtime_ns: int) -> None:
        self._descriptor = descriptor
        self._start = b""
        self.size = size
        self.mtime_ns = mtime_ns

    def pixels(self, offset: int, count: int) -> bytes:
        if offset + count <= len(self._start):
            return self._start[offset : offset + count]
        found = os.pread(self._descriptor, count, offset)
        if offset == 0:
            self._start = found
        return found

    def close(self) -> None:
        os.close(self._descriptor)


class Stream:
    """An open binary file that need not have a descriptor (a member of an archive), as a `walker.Source`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)

    def pixels(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(count)


def open_ordinary(path: str) -> OpenFile | None:
    """The file without more ado, for `HeaderReader.ordinary`; None where `pipeline.files.open_regular` must say what is wrong."""
    if _WITHOUT_PREAD:
        return None
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return OpenFile(descriptor, status.st_size, status.st_mtime_ns)
    os.close(descriptor)
    return None


class Header(NamedTuple):
    """What a file says. `values`: of each of `header_values.WANTED`; the rest is about the pixel data element."""

    values: list[Any]
    transfer_syntax: str
    tag: int
    length: int
    offset: int


class HeaderReader:
    """Reads many headers under one key. It keeps what repeats from file to file, in memory."""

    def __init__(self, key: IdentityKey) -> None:
        self._key = key
        self._identities: dict[tuple[str | None, ...], tuple[str | None, str | None, IdentityWords]] = {}

    def ordinary(self, source: Source, shown_path: str) -> list[Any] | None:
        """The row of an ordinary file; None where pydicom must read it. Raises Rejected."""
        walked = walk(source)
        if walked is None:
            return None
        try:
            remembered = remembered_values(walked.character_set)
        except Exception:  # of a character set that is none: what pydicom then makes of the file is pydicom's
            return None
        values = list(map(getitem, remembered, walked.raws))
        header = Header(values, walked.transfer_syntax, walked.tag, walked.length, walked.offset)
        return self.row(header, source, shown_path)

    def row(self, header: Header, source: Any, shown_path: str) -> list[Any]:
        """The values of `ROW` of a file with pixel data that are there and as large as the header says; Rejected otherwise.

        `path_holds_identity` is about `shown_path`, the path as tables show it.
        """
        values = header.values
        if not (values[_SOP] and values[_SERIES] and values[_STUDY] and values[_CLASS]):
            missing = [keyword for keyword in REQUIRED_UIDS if not values[PLACE[keyword]]]
            raise Rejected(RejectReason.MISSING_UID, ", ".join(missing))
        shape = _shape(values, header.tag)
        encapsulated = header.transfer_syntax in ENCAPSULATED_SYNTAXES
        check_pixels(source, PixelElement(header.tag, header.length, header.offset, encapsulated), shape)
        patient, accession, words = self._identity(tuple(values[_IDENTITY]))
        row = [
            *(shape.frames, shape.rows, shape.columns),
            *(patient, accession, holds_identity(shown_path, words), header.transfer_syntax),
            *values[_ATTRIBUTES],
        ]
        row[_ROW_SAMPLES], row[_ROW_BITS] = shape.samples_per_pixel, shape.bits_allocated
        return row

    def _identity(self, said: tuple[str | None, ...]) -> tuple[str | None, str | None, IdentityWords]:
        """Hashes of patient and accession, and what must not stand in paths."""
        known = self._identities.get(said)
        if known is None:
            if len(self._identities) >= HASHES_KEPT:
                self._identities.clear()
            patient_id, issuer, accession, name = said
            known = self._identities[said] = (
                self._key.patient(patient_id or "", issuer or ""),
                self._key.accession(accession or ""),
                identity_words(patient_id, accession, name),
            )
        return known


def _shape(values: list[Any], tag: int) -> PixelShape:
    frames, rows, columns = values[_FRAMES], values[_ROWS] or 0, values[_COLUMNS] or 0
    frames = 1 if frames is None else max(frames, min(1, 1 + frames))  # 0 means that nobody counted
    samples = 1 if values[_SAMPLES] is None else values[_SAMPLES]
    bits = values[_BITS] or PIXEL_TAGS[tag] or 0
    if frames < 1 or rows < 1 or columns < 1 or samples < 1 or bits < 1:
        counts = (frames, rows, columns, samples, bits)
        names = ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
        unusable = [name for name, count in zip(names, counts, strict=True) if count < 1]
        raise Rejected(RejectReason.MALFORMED, f"missing or not positive: {', '.join(unusable)}")
    return PixelShape(frames, rows, columns, samples, bits, values[_PHOTOMETRIC] or "")


def read_header(path: Path, key: IdentityKey, *, shown_path: str | None = None) -> dict[str, Any]:
    """One index row: `HEADER_COLUMNS`, frames, rows, columns. Missing and unreadable values are None.

    `path_holds_identity` is about `shown_path`, the path as tables show it (relative to its source; by default the
    whole). Raises Rejected: not_an_image, unreadable, dicomdir, no_pixels, missing_uid, malformed, truncated,
    size_mismatch, too_large, unsupported_transfer_syntax, unsupported_pixels.
    """
    shown = str(path) if shown_path is None else shown_path
    file = open_ordinary(str(path))
    row = None
    if file is not None:
        try:
            row = HeaderReader(key).ordinary(file, shown)
        finally:
            file.close()
    return read_header_by_pydicom(path, key, shown_path=shown) if row is None else dict(zip(ROW, row, strict=True))


def read_header_by_pydicom(path: Path, key: IdentityKey, *, shown_path: str | None = None) -> dict[str, Any]:
    """As `read_header`, whatever the file; and what that must be equal to."""
    from pipeline.dicom.header_by_pydicom import read_row_by_pydicom

    row = read_row_by_pydicom(path, HeaderReader(key), str(path) if shown_path is None else shown_path)
    return dict(zip(ROW, row, strict=True))
