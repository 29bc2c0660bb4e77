"""Pixels by PS3.3 C.7.6.3 and C.9.2 and PS3.5 A.4: what rows, columns, bits and frames say must be what is there.

Native pixels are measured, encapsulated ones counted in frames by their items; no codestream is decoded. Overlay planes (60xx) are
judged each as a whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from pipeline.dicom.codestream import Codec
from pipeline.dicom.conformance_item import Item, is_empty
from pipeline.dicom.syntaxes import CODEC_BY_SYNTAX, NATIVE

BYTES_OF_PIXELS: Mapping[str, int] = {"FloatPixelData": 4, "DoubleFloatPixelData": 8}
SAMPLES: Mapping[str, tuple[int, ...]] = {
    "MONOCHROME1": (1,),
    "MONOCHROME2": (1,),
    "PALETTE COLOR": (1,),
    "RGB": (3,),
    "YBR_FULL": (3,),
    "YBR_FULL_422": (3,),
    "YBR_PARTIAL_420": (3,),
    "YBR_ICT": (3,),
    "YBR_RCT": (3,),
}
"""SamplesPerPixel of each PhotometricInterpretation (PS3.3 C.7.6.3.1.2)."""
PALETTE = tuple(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue"))

OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
OVERLAY_TYPE_1: Mapping[int, str] = {
    0x0010: "OverlayRows",
    0x0011: "OverlayColumns",
    0x0040: "OverlayType",
    0x0050: "OverlayOrigin",
    0x0100: "OverlayBitsAllocated",
    0x0102: "OverlayBitPosition",
}
_OVERLAY_FRAMES, _OVERLAY_DATA = 0x0015, 0x3000

_ITEM, _SEQUENCE_DELIMITER = 0xE000FFFE, 0xE0DDFFFE
"""(FFFE,E000) and (FFFE,E0DD) as four little-endian bytes."""
_STARTS: Mapping[Codec, bytes] = {
    Codec.JPEG: b"\xff\xd8",
    Codec.JPEG_LOSSLESS: b"\xff\xd8",
    Codec.JPEG_LS: b"\xff\xd8",
    Codec.JPEG_2000: b"\xff\x4f",
}
"""SOI and SOC: how a codestream begins, where all of its kind begin alike."""


def pixel_findings(root: Item, transfer_syntax_uid: str | None) -> Iterator[str]:
    """What contradicts itself in the pixels of `root`; nothing for an object without any."""
    yield from _overlay_findings(root)
    names = [name for name in ("PixelData", *BYTES_OF_PIXELS) if name in root]
    if not names:
        return
    if len(names) > 1:
        yield f"{' and '.join(names)} are in one object, expected one of them"
    yield from _description_findings(root, names[0])
    frames = root.number("NumberOfFrames")
    if root.has_value("NumberOfFrames") and (frames is None or frames < 1):
        yield "NumberOfFrames is below 1"
    elif transfer_syntax_uid is None or transfer_syntax_uid in NATIVE:
        yield from _native_findings(root, names[0])
    elif transfer_syntax_uid in CODEC_BY_SYNTAX:
        yield from _encapsulated_findings(root.value("PixelData"), frames or 1, transfer_syntax_uid)
    if any(int(pointer) not in root.elements for pointer in root.values("FrameIncrementPointer")):
        yield "FrameIncrementPointer points to an attribute that is not there"


def _description_findings(root: Item, name: str) -> Iterator[str]:
    """PS3.3 C.7.6.3.1 and C.7.6.24 for float pixels, which have no bits stored."""
    photometric, samples = root.text("PhotometricInterpretation"), root.number("SamplesPerPixel")
    if samples is not None and samples not in SAMPLES.get(photometric, (samples,)):
        yield f"SamplesPerPixel does not fit PhotometricInterpretation, expected {SAMPLES[photometric][0]}"
    if photometric == "PALETTE COLOR" and not all(root.has_value(keyword) for keyword in PALETTE):
        yield "PALETTE COLOR without the descriptors of its three lookup tables"
    for keyword in ("Rows", "Columns"):
        if root.has_value(keyword) and (root.number(keyword) or 0) < 1:
            yield f"{keyword} is below 1"
    allocated, stored, high = (root.number(keyword) for keyword in ("BitsAllocated", "BitsStored", "HighBit"))
    if name in BYTES_OF_PIXELS:
        if allocated != 8 * BYTES_OF_PIXELS[name]:
            yield f"BitsAllocated does not fit {name}, expected {8 * BYTES_OF_PIXELS[name]}"
        return
    if allocated is not None and allocated != 1 and allocated % 8:
        yield "BitsAllocated is neither 1 nor a multiple of 8"
    if None not in (allocated, stored) and not 1 <= (stored or 0) <= (allocated or 0):
        yield "BitsStored is not within BitsAllocated"
    if None not in (stored, high) and high != (stored or 0) - 1:
        yield "HighBit is not BitsStored - 1"


def _native_findings(root: Item, name: str) -> Iterator[str]:
    """Uncompressed pixels must be as long as rows, columns, samples, bits and frames say, padded to an even length."""
    bits = 8 * BYTES_OF_PIXELS.get(name, 0) or root.number("BitsAllocated") or 0
    rows, columns = root.number("Rows") or 0, root.number("Columns") or 0
    samples, frames = root.number("SamplesPerPixel") or 1, root.number("NumberOfFrames") or 1
    values = rows * columns * samples * frames
    if root.text("PhotometricInterpretation") == "YBR_FULL_422" and samples == 3:
        values = values * 2 // 3  # PS3.3 C.7.6.3.1.2: two pixels share Cb and Cr
    expected = (values * bits + 7) // 8
    expected += expected % 2
    found = len(root.value(name) or b"")
    if found != expected:
        yield f"{name} has {found} bytes, expected {expected}"


def _encapsulated_findings(data: object, frames: int, syntax: str) -> Iterator[str]:
    """PS3.5 A.4: a Basic Offset Table, then one item a frame or more; an offset for each frame or for none."""
    if not isinstance(data, bytes | bytearray):
        yield "PixelData is no sequence of items, though its transfer syntax is encapsulated"
        return
    items = _items(data)
    if items is None or not items:
        yield "PixelData is no sequence of items, though its transfer syntax is encapsulated"
        return
    (table, table_length), *fragments = items
    offsets = struct.unpack_from(f"<{table_length // 4}L", data, table)
    first = table + table_length
    starts = {start - 8 - first for start, _ in fragments}  # as the table counts them: from the first item's tag
    exact = CODEC_BY_SYNTAX[syntax] == Codec.RLE  # PS3.5 A.4.2: a frame is one item
    if len(fragments) < frames or (exact and len(fragments) != frames):
        yield f"PixelData has {len(fragments)} items, expected {frames}{'' if exact else ' or more'}"
    if offsets and (len(offsets) != frames or not set(offsets) <= starts):
        yield "the Basic Offset Table does not lead to the frames"
    if any(length % 2 for _, length in fragments):
        yield "PixelData has an item of odd length"
    beginning = _STARTS.get(CODEC_BY_SYNTAX[syntax])
    if fragments and beginning is not None and not data.startswith(beginning, fragments[0][0]):
        yield "PixelData does not begin as its transfer syntax has it"


def _items(data: bytes | bytearray) -> list[tuple[int, int]] | None:
    """(start, length) of each item's value, the offset table's first; None where the structure breaks off."""
    found: list[tuple[int, int]] = []
    position = 0
    while position + 8 <= len(data):
        tag, length = struct.unpack_from("<LL", data, position)
        if tag == _SEQUENCE_DELIMITER:
            return found
        position += 8
        if tag != _ITEM or position + length > len(data):
            return None
        found.append((position, length))
        position += length
    return found if position == len(data) else None


def _overlay_findings(root: Item) -> Iterator[str]:
    """Each group 60xx that is there at all, whole (PS3.3 C.9.2)."""
    groups = {tag >> 16 for tag in root.elements if 0x6000 <= tag >> 16 <= 0x60FF}
    for group in sorted(groups):
        name = f"overlay ({group:04x},xxxx)"
        if group not in OVERLAY_GROUPS:
            yield f"{name}: expected an even group from 6000 to 601e"
            continue
        values = {number: root.elements.get(group << 16 | number) for number in OVERLAY_TYPE_1}
        for number, keyword in OVERLAY_TYPE_1.items():
            element = values[number]
            if element is None or is_empty(element):
                yield f"{name}: {keyword} is missing (Type 1)"
        yield from _overlay_value_findings(root, group, name)


def _overlay_value_findings(root: Item, group: int, name: str) -> Iterator[str]:
    def number(element: int) -> int | None:
        found = root.elements.get(group << 16 | element)
        try:
            return int(found.value) if found is not None else None
        except (TypeError, ValueError):
            return None

    kind = root.elements.get(group << 16 | 0x0040)
    if kind is not None and not is_empty(kind) and kind.value not in ("G", "R"):
        yield f"{name}: OverlayType is not enumerated, expected G, R"
    data = root.elements.get(group << 16 | _OVERLAY_DATA)
    if data is None or is_empty(data):
        if number(0x0100) == 1:
            yield f"{name}: OverlayData is missing (Type 1)"
        return  # bits within the pixels: retired, PS3.3-2004
    if number(0x0100) != 1 or number(0x0102) != 0:
        yield f"{name}: OverlayBitsAllocated and OverlayBitPosition are not 1 and 0"
    bits = (number(0x0010) or 0) * (number(0x0011) or 0) * (number(_OVERLAY_FRAMES) or 1)
    expected = (bits + 7) // 8
    expected += expected % 2
    if len(data.value) != expected:
        yield f"{name}: OverlayData has {len(data.value)} bytes, expected {expected}"
