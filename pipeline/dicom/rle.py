"""RLE frames (PS3.5 G): a segment for each byte of each sample, the most significant first.

Raises Rejected: TRUNCATED, DECODE_FAILED, SIZE_MISMATCH.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Rejected, RejectReason

HEADER_BYTES = 64
MOST_SEGMENTS = 15


def decode_rle(
    frame: bytes, rows: int, columns: int, samples: int, bits_allocated: int
) -> NDArray[np.unsignedinteger[Any]]:
    """(rows, columns) or (rows, columns, samples), as wide as BitsAllocated; 24 bits in containers of 32."""
    sample_bytes = bits_allocated // 8
    segments = count_segments(frame)
    if bits_allocated % 8 or segments != samples * sample_bytes:
        raise Rejected(
            RejectReason.SIZE_MISMATCH,
            f"{samples} samples of {bits_allocated} bit need as many RLE segments as bytes, found {segments}",
        )
    odd = sample_bytes not in (1, 2, 4)  # numpy has no such number: its bytes come as samples of their own
    dtype = np.dtype(np.uint8 if odd else f"<u{sample_bytes}")
    promised = rows * columns * segments
    try:
        planes = imagecodecs.dicomrle_decode(frame, dtype, out=promised)
    except (RuntimeError, ValueError) as error:
        too_long = "TOO_SMALL" in str(error)
        reason = RejectReason.SIZE_MISMATCH if too_long else RejectReason.DECODE_FAILED
        found = "holds more pixels than the header promises" if too_long else "breaks the format"
        raise Rejected(reason, f"an RLE segment {found}") from None
    if len(planes) != promised:
        raise Rejected(
            RejectReason.SIZE_MISMATCH, f"the RLE frame decodes to {len(planes)} bytes, the header promises {promised}"
        )
    planar: NDArray[np.unsignedinteger[Any]] = np.frombuffer(planes, dtype)
    if odd:
        planar = _joined(planar.reshape(samples, sample_bytes, rows, columns))
    planar = planar.reshape(samples, rows, columns)
    return planar[0] if samples == 1 else np.moveaxis(planar, 0, -1)


def _joined(planes: NDArray[Any]) -> NDArray[np.uint32]:
    """(samples, bytes, rows, columns), the most significant byte first, → numbers."""
    joined = np.zeros(planes.shape[:1] + planes.shape[2:], np.uint32)
    for number in range(planes.shape[1]):
        joined |= planes[:, number].astype(np.uint32) << np.uint32(8 * (planes.shape[1] - 1 - number))
    return joined


def count_segments(frame: bytes) -> int:
    """Number of segments, the header checked: offsets ascend, and stay inside the frame (PS3.5 G.5)."""
    if len(frame) < HEADER_BYTES:
        raise Rejected(
            RejectReason.TRUNCATED,
            f"an RLE frame has a header of {HEADER_BYTES} bytes, found {len(frame)} bytes in all",
        )
    count, *offsets = struct.unpack("<16L", frame[:HEADER_BYTES])
    if not 1 <= count <= MOST_SEGMENTS:
        raise Rejected(
            RejectReason.DECODE_FAILED, f"the RLE header promises {count} segments; 1 to {MOST_SEGMENTS} are possible"
        )
    used = offsets[:count]
    if used[0] != HEADER_BYTES or any(later <= earlier for earlier, later in pairwise(used)):
        raise Rejected(RejectReason.DECODE_FAILED, "the segment offsets of the RLE header do not ascend from 64")
    if used[-1] >= len(frame):
        raise Rejected(
            RejectReason.TRUNCATED, f"the RLE frame of {len(frame)} bytes ends before its last segment at {used[-1]}"
        )
    return int(count)
