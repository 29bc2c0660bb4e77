"""pipeline.dicom.plain_header finds in a header what pydicom finds, in every real file and in broken ones, or leaves it to pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, uid

from pipeline.dicom import image_file
from pipeline.dicom.bounded import open_window, quietly
from pipeline.dicom.header import is_dicom
from pipeline.dicom.image_file import READ_KEYWORDS, open_image
from pipeline.dicom.phantom_objects import ct_slice, save
from pipeline.dicom.plain_header import read_plain
from pipeline.errors import Rejected
from tests.mutants import mutants

MUTANTS_A_FILE = 12
MOST_BYTES = 300_000
"""Of a file whose mutants are tried: larger ones have no other kind of header."""


def said(path: Path, monkeypatch: pytest.MonkeyPatch, *, by_pydicom: bool) -> Any:
    """All that is known of an image once it is open, or why it is not."""
    with monkeypatch.context() as patch:
        if by_pydicom:
            patch.setattr(image_file, "read_plain", lambda *_: None)
        try:
            with open_image(path) as image:
                with quietly():
                    values = {keyword: comparable(image.dataset.get(keyword)) for keyword in READ_KEYWORDS}
                facts = (image.transfer_syntax_uid, image.element, image.vr, image.shape, image.fragments)
                return values, facts, image.bits_stored, image.high_bit, image.signed, image.little_endian
        except Rejected as rejected:
            return rejected.reason, rejected.detail


def comparable(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, list) or hasattr(value, "append") else str(value)


def is_plain(path: Path) -> bool:
    with open_window(path) as window:
        return read_plain(window, frozenset()) is not None


@pytest.mark.real_data
def test_real_headers_say_the_same(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [path for path in sorted((real_data / "dicom").rglob("*")) if path.is_file()]
    plain = 0
    for path in files:
        assert said(path, monkeypatch, by_pydicom=False) == said(path, monkeypatch, by_pydicom=True), path.name
        plain += is_plain(path)
    assert plain > 150


@pytest.mark.real_data
def test_broken_headers_say_the_same(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [path for path in sorted((real_data / "dicom").rglob("*")) if path.is_file()]
    contents = [content for path in files if len(content := path.read_bytes()) < MOST_BYTES and is_dicom(content[:132])]
    file = tmp_path / "mutant"
    for seed, content in enumerate(contents[::6]):
        for done, broken in mutants(content, count=MUTANTS_A_FILE, seed=seed):
            file.write_bytes(broken)
            assert said(file, monkeypatch, by_pydicom=False) == said(file, monkeypatch, by_pydicom=True), done


def test_what_is_unusual_is_left_to_pydicom(tmp_path: Path) -> None:
    def written(**attributes: Any) -> Path:
        return save(ct_slice(16, **attributes), tmp_path / "x", uid.ExplicitVRLittleEndian)

    assert is_plain(written())
    item = Dataset()
    item.PixelSpacing = [1, 1]
    path = written(SharedFunctionalGroupsSequence=[item])
    assert is_plain(path)
    data = path.read_bytes()
    another_vr, other_form = (
        data.replace(b"US\x02\0", b"QQ\x02\0"),
        data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"),
    )
    for broken in (data[128:], data[:400], another_vr, other_form, b" "):
        path.write_bytes(broken)
        assert not is_plain(path)
