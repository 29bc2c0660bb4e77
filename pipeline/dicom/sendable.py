"""Files as they are sent: what their file meta information (PS3.10 7.1) says, and who the peer's comments may not quote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom.filereader import read_dataset
from pydicom.uid import UID

from pipeline.dicom.bounded import open_window, parsing, read_meta
from pipeline.dicom.conformance import is_uid
from pipeline.dicom.header import is_dicom
from pipeline.errors import Rejected, RejectReason

DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
IDENTIFYING = (0x00080050, 0x00080090, 0x00100010, 0x00100020, 0x00100030, 0x00101000, 0x00101001)
"""AccessionNumber, ReferringPhysicianName, PatientName, PatientID, PatientBirthDate, OtherPatientIDs, OtherPatientNames."""


@dataclass(frozen=True)
class Sendable:
    """A DICOM file by its meta information. `dataset_at`: where its data set begins."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    bytes: int
    dataset_at: int


def read_sendable(path: Path) -> Sendable:
    """What there is to know of a file before it is sent. Raises Rejected where it is no DICOM file, or does not say what it is."""
    with open_window(path) as window:
        if not is_dicom(window.pixels(0, 132)):
            raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOM")
        with parsing(window):
            meta = read_meta(window)
            keywords = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
            sop_class, instance, syntax = (str(meta.get(keyword, "") or "") for keyword in keywords)
        if sop_class == DIRECTORY_CLASS:
            raise Rejected(RejectReason.DICOMDIR, "the directory of a DICOM medium")
        if not all(map(is_uid, (sop_class, instance, syntax))):
            raise Rejected(RejectReason.MISSING_UID, "its file meta information lacks a UID")
        return Sendable(path, sop_class, instance, syntax, window.size, window.tell())


def identifying_values(file: Sendable) -> list[str]:
    """What in a file's header identifies somebody; empty where it cannot be read."""
    syntax = UID(file.transfer_syntax_uid)
    try:
        with open_window(file.path) as window, parsing(window):
            if syntax.is_deflated:
                return []
            window.seek(file.dataset_at)
            found = read_dataset(
                window,  # type: ignore[arg-type]
                syntax.is_implicit_VR,
                syntax.is_little_endian,
                stop_when=lambda tag, _, __: tag > max(IDENTIFYING),
                specific_tags=list(IDENTIFYING),
            )
            return [str(element.value) for element in found]
    except (Rejected, MemoryError):
        return []
