"""The walker finds what pydicom finds, or leaves the file to it: real files, mutants, and generated data sets of all shapes."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from pipeline.columns import ATTRIBUTES
from pipeline.dicom import walker
from pipeline.dicom.header import HeaderReader, open_ordinary, read_header, read_header_by_pydicom
from pipeline.dicom.header_values import PLACE, WANTED, remembered_values, value_of
from pipeline.dicom.phantom_objects import ct_slice, save
from pipeline.dicom.walker import LONG_VRS, SHORT_VRS, walk
from pipeline.errors import Rejected
from pipeline.identity import IdentityKey
from tests.hostile import bad_files, dicom_originals
from tests.mutants import mutants

KEY = IdentityKey(b"a key for tests only")
MUTANTS_AN_ORIGINAL, MUTANTS_A_REAL_FILE = 50, 6
ORDINARY_REAL_FILES = 180
"""Of the 288; the others are no images, big endian, deflated, or without preamble."""
REAL_BYTES = 2**20
UNDEFINED = 0xFFFFFFFF


def outcome(read: Callable[..., dict[str, Any]], path: Path) -> Any:
    """The row, or reason and detail. Compared by `repr`: 1 is not 1.0."""
    try:
        return repr(read(path, KEY, shown_path="a/b"))
    except Rejected as rejected:
        return rejected.reason, rejected.detail


def walked(path: Path) -> Any:
    file = open_ordinary(str(path))
    assert file is not None
    try:
        return walk(file)
    finally:
        file.close()


def assert_same(path: Path, what: str = "") -> None:
    """Of recursion the detail depends on who called: how deep the stack was already."""
    found, expected = outcome(read_header, path), outcome(read_header_by_pydicom, path)
    if "deep" in what:
        found, expected = found[0], expected[0]
    assert found == expected, what


def test_wanted_are_the_columns_by_the_dictionary() -> None:
    assert tuple(WANTED)[: len(ATTRIBUTES)] == tuple(ATTRIBUTES)
    for keyword, (tag, vr) in WANTED.items():
        assert (tag_for_keyword(keyword), dictionary_VR(tag)) == (tag, vr)
    two_letters = {str(vr).encode() for vr in VR if len(str(vr)) == 2}
    assert {str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32} == LONG_VRS
    assert two_letters == LONG_VRS | SHORT_VRS


@pytest.mark.real_data
def test_real_files_as_pydicom_reads_them(real_data: Path) -> None:
    ordinary = 0
    for path in sorted(path for path in (real_data / "dicom").rglob("*") if path.is_file()):
        assert_same(path, path.name)
        ordinary += walked(path) is not None
    assert ordinary >= ORDINARY_REAL_FILES


@pytest.mark.real_data
def test_mutants_of_real_files(real_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mutant"
    for seed, original in enumerate(sorted((real_data / "dicom").rglob("*"))):
        if not original.is_file() or not 200 < original.stat().st_size < REAL_BYTES:
            continue
        content = original.read_bytes()
        if content[128:132] == b"DICM":
            for what, broken in mutants(content, count=MUTANTS_A_REAL_FILE, seed=seed):
                path.write_bytes(broken)
                assert_same(path, f"{original.name}: {what}")


def test_mutants_and_bad_files(tmp_path: Path) -> None:
    """Some of each kind that are read quickly remain ordinary, or the test would say nothing about the walker."""
    path = tmp_path / "mutant"
    ordinary = 0
    for seed, (name, content) in enumerate(dicom_originals(tmp_path).items()):
        if "Deflated" in name:
            continue  # pydicom's in any case, and slow
        for what, broken in mutants(content, count=MUTANTS_AN_ORIGINAL, seed=seed):
            path.write_bytes(broken)
            assert_same(path, f"{name}: {what}")
            ordinary += walked(path) is not None
    assert ordinary > 5 * MUTANTS_AN_ORIGINAL
    for what, (content, _) in bad_files(tmp_path).items():
        if content:
            path.write_bytes(content)
            assert_same(path, what)


def test_flipped_bits_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "x"
    chance = random.Random(7)
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian):
        content = save(ct_slice(16), path, syntax).read_bytes()
        for _ in range(400):
            broken = bytearray(content)
            broken[chance.randrange(132, 1200)] ^= 1 << chance.randrange(8)
            path.write_bytes(broken)
            assert_same(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.JPEG2000Lossless])
def test_a_file_cut_anywhere(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "x"
    content = save(ct_slice(16), path, syntax).read_bytes()
    for end in range(130, len(content), 7):
        path.write_bytes(content[:end])
        assert_same(path, f"cut at {end}")


def test_what_is_unusual_is_left_to_pydicom(tmp_path: Path) -> None:
    for syntax in (uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian):
        assert walked(save(ct_slice(16), tmp_path / "x", syntax)) is None
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.RLELossless):
        assert walked(save(ct_slice(16), tmp_path / "x", syntax)) is not None


def test_any_number_of_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the bytes at hand end, within a value, a length or a sequence, the same is found."""
    body = b"".join(
        (
            explicit(0x0008, 0x0016, b"UI", b"1.2\0"),
            sequence(0x0008, 0x1140, [explicit(0x0008, 0x1150, b"UI", b"1.2.3.4\0") * 9] * 2, undefined=True),
            *(
                explicit(*tag, b"UI", b"1.2.840.99.1234567.89.0.123456\0\0")
                for tag in ((8, 0x18), (0x20, 13), (0x20, 14))
            ),
            explicit(0x0009, 0x1001, b"UN", bytes(700)),
            explicit(0x0009, 0x1002, b"LO", bytes(300)),
            image(),
        )
    )
    path = tmp_path / "x"
    path.write_bytes(dicom(body))
    expected = outcome(read_header_by_pydicom, path)
    for count in range(280, 1500):
        monkeypatch.setattr(walker, "FIRST_BYTES", count)
        assert walked(path) is not None, count
        assert outcome(read_header, path) == expected, count


