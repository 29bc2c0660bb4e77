"""Files broken on purpose: mutants of a DICOM, PNG, JPEG or TIFF file, and the named files that stop other readers.

`mutants` takes the bytes of a whole file and gives (what was done, broken bytes), the same for the same seed. Every kind of
damage comes in turn, as far as the file has what it damages. Elements are found by a walker of this module, so that no
parser under test decides where a mutant breaks; what it cannot follow (a deflated data set is inflated) is broken byte by
byte. Patient data of the original stay where they are: nothing here writes them into an attribute that an index shows.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count as numbers
from itertools import islice

from pydicom.datadict import tag_for_keyword

from tests.mutants_streams import BOMB_BYTES, RASTER_KINDS, REPEATED_BYTES, Mutant, codestream_lie

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
LONG_FORM = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
SHORT_FORM = (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL")
NO_VR = (b"QQ", b"\0\0", b"  ", b"ui", b"lo", b"Us", b"\xff\xff", b"12", b"O\0", b"??")
DEFLATED = b"1.2.840.10008.1.2.1.99"
SYNTAXES = tuple(
    f"1.2.840.10008.1.2{end}".encode()
    for end in (
        *("", ".1", ".2", ".1.99", ".5", ".4.80", ".4.81", ".4.90", ".4.91", ".4.201", ".4.202", ".4.203"),
        *(f".4.{number}" for number in (50, 51, 52, 53, 54, 55, 56, 57, 58, 70, 92, 100, 103, 107)),
    )
)
"""All that radloop's list has, and some that it has not (JPEG 2000 part 2, MPEG, HEVC)."""
NONSENSE_SYNTAXES = (b"", b"0", b"1.2.3", b"1." * 200, b"JPEG", b"1.2.840.10008.1.2.1\\1.2.840.10008.1.2", b"\xff" * 20)
CHARACTER_SETS = (
    *(b"ISO_IR 192", b"ISO_IR 999", b"GB18030", b"ISO 2022 IR 87", b"\\ISO 2022 IR 87\\ISO 2022 IR 159", b"ISO_IR 13"),
    *(
        b"idna",
        b"rot13",
        b"utf-16",
        b"unicode_escape",
        b"\\\\\\\\",
        b"\xff\xfe",
        b"ISO 2022 IR 6\\ISO 2022 IR 149",
        b"",
    ),
)
LIES: dict[str, tuple[bytes | int, ...]] = {
    "Rows": (0, 1, 2, 17, 4096, 32767, 65535),
    "Columns": (0, 1, 2, 17, 4096, 32767, 65535),
    "NumberOfFrames": (b"0", b"-1", b"2", b"3", b"65536", b"2147483647", b"1e9", b"9" * 300, b"", b"1\\2", b"x"),
    "SamplesPerPixel": (0, 2, 3, 4, 65535),
    "BitsAllocated": (0, 1, 8, 12, 16, 24, 32, 64, 65535),
    "BitsStored": (0, 1, 7, 16, 17, 65535),
    "HighBit": (0, 1, 15, 16, 65535),
    "PixelRepresentation": (1, 2, 65535),
    "PlanarConfiguration": (1, 2, 65535),
    "PhotometricInterpretation": (
        b"RGB",
        b"MONOCHROME1",
        b"PALETTE COLOR",
        b"YBR_FULL_422",
        b"YBR_ICT",
        b"ARGB",
        b"",
        b"\0",
    ),
    "RescaleSlope": (b"0", b"1e400", b"-1e38", b"nan", b"inf", b"x", b"1\\2", b"1e-320", b""),
    "RescaleIntercept": (b"1e400", b"1e39", b"nan", b"-inf", b"--1", b"0x10"),
    "WindowWidth": (b"0", b"-1", b"nan", b"1e-300", b"1\\2\\3", b"inf", b"1e308"),
    "WindowCenter": (b"nan", b"1e400", b"\\\\\\", b"1e308", b"9" * 400),
    "PixelSpacing": (b"0\\0", b"-1\\1", b"nan\\nan", b"1", b"1e-320\\1e308", b"1\\2\\3"),
    "ImagePositionPatient": (b"nan\\nan\\nan", b"1\\2", b"1e400\\0\\0", b"\\\\"),
    "ImageOrientationPatient": (b"0\\0\\0\\0\\0\\0", b"1\\0\\0", b"inf\\0\\0\\0\\1\\0"),
    "SliceThickness": (b"-1", b"nan", b"1e999", b"one"),
    "StudyDate": (b"20230230", b"0000", b"9" * 64, b"2023.01.01", b"\xff" * 8),
    "PixelPaddingValue": (0, 65535, b"x"),
    "Modality": (b"", b"X" * 300, b"CT\\MR", b"\x1b$B"),
    "ImageType": (b"\\" * 50, b"", b"LOCALIZER"),
    "SOPClassUID": (b"", b"1.2.840.10008.1.3.10", b"1..2", b"1.2.840.10008.5.1.4.1.1.88.11"),
    "RedPaletteColorLookupTableDescriptor": (
        struct.pack("<3H", 0, 0, 16),
        struct.pack("<3H", 65535, 65535, 8),
        b"\0\0",
    ),
    "RedPaletteColorLookupTableData": (b"", b"\0", b"\xff" * 9),
    "LUTDescriptor": (
        struct.pack("<3H", 0, 0, 16),
        struct.pack("<3H", 65535, 32768, 16),
        struct.pack("<3H", 4, 0, 99),
        b"",
    ),
    "LUTData": (b"", b"\0", b"\xff" * 7),
}
"""What attributes are made to say. Numbers are written as the file's 16-bit words, bytes as they are, padded to even length."""


