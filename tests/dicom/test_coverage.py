"""Every transfer syntax that `decoders` says is decoded decodes; every pixel format of PS3.5 8.1.1 has the right stored values."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from pipeline.dicom import jpeg2000_stream
from pipeline.dicom.codecs import FrameFormat, decode_frame, decoders
from pipeline.dicom.frames import open_image, read_stored
from pipeline.dicom.jpegxl_stream import read_jpegxl
from pipeline.dicom.syntaxes import CODEC_BY_SYNTAX, DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, NATIVE, UNDECODED
from pipeline.errors import Rejected, RejectReason

Encoder = Callable[[NDArray[Any]], bytes]
ROOT = "1.2.840.10008.1.2"
UNCOMPRESSED_ITEMS, DEFLATED_ITEMS = f"{ROOT}.1.98", f"{ROOT}.8.1"

DCT_TOLERANCE = 12
"""Levels of 256, of JPEG at quality 95 on a picture with noise of 40 levels."""


def picture(rows: int = 37, columns: int = 51) -> NDArray[np.uint8]:
    noise = np.random.default_rng(1).integers(0, 40, (rows, columns))
    return (np.arange(rows)[:, None] * 2 + np.arange(columns)[None] + noise).astype(np.uint8)


def deflated(image: NDArray[Any]) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(image.tobytes()) + deflate.flush()


def rle(image: NDArray[Any], sample_bytes: int) -> bytes:
    """RLE Lossless (PS3.5 G) of (rows, columns) or (rows, columns, samples), a segment a byte."""
    samples = image[..., None] if image.ndim == 2 else image
    whole = samples.astype(">u4").view(np.uint8).reshape(*samples.shape, 4)[..., 4 - sample_bytes :]
    planes = [whole[:, :, sample, number] for sample in range(samples.shape[2]) for number in range(sample_bytes)]
    segments = [b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in plane) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    offsets = np.cumsum([64, *(len(segment) for segment in segments[:-1])])
    header = np.zeros(16, "<u4")
    header[: len(segments) + 1] = [len(segments), *offsets]
    return header.tobytes() + b"".join(segments)


def ljpeg(image: NDArray[Any]) -> bytes:
    return imagecodecs.jpeg8_encode(image, lossless=True, predictor=1, bitspersample=8)


ENCODERS: dict[str, Encoder] = {
    UNCOMPRESSED_ITEMS: lambda image: image.tobytes(),
    DEFLATED_ITEMS: deflated,
    f"{ROOT}.5": lambda image: rle(image, 1),
    **{f"{ROOT}.4.{number}": lambda image: imagecodecs.jpeg8_encode(image, level=95) for number in range(50, 57)},
    f"{ROOT}.4.57": ljpeg,
    f"{ROOT}.4.70": ljpeg,
    f"{ROOT}.4.80": imagecodecs.jpegls_encode,
    f"{ROOT}.4.81": imagecodecs.jpegls_encode,
    **{
        f"{ROOT}.4.{number}": lambda image: imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k")
        for number in (90, 91)
    },
    **{f"{ROOT}.4.{number}": imagecodecs.htj2k_encode for number in (201, 202, 203)},
    f"{ROOT}.4.110": lambda image: imagecodecs.jpegxl_encode(image, lossless=True),
    f"{ROOT}.4.111": lambda image: imagecodecs.jpegxl_encode_jpeg(imagecodecs.jpeg8_encode(image, level=95)),
    f"{ROOT}.4.112": lambda image: imagecodecs.jpegxl_encode(image, lossless=True),
}


def write(
    path: Path, pixels: bytes | list[bytes], syntax: str = EXPLICIT_LITTLE, vr: str = "OW", **attributes: Any
) -> Path:
    """A file of native bytes, or of compressed frames."""
    dataset = Dataset()
    values = {"Rows": 37, "Columns": 51, "SamplesPerPixel": 1, "BitsAllocated": 8, "PixelRepresentation": 0}
    values = values | {"PhotometricInterpretation": "MONOCHROME2"} | attributes
    values.setdefault("BitsStored", values["BitsAllocated"])
    values.setdefault("HighBit", values["BitsStored"] - 1)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    encapsulated = isinstance(pixels, list)
    data = encapsulate(pixels) if isinstance(pixels, list) else pixels + b"\0" * (len(pixels) % 2)
    dataset.add_new("PixelData", "OB" if encapsulated else vr, data)
    dataset["PixelData"].is_undefined_length = encapsulated
    # pydicom writes only the syntaxes that it knows, and 3.0 not the newest: one as long stands in for it.
    written = syntax.encode() + b"\0" * (len(syntax) % 2)
    stand_in = (
        syntax if syntax in NATIVE else {22: uid.JPEGBaseline8Bit, 24: uid.HTJ2KLossless}.get(len(written), syntax)
    )
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(stand_in)
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    path.write_bytes(data.replace(stand_in.encode() + b"\0" * (len(stand_in) % 2), written, 1))
    return path


def stored(path: Path, frame: int = 0) -> NDArray[Any]:
    with open_image(path) as image:
        return np.asarray(read_stored(image, frame).values)


def reason(path: Path) -> RejectReason:
    with pytest.raises(Rejected) as caught:
        stored(path)
    return caught.value.reason


def test_the_table_is_what_decodes(tmp_path: Path) -> None:
    """Each syntax of the table decodes two frames of a picture that was encoded for it; there are no others."""
    image = picture()
    for syntax, encode in ENCODERS.items():
        path = write(tmp_path / "x", [encode(image), encode(image[::-1].copy())], syntax, NumberOfFrames=2)
        lossy = syntax[18:] in {f"4.{number}" for number in (*range(50, 57), 111)}
        for frame, expected in enumerate((image, image[::-1])):
            worst = np.abs(stored(path, frame).astype(int) - expected).max()
            assert worst <= (DCT_TOLERANCE if lossy else 0), syntax
    decoded = {row[0] for row in decoders() if row[3]}
    assert decoded == {*ENCODERS, *NATIVE} == {*CODEC_BY_SYNTAX, *NATIVE}


def test_every_image_syntax_of_the_standard_is_in_the_table() -> None:
    listed = {row[0] for row in decoders()}
    known = {str(key) for key, entry in uid.UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    without_images = {f"{ROOT}.6.1", f"{ROOT}.6.2", "1.2.840.10008.1.20"}  # MIME, XML, Papyrus 3
    assert known - listed == without_images
    assert not {*UNDECODED} & {*CODEC_BY_SYNTAX}


@pytest.mark.parametrize("syntax", UNDECODED)
def test_undecoded_syntaxes_say_why(tmp_path: Path, syntax: str) -> None:
    path = write(tmp_path / "x", [b"\0" * 100], syntax)
    with pytest.raises(Rejected) as caught:
        stored(path)
    assert caught.value.reason is RejectReason.UNSUPPORTED_SYNTAX
    assert UNDECODED[syntax] in caught.value.detail


@given(
    bits=st.integers(1, 32),
    samples=st.sampled_from([1, 3]),
    frames=st.integers(1, 3),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_any_number_of_bits_allocated(tmp_path_factory: Any, seed: int, **shape: Any) -> None:
    """Pixels follow one another bit by bit, the least significant first (PS3.5 8.1.1), frames too."""
    bits, frames, signed = shape["bits"], shape["frames"], shape["signed"] and shape["bits"] > 1
    samples = 1 if bits % 8 else shape["samples"]
    size = (frames, shape["rows"], shape["columns"], *([3] if samples == 3 else []))
    values = np.random.default_rng(seed).integers(0, 1 << bits, size)
    single = (values.ravel()[:, None] >> np.arange(bits)) & 1
    packed = np.packbits(single.astype(np.uint8).ravel(), bitorder="little").tobytes()
    path = write(
        tmp_path_factory.mktemp("bits") / "x",
        packed,
        Rows=shape["rows"],
        Columns=shape["columns"],
        NumberOfFrames=frames,
        BitsAllocated=bits,
        SamplesPerPixel=samples,
        PixelRepresentation=int(signed),
        PhotometricInterpretation="RGB" if samples == 3 else "MONOCHROME2",
        PlanarConfiguration=0,
    )
    expected = values - (values >> (bits - 1) << bits) if signed else values
    for frame in range(frames):
        np.testing.assert_array_equal(stored(path, frame), expected[frame])


@pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="dcmtk's dcm2pnm is not installed")
def test_packed_12_bits_as_dcmtk_reads_them(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 4096, (6, 10))
    single = ((values.ravel()[:, None] >> np.arange(12)) & 1).astype(np.uint8)
    packed = np.packbits(single.ravel(), bitorder="little").tobytes()
    attributes = {"Rows": 6, "Columns": 10, "BitsAllocated": 12, "PixelRepresentation": 0}
    path = write(tmp_path / "x", packed, **attributes)
    shown = subprocess.run(["dcm2pnm", "+opn", "16", str(path)], check=True, capture_output=True).stdout.split()[-60:]
    np.testing.assert_array_equal(stored(path), values)
    np.testing.assert_array_equal(np.array(shown, int).reshape(6, 10) // 16, values)  # it shows 12 bits over 16


@pytest.mark.parametrize("sample_bytes", [1, 2, 3, 4])
@pytest.mark.parametrize("colour", [False, True])
def test_rle_of_each_width(tmp_path: Path, sample_bytes: int, colour: bool) -> None:
    shape = (7, 9, 3) if colour else (7, 9)
    values = np.random.default_rng(2).integers(0, 1 << (8 * sample_bytes), shape)
    path = write(
        tmp_path / "x",
        [rle(values, sample_bytes)],
        f"{ROOT}.5",
        Rows=7,
        Columns=9,
        BitsAllocated=8 * sample_bytes,
        SamplesPerPixel=3 if colour else 1,
        PhotometricInterpretation="RGB" if colour else "MONOCHROME2",
    )
    np.testing.assert_array_equal(stored(path), values)


def test_shared_chroma_goes_to_both_pixels(tmp_path: Path) -> None:
    data = bytes([1, 2, 100, 200, 3, 4, 101, 201])  # Y1 Y2 CB CR
    for name in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": name, "PlanarConfiguration": 0}
        values = stored(write(tmp_path / "x", data, Rows=1, Columns=4, **colour))
        assert values.tolist() == [[[1, 100, 200], [2, 100, 200], [3, 101, 201], [4, 101, 201]]]
        assert reason(write(tmp_path / "x", data[:6], Rows=1, Columns=3, **colour)) is RejectReason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize("bits", [1, 12])
def test_items_of_single_frames_begin_with_a_byte(tmp_path: Path, bits: int) -> None:
    frames = np.random.default_rng(5).integers(0, 1 << bits, (3, 3, 3))
    single = ((frames.reshape(3, -1, 1) >> np.arange(bits)) & 1).astype(np.uint8).reshape(3, -1)
    items = [np.packbits(frame, bitorder="little").tobytes() for frame in single]
    for syntax, made in (
        (UNCOMPRESSED_ITEMS, items),
        (DEFLATED_ITEMS, [deflated(np.frombuffer(i, "u1")) for i in items]),
    ):
        path = write(tmp_path / "x", made, syntax, Rows=3, Columns=3, BitsAllocated=bits, NumberOfFrames=3)
        for frame in range(3):
            np.testing.assert_array_equal(stored(path, frame), frames[frame])


def test_deflated_frames_that_lie(tmp_path: Path) -> None:
    whole = deflated(picture())
    bomb = deflated(np.zeros(50_000_000, np.uint8))
    for stream, expected in (
        (whole[:-3], RejectReason.TRUNCATED),
        (b"\xff" * 40, RejectReason.DECODE_FAILED),
        (bomb, RejectReason.SIZE_MISMATCH),
        (deflated(picture()[:-1]), RejectReason.SIZE_MISMATCH),
    ):
        assert reason(write(tmp_path / "x", [stream], DEFLATED_ITEMS)) is expected


def test_a_deflated_file_and_big_endian_ones_of_odd_widths(tmp_path: Path) -> None:
    values = np.arange(45) * 91
    single = ((values[:, None] >> np.arange(12)) & 1).astype(np.uint8)
    packed = np.packbits(single.ravel(), bitorder="little").tobytes()
    swapped = np.frombuffer(packed + b"\0" * (len(packed) % 2), ">u2").astype("<u2").tobytes()
    for syntax, data in ((DEFLATED, packed), (EXPLICIT_BIG, swapped)):
        path = write(tmp_path / "x", data, syntax, Rows=5, Columns=9, BitsAllocated=12)
        np.testing.assert_array_equal(stored(path).ravel(), values)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("boxes", [False, True])
def test_jpeg_xl_headers(bits: int, colour: bool, boxes: bool) -> None:
    rng = np.random.default_rng(7)
    for rows, columns in ((8, 16), (40, 40), (41, 300), (1, 1), (600, 9)):
        shape = (rows, columns, 3) if colour else (rows, columns)
        image = rng.integers(0, 1 << bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
        stream = imagecodecs.jpegxl_encode(image, lossless=True, bitspersample=bits, usecontainer=boxes)
        header = read_jpegxl(stream)
        assert (header.rows, header.columns, header.components, header.precision) == (
            rows,
            columns,
            1 + 2 * colour,
            bits,
        )
        expected = FrameFormat(rows, columns, 1 + 2 * colour, 16)
        np.testing.assert_array_equal(decode_frame(stream, f"{ROOT}.4.110", expected).samples, image)


def test_a_jpeg_within_a_jpeg_xl_has_that_jpegs_samples() -> None:
    jpeg = imagecodecs.jpeg8_encode(picture(), level=70)
    expected = FrameFormat(37, 51, 1, 8)
    samples = [
        decode_frame(stream, f"{ROOT}.4.{number}", expected).samples
        for stream, number in ((jpeg, 50), (imagecodecs.jpegxl_encode_jpeg(jpeg), 111))
    ]
    np.testing.assert_array_equal(*samples)


def test_headers_of_huge_pictures_are_rejected_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codestream says more than the file's header, or both say more than the budget."""
    for name in ("jpeg8_decode", "jpeg2k_decode", "jpegls_decode", "jpegxl_decode", "jpegxl_decode_jpeg"):
        monkeypatch.setattr(imagecodecs, name, lambda *_, **__: pytest.fail("decoded"))
    image = picture(64, 64)
    streams = {
        f"{ROOT}.4.50": imagecodecs.jpeg8_encode(image),
        f"{ROOT}.4.80": imagecodecs.jpegls_encode(image),
        f"{ROOT}.4.90": imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k"),
        f"{ROOT}.4.110": imagecodecs.jpegxl_encode(image, lossless=True),
    }
    for syntax, stream in streams.items():
        with pytest.raises(Rejected) as caught:
            decode_frame(stream, syntax, FrameFormat(63, 64, 1, 8))
        assert caught.value.reason is RejectReason.SIZE_MISMATCH
    with pytest.raises(Rejected) as caught:
        decode_frame(streams[f"{ROOT}.4.90"], f"{ROOT}.4.90", FrameFormat(60000, 60000, 1, 12))
    assert caught.value.reason is RejectReason.TOO_LARGE
    assert FrameFormat(100, 100, 1, 24).bytes == 40_000  # numpy has no container of 24 bits
    assert FrameFormat(100, 100, 1, 12).bytes == 20_000


def test_a_picture_of_too_many_tiles() -> None:
    stream = bytearray(imagecodecs.jpeg2k_encode(picture(128, 128), level=0, codecformat="j2k"))
    stream[24:32] = b"\0\0\0\1" * 2  # XTsiz, YTsiz
    assert jpeg2000_stream.MOST_TILES < 128 * 128
    with pytest.raises(Rejected) as caught:
        decode_frame(bytes(stream), f"{ROOT}.4.90", FrameFormat(128, 128, 1, 8))
    assert caught.value.reason is RejectReason.TOO_LARGE


def test_arithmetic_codes_and_hierarchies() -> None:
    stream = imagecodecs.jpeg8_encode(picture())
    for marker, name in ((0xC5, "hierarchical"), (0xCB, "lossless arithmetic")):
        changed = stream.replace(b"\xff\xc0", bytes((0xFF, marker)), 1)
        with pytest.raises(Rejected, match=name) as caught:
            decode_frame(changed, f"{ROOT}.4.50", FrameFormat(37, 51, 1, 8))
        assert caught.value.reason is RejectReason.UNSUPPORTED_PIXELS