def test_steps_and_values_are_forgotten_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walker._EXPLICIT_STEPS.clear()
    monkeypatch.setattr(walker, "STEPS_KEPT", 5)
    monkeypatch.setattr("pipeline.dicom.header_values.REMEMBERED", 1)
    monkeypatch.setattr("pipeline.dicom.header.HASHES_KEPT", 1)
    for number in range(20):
        dataset = ct_slice(16, instance_number=number, patient_id=f"P{number}")
        path = save(dataset, tmp_path / "x", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian][number % 2])
        assert_same(path)
    assert len(walker._EXPLICIT_STEPS) <= 5
    assert len(remembered_values(None)[PLACE["SOPInstanceUID"]]) <= 3


def test_one_reader_keeps_files_apart(tmp_path: Path) -> None:
    reader = HeaderReader(KEY)
    for number, character_set in enumerate(["ISO_IR 100", "ISO_IR 192", "ISO 2022 IR 87", None, "ISO_IR 126"] * 2):
        attributes = {} if character_set is None else {"SpecificCharacterSet": character_set}
        path = save(ct_slice(16, instance_number=number, patient_id=f"P{number % 3}", **attributes), tmp_path / "x")
        content = path.read_bytes().replace(b"PH-", b"\xc3\xa9-")
        path.write_bytes(content)
        file = open_ordinary(str(path))
        assert file is not None
        row = reader.ordinary(file, "a/p1")
        file.close()
        assert row == list(read_header_by_pydicom(path, KEY, shown_path="a/p1").values()) or row is None


@pytest.mark.parametrize("keyword", WANTED)
def test_values_without_pydicom_are_those_with_it(keyword: str) -> None:
    texts = [
        b"",
        b" ",
        b"A B ",
        b"1.5 ",
        b"-0 ",
        b"1\\2 ",
        b"\\",
        b"20240229",
        b"20230229",
        b"2024.02.29",
        b"1e5 ",
        b"\1\2",
        b"\0",
    ]
    vr = WANTED[keyword][1]
    for raw in texts:
        # An encoding that is not known to hold ASCII goes through pydicom.
        assert repr(value_of(keyword, raw, vr, ["iso8859"])) == repr(value_of(keyword, raw, vr, ["cp1252"]))


