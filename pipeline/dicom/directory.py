"""Which files a DICOMDIR lists (PS3.3 F, PS3.10 8.6). The index compares them with those that are there."""

from __future__ import annotations

from pathlib import Path

from pydicom.filereader import read_partial

from pipeline.dicom.bounded import open_window, parsing
from pipeline.dicom.header import is_dicom
from pipeline.dicom.pixel_element import PIXEL_TAGS
from pipeline.errors import Rejected, RejectReason

RECORDS = 0x00041220  # DirectoryRecordSequence


def listed_files(path: Path) -> list[str]:
    """The files that the directory refers to: posix paths relative to its folder, in its order, each once.

    Raises Rejected where the file is no DICOMDIR that can be parsed. For a worker process: what says it is a deflated
    DICOMDIR, which the standard does not have, inflates without a limit.
    """
    with open_window(path) as window:
        if not is_dicom(window.pixels(0, 132)):
            raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOM")
        window.seek(0)
        with parsing(window):
            dataset = read_partial(
                window,  # type: ignore[arg-type]
                lambda tag, _, __: tag in PIXEL_TAGS,
                force=True,
                specific_tags=[RECORDS],
            )
            if RECORDS not in dataset:
                raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOMDIR")
            files = [record.get("ReferencedFileID") for record in dataset[RECORDS].value]
    listed = ("/".join([file] if isinstance(file, str) else map(str, file)) for file in files if file)
    return list(dict.fromkeys(listed))
