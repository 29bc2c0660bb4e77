"""The files that a DICOMDIR lists, where it is broken on purpose."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from pydicom import uid

from pipeline.dicom.directory import listed_files
from pipeline.errors import Rejected, RejectReason
from tests.dicom.test_header import directory, element, raw_file


def test_a_deflated_directory_is_not_inflated(tmp_path: Path) -> None:
    """pydicom would, without a limit: this one to 256 MB."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    zeros = struct.pack("<HH2sHI", 4, 0x1130, b"OB", 0, 2**28) + bytes(2**28)
    path = raw_file(
        tmp_path / "DICOMDIR", deflate.compress(zeros) + deflate.flush(), uid.DeflatedExplicitVRLittleEndian.encode()
    )
    with pytest.raises(Rejected) as caught:
        listed_files(path)
    assert caught.value.reason is RejectReason.NOT_AN_IMAGE


@pytest.mark.parametrize(("vr", "value"), [(b"FL", b"\0\0\x80\x3f"), (b"DS", b"1.5 ")])
def test_a_file_id_that_is_a_number_is_malformed(tmp_path: Path, vr: bytes, value: bytes) -> None:
    path = directory(tmp_path, [["IM1"]])
    data = path.read_bytes()
    written = element(4, 0x1500, b"CS", b"IM1 ")
    assert data.count(written) == 1
    path.write_bytes(data.replace(written, element(4, 0x1500, vr, value)))
    with pytest.raises(Rejected) as caught:
        listed_files(path)
    assert caught.value.reason is RejectReason.MALFORMED