def explicit(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    head = struct.pack("<HH2s", group, number, vr)
    if vr in LONG_VRS:
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def implicit(group: int, number: int, _vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HHI", group, number, len(value)) + value


def sequence(
    group: int, number: int, items: list[bytes], *, undefined: bool, vr: bytes | None = b"SQ", open_items: bool = False
) -> bytes:
    """`vr` None: implicit. Items and sequence with lengths, or with delimiters."""
    written = b"".join(
        struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED if open_items else len(item))
        + item
        + (struct.pack("<HHI", 0xFFFE, 0xE00D, 0) if open_items else b"")
        for item in items
    )
    length = UNDEFINED if undefined else len(written)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if undefined else b""
    middle = b"" if vr is None else vr + b"\0\0"
    return struct.pack("<HH", group, number) + middle + struct.pack("<I", length) + written + end


def image(write: Callable[..., bytes] = explicit, pixels: int = 8) -> bytes:
    """The Image Pixel module of 2 × 2 pixels of 16 bits."""
    sizes = [(0x28, 0x10, 2), (0x28, 0x11, 2), (0x28, 0x100, 16)]
    head = b"".join(write(group, number, b"US", struct.pack("<H", size)) for group, number, size in sizes)
    return head + write(0x7FE0, 0x10, b"OW", bytes(pixels))


def dicom(body: bytes, syntax: bytes = b"1.2.840.10008.1.2.1\0") -> bytes:
    meta = explicit(2, 0x10, b"UI", syntax)
    return bytes(128) + b"DICM" + explicit(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + body


TEXTS = st.sampled_from(
    [b"", b"1.2", b"1\\2\\3 ", b"CT", b"A^B ", b"20240229", b"\xe9\xe8", b"\x1b$B ", b"-1.5e3", b" 7", b"x" * 600]
)
WANTED_TAGS = st.sampled_from([(tag >> 16, tag & 0xFFFF, vr.encode()) for tag, vr in WANTED.values()])
OTHER_VRS = st.sampled_from(sorted((SHORT_VRS | LONG_VRS) - {b"SQ"}))
OTHER_TAGS = st.sampled_from(
    [(0x08, 0x103F), (0x09, 0x10), (0x0029, 0x1010), (0x18, 0x9999), (0x40, 0x254), (0x10, 0x1000), (2, 3)]
)
SEQUENCE_TAGS = st.sampled_from(
    [(0x08, 0x1140), (0x40, 0x275), (0x2001, 0x1005), (0x54, 0x16), (0x88, 0x200), (0x10, 0x20)]
)
SETS = st.sampled_from(
    [b"ISO_IR 100", b"ISO_IR 192", b"ISO_IR 13", b"\\ISO 2022 IR 87", b"rot13", b"nonsense", b"", b"GB18030"]
)


@st.composite
def elements(draw: st.DrawFn, is_implicit: bool, depth: int = 0) -> bytes:
    write = implicit if is_implicit else explicit
    kind = draw(st.sampled_from(["wanted", "wanted", "other", "sequence", "set"]))
    if kind == "wanted":
        group, number, vr = draw(WANTED_TAGS)
        vr = draw(st.sampled_from([vr] * 7 + [b"UN", b"LO", b"SS"]))
        return write(group, number, vr, draw(TEXTS | st.binary(max_size=6)))
    if kind == "other" or depth > 2:
        value = draw(
            st.binary(max_size=20) | st.sampled_from([bytes(900), bytes(9000), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)])
        )
        return write(*draw(OTHER_TAGS), draw(OTHER_VRS), value)
    if kind == "set":
        return write(8, 5, b"CS", draw(SETS))
    inner_implicit = is_implicit or draw(st.integers(0, 5)) == 0
    items = draw(st.lists(st.lists(elements(inner_implicit, depth + 1), max_size=3).map(b"".join), max_size=3))
    vr = None if is_implicit else draw(st.sampled_from([b"SQ", b"SQ", b"UN", b"OB"]))
    undefined, open_items = draw(st.booleans()), draw(st.booleans())
    return sequence(*draw(SEQUENCE_TAGS), items, undefined=undefined, vr=vr, open_items=open_items)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("walker") / "x"


UIDS = ((0x08, 0x16), (0x08, 0x18), (0x20, 0x0D), (0x20, 0x0E))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), is_implicit=st.booleans(), first_bytes=st.sampled_from([300, 1000, 8192]))
def test_data_sets_of_all_shapes(place: Path, data: st.DataObject, is_implicit: bool, first_bytes: int) -> None:
    write = implicit if is_implicit else explicit
    uids = b"".join(write(*tag, b"UI", b"1.2.3\0") for tag in UIDS)
    body = uids + b"".join(data.draw(st.lists(elements(is_implicit), max_size=8))) + image(write)
    place.write_bytes(dicom(body, b"1.2.840.10008.1.2\0" if is_implicit else b"1.2.840.10008.1.2.1\0"))
    with patch.object(walker, "FIRST_BYTES", first_bytes):
        assert_same(place)


