"""Of a data set that was sent to us: which study, series and instance it says it is, and whether radloop made it."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

from pydicom.filereader import read_dataset
from pydicom.uid import UID

from pipeline.dicom.bounded import Window, parsing
from pipeline.dicom.conformance import is_uid
from pipeline.dicom.derived import MANUFACTURER
from pipeline.errors import Rejected, RejectReason

_WANTED = {
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x00080070: "Manufacturer",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
}


@dataclass(frozen=True)
class ReceivedHeader:
    """UIDs, each a valid one."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    is_own: bool
    """Whether radloop made it, of whatever version and model."""


def read_received(data: io.BufferedIOBase, transfer_syntax_uid: str) -> ReceivedHeader:
    """The header of a data set without file meta information. Raises Rejected where it cannot be parsed or lacks a UID."""
    syntax = UID(transfer_syntax_uid)
    size = data.seek(0, os.SEEK_END)
    data.seek(0)
    window = Window(data, size)  # type: ignore[arg-type]
    with parsing(window):
        found = read_dataset(
            window,  # type: ignore[arg-type]
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=lambda tag, _, __: tag > max(_WANTED),
            specific_tags=list(_WANTED),
        )
        values = {keyword: str(found.get(keyword, "") or "").strip() for keyword in _WANTED.values()}
    made_by = values.pop("Manufacturer")
    if not all(map(is_uid, values.values())):
        raise Rejected(RejectReason.MISSING_UID, "a UID of class, instance, series or study is missing or invalid")
    return ReceivedHeader(
        sop_class_uid=values["SOPClassUID"],
        sop_instance_uid=values["SOPInstanceUID"],
        study_instance_uid=values["StudyInstanceUID"],
        series_instance_uid=values["SeriesInstanceUID"],
        is_own=made_by.casefold() == MANUFACTURER,
    )