def mutants(original: bytes, *, count: int, seed: int) -> Iterator[Mutant]:
    """(what was done, broken bytes), `count` times. Raises ValueError for what is neither DICOM, PNG, JPEG nor TIFF."""
    return islice(_endless(original, seed), count)


def _endless(original: bytes, seed: int) -> Iterator[Mutant]:
    kind = kind_of(original)
    if kind == "dicom":
        subject: Anatomy | bytes = dissect(original)
        kinds: tuple[Callable[..., Mutant | None], ...] = (*_DICOM_KINDS, *_BYTE_KINDS)
    else:
        subject, kinds = original, (*RASTER_KINDS[kind], *_BYTE_KINDS)
    for number in numbers():
        rng = random.Random(f"{seed} {number}")
        mutate = kinds[number % len(kinds)]
        made = mutate(original if mutate in _BYTE_KINDS else subject, rng)
        if made is None:  # the file has nothing of that kind
            made = rng.choice(_BYTE_KINDS)(original, rng)
        yield made


def kind_of(content: bytes) -> str:
    """dicom, png, jpeg or tiff, by the first bytes."""
    for name, magics in (("png", (b"\x89PNG",)), ("jpeg", (b"\xff\xd8\xff",)), ("tiff", (b"II*\0", b"MM\0*"))):
        if content.startswith(magics) and content[128:132] != b"DICM":
            return name
    if content[128:132] == b"DICM" or content[:2] in (b"\x02\0", b"\x08\0", b"\0\x08", b"\0\x02"):
        return "dicom"
    raise ValueError("expected a DICOM, PNG, JPEG or TIFF file")


# --- Where the elements of a DICOM file are


@dataclass(frozen=True)
class Place:
    """An element or item: of `data[start:]`, its length (as written, `length_bytes` long, at `length_at`), its value's offset."""

    tag: int
    vr: bytes
    start: int
    length_at: int
    length_bytes: int
    value: int
    length: int

    @property
    def end(self) -> int:
        """Behind the value; of undefined length, behind the header."""
        return self.value if self.length == UNDEFINED else self.value + self.length


