"""Lookup tables of a header: modality LUT, VOI LUT (PS3.3 C.11.1, C.11.2) and palettes (C.7.9) → arrays with a first input value.

Entries of 8 bits stand one or two to a 16-bit word, as writers differ; the descriptor's 16-bit numbers come signed or not, by a VR that
depends on other attributes and is often wrong, so that they are read here by what is possible. A table shorter than its
descriptor says is `MALFORMED`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from pipeline.dicom.bounded import value_of
from pipeline.errors import Rejected, RejectReason

COLORS = ("Red", "Green", "Blue")

_WORD = 1 << 16
_SIGN = 1 << 15
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


@dataclass(frozen=True)
class LookupTable:
    """`entries` (n,) unsigned outputs; `first`: the input of entries[0]; `bits`: of an output, 1 to 16."""

    entries: NDArray[np.uint16]
    first: int
    bits: int

    def __call__(self, values: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Output of each value; values outside take the first or the last entry (PS3.3 C.11.1.1)."""
        last = len(self.entries) - 1
        position = np.clip(values.astype(np.int64) - self.first, 0, last)
        return self.entries.astype(np.float32)[position]

    def fractions(self) -> NDArray[np.float32]:
        """Entries over the largest possible one. A table that exceeds its own descriptor's bits goes by its largest entry."""
        top = max((1 << self.bits) - 1, int(self.entries.max()))
        return (self.entries / np.float32(top)).astype(np.float32)


def read_table(item: Dataset, *, signed_input: bool, little_endian: bool) -> LookupTable:
    """The LUT in an item of ModalityLUTSequence or VOILUTSequence.

    `signed_input`: values below zero can come in, so that a first value from 8000H counts as negative (PS3.3 C.11.1.1.1).
    """
    count, first, bits = _descriptor(value_of(item, "LUTDescriptor"))
    if signed_input and first >= _SIGN:
        first -= _WORD
    return LookupTable(_entries(value_of(item, "LUTData"), count, little_endian), first, bits)


def read_palette(dataset: Dataset, *, little_endian: bool) -> tuple[LookupTable, ...]:
    """The red, green and blue table of PALETTE COLOR (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6), or the segmented ones (C.7.9.2).

    Raises Rejected: MALFORMED; UNSUPPORTED_PIXELS for indirect segments, whose offsets readers count in bytes or in entries.
    """
    tables = []
    for color in COLORS:
        count, first, bits = _descriptor(value_of(dataset, f"{color}PaletteColorLookupTableDescriptor"))
        data = value_of(dataset, f"{color}PaletteColorLookupTableData")
        segments = value_of(dataset, f"Segmented{color}PaletteColorLookupTableData")
        if data is None and segments is not None:
            data = _expanded(_entries(segments, _segment_entries(segments, bits), little_endian), count)
        tables.append(LookupTable(_entries(data, count, little_endian), first, bits))
    return tuple(tables)


def _descriptor(value: Any) -> tuple[int, int, int]:
    """(entries, first input as an unsigned word, bits an entry) of a LUT descriptor (PS3.3 C.11.1.1)."""
    if value is None or isinstance(value, (str, bytes, int, float)) or len(value) != 3:
        raise Rejected(RejectReason.MALFORMED, "a LUT needs a descriptor of three numbers")
    count, first, bits = (int(number) % _WORD for number in value)
    if not 1 <= bits <= 16:
        raise Rejected(RejectReason.MALFORMED, f"a LUT of {bits} bits an entry; 1 to 16 are possible")
    return count or _WORD, first, bits


def _segment_entries(segments: Any, bits: int) -> int:
    return len(segments) // (2 if bits > 8 else 1) if isinstance(segments, bytes) else len(np.atleast_1d(segments))


def _expanded(segments: NDArray[np.uint16], count: int) -> NDArray[np.uint16]:
    """The entries that segments stand for (PS3.3 C.7.9.2): no more than `count`, whatever they say."""
    entries: list[int] = []
    position = 0
    while position + 2 < len(segments) and len(entries) < count:
        kind, length = int(segments[position]), int(segments[position + 1])
        if kind == _DISCRETE:
            entries += segments[position + 2 : position + 2 + length].tolist()
            position += 2 + length
        elif kind == _LINEAR and entries and length:
            line = np.linspace(entries[-1], int(segments[position + 2]), length + 1)
            entries += np.rint(line[1:]).astype(int).tolist()
            position += 3
        elif kind == _INDIRECT:
            raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "a palette of indirect segments")
        else:
            raise Rejected(RejectReason.MALFORMED, f"a palette's segment of type {kind} and length {length}")
    return np.array(entries[:count], np.uint16)


def _entries(data: Any, count: int, little_endian: bool) -> NDArray[np.uint16]:
    if isinstance(data, (bytes, bytearray)):
        packed, order = bytes(data), "<" if little_endian else ">"
    elif data is None:
        packed, order = b"", "<"
    else:
        numbers = np.atleast_1d(np.asarray(data, dtype=np.int64)) % _WORD
        packed, order = numbers.astype("<u2").tobytes(), "<"
    if len(packed) >= 2 * count:
        return np.frombuffer(packed, f"{order}u2", count).astype(np.uint16)
    if len(packed) >= count:
        words = np.frombuffer(packed[: len(packed) // 2 * 2], f"{order}u2").astype("<u2").tobytes()
        return np.frombuffer(words + packed[len(words) :], np.uint8, count).astype(np.uint16)
    raise Rejected(RejectReason.MALFORMED, f"a LUT of {len(packed)} bytes cannot hold the {count} entries it says")