def ordinary_sequences() -> Iterator[tuple[str, bytes]]:
    inner = explicit(0x08, 0x1150, b"UI", b"1.2\0")
    for undefined in (False, True):
        for open_items in (False, True):
            options = {"undefined": undefined, "open_items": open_items}
            yield f"explicit {options}", sequence(8, 0x1140, [inner, b"", inner], **options)
            nested = sequence(9, 0x1001, [inner + sequence(8, 0x1140, [inner], **options)], **options)
            yield f"nested {options}", nested
            yield f"UN {options}", sequence(9, 0x1001, [implicit(8, 0x1150, b"", b"1.2\0")], vr=b"UN", **options)


@pytest.mark.parametrize(
    ("what", "content"), list(ordinary_sequences()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_sequences_are_walked(tmp_path: Path, what: str, content: bytes) -> None:
    path = tmp_path / "x"
    uids = b"".join(explicit(*tag, b"UI", b"1.2.3\0") for tag in UIDS)
    path.write_bytes(dicom(uids + content + image()))
    assert walked(path) is not None
    assert_same(path)


def test_long_sequences_are_walked_and_endless_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "x"
    uids = b"".join(explicit(*tag, b"UI", b"1.2.3\0") for tag in UIDS)
    item = explicit(0x08, 0x1150, b"UI", b"1.2.3.4.5.6.7.\0") * 20
    for items in (20, 400):
        path.write_bytes(dicom(uids + sequence(8, 0x1140, [item] * items, undefined=True) + image()))
        assert walked(path) is not None
        assert_same(path)
    deep = b"".join(
        islice(
            iter(lambda: struct.pack("<HH2sHIHHI", 8, 0x1140, b"SQ", 0, UNDEFINED, 0xFFFE, 0xE000, UNDEFINED), b""), 40
        )
    )
    path.write_bytes(dicom(uids + deep))
    assert walked(path) is None
    assert_same(path)


@pytest.mark.parametrize(
    "meta",
    [
        struct.pack("<HH2sHI", 2, 1, b"OB", 0, 4) + b"\0\1\0\0",
        struct.pack("<HH2sHI", 2, 1, b"OB", 1, 2) + b"\0\1",
        explicit(2, 0x10, b"UI", b"1.2.840.10008.1.2.4.90"),
        explicit(2, 0x10, b"UI", b""),
        explicit(2, 2, b"UI", b"1.2.840.10008.1.3.10"),
        explicit(2, 2, b"UI", b"Doe^Jane"),
        explicit(2, 2, b"LO", b"1.2 "),
        explicit(2, 0, b"UL", b"\0\0\0\0"),
        explicit(2, 0x16, b"AE", bytes(9000)),
        explicit(0, 0, b"UL", b"\0\0\0\0"),
        explicit(0xFFFE, 0xE00D, b"UI", b""),
    ],
)
def test_odd_meta_information(tmp_path: Path, meta: bytes) -> None:
    path = tmp_path / "x"
    uids = b"".join(explicit(*tag, b"UI", b"1.2.3\0") for tag in UIDS)
    path.write_bytes(dicom(meta + uids + image()))
    assert_same(path)