@dataclass(frozen=True)
class Anatomy:
    """A DICOM file taken apart: all elements and items in file order, those within sequences too; `body`: the data set's offset.

    Of a deflated file the data set stands inflated in `data`; `whole` deflates it again.
    """

    data: bytes
    order: str
    explicit: bool
    deflated: bool
    body: int
    meta: tuple[Place, ...]
    elements: tuple[Place, ...]

    def whole(self, data: bytes, body: int | None = None) -> bytes:
        """A changed `data` as a file; `body` where the data set begins in it now."""
        if not self.deflated:
            return data
        start = self.body if body is None else body
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return data[:start] + deflate.compress(data[start:]) + deflate.flush()

    def replaced(self, start: int, end: int, new: bytes) -> bytes:
        """The file with other bytes in [start, end) of `data`; what lies in the meta information moves the data set."""
        moved = len(new) - (end - start) if start < self.body else 0
        return self.whole(self.data[:start] + new + self.data[end:], self.body + moved)

    @property
    def pixels(self) -> Place | None:
        return next((place for place in self.elements if place.tag == PIXELS), None)

    @property
    def fragments(self) -> tuple[Place, ...]:
        """Items of encapsulated pixel data, the offset table first."""
        pixels = self.pixels
        if pixels is None or pixels.length != UNDEFINED:
            return ()
        return tuple(place for place in self.elements if place.start > pixels.start and place.tag == ITEM)

    @property
    def outer(self) -> tuple[Place, ...]:
        """Elements with a value in one piece: no items, no delimiters, no sequences, no pixels."""
        return tuple(
            place for place in self.elements if place.tag >> 16 not in (0xFFFE, 0x7FE0) and place.length != UNDEFINED
        )

    def find(self, keyword: str) -> Place | None:
        return next((place for place in self.elements if place.tag == tag_for_keyword(keyword)), None)


def dissect(content: bytes) -> Anatomy:
    """Finds the elements of a DICOM file with or without preamble, in any transfer syntax, as far as it can be followed."""
    start = 132 if content[128:132] == b"DICM" else 0
    meta = tuple(_walk(content, start, "<", True, meta=True))
    body = meta[-1].end if meta else start
    syntax = next((content[place.value : place.end].rstrip(b"\0 ") for place in meta if place.tag == 0x00020010), b"")
    if syntax == DEFLATED:
        inflated = zlib.decompress(content[body:], -zlib.MAX_WBITS)
        content = content[:body] + inflated
    order = ">" if syntax == b"1.2.840.10008.1.2.2" or content[body : body + 2] == b"\0\x08" else "<"
    explicit = content[body + 4 : body + 6].isalpha() and content[body + 4 : body + 6].isupper()
    elements = tuple(_walk(content, body, order, explicit))
    return Anatomy(content, order, explicit, syntax == DEFLATED, body, meta, elements)


def _walk(data: bytes, start: int, order: str, explicit: bool, meta: bool = False) -> Iterator[Place]:
    """Elements and items from `start`, into sequences, over values; ends where the bytes do not go on as elements."""
    position, in_pixels = start, False
    while position + 8 <= len(data):
        place = _place(data, position, order, explicit)
        if place is None or (meta and place.tag >> 16 != 2):
            return
        yield place
        in_pixels = in_pixels or (place.tag == PIXELS and place.length == UNDEFINED)
        item = struct.pack(f"{order}HH", ITEM >> 16, ITEM & 0xFFFF)
        inside = data[place.value : place.value + 4] == item and place.tag >> 16 != 0x7FE0
        position = place.value if inside or (place.tag == ITEM and not in_pixels) else place.end


def _place(data: bytes, start: int, order: str, explicit: bool) -> Place | None:
    group, number = struct.unpack_from(f"{order}HH", data, start)
    vr = data[start + 4 : start + 6] if explicit and group != 0xFFFE else b""
    if vr in LONG_FORM:
        length_at, length_bytes = start + 8, 4
    elif vr:
        length_at, length_bytes = start + 6, 2
    else:
        length_at, length_bytes = start + 4, 4
    if length_at + length_bytes > len(data) or (vr and not vr.isupper()):
        return None
    (length,) = struct.unpack_from(f"{order}{'H' if length_bytes == 2 else 'I'}", data, length_at)
    value = length_at + length_bytes
    if length != UNDEFINED and value + length > len(data):
        return None
    return Place(group << 16 | number, vr, start, length_at, length_bytes, value, length)


