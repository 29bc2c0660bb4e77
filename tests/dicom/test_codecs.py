"""pipeline.dicom.codecs, codestream, encapsulation: right samples or a Rejected, never wrong pixels."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended

from pipeline.dicom import codecs, pixel_element
from pipeline.dicom.codecs import FrameFormat, decode_frame, decoders
from pipeline.dicom.codestream import Color
from pipeline.dicom.frames import open_image, read_stored
from pipeline.dicom.jpeg_stream import read_jpeg
from pipeline.dicom.syntaxes import CODEC_BY_SYNTAX, NATIVE, UNDECODED, is_encapsulated
from pipeline.errors import Rejected, RejectReason

Encoder = Callable[[NDArray[Any]], bytes]

LOSSLESS: dict[str, Encoder] = {
    uid.JPEGLosslessSV1: lambda image: imagecodecs.ljpeg_encode(image, bitspersample=16),
    uid.JPEGLSLossless: imagecodecs.jpegls_encode,
    uid.JPEG2000Lossless: lambda image: imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k"),
    uid.HTJ2KLossless: imagecodecs.htj2k_encode,
    uid.RLELossless: lambda image: rle(image),
}
LOSSY: dict[str, Encoder] = {
    uid.JPEGBaseline8Bit: lambda image: imagecodecs.jpeg8_encode(image, level=95),
    uid.JPEG2000: lambda image: imagecodecs.jpeg2k_encode(image, level=40, codecformat="j2k"),
}


def rle(image: NDArray[Any]) -> bytes:
    """RLE Lossless (PS3.5 G): a segment a byte plane, most significant first."""
    planes = image.astype(">u2").view(np.uint8).reshape(*image.shape, 2)
    segments = [bytes(b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in planes[..., n])) for n in (0, 1)]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    offsets = [64, 64 + len(segments[0])]
    return np.array([2, *offsets, *[0] * 13], "<u4").tobytes() + b"".join(segments)


def picture(rows: int = 40, columns: int = 48) -> NDArray[np.uint16]:
    noise = np.random.default_rng(1).integers(0, 60, (rows, columns))
    return (np.arange(rows)[:, None] * 40 + np.arange(columns)[None] * 20 + noise).astype(np.uint16)


def format_of(image: NDArray[Any]) -> FrameFormat:
    return FrameFormat(image.shape[0], image.shape[1], 1, image.dtype.itemsize * 8)


def write(
    path: Path, frames: list[list[bytes]], syntax: str, *, extended: bool = False, table: bool = True, **attributes: Any
) -> Path:
    """A file whose frames are lists of fragments."""
    dataset = Dataset()
    values = {"Rows": 40, "Columns": 48, "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}
    values |= {"PixelRepresentation": 0, "PhotometricInterpretation": "MONOCHROME2", "NumberOfFrames": len(frames)}
    for keyword, value in (values | attributes).items():
        setattr(dataset, keyword, value)
    joined = [b"".join(parts) for parts in frames]
    if extended:
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(
            joined
        )
    elif all(len(parts) == 1 for parts in frames):
        dataset.PixelData = encapsulate(joined, has_bot=table)
    else:
        items = [part + b"\0" * (len(part) % 2) for parts in frames for part in parts]
        dataset.PixelData = b"".join(item(part) for part in [b"", *items]) + b"\xfe\xff\xdd\xe0\0\0\0\0"
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(value: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + len(value).to_bytes(4, "little") + value


def stored(path: Path, frame: int = 0) -> NDArray[Any]:
    with open_image(path) as image:
        return np.asarray(read_stored(image, frame).values)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_is_bit_exact(syntax: str) -> None:
    image = picture()
    decoded = decode_frame(LOSSLESS[syntax](image), syntax, format_of(image))
    np.testing.assert_array_equal(decoded.samples, image)


@pytest.mark.parametrize("syntax", LOSSY)
def test_lossy_is_near(syntax: str) -> None:
    image = (picture() // 12).astype(np.uint8)
    decoded = decode_frame(LOSSY[syntax](image), syntax, format_of(image))
    assert np.abs(decoded.samples.astype(int) - image).max() <= 12


def test_12_bit_extended_and_progressive_jpeg_by_retired_syntaxes() -> None:
    image = picture()
    stream = imagecodecs.jpeg8_encode(image, level=100, bitspersample=12)
    for syntax in (uid.JPEGExtended12Bit, "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"):
        decoded = decode_frame(stream, syntax, format_of(image))
        assert np.abs(decoded.samples.astype(int) - image).max() <= 8
        assert decoded.stream is not None
        assert decoded.stream.precision == 12


@pytest.mark.parametrize("syntax", {**LOSSLESS, **LOSSY})
def test_codestream_that_is_cut_anywhere_is_rejected(syntax: str) -> None:
    image = (picture() // 12).astype(np.uint8) if syntax in LOSSY else picture()
    stream = (LOSSLESS | LOSSY)[syntax](image)
    for end in {*range(0, len(stream) - 2, 97), len(stream) - 2, len(stream) - 3}:
        with pytest.raises(Rejected) as caught:
            decode_frame(stream[:end], syntax, format_of(image))
        assert caught.value.reason in (RejectReason.TRUNCATED, RejectReason.DECODE_FAILED, RejectReason.SIZE_MISMATCH)


@pytest.mark.parametrize("padding", [b"\0", b"\xff", b"\0\0"])
def test_padding_after_the_end_marker_is_tolerated(padding: bytes) -> None:
    image = picture()
    stream = imagecodecs.jpegls_encode(image) + padding
    np.testing.assert_array_equal(decode_frame(stream, uid.JPEGLSLossless, format_of(image)).samples, image)


@pytest.mark.parametrize("padding", [b"\x80", b"\x50"])
def test_a_byte_of_anything_to_even_length_is_padding(padding: bytes) -> None:
    """As dcmtk 3.6.7 writes near-lossless frames of odd length."""
    images = (picture(40, columns) for columns in range(40, 60))
    image = next(image for image in images if len(imagecodecs.jpegls_encode(image)) % 2)
    stream = imagecodecs.jpegls_encode(image)
    found = decode_frame(stream + padding, uid.JPEGLSLossless, format_of(image)).samples
    np.testing.assert_array_equal(found, image)
    for more in (padding * 2, padding * 3, b"\0" + padding):
        with pytest.raises(Rejected) as caught:
            decode_frame(stream + more, uid.JPEGLSLossless, format_of(image))
        assert caught.value.reason is RejectReason.TRUNCATED


@pytest.mark.parametrize("syntax", {**LOSSLESS, **LOSSY})
@pytest.mark.parametrize("lie", [(39, 48, 1, 0), (41, 48, 1, 0), (40, 47, 1, 0), (40, 48, 3, 0), (80, 96, 1, 0)])
def test_header_that_lies_on_the_size_is_rejected(syntax: str, lie: tuple[int, int, int, int]) -> None:
    image = (picture() // 12).astype(np.uint8) if syntax in LOSSY else picture()
    rows, columns, samples, _ = lie
    with pytest.raises(Rejected) as caught:
        decode_frame(
            (LOSSLESS | LOSSY)[syntax](image), syntax, FrameFormat(rows, columns, samples, image.dtype.itemsize * 8)
        )
    assert caught.value.reason is RejectReason.SIZE_MISMATCH


def test_more_precision_than_allocated_is_rejected() -> None:
    with pytest.raises(Rejected) as caught:
        decode_frame(imagecodecs.jpegls_encode(picture()), uid.JPEGLSLossless, FrameFormat(40, 48, 1, 8))
    assert caught.value.reason is RejectReason.SIZE_MISMATCH


def test_budget_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "open_codestream", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(codecs, "decode_rle", lambda *_: pytest.fail("decoded"))
    for syntax in (uid.RLELossless, uid.JPEGBaseline8Bit):
        with pytest.raises(Rejected) as caught:
            decode_frame(b"", syntax, FrameFormat(60000, 60000, 1, 16))
        assert caught.value.reason is RejectReason.TOO_LARGE


@given(st.binary(max_size=200), st.sampled_from(sorted(LOSSLESS | LOSSY)))
@settings(max_examples=150, deadline=None)
def test_noise_is_rejected(noise: bytes, syntax: str) -> None:
    with pytest.raises(Rejected):
        decode_frame(noise, syntax, FrameFormat(40, 48, 1, 16))


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_damaged_header_never_raises_anything_else(data: st.DataObject) -> None:
    stream = bytearray(data.draw(st.sampled_from(list(LOSSLESS.values())))(picture()))
    for _ in range(3):
        stream[data.draw(st.integers(0, 63))] = data.draw(st.integers(0, 255))
    with suppress(Rejected):
        decode_frame(bytes(stream), data.draw(st.sampled_from([uid.RLELossless, uid.JPEG2000])), format_of(picture()))


def test_unknown_transfer_syntax_is_unsupported() -> None:
    for syntax in ("1.2.840.10008.1.2.4.100", "1.2.3", "JOHN^DOE"):
        with pytest.raises(Rejected) as caught:
            is_encapsulated(syntax)
        assert caught.value.reason is RejectReason.UNSUPPORTED_SYNTAX
        assert "DOE" not in str(caught.value)


def test_pydicom_uses_the_plugin(tmp_path: Path) -> None:
    image = picture()
    for syntax, encode in LOSSLESS.items():
        dataset = dcmread(write(tmp_path / "a.dcm", [[encode(image)]], syntax))
        dataset.pixel_array_options(decoding_plugin=codecs.PLUGIN)
        np.testing.assert_array_equal(dataset.pixel_array, image)


def test_decoders_tell_what_reads_each_transfer_syntax() -> None:
    table = decoders()
    assert len({row[0] for row in table}) == len(table)
    assert {row[0] for row in table if row[3]} == {*NATIVE, *CODEC_BY_SYNTAX}
    assert {row[0]: row[2] for row in table if not row[3]} == {
        syntax: f"not decoded: {why}" for syntax, why in UNDECODED.items()
    }


def test_frames_by_each_kind_of_offset_table(tmp_path: Path) -> None:
    images = [picture() + np.uint16(100 * number) for number in range(3)]
    streams = [imagecodecs.jpegls_encode(image) for image in images]
    halves = [[stream[:100], stream[100:]] for stream in streams]
    whole = [[stream] for stream in streams]
    for name, frames, options in (
        ("basic", whole, {}),
        ("empty", whole, {"table": False}),
        ("extended", whole, {"extended": True}),
        ("start markers", halves, {}),
    ):
        path = write(tmp_path / name, frames, uid.JPEGLSLossless, **options)
        for number, image in enumerate(images):
            np.testing.assert_array_equal(stored(path, number), image, err_msg=name)
    with pytest.raises(ValueError, match="frames 0 to 2"):
        stored(path, 3)


@pytest.mark.parametrize("vr", ["UL", "LO", "DS", "FD"])
def test_an_offset_table_of_another_vr_is_none(tmp_path: Path, vr: str) -> None:
    stream = imagecodecs.jpegls_encode(picture())
    path = write(tmp_path / "a.dcm", [[stream[:100], stream[100:]]] * 2, uid.JPEGLSLossless)
    data = path.read_bytes()
    start = data.index(b"\xe0\x7f\x10\0")
    table = b"\xe0\x7f\x01\0" + vr.encode() + b"\x10\0" + b"12345678" * 2
    path.write_bytes(data[:start] + table + data[start:])
    np.testing.assert_array_equal(stored(path, 1), picture())


def test_items_without_end_are_not_counted_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.dcm", [[imagecodecs.jpegls_encode(picture())]], uid.JPEGLSLossless)
    data = path.read_bytes()
    path.write_bytes(data[:-8] + item(b"") * 500 + data[-8:])
    np.testing.assert_array_equal(stored(path), picture())
    monkeypatch.setattr(pixel_element, "FRAGMENTS", 400)
    with pytest.raises(Rejected) as caught:
        stored(path)
    assert caught.value.reason is RejectReason.TOO_LARGE


def test_a_high_bit_above_the_codestreams_samples(tmp_path: Path) -> None:
    stream = imagecodecs.ljpeg_encode(picture(), bitspersample=16)
    attributes = {"BitsAllocated": 32, "BitsStored": 12, "HighBit": 31}
    with pytest.raises(Rejected) as caught:
        stored(write(tmp_path / "a.dcm", [[stream]], uid.JPEGLosslessSV1, **attributes))
    assert caught.value.reason is RejectReason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize(("syntax", "start"), [(uid.JPEGBaseline8Bit, b"\xff\xc0"), (uid.JPEGLosslessSV1, b"\xff\xc3")])
def test_a_jpeg_too_small_for_its_picture(syntax: str, start: bytes) -> None:
    """The codestream's header and the file's tell the same lie: the decoder would fill 64 MB in without a word."""
    image = (picture() // 12).astype(np.uint8)
    stream = bytearray((LOSSLESS | LOSSY)[syntax](image))
    place = stream.index(start) + 5
    stream[place : place + 4] = struct.pack(">HH", 8000, 8000)
    with pytest.raises(Rejected) as caught:
        decode_frame(bytes(stream), syntax, FrameFormat(8000, 8000, 1, 16))
    assert caught.value.reason is RejectReason.TRUNCATED
    blank = (LOSSLESS | LOSSY)[syntax](np.zeros((512, 512), np.uint8))
    assert decode_frame(blank, syntax, FrameFormat(512, 512, 1, 16)).samples.shape == (512, 512)


@pytest.mark.parametrize("promised", [1, 2, 4])
def test_wrong_number_of_frames_is_rejected(tmp_path: Path, promised: int) -> None:
    stream = imagecodecs.jpegls_encode(picture())
    path = write(tmp_path / "a.dcm", [[stream]] * 3, uid.JPEGLSLossless, NumberOfFrames=promised)
    with pytest.raises(Rejected) as caught:
        stored(path)
    assert caught.value.reason is RejectReason.SIZE_MISMATCH


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_file_that_is_cut_anywhere_never_yields_pixels(tmp_path: Path, syntax: str) -> None:
    data = write(tmp_path / "a.dcm", [[LOSSLESS[syntax](picture())]], syntax).read_bytes()
    cut = tmp_path / "cut.dcm"
    for end in {*range(1, len(data), 61), len(data) - 1, len(data) - 8, len(data) - 9}:
        cut.write_bytes(data[:end])
        with pytest.raises(Rejected):
            stored(cut)


def test_lossy_overshoot_is_clipped_and_not_wrapped(tmp_path: Path) -> None:
    image = np.full((40, 48), 1030, np.uint16)
    stream = imagecodecs.jpeg8_encode(image, level=100, bitspersample=12)
    path = write(tmp_path / "a.dcm", [[stream]], uid.JPEGExtended12Bit, BitsStored=10, HighBit=9)
    assert stored(path).min() == 1023


def test_overlay_bits_in_a_lossless_stream_are_masked(tmp_path: Path) -> None:
    image = (picture() & 0x0FFF) | 0x8000
    path = write(
        tmp_path / "a.dcm", [[imagecodecs.jpegls_encode(image)]], uid.JPEGLSLossless, BitsStored=12, HighBit=11
    )
    np.testing.assert_array_equal(stored(path), picture() & 0x0FFF)


def test_signs_are_extended_from_the_precision_of_the_stream(tmp_path: Path) -> None:
    values = (picture().astype(np.int16) - 1000).clip(-1000, 900)
    for syntax in (uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless):
        stream = LOSSLESS[syntax](values.view(np.uint16))
        path = write(tmp_path / "a.dcm", [[stream]], syntax, PixelRepresentation=1)
        np.testing.assert_array_equal(stored(path), values)
    signed = imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k")
    np.testing.assert_array_equal(
        stored(write(tmp_path / "a.dcm", [[signed]], uid.JPEG2000Lossless, PixelRepresentation=1)), values
    )


@pytest.mark.real_data
@pytest.mark.skipif("RADLOOP_DATA" not in os.environ, reason="RADLOOP_DATA is not set")
def test_truncated_real_files_never_yield_pixels(tmp_path: Path) -> None:
    files = sorted(Path(os.environ["RADLOOP_DATA"], "dicom", "cornerstone_ct_syntaxes").glob("*1.2.4*.dcm"))
    assert len(files) > 8
    cut = tmp_path / "cut.dcm"
    for path in files:
        data = path.read_bytes()
        for end in (len(data) // 2, len(data) * 9 // 10, len(data) - 11):
            cut.write_bytes(data[:end])
            with pytest.raises(Rejected):
                stored(cut)


def test_a_jfif_marker_says_nothing_of_the_colours_of_a_lossless_jpeg() -> None:
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    adobe = imagecodecs.jpeg8_encode(image, lossless=True)
    assert adobe[2:4] == b"\xff\xee"
    jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    without = adobe[:2] + jfif + adobe[4 + int.from_bytes(adobe[4:6], "big") :]
    decoded = decode_frame(without, uid.JPEGLossless, FrameFormat(16, 16, 3, 8))
    assert decoded.stream is not None
    assert decoded.stream.color is Color.RGB  # by its components, R, G and B
    np.testing.assert_array_equal(decoded.samples, image)
    assert read_jpeg(imagecodecs.jpeg8_encode(image)).header.color is Color.YBR  # where JFIF is at home
