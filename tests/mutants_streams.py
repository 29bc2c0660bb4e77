"""What `mutants` does to compressed streams, and to PNG, JPEG and TIFF files: lies in their headers, and ends that are missing."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache

Mutant = tuple[str, bytes]
"""(what was done, broken bytes)"""

UNDEFINED = 0xFFFFFFFF
REPEATED_BYTES = 2**15
BOMB_BYTES = 2**26
"""What a bomb inflates to: enough to be seen in a process's memory, and little for a test machine."""


# --- Damage to compressed streams


def codestream_lie(stream: bytes, rng: random.Random) -> Mutant | None:
    """A JPEG, JPEG-LS, JPEG 2000 or RLE stream whose header lies, or that lacks its end."""
    if rng.random() < 0.15:
        end = rng.choice((len(stream) - 2, len(stream) - 4, len(stream) // 2))
        return "codestream without its end", stream[: max(0, end)]
    if rng.random() < 0.15 and stream[:2] == b"\xff\xd8":
        return "codestream cut, with an end marker", stream[: rng.randrange(2, len(stream))] + b"\xff\xd9"
    if stream.startswith(b"\xff\x4f\xff\x51"):
        return _jpeg2000_lie(stream, rng)
    if stream.startswith(b"\xff\xd8"):
        return _jpeg_lie(stream, rng)
    if len(stream) >= 64 and struct.unpack_from("<L", stream)[0] <= 15:
        return _rle_lie(stream, rng)
    return None


def _jpeg_lie(stream: bytes, rng: random.Random) -> Mutant | None:
    """A field of SOF, of a table (DHT, DQT, DRI, LSE) or of the scan's header (SOS)."""
    segments = list(_jpeg_segments(stream))
    frames = [start for marker, start in segments if marker in (*range(0xC0, 0xC4), *range(0xC5, 0xC8), 0xF7)]
    changed = bytearray(stream)
    choice = rng.choice(("size", "size", "field", "process", "table"))
    if choice == "size" and frames:
        at, size = frames[0] + rng.choice((5, 7)), rng.choice((0, 1, 7, 4096, 20000, 65535))
        changed[at : at + 2] = struct.pack(">H", size)
        return f"SOF says {size}", bytes(changed)
    if choice == "field" and frames:
        at = frames[0] + rng.choice((2, 3, 4, 9, 10, 11, 12))
        changed[at] = rng.choice((0, 1, 2, 3, 4, 8, 12, 16, 0x22, 0x44, 255))
        return f"SOF byte {at - frames[0]} is {changed[at]}", bytes(changed)
    if choice == "process" and frames:
        changed[frames[0] + 1] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xF7))
        return f"SOF marker {changed[frames[0] + 1]:X}", bytes(changed)
    if not segments:
        return None
    marker, start = rng.choice(segments)
    at = min(start + rng.randrange(2, 24), len(stream) - 1)
    changed[at] = rng.choice((0, 1, 0xFF, changed[at] ^ 1 << rng.randrange(8)))
    return f"segment {marker:X}, byte {at - start}", bytes(changed)


def _jpeg_segments(stream: bytes) -> Iterator[tuple[int, int]]:
    """(marker, offset of its FF) up to the first scan's header."""
    position = 2
    while position + 4 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        yield marker, position
        if marker == 0xDA:
            return
        position += 2 + int(struct.unpack_from(">H", stream, position + 2)[0])


def _jpeg2000_lie(stream: bytes, rng: random.Random) -> Mutant:
    """A field of SIZ (ISO 15444-1 A.5.1), of COD, QCD or SOT, or a byte of the main header."""
    changed = bytearray(stream)
    choice = rng.choice(("size", "size", "components", "depth", "segment"))
    if choice == "size":
        at, size = 8 + 4 * rng.randrange(8), rng.choice((0, 1, 2, 33, 4096, 0x7FFFFFFF, UNDEFINED))
        changed[at : at + 4] = struct.pack(">L", size)
        return f"SIZ byte {at} says {size:X}", bytes(changed)
    if choice == "components":
        changed[40:42] = struct.pack(">H", rng.choice((0, 2, 3, 4, 257, 16384, 65535)))
        return "SIZ says other components", bytes(changed)
    if choice == "depth":
        at = 42 + rng.randrange(3)
        changed[at] = rng.choice((0, 1, 2, 7, 15, 31, 37, 38, 127, 255))
        return f"SIZ byte {at} is {changed[at]}", bytes(changed)
    name, marker = rng.choice((("COD", b"\xff\x52"), ("QCD", b"\xff\x5c"), ("SOT", b"\xff\x90"), ("CAP", b"\xff\x50")))
    start = max(0, stream.find(marker))
    at = min(start + rng.randrange(2, 16), len(stream) - 1)
    changed[at] = rng.choice((0, 1, 2, 32, 0xFF, changed[at] ^ 1 << rng.randrange(8)))
    return f"{name} byte {at - start}", bytes(changed)


