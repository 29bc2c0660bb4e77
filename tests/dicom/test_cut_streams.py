"""A compressed stream of which something is missing is an error with its reason, or harmless: never other pixels."""

from __future__ import annotations

import io
import random
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from pipeline.dicom import jpeg_whole
from pipeline.dicom.codecs import FrameFormat, Samples, decode_frame
from pipeline.dicom.codestream import Codec
from pipeline.dicom.encapsulation import read_range
from pipeline.dicom.frames import open_image, read_stored
from pipeline.dicom.jpeg_stream import read_jpeg
from pipeline.dicom.syntaxes import CODEC_BY_SYNTAX
from pipeline.errors import Rejected, RejectReason

BROKEN = (RejectReason.TRUNCATED, RejectReason.DECODE_FAILED, RejectReason.SIZE_MISMATCH, RejectReason.MALFORMED)
CUTS = (1, 2, 3, 7, 20, 300)
"""Bytes before the end; further places are drawn."""
DRAWN_CUTS = 5
PADDING = b"\0\xff"
UNFELT_PIXELS = 1
"""CharLS fills up the last code word of a JPEG-LS with zeros: cut there and given a new end marker, its last pixel may differ
(58 of 2,100 cuts of the last 7 bytes of noise; none of the real files here)."""


def same_or_rejected(frame: bytes, syntax: str, expected: FrameFormat, whole: Samples) -> str:
    try:
        decoded = decode_frame(frame, syntax, expected).samples
    except Rejected as rejected:
        return str(rejected.reason)
    if np.array_equal(decoded, whole):
        return "same"
    jpeg_ls = CODEC_BY_SYNTAX[syntax] is Codec.JPEG_LS
    last = decoded.shape == whole.shape and np.array_equal(
        decoded.ravel()[:-UNFELT_PIXELS], whole.ravel()[:-UNFELT_PIXELS]
    )
    return "last pixel" if jpeg_ls and last else "other pixels"


def encapsulated_files(root: Path) -> Iterator[tuple[Path, str, FrameFormat, bytes, Samples]]:
    """Path, syntax, format, first frame and its samples of each real file that is compressed."""
    for path in sorted(path for path in (root / "dicom").rglob("*") if path.is_file()):
        try:
            with open_image(path) as image:
                if image.fragments is None:
                    continue
                frame = b"".join(read_range(image.window, part) for part in image.fragments[0])
                yield (
                    path,
                    image.transfer_syntax_uid,
                    image.format,
                    frame,
                    decode_frame(frame, image.transfer_syntax_uid, image.format).samples,
                )
        except Rejected:
            continue


