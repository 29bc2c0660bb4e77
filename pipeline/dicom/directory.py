"""Which files a DICOMDIR lists (PS3.3 F, PS3.10 8.6). The index compares them with those that are there."""

from __future__ import annotations

from pathlib import Path

from pydicom.filereader import read_partial
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.dicom.bounded import open_window, parsing, read_meta, value_of
from pipeline.dicom.header import is_dicom
from pipeline.dicom.pixel_element import PIXEL_TAGS
from pipeline.errors import Rejected, RejectReason

RECORDS = 0x00041220  # DirectoryRecordSequence


def listed_files(path: Path) -> list[str]:
    """The files that the directory refers to: posix paths relative to its folder, in its order, each once.

    Raises Rejected where the file is no DICOMDIR that can be parsed.
    """
    with open_window(path) as window:
        if not is_dicom(window.pixels(0, 132)):
            raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOM")
        with parsing(window):
            if read_meta(window).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                # PS3.10 8.6 has none, and pydicom would inflate it without a limit.
                raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOMDIR: deflated")
            window.seek(0)
            dataset = read_partial(
                window,  # type: ignore[arg-type]
                lambda tag, _, __: tag in PIXEL_TAGS,
                force=True,
                specific_tags=[RECORDS],
            )
            if RECORDS not in dataset:
                raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOMDIR")
            files = [value_of(record, "ReferencedFileID") for record in dataset[RECORDS].value]
            listed = ("/".join([file] if isinstance(file, str) else map(str, file)) for file in files if file)
            return list(dict.fromkeys(listed))
