"""pipeline.raster: headers without decoding, and gray fractions whatever the PNG, JPEG or TIFF holds."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import Rejected, RejectReason
from pipeline.raster import read_raster, read_raster_header
from transforms.intensity import PixelUnit

GRAY = (np.arange(24 * 32).reshape(24, 32) % 256).astype(np.uint8)
COLOR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], -1)
LUMA = COLOR @ np.array([0.299, 0.587, 0.114]) / 255


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png(rows: int, columns: int, bits: int, color: int, lines: list[bytes], extra: bytes = b"") -> bytes:
    header = struct.pack(">LLBBBBB", columns, rows, bits, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(path: Path, image: Any, format_name: str, **options: Any) -> Path:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, format_name, **options)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("image", "expected", "header"),
    [
        (GRAY, GRAY / 255, (1, 8, "MONOCHROME2")),
        (GRAY.astype(np.uint16) * 200 + 7, (GRAY * 200.0 + 7) / 65535, (1, 16, "MONOCHROME2")),
        (GRAY > 99, GRAY > 99, (1, 1, "MONOCHROME2")),
        (COLOR, LUMA, (3, 8, "RGB")),
        (np.dstack([COLOR, GRAY]), LUMA, (3, 8, "RGB")),
        (np.dstack([GRAY, 255 - GRAY]), GRAY / 255, (1, 8, "MONOCHROME2")),
        (Image.fromarray(GRAY // 100).convert("P"), None, (1, 8, "PALETTE COLOR")),
    ],
    ids=["gray", "gray16", "bits", "color", "color and alpha", "gray and alpha", "palette"],
)
def test_kinds_of_pixels(path: Path, format_name: str, image: Any, expected: Any, header: tuple[int, int, str]) -> None:
    if isinstance(image, Image.Image):
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        expected = np.array([0.299, 0.587, 0.114])[GRAY // 100]
    saved(path, image, format_name)
    found = read_raster_header(path)
    assert found is not None
    assert (found["format"], found["frames"], found["rows"], found["columns"]) == (format_name.lower(), 1, 24, 32)
    assert (found["samples_per_pixel"], found["bits_allocated"], found["photometric_interpretation"]) == header
    pixels = read_raster(path)
    assert (pixels.unit, pixels.values.dtype) == (PixelUnit.FRACTION, np.float32)
    np.testing.assert_allclose(pixels.values, expected, atol=1e-5)


@pytest.mark.parametrize(("color", "samples"), [(0, 1), (2, 3), (3, 1), (4, 2), (6, 4)])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_color_mode_of_a_png_is_pillows(path: Path, bits: int, color: int, samples: int) -> None:
    if (bits < 8 and color not in (0, 3)) or (bits == 16 and color == 3):
        pytest.skip("no such PNG")
    line = bytes(8 * bits * samples // 8)
    path.write_bytes(png(2, 8, bits, color, [line] * 2, chunk(b"PLTE", bytes(6)) if color == 3 else b""))
    with Image.open(path) as image:
        expected = "LA" if (bits, color) == (16, 4) else image.mode  # there Pillow makes RGBA of it
    header = read_raster_header(path)
    assert header is not None
    assert header["color_mode"] == expected


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_color_mode_is_that_of_the_file(path: Path, format_name: str, mode: str) -> None:
    image = Image.fromarray(GRAY.astype(np.uint16)) if mode == "I;16" else Image.fromarray(COLOR).convert(mode)
    if (format_name == "JPEG" and mode not in ("L", "RGB", "CMYK")) or (format_name == "PNG" and mode == "CMYK"):
        pytest.skip("not stored in this format")
    saved(path, image, format_name)
    header = read_raster_header(path)
    assert header is not None
    assert header["color_mode"] == mode


@pytest.mark.parametrize(("bits", "line"), [(1, b"\xb2"), (2, b"\x1b\xe4"), (4, b"\x01\x23\x4f\xf0")])
def test_few_bits_go_over_their_own_range(path: Path, bits: int, line: bytes) -> None:
    path.write_bytes(png(2, 8, bits, 0, [line] * 2))
    codes = np.unpackbits(np.frombuffer(line, np.uint8)).reshape(8, bits) @ (1 << np.arange(bits)[::-1])
    np.testing.assert_allclose(read_raster(path).values[0], codes / (2**bits - 1), atol=1e-6)


def test_16_bit_color_keeps_its_bits_and_gamma_changes_nothing(path: Path) -> None:
    line = struct.pack(">6H", 1, 0, 0, 65535, 65535, 65535)
    path.write_bytes(png(1, 2, 16, 2, [line], chunk(b"gAMA", struct.pack(">L", 100000))))
    np.testing.assert_allclose(read_raster(path).values, [[0.299 / 65535, 1.0]], rtol=1e-4)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colour_where_it_is_asked_for(path: Path, format_name: str, alpha: bool) -> None:
    if format_name == "JPEG" and alpha:
        pytest.skip("JPEG has no alpha")
    flat = np.broadcast_to(np.array([200, 30, 90], np.uint8), (24, 32, 3)) if format_name == "JPEG" else COLOR
    saved(path, np.dstack([flat, GRAY]) if alpha else flat, format_name)
    pixels = read_raster(path, color=True)
    assert (pixels.values.shape, pixels.values.dtype, pixels.unit) == ((24, 32, 3), np.float32, PixelUnit.FRACTION)
    # JPEG: what one rounding to whole samples in YBR makes, at any quality
    np.testing.assert_allclose(pixels.values, flat / 255, atol=0.02 if format_name == "JPEG" else 1e-6)
    np.testing.assert_allclose(pixels.values @ [0.299, 0.587, 0.114], read_raster(path).values, atol=1e-6)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_gray_stays_gray_and_a_palette_is_colour(path: Path, format_name: str) -> None:
    for image in (GRAY, np.dstack([GRAY, 255 - GRAY]), GRAY > 99, GRAY.astype(np.uint16) * 200):
        saved(path, image, format_name)
        np.testing.assert_array_equal(read_raster(path, color=True).values, read_raster(path).values)
    indexed = Image.fromarray(GRAY // 100).convert("P")
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    saved(path, indexed, format_name)
    np.testing.assert_array_equal(read_raster(path, color=True).values, np.eye(3)[GRAY // 100])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_16_bit_colour_of_a_tiff_keeps_its_bits(path: Path, order: str, planes: int, orientation: int) -> None:
    """Pillow makes 8 bits of it, and of planes another picture."""
    deep = (COLOR.astype(np.uint16) * 257) ^ 3
    path.write_bytes(tiff16(deep, order, planes, orientation))
    upright = {1: deep, 3: deep[::-1, ::-1], 6: np.rot90(deep, -1)}[orientation]
    header, pixels = read_raster_header(path), read_raster(path, color=True)
    assert header is not None
    assert (header["samples_per_pixel"], header["bits_allocated"]) == (3, 16)
    assert (header["rows"], header["columns"]) == pixels.values.shape[:2]
    np.testing.assert_allclose(pixels.values, upright / 65535, atol=1e-7)
    np.testing.assert_allclose(read_raster(path).values, upright @ [0.299, 0.587, 0.114] / 65535, atol=1e-6)


def tiff16(image: np.ndarray, order: str, planes: int, orientation: int) -> bytes:
    """An uncompressed TIFF of (rows, columns, 3) 16-bit values, one strip, or one a colour (`planes` 2)."""
    data = (np.moveaxis(image, -1, 0) if planes == 2 else image).astype(f"{order}u2").tobytes()
    strips = 3 if planes == 2 else 1
    rows, columns = image.shape[:2]
    tags = [(256, 4, [columns]), (257, 4, [rows]), (258, 3, [16, 16, 16]), (259, 3, [1]), (262, 3, [2])]
    tags += [(273, 4, [len(data) // strips * number for number in range(strips)]), (274, 3, [orientation])]
    tags += [(277, 3, [3]), (278, 4, [rows]), (279, 4, [len(data) // strips] * strips), (284, 3, [planes])]
    extra_at = 8 + 2 + 12 * len(tags) + 4
    extra_size = sum(len(values) * (4 if kind == 4 else 2) for _, kind, values in tags if len(values) * kind > 4)
    entries, extra = b"", b""
    for tag, kind, values in tags:
        shifted = [value + extra_at + extra_size for value in values] if tag == 273 else values
        packed = struct.pack(f"{order}{len(values)}{'I' if kind == 4 else 'H'}", *shifted)
        inline = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", extra_at + len(extra))
        extra += b"" if len(packed) <= 4 else packed
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + inline
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + extra + data


def test_transparent_color_is_a_color(path: Path) -> None:
    path.write_bytes(png(1, 2, 8, 0, [b"\x05\xff"], chunk(b"tRNS", b"\0\x05")))
    np.testing.assert_allclose(read_raster(path).values, [[5 / 255, 1.0]], atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "TIFF"])
def test_orientation_is_applied(path: Path, orientation: int, format_name: str) -> None:
    steps = np.kron(np.array([[0, 80, 160], [40, 120, 250]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = (
        {"exif": exif, "quality": 95} if format_name == "JPEG" else {"tiffinfo": {274: orientation}}
    )
    saved(path, steps, format_name, **options)
    upright = {1: steps, 2: steps[:, ::-1], 3: steps[::-1, ::-1], 4: steps[::-1], 5: steps.T}
    upright |= {6: steps.T[:, ::-1], 7: steps[::-1, ::-1].T, 8: steps.T[::-1]}
    values, header = read_raster(path).values, read_raster_header(path)
    assert header is not None
    assert (header["rows"], header["columns"]) == values.shape
    np.testing.assert_allclose(values, upright[orientation] / 255, atol=0.02)


def test_jpeg_gray_and_color(path: Path) -> None:
    smooth = np.asarray(Image.fromarray(COLOR[:4, :4]).resize((32, 24)))
    np.testing.assert_allclose(
        read_raster(saved(path, smooth[..., 0], "JPEG", quality=98)).values, smooth[..., 0] / 255, atol=0.02
    )
    expected = smooth @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(read_raster(saved(path, smooth, "JPEG", quality=98)).values, expected, atol=0.03)
    header = read_raster_header(path)
    assert header is not None
    assert (header["format"], header["samples_per_pixel"], header["photometric_interpretation"]) == ("jpeg", 3, "RGB")


def test_pages_of_a_tiff(path: Path) -> None:
    pages = [Image.fromarray(GRAY // (1 + number)) for number in range(3)]
    saved(path, pages[0], "TIFF", save_all=True, append_images=pages[1:])
    header = read_raster_header(path)
    assert header is not None
    assert header["frames"] == 3
    for number in range(3):
        np.testing.assert_allclose(read_raster(path, number).values, (GRAY // (1 + number)) / 255, atol=1e-6)
    with pytest.raises(ValueError, match="frames 0 to 2"):
        read_raster(path, 3)


@pytest.mark.parametrize("other", [GRAY[:12], COLOR], ids=["size", "kind"])
def test_pages_of_a_tiff_are_alike_or_refused(path: Path, other: Any) -> None:
    saved(path, GRAY, "TIFF", save_all=True, append_images=[Image.fromarray(other)])
    with pytest.raises(Rejected) as caught:
        read_raster_header(path)
    assert caught.value.reason is RejectReason.UNSUPPORTED_PIXELS


def test_whatever_pillow_raises_is_a_reason(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(path, GRAY, "JPEG")
    for error in (AssertionError, ZeroDivisionError, NotImplementedError, RecursionError):
        monkeypatch.setattr(Image.Image, "getexif", lambda _, raised=error: (_ for _ in ()).throw(raised("Doe^Jane")))
        with pytest.raises(Rejected) as caught:
            read_raster_header(path)
        assert caught.value.reason is RejectReason.MALFORMED
        assert "Doe" not in str(caught.value)


def test_float_tiff_has_no_range(path: Path) -> None:
    with pytest.raises(Rejected) as caught:
        read_raster(saved(path, GRAY.astype(np.float32), "TIFF"))
    assert caught.value.reason is RejectReason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "TIFF"])
def test_file_that_is_cut_anywhere_is_rejected(path: Path, tmp_path: Path, format_name: str) -> None:
    data = saved(path, COLOR, format_name).read_bytes()
    cut = tmp_path / "cut"
    for end in {*range(9, len(data), 101), len(data) - 1, len(data) - 2}:
        cut.write_bytes(data[:end])
        if format_name == "TIFF" and end >= len(data) - 2:
            continue  # Pillow writes the directory, which may end with unused bytes, behind the pixels
        with pytest.raises(Rejected):
            read_raster_header(cut)
        with pytest.raises(Rejected):
            read_raster(cut)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_what_follows_the_end_does_no_harm(path: Path, format_name: str) -> None:
    saved(path, GRAY, format_name)
    before = read_raster(path).values
    path.write_bytes(path.read_bytes() + b"appended by a camera" * 9)
    np.testing.assert_array_equal(read_raster(path).values, before)


def test_bombs_are_refused_without_decoding(path: Path) -> None:
    path.write_bytes(png(60000, 60000, 8, 6, [b""]))
    with pytest.raises(Rejected) as caught:
        read_raster_header(path)
    assert caught.value.reason is RejectReason.TOO_LARGE
    data = bytearray(saved(path, GRAY, "JPEG").read_bytes())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 60000, 60000)
    path.write_bytes(data)
    with pytest.raises(Rejected) as caught:
        read_raster(path)
    assert caught.value.reason is RejectReason.TOO_LARGE


def test_other_files_are_none_of_these(path: Path) -> None:
    path.write_text("no image at all")
    assert read_raster_header(path) is None
    with pytest.raises(Rejected) as caught:
        read_raster(path)
    assert caught.value.reason is RejectReason.NOT_AN_IMAGE


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_damage_raises_nothing_but_rejected(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = tmp_path_factory.mktemp("damage") / "image"
    content = bytearray(saved(file, COLOR, data.draw(st.sampled_from(["PNG", "JPEG", "TIFF"]))).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    with contextlib.suppress(Rejected):
        read_raster(file)


def test_header_needs_no_torch(path: Path) -> None:
    saved(path, GRAY, "PNG")
    code = f"import sys; from pathlib import Path; from pipeline.raster import read_raster_header as h; h(Path({str(path)!r}))"
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", f"{code}; assert not {{'torch', 'monai'}} & set(sys.modules)"], check=True, cwd=root
    )


@pytest.mark.real_data
@pytest.mark.skipif("RADLOOP_DATA" not in os.environ, reason="RADLOOP_DATA is not set")
def test_real_files_and_their_alpha_channel() -> None:
    root = Path(os.environ["RADLOOP_DATA"])
    files = (
        sorted((root / "ct_slices_png").rglob("*.png"))[::40] + sorted((root / "chest_xray" / "images").iterdir())[::15]
    )
    assert len(files) > 30
    kinds = set()
    for file in files:
        header = read_raster_header(file)
        assert header is not None
        kinds.add((header["format"], header["samples_per_pixel"]))
        expected = np.asarray(Image.open(file).convert("RGB"), np.float32) @ np.array([0.299, 0.587, 0.114]) / 255
        np.testing.assert_allclose(read_raster(file).values, expected, atol=1e-5)
    assert {kind for kind in kinds if kind[0] == "png"} == {("png", 3)}
