"""Native pixel data of one frame: bytes → an array (rows, columns) or (rows, columns, samples) of unsigned integers or floats.

PS3.5 8.1.1, 8.2 and annex D of its first editions. Pixels of 8, 16 and 32 bits are words in the file's byte order; others
follow one another bit by bit, the least significant first, across bytes and words. Nothing is done to unused bits. Of YBR_FULL_422
and YBR_PARTIAL_422 two pixels of a row share CB and CR (PS3.3 C.7.6.3.1.2): each gets both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.codecs import container_bytes

WHOLE_WORDS = (8, 16, 32, 64)
"""Bits that numpy reads at once."""
_UNPACKED_AT_ONCE = 1 << 20
"""Pixels: their bits take a byte each meanwhile."""


@dataclass(frozen=True)
class NativeLayout:
    """How a frame lies in its bytes. `by_plane`: all of one colour first."""

    rows: int
    columns: int
    samples: int
    bits: int
    is_float: bool = False
    little_endian: bool = True
    by_plane: bool = False
    subsampled: bool = False

    @property
    def stored_samples(self) -> int:
        """Of a frame. Subsampled colour has two a pixel on average."""
        return self.rows * self.columns * (2 if self.subsampled else self.samples)

    @property
    def frame_bits(self) -> int:
        return self.stored_samples * self.bits


def arrange(data: bytes, layout: NativeLayout, skipped_bits: int = 0) -> NDArray[Any]:
    """The frame in `data`, which begins `skipped_bits` (0 to 7) into its first byte, and may go on behind the frame."""
    values = _numbers(data, layout, skipped_bits)
    if layout.subsampled:
        pairs = values.reshape(layout.rows, layout.columns // 2, 1, 4)  # Y1 Y2 CB CR
        luma, chroma = pairs[..., :2].swapaxes(2, 3), pairs[..., 2:]
        both = np.concatenate((luma, np.repeat(chroma, 2, axis=2)), axis=3)
        return both.reshape(layout.rows, layout.columns, 3)
    if layout.samples == 1:
        return values.reshape(layout.rows, layout.columns)
    if layout.by_plane:
        return np.moveaxis(values.reshape(layout.samples, layout.rows, layout.columns), 0, -1)
    return values.reshape(layout.rows, layout.columns, layout.samples)


def _numbers(data: bytes, layout: NativeLayout, skipped_bits: int) -> NDArray[Any]:
    count = layout.stored_samples
    if layout.bits in WHOLE_WORDS:
        order = "<" if layout.little_endian else ">"
        values = np.frombuffer(data, f"{order}{'f' if layout.is_float else 'u'}{layout.bits // 8}", count)
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    packed = np.frombuffer(data, np.uint8)
    if layout.bits == 1:
        return np.unpackbits(packed, bitorder="little")[skipped_bits : skipped_bits + count]
    step = _UNPACKED_AT_ONCE
    parts = [
        _unpacked(packed, skipped_bits + first * layout.bits, min(step, count - first), layout.bits)
        for first in range(0, count, step)
    ]
    return np.concatenate(parts)


def _unpacked(packed: NDArray[np.uint8], first_bit: int, count: int, bits: int) -> NDArray[Any]:
    """`count` numbers of `bits` bits each, as unsigned integers of the next size."""
    skipped = first_bit % 8
    part = packed[first_bit // 8 : -(-(first_bit + count * bits) // 8)]
    single = np.unpackbits(part, bitorder="little")[skipped : skipped + count * bits].reshape(count, bits)
    size = container_bytes(bits)
    return np.packbits(single, axis=1, bitorder="little").view(np.uint8) if size == 1 else _widened(single, size)


def _widened(single: NDArray[np.uint8], size: int) -> NDArray[Any]:
    whole = np.zeros((len(single), 8 * size), np.uint8)
    whole[:, : single.shape[1]] = single
    return np.packbits(whole, axis=1, bitorder="little").view(f"<u{size}").astype(f"u{size}")