def _rle_lie(stream: bytes, rng: random.Random) -> Mutant:
    """The number of segments, an offset (PS3.5 G.5), or the runs."""
    changed = bytearray(stream)
    at = 4 * rng.choice((0, 1, 2, 3, 15))
    lie = rng.choice((0, 1, 2, 3, 15, 16, 63, 64, 65, len(stream), len(stream) + 2, 0x7FFFFFFF, UNDEFINED))
    if rng.random() < 0.3:
        start = rng.randrange(64, len(stream))
        changed[start:] = rng.choice((b"\x81\xff", b"\x7f", b"\x80", b"\xff\0")) * ((len(stream) - start) // 2)
        return f"RLE runs from {start}", bytes(changed)
    changed[at : at + 4] = struct.pack("<L", lie)
    return f"RLE word {at // 4} is {lie:X}", bytes(changed)


# --- Damage to PNG, JPEG and TIFF files


@lru_cache
def _zlib_bomb() -> bytes:
    return zlib.compress(bytes(BOMB_BYTES))


def _png_chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """(kind, offset of the chunk, offset behind it)"""
    found, position = [], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, position)
        found.append((kind, position, position + 12 + length))
        position += 12 + length
    return found


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def _png_header(data: bytes, rng: random.Random) -> Mutant:
    """A field of IHDR, with the check sum that fits it."""
    body = bytearray(data[16:29])
    at = rng.choice((0, 4, 8, 9, 10, 11, 12))
    if at < 8:
        body[at : at + 4] = struct.pack(">L", rng.choice((0, 1, 31, 65535, 10**6, 2**31 - 1, 2**32 - 1)))
    else:
        body[at] = rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 16, 255))
    return f"IHDR byte {at}", data[:8] + png_chunk(b"IHDR", bytes(body)) + data[33:]


def _png_chunk(data: bytes, rng: random.Random) -> Mutant:
    """A chunk removed, twice, of another length or kind, with the wrong check sum, or a bomb in its place."""
    kind, start, end = rng.choice(_png_chunks(data)[1:])
    chunk = data[start:end]
    bomb = _zlib_bomb()
    made = {
        "removed": b"",
        "twice": chunk * 2,
        "many times": chunk * (REPEATED_BYTES // len(chunk)),
        "of huge length": b"\x7f\xff\xff\xff" + chunk[4:],
        "of length + 1": struct.pack(">L", min(2**32 - 1, len(chunk) - 11)) + chunk[4:],
        "with a wrong check sum": chunk[:-1] + bytes([chunk[-1] ^ 1]),
        "of another kind": chunk[:4] + rng.choice((b"IDAT", b"tRNS", b"PLTE", b"acTL", b"IHDR", b"zTXt")) + chunk[8:],
        "a bomb": png_chunk(b"IDAT", bomb),
        "behind a text bomb": png_chunk(b"zTXt", b"a\0\0" + bomb) + chunk,
        "behind a profile bomb": png_chunk(b"iCCP", b"a\0\0" + bomb) + chunk,
    }
    what = rng.choice(tuple(made))
    return f"{kind.decode('latin1')} {what}", data[:start] + made[what] + data[end:]


def _jpeg_file(data: bytes, rng: random.Random) -> Mutant | None:
    return codestream_lie(data, rng)


def _jpeg_exif(data: bytes, rng: random.Random) -> Mutant:
    """An APP1 segment: EXIF that is none, that points nowhere or in a circle, or that is full of noise."""
    circle = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x08\0\0\0"
    exif = rng.choice(
        (b"", b"II", circle, b"MM\0*\xff\xff\xff\xff", rng.randbytes(60), circle[:8] + b"\xff\xff" + bytes(50))
    )
    body = b"Exif\0\0" + exif
    return "EXIF", data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def _tiff_entry(data: bytes, rng: random.Random) -> Mutant | None:
    """A field of an entry of the first directory (TIFF 6.0, 2), or the offset of the next directory."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}L", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    changed = bytearray(data)
    choice = rng.choice(("tag", "type", "count", "value", "value", "value", "next", "directory", "entries"))
    at = start + 2 + 12 * rng.randrange(entries)
    if choice in ("tag", "type", "entries"):
        at = {"tag": at, "type": at + 2, "entries": start}[choice]
        changed[at : at + 2] = struct.pack(f"{order}H", rng.choice((0, 1, 2, 3, 5, 12, 13, 258, 330, 65535)))
        return f"TIFF {choice}", bytes(changed)
    at = {"count": at + 4, "value": at + 8, "next": start + 2 + 12 * entries, "directory": 4}[choice]
    lie = rng.choice((0, 1, 2, 5, 8, start, len(data) - 2, len(data) + 9, 65535, 10**6, 2**31 - 1, 2**32 - 1))
    lie = start if choice == "next" and rng.random() < 0.5 else lie  # a circle
    changed[at : at + 4] = struct.pack(f"{order}L", lie)
    return f"TIFF {choice} is {lie:X}", bytes(changed)


RASTER_KINDS: dict[str, tuple[Callable[[bytes, random.Random], Mutant | None], ...]] = {
    "png": (_png_header, _png_chunk, _png_chunk),
    "jpeg": (_jpeg_file, _jpeg_file, _jpeg_exif),
    "tiff": (_tiff_entry, _tiff_entry, _tiff_entry),
}