def header_of(order: str, explicit: bool, tag: int, vr: bytes, length: int) -> bytes:
    """An element's header (PS3.5 7.1)."""
    start = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if not explicit or tag >> 16 == 0xFFFE:
        return start + struct.pack(f"{order}I", length)
    if vr in LONG_FORM:
        return start + vr + b"\0\0" + struct.pack(f"{order}I", length)
    return start + vr + struct.pack(f"{order}H", min(length, 0xFFFF))


def _valued(anatomy: Anatomy, place: Place, value: bytes) -> bytes:
    """The element of `place` with another value and the length that fits it."""
    value += b"\0" * (len(value) % 2)
    explicit = bool(place.vr) or place.tag >> 16 == 2
    order = "<" if place.tag >> 16 == 2 else anatomy.order
    return header_of(order, explicit, place.tag, place.vr, len(value)) + value


# --- Damage that needs no knowledge of the format


def _spot(data: bytes, rng: random.Random) -> int:
    """A place in the file: as often in its first kilobytes, where headers are, as anywhere."""
    return rng.randrange(min(len(data), rng.choice((400, 2500, len(data), len(data)))))


def _flip_bits(data: bytes, rng: random.Random) -> Mutant:
    changed = bytearray(data)
    for _ in range(flips := rng.choice((1, 1, 2, 8, 64))):
        changed[_spot(data, rng)] ^= 1 << rng.randrange(8)
    return f"{flips} bits flipped", bytes(changed)


def _noise(data: bytes, rng: random.Random) -> Mutant:
    start = _spot(data, rng)
    size = rng.choice((1, 2, 4, 16, 200))
    fill = rng.choice((rng.randbytes(size), b"\0" * size, b"\xff" * size))
    return f"{size} bytes of noise at {start}", data[:start] + fill + data[start + size :]


def _truncate(data: bytes, rng: random.Random) -> Mutant:
    end = rng.choice((_spot(data, rng), rng.randrange(len(data)), len(data) - rng.randint(1, min(12, len(data)))))
    return f"cut at {end}", data[:end]


def _insert(data: bytes, rng: random.Random) -> Mutant:
    start = _spot(data, rng)
    size = rng.choice((1, 2, 8, 100, 5000))
    again = data[start : start + size]
    return f"{size} bytes inserted at {start}", data[:start] + rng.choice((rng.randbytes(size), again)) + data[start:]


def _delete(data: bytes, rng: random.Random) -> Mutant:
    start, size = _spot(data, rng), rng.choice((1, 2, 8, 100, 5000))
    return f"{size} bytes deleted at {start}", data[:start] + data[start + size :]


_BYTE_KINDS = (_flip_bits, _noise, _truncate, _insert, _delete)


# --- Damage to elements


def _element(anatomy: Anatomy, rng: random.Random) -> Place | None:
    """Any element or item; one of the meta information now and then."""
    if anatomy.meta and rng.random() < 0.15:
        return rng.choice(anatomy.meta)
    return rng.choice(anatomy.elements) if anatomy.elements else None


