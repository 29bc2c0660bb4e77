"""One file of prepared images: fixed-size rows with their keys and checksums.

Images (n, channels, size, size) uint16 little-endian, then keys (n + failures, 16 bytes), the CRC-32 of each image, the failures as JSON,
and a footer with a digest of all but the images. Written in one go and never changed; half of one, or one with a wrong byte, is found out.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
MISSING, FAILED = -1, -2
"""In `Places.block`."""
LEVELS_TYPE = np.dtype("<u2")
UNREADABLE = (OSError, ValueError, KeyError, struct.error)
"""What reading the table of a damaged block raises."""

_KEYS = np.dtype(f"S{KEY_BYTES}")
_CRCS = np.dtype("<u4")
_FOOTER = struct.Struct("<8s4IQ")  # magic, images, failures, channels, size, bytes of JSON; then the digest
_MAGIC, _DIGEST_BYTES = b"radloop\x01", 16


@dataclass
class Places:
    """Where the images of `keys` (n,), sorted and unique, are: `block` (n,) is an index of `paths`, or MISSING, or FAILED; `row` (n,) is
    the place in it. `failures`: (reason, detail) by position.
    """

    keys: NDArray[np.bytes_]
    block: NDArray[np.int32] = field(init=False)
    row: NDArray[np.int32] = field(init=False)
    paths: list[Path] = field(default_factory=list)
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.block = np.full(len(self.keys), MISSING, dtype=np.int32)
        self.row = np.zeros(len(self.keys), dtype=np.int32)

    @property
    def missing(self) -> NDArray[np.int64]:
        """Positions of the keys that no block holds."""
        return np.flatnonzero(self.block == MISSING)


class BlockWriter:
    """The images of a block on their way to its file, each written when it comes."""

    def __init__(self, path: Path, begin: Callable[[], BinaryIO], channels: int, size: int) -> None:
        self.path, self._begin, self._shape = path, begin, (channels, size, size)
        self._keys: list[bytes] = []
        self._crcs: list[int] = []
        self._failed_keys: list[bytes] = []
        self._failures: list[tuple[str, str]] = []

    @cached_property
    def _file(self) -> BinaryIO:
        file = self._begin()
        os.chmod(file.name, 0o600)
        return file

    @property
    def image_bytes(self) -> int:
        """Of the images so far."""
        return len(self._crcs) * int(np.prod(self._shape)) * LEVELS_TYPE.itemsize

    def add(self, key: bytes, image: NDArray[np.uint16]) -> int:
        """Writes the image; its row."""
        if image.shape != self._shape or image.dtype != np.uint16:
            raise ValueError(f"expected uint16 levels of shape {self._shape}, found {image.dtype} of {image.shape}")
        row = np.ascontiguousarray(image, dtype=LEVELS_TYPE).data.cast("B")
        self._file.write(row)
        self._keys.append(key)
        self._crcs.append(zlib.crc32(row))
        return len(self._crcs) - 1

    def add_failure(self, key: bytes, reason: str, detail: str) -> None:
        """Remembers that there is no image of `key`, and why."""
        self._failed_keys.append(key)
        self._failures.append((reason, detail))

    def finish(self) -> None:
        """The table and the footer, after all images; nothing where nothing was added."""
        if not self._crcs and not self._failures:
            return
        failures = json.dumps(self._failures).encode()
        channels, size, _ = self._shape
        footer = _FOOTER.pack(_MAGIC, len(self._crcs), len(self._failures), channels, size, len(failures))
        table = b"".join((*self._keys, *self._failed_keys)) + np.array(self._crcs, dtype=_CRCS).tobytes() + failures
        self._file.write(table + footer + _digest(table + footer))


@dataclass(frozen=True)
class BlockTable:
    """What a block says of itself: keys (images + failures,), CRC-32 (images,), failures (reason, detail)."""

    path: Path
    keys: NDArray[np.bytes_]
    crcs: NDArray[np.uint32]
    failures: list[tuple[str, str]]

    def enter(self, places: Places) -> NDArray[np.int64]:
        """Enters the missing keys that this block has; the rows of images that it entered."""
        position = np.minimum(np.searchsorted(places.keys, self.keys), len(places.keys) - 1)
        wanted = np.flatnonzero((places.keys[position] == self.keys) & (places.block[position] == MISSING))
        images = wanted[wanted < len(self.crcs)]
        for row in wanted[len(images) :].tolist():
            places.block[position[row]] = FAILED
            places.failures[int(position[row])] = self.failures[row - len(self.crcs)]
        if len(images):
            places.block[position[images]] = len(places.paths)
            places.row[position[images]] = images
            places.paths.append(self.path)
        return images

    def holds(self, rows: NDArray[np.int64], row_bytes: int) -> bool:
        """Whether the images of `rows` are what was written."""
        buffer = bytearray(row_bytes)
        try:
            with open(self.path, "rb", buffering=0) as file:
                for row in rows.tolist():
                    file.seek(row * row_bytes)
                    if file.readinto(buffer) != row_bytes or zlib.crc32(buffer) != self.crcs[row]:
                        return False
        except OSError:
            return False
        return True


def read_table(path: Path, channels: int, size: int) -> BlockTable:
    """The table of a block of such images. Raises OSError, ValueError, struct.error where it is not whole or not of this shape."""
    with open(path, "rb") as file:
        total = file.seek(0, os.SEEK_END)
        file.seek(max(total - _FOOTER.size - _DIGEST_BYTES, 0))
        footer, digest = file.read(_FOOTER.size), file.read(_DIGEST_BYTES)
        magic, images, failures, own_channels, own_size, json_bytes = _FOOTER.unpack(footer)
        begin = images * own_channels * own_size * own_size * LEVELS_TYPE.itemsize
        length = (images + failures) * KEY_BYTES + images * _CRCS.itemsize + json_bytes
        if (
            magic != _MAGIC
            or begin + length + _FOOTER.size + _DIGEST_BYTES != total
            or (own_channels, own_size)
            != (
                channels,
                size,
            )
        ):
            raise ValueError("not a whole block of this size")
        file.seek(begin)
        table = file.read(length)
    if _digest(table + footer) != digest:
        raise ValueError("its table is not what was written")
    keys = np.frombuffer(table, dtype=_KEYS, count=images + failures)
    crcs = np.frombuffer(table, dtype=_CRCS, count=images, offset=keys.nbytes)
    told = [(str(reason), str(detail)) for reason, detail in json.loads(table[keys.nbytes + crcs.nbytes :])]
    return BlockTable(path, keys, crcs, told)


def images_in(path: Path) -> int:
    """How many images a block says it has; 0 where it is damaged or gone."""
    try:
        with open(path, "rb") as file:
            file.seek(-_FOOTER.size - _DIGEST_BYTES, os.SEEK_END)
            magic, images, *_ = _FOOTER.unpack(file.read(_FOOTER.size))
    except UNREADABLE:
        return 0
    return int(images) if magic == _MAGIC else 0


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
