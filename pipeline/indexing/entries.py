"""What one file of a source is: its header read, in a worker process.

`read_batch` reads many files and answers with one Arrow record batch of `BATCH_SCHEMA`: a row each, of an image or of why it is
none. It raises for no file, however broken, but MemoryError. Ordinary DICOM takes a short way (HeaderReader.ordinary); everything
else, and whatever is wrong with a file, is looked at step by step. Nothing here imports pandas, and pydicom, Pillow and the like only
where a file needs them: they take longer than thousands of headers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.arrow import from_values
from pipeline.columns import BATCH_SCHEMA
from pipeline.dicom.header import ROW, HeaderReader, Stream, is_dicom, open_ordinary
from pipeline.errors import Rejected, RejectReason
from pipeline.files import open_regular, status_of
from pipeline.identity import IdentityKey
from pipeline.indexing.listing import Entry
from pipeline.work import Failure, outcome_of

HEAD_BYTES = 352  # a NIfTI header's magic ends here, after that of every other format
GZIPPED_NIFTI = ".nii.gz"

FORMATS_BY_MAGIC = (
    (344, b"n+1\0", "NIfTI"),
    (344, b"ni1\0", "NIfTI"),
    (4, b"n+2\0", "NIfTI"),
    (4, b"ni2\0", "NIfTI"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"%PDF", "PDF"),
    (0, b"NRRD", "NRRD"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
)
"""Of files that are no image to radloop, what people like to know which they are: offset, bytes, name."""

_FIELDS = tuple(BATCH_SCHEMA.names)
_BEFORE = ("source", "path", "format", "bytes", "mtime_ns", *ROW[:3])
_BETWEEN = _FIELDS[len(_BEFORE) : _FIELDS.index(ROW[3])]
_EMPTY = [{"collision": ""}.get(name) for name in _BETWEEN]
_AFTER = [None] * (len(_FIELDS) - len(_BEFORE) - len(_BETWEEN) - len(ROW[3:]))


def read_entry(entry: Entry, *, root: str, key: IdentityKey) -> dict[str, Any]:
    """One row of the index: path, format, bytes, mtime_ns, frames, rows, columns, and what the format's header tells.

    Only what is known: a column without a value is not in it. Raises Rejected with the reason for which the file is no row.
    """
    row = _row(entry, _Place(root, "", HeaderReader(key)))
    known = zip(_FIELDS, row, strict=True)
    return {name: value for name, value in known if value not in (None, "")}


def read_batch(entries: Sequence[Entry], *, root: str, source: str, key: IdentityKey) -> bytes:
    """The files as an Arrow IPC stream of one record batch of `BATCH_SCHEMA`, in their order.

    `root`: the source's folder or archive, `source` its name. Lets MemoryError through.
    """
    place = _Place(root, source, HeaderReader(key))
    rows = [_outcome(entry, place) for entry in entries]
    columns = zip(*rows, strict=True) if rows else [()] * len(_FIELDS)
    arrays = [from_values(values, field.type) for values, field in zip(columns, BATCH_SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, BATCH_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=BATCH_SCHEMA))
    content: bytes = sink.getvalue().to_pybytes()
    return content


class _Place:
    """Where the files of a batch are, and what reads their headers."""

    def __init__(self, root: str, source: str, reader: HeaderReader) -> None:
        self.root = root
        self.prefix = os.path.join(root, "")
        self.source = source
        self.reader = reader


def _outcome(entry: Entry, place: _Place) -> list[Any]:
    outcome = outcome_of(partial(_row, place=place), entry)
    if not isinstance(outcome, Failure):
        return outcome
    known = {"source": place.source, "path": entry.path, "bytes": entry.bytes, "mtime_ns": entry.mtime_ns}
    return _filled(known | {"reason": str(outcome.reason), "detail": outcome.detail})


def _filled(known: dict[str, Any]) -> list[Any]:
    return [known.get(name) for name in _FIELDS]


def _row(entry: Entry, place: _Place) -> list[Any]:
    """The values of `BATCH_SCHEMA`. Raises Rejected."""
    if entry.refusal is not None:
        raise Rejected(*entry.refusal)
    row = _ordinary(entry, place)
    if row is not None:
        return row
    path = Path(place.root) / entry.path
    with open_regular(path) as file:
        size, mtime_ns = status_of(path)
        if entry.bytes not in (None, size) or entry.mtime_ns not in (None, mtime_ns):
            raise Rejected(RejectReason.CHANGED, "it changed while it was being indexed")
        stream = Stream(file)
        head = stream.pixels(0, HEAD_BYTES)
        row = place.reader.ordinary(stream, entry.path)  # of a member of an archive; other files are none by now
    if row is None and is_dicom(head):
        from pipeline.dicom.header_by_pydicom import read_row_by_pydicom

        row = read_row_by_pydicom(path, place.reader, entry.path)
    if row is not None:
        return _dicom_row(entry, place, size, mtime_ns, row)
    known = {"source": place.source, "path": entry.path, "bytes": size, "mtime_ns": mtime_ns, "collision": ""}
    return _filled(known | _by_format(path, head))


def _ordinary(entry: Entry, place: _Place) -> list[Any] | None:
    """The row of an ordinary DICOM file as it was listed; None for all else. Raises Rejected."""
    file = open_ordinary(place.prefix + entry.path)
    if file is None:
        return None
    try:
        size, mtime_ns = file.size, file.mtime_ns
        if entry.bytes not in (None, size) or entry.mtime_ns not in (None, mtime_ns):
            return None
        row = place.reader.ordinary(file, entry.path)
    except OSError:
        return None
    finally:
        file.close()
    return None if row is None else _dicom_row(entry, place, size, mtime_ns, row)


def _dicom_row(entry: Entry, place: _Place, size: int, mtime_ns: int, row: list[Any]) -> list[Any]:
    return [place.source, entry.path, "dicom", size, mtime_ns, *row[:3], *_EMPTY, *row[3:], *_AFTER]


def _by_format(path: Path, head: bytes) -> dict[str, Any]:
    """The fields of a picture or a NIfTI file. Raises Rejected."""
    from pipeline.nifti import read_nifti_header
    from pipeline.raster import read_raster_header

    found = read_raster_header(path)
    name = _format_name(head)
    if found is None and (name == "NIfTI" or (name == "gzip" and path.name.lower().endswith(GZIPPED_NIFTI))):
        found = read_nifti_header(path)
    if found is None:
        raise Rejected(RejectReason.NOT_AN_IMAGE, name)
    return found


def _format_name(head: bytes) -> str:
    for offset, magic, name in FORMATS_BY_MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" or byte > 127 for byte in head)
    return "text" if printable == len(head) else "unknown format"