def _flip_header_bits(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    place = _element(anatomy, rng)
    if place is None:
        return None
    changed = bytearray(anatomy.data[place.start : place.value])
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return f"a bit of the header of {place.tag:08X}", anatomy.replaced(place.start, place.value, bytes(changed))


def _pixel_noise(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    pixels = anatomy.pixels
    if pixels is None or pixels.value >= len(anatomy.data):
        return None
    start = rng.randrange(pixels.value, len(anatomy.data))
    size = rng.choice((1, 1, 4, 50))
    return f"noise in the pixels at {start}", anatomy.replaced(start, start + size, rng.randbytes(size))


def _cut_at_element(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    place = _element(anatomy, rng)
    if place is None:
        return None
    end = rng.choice((place.start, place.length_at, place.value, place.value + 1, place.end))
    return f"cut at {place.tag:08X}", anatomy.whole(anatomy.data[:end], min(anatomy.body, end))


def _length(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    place = _element(anatomy, rng)
    if place is None:
        return None
    least, most = place.length, 0xFFFF if place.length_bytes == 2 else UNDEFINED
    lie = rng.choice(
        (
            0,
            1,
            least + 1,
            least - 1,
            least + 2,
            least - 2,
            least + 8,
            2 * least,
            0x7FFF,
            0x7FFFFFFF,
            UNDEFINED - 1,
            UNDEFINED,
        )
    )
    lie = max(0, min(lie, most))
    order = "<" if place.tag >> 16 == 2 else anatomy.order
    written = struct.pack(f"{order}{'H' if place.length_bytes == 2 else 'I'}", lie)
    what = f"length {lie:X} of {place.tag:08X}, which has {place.length:X}"
    return what, anatomy.replaced(place.length_at, place.length_at + place.length_bytes, written)


def _pixel_length(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    """The pixel data element, by far the largest, deserves lies of its own."""
    pixels = anatomy.pixels
    if pixels is None:
        return None
    real = len(anatomy.data) - pixels.value
    lie = rng.choice((0, 2, real - 2, real + 2, real - 1, 2 * real, 0x7FFFFFFE, 0xFFFFFFF0, UNDEFINED))
    written = struct.pack(f"{anatomy.order}I", max(0, min(lie, UNDEFINED)))
    at = pixels.length_at
    return f"length {lie:X} of the pixel data", anatomy.replaced(at, at + 4, written)


def _vr(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    places = [place for place in anatomy.elements if place.vr]
    if not places:
        return None
    place = rng.choice(places)
    vr = rng.choice((rng.choice(SHORT_FORM), rng.choice(tuple(sorted(LONG_FORM))), rng.choice(NO_VR)))
    what = f"VR {vr!r} of {place.tag:08X}"
    if rng.random() < 0.5:  # the header's form follows the VR, so that what comes behind is still found
        header = header_of(anatomy.order, True, place.tag, vr, place.length)
        return f"{what}, in its form", anatomy.replaced(place.start, place.value, header)
    return what, anatomy.replaced(place.start + 4, place.start + 6, vr)


def _tag(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    """Another tag: of no known attribute, or of the element's own group, so that no ID becomes a description."""
    place = _element(anatomy, rng)
    if place is None:
        return None
    group = place.tag >> 16
    number = rng.choice((0, 0x0001, 0xFFFF, 0x1001))
    tag = rng.choice((group << 16 | number, (group | 1) << 16 | 0x10, rng.choice((ITEM, ITEM_END, SEQUENCE_END, 0))))
    order = "<" if group == 2 else anatomy.order
    written = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    return f"tag {tag:08X} for {place.tag:08X}", anatomy.replaced(place.start, place.start + 4, written)


def _rearranged(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    """An element removed, twice (again at once, in front, or behind the pixels), or moved in front."""
    if not anatomy.outer:
        return None
    place = rng.choice(anatomy.outer)
    data, body = anatomy.data, anatomy.body
    element = data[place.start : place.end]
    without = data[: place.start] + data[place.end :]
    made = {
        "removed": without,
        "twice": data[: place.end] + element + data[place.end :],
        "again in front": data[:body] + element + data[body:],
        "again at the end": data + element,
        "moved in front": without[:body] + element + without[body:],
        "moved to the end": without + element,
        "many times": data[: place.end] + element * (REPEATED_BYTES // len(element)) + data[place.end :],
    }
    what = rng.choice(tuple(made))
    return f"{place.tag:08X} {what}", anatomy.whole(made[what])


def _nested(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    """Sequences within sequences, put between two elements: closed or not, of defined or undefined length, with lies."""
    places = [place for place in anatomy.outer if place.start >= anatomy.body]
    if not places:
        return None
    place, depth = rng.choice(places), rng.choice((1, 50, 300, 900, 3000))
    form = rng.choice(("closed", "never closed", "items lie", "of unknown VR", "defined"))
    start = rng.choice((place.start, place.end))
    inside = nested_sequences(depth, form, anatomy.order, anatomy.explicit)
    return f"sequences {depth} deep, {form}", anatomy.replaced(start, start, inside)


def nested_sequences(depth: int, form: str = "never closed", order: str = "<", explicit: bool = True) -> bytes:
    """`depth` sequences (0008,1140), each the only element of the item of the one around it."""

    def header(tag: int, length: int, vr: bytes = b"SQ") -> bytes:
        return header_of(order, explicit, tag, vr, length)

    vr = b"UN" if form == "of unknown VR" else b"SQ"
    opening = header(0x00081140, UNDEFINED, vr) + header(ITEM, UNDEFINED)
    closing = header(ITEM_END, 0) + header(SEQUENCE_END, 0)
    if form == "never closed":
        return opening * depth
    if form == "items lie":
        return (header(0x00081140, UNDEFINED) + header(ITEM, 6)) * depth + closing * depth
    if form != "defined":
        return opening * depth + closing * depth
    outer, inner = len(header(0x00081140, 0)), len(header(ITEM, 0))
    lengths = [outer * level + inner * level for level in range(depth)]  # of the item at each level, from inside
    return b"".join(header(0x00081140, inner + length) + header(ITEM, length) for length in reversed(lengths))


def _syntax(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    place = next((place for place in anatomy.meta if place.tag == 0x00020010), None)
    if place is None:
        return None
    lie = rng.choice((*SYNTAXES, *SYNTAXES, *NONSENSE_SYNTAXES))
    data = _valued(anatomy, place, lie)
    # The data set stays as it is: a deflated one is deflated again, whatever the meta information now says.
    return f"transfer syntax {lie[:40]!r}", anatomy.replaced(place.start, place.end, data)


def _value(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    """One or two of the attributes of `LIES` say something else."""
    known = [(keyword, place) for keyword in LIES if (place := anatomy.find(keyword)) is not None]
    if not known:
        return None
    shape = [
        pair for pair in known if pair[0] in ("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel")
    ]
    keyword, place = rng.choice(rng.choice((known, shape or known)))
    lie = rng.choice(LIES[keyword])
    value = struct.pack(f"{anatomy.order}H", lie) if isinstance(lie, int) else lie
    return f"{keyword} is {str(lie)[:40]}", anatomy.replaced(place.start, place.end, _valued(anatomy, place, value))


def _character_set(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    """Another character set, or escape sequences in a text that its set does not have."""
    place = anatomy.find("SpecificCharacterSet")
    texts = [place for place in anatomy.outer if place.vr in (b"LO", b"SH", b"PN", b"LT", b"CS")]
    if place is None or not texts:
        return None
    if rng.random() < 0.5:
        lie = rng.choice(CHARACTER_SETS)
        return f"character set {lie!r}", anatomy.replaced(place.start, place.end, _valued(anatomy, place, lie))
    place = rng.choice(texts)
    lie = rng.choice(
        (b"\x1b$B", b"\x1b(", b"\x1b$)C\xff", b"\xc3", b"\x00A\x00", b"=^=^\\", b"\xff\xfeA")
    ) * rng.choice((1, 40))
    value = lie + anatomy.data[place.value : place.end]
    return f"escapes in {place.tag:08X}", anatomy.replaced(place.start, place.end, _valued(anatomy, place, value))


def _fragment(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    """Lies about the items of encapsulated pixel data (PS3.5 A.4)."""
    table, *fragments = anatomy.fragments or (None,)
    if table is None or not fragments:
        return None
    data, place = anatomy.data, rng.choice(fragments)
    item = data[place.start : place.end]
    half = place.length // 4 * 2
    split = [data[place.value : place.value + half], data[place.value + half : place.end]]
    made = {
        "length": _length_of(data, place, rng.choice((0, place.length - 2, place.length + 2, 0x7FFFFFFF, UNDEFINED))),
        "removed": data[: place.start] + data[place.end :],
        "twice": data[: place.end] + item + data[place.end :],
        "split": data[: place.start] + b"".join(_item(part) for part in split) + data[place.end :],
        "a thousand empty ones": data[: place.start] + _item(b"") * 1000 + data[place.start :],
        "no end": data[: fragments[-1].end],
        "no table": data[: table.start] + data[table.end :],
        "table": data[: table.start] + _item(rng.randbytes(4 * rng.randrange(6))) + data[table.end :],
        "table of zeros": data[: table.start] + _item(bytes(4 * len(fragments))) + data[table.end :],
        "empty": data[: place.start] + _item(b"") + data[place.end :],
        "another tag": data[: place.start] + b"\xfe\xff\x0d\xe0" + data[place.start + 4 :],
    }
    what = rng.choice(tuple(made))
    return f"fragment: {what}", made[what]


def _item(value: bytes) -> bytes:
    return struct.pack("<HHI", ITEM >> 16, ITEM & 0xFFFF, len(value)) + value


def _length_of(data: bytes, place: Place, length: int) -> bytes:
    return data[: place.length_at] + struct.pack("<I", max(0, length)) + data[place.length_at + 4 :]


def _codestream(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    fragments = anatomy.fragments[1:]
    if not fragments:
        return None
    place = rng.choice(fragments)
    made = codestream_lie(anatomy.data[place.value : place.end], rng)
    if made is None:
        return None
    what, stream = made
    return what, anatomy.data[: place.start] + _item(stream + b"\0" * (len(stream) % 2)) + anatomy.data[place.end :]


def _meta(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    """Preamble and meta information: gone, doubled, of another format, or followed by noise."""
    data, body = anatomy.data, anatomy.body
    if data[128:132] != b"DICM":
        return None
    made = {
        "no preamble": data[132:],
        "no meta information": data[body:],
        "no meta information behind DICM": data[:132] + data[body:],
        "meta information twice": data[:body] + data[132:body] + data[body:],
        "DICM and noise": data[:132] + rng.randbytes(rng.choice((0, 8, 300, 20000))),
        "noise behind the meta information": data[:body] + rng.randbytes(rng.choice((0, 8, 300, 20000))),
        "a TIFF's preamble": b"II*\0\x08\0\0\0" + data[8:],
        "a PNG's preamble": b"\x89PNG\r\n\x1a\n" + data[8:],
        "a JPEG's preamble": b"\xff\xd8\xff\xe0" + data[4:],
        "twice": data + data,
        "zeros": data[:132] + bytes(rng.choice((8, 4000))),
    }
    what = rng.choice(tuple(made))
    if what in ("no preamble", "no meta information", "a TIFF's preamble"):
        moved = {"no preamble": body - 132, "no meta information": 0}.get(what, body)
        return what, anatomy.whole(made[what], moved)
    return what, made[what]


def _deflate(anatomy: Anatomy, rng: random.Random) -> Mutant | None:
    """The data set deflated: with a bomb of a value in it, cut, or damaged; or plain, and said to be deflated."""
    place = next((place for place in anatomy.meta if place.tag == 0x00020010), None)
    if place is None or not anatomy.explicit or anatomy.order != "<":
        return None
    head = anatomy.data[: place.start] + _valued(anatomy, place, DEFLATED)
    head += anatomy.data[place.end : anatomy.body]
    data_set = anatomy.data[anatomy.body :]
    what = rng.choice(("bomb", "cut", "damaged", "not deflated", "fine"))
    if what == "not deflated":
        return f"deflated: {what}", head + data_set
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    stream = (_deflated_bomb() if what == "bomb" else b"") + deflate.compress(data_set) + deflate.flush()
    if what == "cut":
        stream = stream[: rng.randrange(len(stream))]
    if what == "damaged":
        stream = _flip_bits(stream, rng)[1]
    return f"deflated: {what}", head + stream


@lru_cache
def _deflated_bomb() -> bytes:
    """An element of `BOMB_BYTES` zeros, deflated so that more of a data set may follow."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    element = header_of("<", True, 0x00081300, b"OB", BOMB_BYTES) + bytes(BOMB_BYTES)
    return deflate.compress(element) + deflate.flush(zlib.Z_FULL_FLUSH)


_DICOM_KINDS = (
    *(_flip_header_bits, _pixel_noise, _cut_at_element, _length, _length, _pixel_length, _vr, _tag, _rearranged),
    *(_nested, _syntax, _value, _value, _value, _character_set, _fragment, _codestream, _codestream, _meta, _deflate),
)
