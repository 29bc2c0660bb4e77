"""Lookup tables of a header: modality LUT and VOI LUT (PS3.3 C.11.1, C.11.2) → arrays with a first input value.

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

from pipeline.errors import Rejected, RejectReason

_WORD = 1 << 16
_SIGN = 1 << 15


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
    descriptor = item.get("LUTDescriptor")
    if descriptor is None or isinstance(descriptor, (str, bytes)) or len(descriptor) != 3:
        raise Rejected(RejectReason.MALFORMED, "a LUT needs a descriptor of three numbers")
    count, first, bits = (int(value) % _WORD for value in descriptor)
    if signed_input and first >= _SIGN:
        first -= _WORD
    if not 1 <= bits <= 16:
        raise Rejected(RejectReason.MALFORMED, f"a LUT of {bits} bits an entry; 1 to 16 are possible")
    return LookupTable(_entries(item.get("LUTData"), count or _WORD, little_endian), first, bits)


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