@pytest.mark.real_data
def test_real_frames_that_are_cut_anywhere(real_data: Path) -> None:
    rng = random.Random(4)
    found: Counter[tuple[str, str]] = Counter()
    for path, syntax, expected, frame, whole in encapsulated_files(real_data):
        rle = CODEC_BY_SYNTAX[syntax] is Codec.RLE  # it has no end marker to be added again
        body = frame if rle else frame.rstrip(PADDING).removesuffix(b"\xff\xd9")
        ends = [len(body) - cut for cut in CUTS] + [
            rng.randrange(len(body) // 20, len(body)) for _ in range(DRAWN_CUTS)
        ]
        for end in ends:
            for cut in (body[: max(end, 0)], body[: max(end, 0)] + frame[len(body) :]):
                outcome = same_or_rejected(cut, syntax, expected, whole)
                assert outcome != "other pixels", (path.name, end - len(body))
                found[syntax, outcome] += 1
    assert len({syntax for syntax, _ in found}) == 11
    assert found.total() > 1000
    assert sum(count for (_, outcome), count in found.items() if outcome == "same") < 10  # padding alone


@pytest.mark.real_data
def test_real_files_whose_fragments_lie(real_data: Path, tmp_path: Path) -> None:
    """Item lengths too short, too long, odd; a fragment missing; two swapped; no delimiter; the file cut.

    Two fragments swapped within the code-blocks of JPEG 2000 are like flipped bits: lengths are right, and there is no checksum.
    In other codecs the data then end too early or too late, but for rare accidents.
    """
    swaps: Counter[bool] = Counter()
    broken, count = tmp_path / "broken", 0
    for path, syntax, *_ in encapsulated_files(real_data):
        data = path.read_bytes()
        with open_image(path) as image:
            whole, fragments = read_stored(image, 0).values, image.fragments
        assert fragments is not None
        for done, changed in fragment_lies(data, fragments[0]):
            broken.write_bytes(changed)
            count += 1
            outcome = outcome_of(broken, np.asarray(whole))
            assert outcome in ("same", *BROKEN) or done == "swapped", (path.name, done, outcome)
            swaps[CODEC_BY_SYNTAX[syntax] is Codec.JPEG_2000] += outcome not in ("same", *BROKEN)
    assert swaps[False] <= 3
    assert count > 500


def outcome_of(path: Path, whole: Samples) -> str:
    try:
        with open_image(path) as image:
            return "same" if np.array_equal(read_stored(image, 0).values, whole) else "other pixels"
    except Rejected as rejected:
        return rejected.reason


def fragment_lies(data: bytes, parts: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, bytes]]:
    """(what is wrong, the file) for the fragments (offset, length) of its first frame."""
    (offset, length), (last, last_length) = parts[0], parts[-1]
    for change in (-2, -1, 1, 2, 8, -length // 2):
        written = struct.pack("<L", max(length + change, 0))
        yield f"length {change:+}", data[: offset - 4] + written + data[offset:]
    yield (
        "half of a fragment",
        (
            data[: offset - 4]
            + struct.pack("<L", length // 4 * 2)
            + data[offset : offset + length // 4 * 2]
            + data[offset + length :]
        ),
    )
    yield "no delimiter", data[: last + last_length]
    yield "cut", data[: last + last_length // 2]
    yield "missing", data[: offset - 8] + data[offset + length :]
    if len(parts) > 2:
        items = [data[start - 8 : start + size] for start, size in parts]
        items[1], items[2] = items[2], items[1]
        yield "swapped", data[: offset - 8] + b"".join(items) + data[last + last_length :]
        del items[1]
        yield "one of several missing", data[: offset - 8] + b"".join(items) + data[last + last_length :]


def picture(rows: int = 61, columns: int = 83) -> Samples:
    noise = np.random.default_rng(1).integers(0, 40, (rows, columns))
    return (np.arange(rows)[:, None] * 2 + np.arange(columns)[None] + noise).astype(np.uint8)


def with_restarts(image: Samples) -> bytes:
    """A baseline JPEG of one scan a row of blocks, put together with restart markers between the rows (B.2.4.4)."""
    rows = [imagecodecs.jpeg8_encode(image[top : top + 8], level=90) for top in range(0, len(image), 8)]
    scans = [read_jpeg(row).scans[0] for row in rows]
    head = bytearray(rows[0][: scans[0].start])
    at = read_jpeg(rows[0]).rows_at
    head[at : at + 2] = struct.pack(">H", len(image))
    start_of_scan = head.rindex(b"\xff\xda")
    interval = b"\xff\xdd\0\x04" + struct.pack(">H", -(-image.shape[1] // 8))
    data = [row[scan.start : scan.end] for row, scan in zip(rows, scans, strict=True)]
    marked = b"".join(part + bytes((0xFF, 0xD0 + n % 8)) for n, part in enumerate(data[:-1])) + data[-1]
    return bytes(head[:start_of_scan]) + interval + bytes(head[start_of_scan:]) + marked + b"\xff\xd9"


def progressive(image: Samples, quality: int) -> bytes:
    """By libjpeg's usual script, in which the DC coefficients get their last bit in a scan of its own."""
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=quality, progressive=True, subsampling=0)
    return written.getvalue()


JPEGS = {
    "baseline": imagecodecs.jpeg8_encode(picture(), level=90),
    "optimal codes": imagecodecs.jpeg8_encode(picture(), level=40, optimize=True),
    "one block wide": imagecodecs.jpeg8_encode(picture(40, 8), level=90),
    "12 bits": imagecodecs.jpeg8_encode(picture().astype(np.uint16) * 15, level=90, bitspersample=12),
    "lossless": imagecodecs.jpeg8_encode(picture(), lossless=True, predictor=1, bitspersample=8),
    "mid-grey": imagecodecs.jpeg8_encode(np.full((61, 83), 128, np.uint8), level=90),
    "lossless mid-grey": imagecodecs.jpeg8_encode(np.full((61, 83), 128, np.uint8), lossless=True, bitspersample=8),
    "progressive": progressive(picture(), 50),
    "restarts": with_restarts(picture()),
    **{
        f"colour {form}": imagecodecs.jpeg8_encode(
            np.stack([picture(), picture()[::-1], 255 - picture()], axis=-1), level=90, subsampling=form
        )
        for form in ("444", "422", "420", "440")
    },
}


def plainly(stream: bytes) -> Samples:
    """What libjpeg makes of it, components as coded."""
    space = imagecodecs.JPEG8.CS.RGB if read_jpeg(stream).header.components == 3 else None
    return imagecodecs.jpeg8_decode(stream, colorspace=space, outcolorspace=space)


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_cut_at_each_of_its_last_bytes_with_a_new_end_marker(kind: str) -> None:
    stream = JPEGS[kind]
    whole = plainly(stream)
    expected = FrameFormat(whole.shape[0], whole.shape[1], whole.shape[2] if whole.ndim == 3 else 1, 16)
    assert same_or_rejected(stream, uid.JPEGBaseline8Bit, expected, whole) == "same"
    scan = read_jpeg(stream).scans[0]
    outcomes: Counter[str] = Counter()
    for end in [*range(max(scan.start, scan.end - 60), scan.end), *range(scan.start, scan.end, 41)]:
        outcomes[same_or_rejected(stream[:end] + b"\xff\xd9", uid.JPEGBaseline8Bit, expected, whole)] += 1
    assert outcomes["other pixels"] == 0
    assert outcomes["truncated"] > 0 or "mid-grey" in kind  # what libjpeg makes up is mid-grey
    assert outcomes["same"] <= 1 or "mid-grey" in kind


@pytest.mark.parametrize("kind", [kind for kind in JPEGS if "mid-grey" not in kind and kind != "restarts"])
def test_a_jpeg_with_more_data_than_its_picture(kind: str) -> None:
    stream = JPEGS[kind]
    scan, header = read_jpeg(stream).scans[0], read_jpeg(stream).header
    more = stream[scan.start : scan.end] + stream[scan.start :]  # another whole picture behind it
    with pytest.raises(Rejected) as caught:
        decode_frame(
            stream[: scan.start] + more,
            uid.JPEGBaseline8Bit,
            FrameFormat(header.rows, header.columns, header.components, 16),
        )
    assert caught.value.reason is RejectReason.DECODE_FAILED


@pytest.mark.parametrize("kind", JPEGS)
def test_fill_bytes_before_a_marker_are_no_data(kind: str) -> None:
    stream, whole = JPEGS[kind], plainly(JPEGS[kind])
    expected = FrameFormat(whole.shape[0], whole.shape[1], whole.shape[2] if whole.ndim == 3 else 1, 16)
    filled = stream[:-2] + b"\xff\xff" + stream[-2:]
    assert same_or_rejected(filled, uid.JPEGBaseline8Bit, expected, whole) == "same"


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("colour", [False, True])
def test_padding_after_the_last_bits_of_a_progressive_jpeg_is_no_data(quality: int, colour: bool) -> None:
    """A bit of it for each of up to 7 blocks: at quality 90 or more their quantized light is too little to be seen."""
    for rows, columns in [*((8 * n, 8 * n + 3) for n in range(1, 9)), (70, 5), (5, 70)]:
        image = picture(rows, columns)
        stream = progressive(
            np.stack([image, image.T.reshape(image.shape), 255 - image], -1) if colour else image, quality
        )
        whole, expected = plainly(stream), FrameFormat(rows, columns, 3 if colour else 1, 8)
        assert same_or_rejected(stream, uid.JPEGBaseline8Bit, expected, whole) == "same", (rows, columns)


def test_restart_intervals_that_lack_data_or_a_marker() -> None:
    stream, whole = JPEGS["restarts"], plainly(JPEGS["restarts"])
    third = stream.index(b"\xff\xd2")
    for broken in (stream[: third - 9] + stream[third:], stream[:third] + stream[third + 2 :]):
        assert same_or_rejected(broken, uid.JPEGBaseline8Bit, FrameFormat(61, 83, 1, 8), whole) == "truncated"


def test_the_check_costs_a_row_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary frame is decoded once."""
    decoded: list[int] = []
    real = jpeg_whole._decode

    def counted(frame: bytes, *given: object, **options: object) -> Samples:
        samples = real(frame, *given, **options)  # type: ignore[arg-type]
        decoded.append(len(samples))
        return samples

    monkeypatch.setattr(jpeg_whole, "_decode", counted)
    for kind, rows in (("baseline", 72), ("12 bits", 72), ("lossless", 63), ("colour 422", 72)):
        decoded.clear()
        jpeg_whole.decode_jpeg(JPEGS[kind], read_jpeg(JPEGS[kind]))
        assert decoded == [rows]


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        (uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode(picture(), level=0, codecformat="j2k")),
        (uid.JPEG2000, imagecodecs.jpeg2k_encode(picture(), level=40, codecformat="jp2")),
        (uid.HTJ2KLossless, imagecodecs.htj2k_encode(picture())),
        ("1.2.840.10008.1.2.4.110", imagecodecs.jpegxl_encode(picture(), lossless=True)),
        ("1.2.840.10008.1.2.4.111", imagecodecs.jpegxl_encode_jpeg(JPEGS["baseline"])),
        (uid.JPEGLSLossless, imagecodecs.jpegls_encode(picture())),
    ],
    ids=["JPEG 2000", "JP2", "HTJ2K", "JPEG XL", "JPEG XL of a JPEG", "JPEG-LS"],
)
def test_other_codecs_cut_with_and_without_a_new_end_marker(syntax: str, stream: bytes) -> None:
    expected = FrameFormat(61, 83, 1, 8)
    whole = decode_frame(stream, syntax, expected).samples
    end = stream.rstrip(PADDING).removesuffix(b"\xff\xd9")
    for cut in [*range(1, 40), *range(40, len(end) - 1, 67)]:
        for made in (end[:-cut], end[:-cut] + b"\xff\xd9", stream[:-cut]):
            assert same_or_rejected(made, syntax, expected, whole) in ("same", "last pixel", *BROKEN)
