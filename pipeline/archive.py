"""A .zip export, read in place and not trusted: its list of members, and one member at a time inflated in memory.

Nothing is written to disk, and no member costs more than its own budget (`MEMBER_BYTES`), however archives overlap, nest or lie.
The central directory alone says what is there (PKWARE APPNOTE 4.3.12), so that the list and the reading agree. It is parsed here:
the standard library's zipfile gives up a whole archive for one bad name, and cuts names at NUL. Members are stored or deflated;
whatever else there is has its refusal. Names are UTF-8 where they can be, else code page 437, with `/` between their parts.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.errors import Rejected, RejectReason

MEMBER_BYTES = 2**30
"""Most that a member may inflate to, as it is held in memory; as much as a deflated data set of DICOM may."""
INFLATION_RATIO = 1000
"""Most bytes an archived byte may become; deflate's own limit is 1032, which only a bomb reaches."""
INFLATION_FREE_BYTES = 2**20
"""Up to here the ratio does not count: a small blank image inflates nearly as well as a bomb."""
DIRECTORY_BYTES = 2**29
"""Most that is read of a central directory; 4,000,000 members with names of 60 letters take 424 MB."""
KEPT_BYTES = 2**28
"""The member read last is kept up to this size: a file is opened for its header and again for each of its frames."""

_MEMBER_MAGIC, _EMPTY_MAGIC = b"PK\x03\x04", b"PK\x05\x06"
_END = struct.Struct("<4s4H2LH")  # 4.3.16
_END_SEARCHED = _END.size + 0xFFFF  # a comment may follow
_END_64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_LOCATOR_64 = struct.Struct("<4sLQL")  # 4.3.15
_ENTRY = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
_ENTRY_MAGIC = b"PK\x01\x02"
_UNKNOWN_32, _UNKNOWN_16 = 0xFFFFFFFF, 0xFFFF  # the value stands in the zip64 extra field (4.5.3)
_ENCRYPTED, _UTF_8 = 0x1 | 0x40 | 0x2000, 0x800  # bits of the general purpose flag (4.4.4)
_STORED, _DEFLATED = 0, 8
_CHUNK = 2**20

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_LEADS_OUT = "its name leads out of the archive, or is no relative path"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. `bytes`: as the directory declares it; `refusal`: why it is not to be opened."""

    name: str
    bytes: int
    refusal: tuple[RejectReason, str] | None = None


class _Record(NamedTuple):
    """What the central directory says of one member. `offset`: of its local header."""

    name: str
    bytes: int
    compressed: int
    offset: int
    crc: int
    method: int
    refusal: tuple[RejectReason, str] | None


def open_plain(path: Path) -> BufferedReader:
    """A regular file on the disk, opened for reading without waiting. Raises OSError, or Rejected (NOT_REGULAR)."""
    # Without O_NONBLOCK, which Windows has not, opening a FIFO waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise Rejected(RejectReason.NOT_REGULAR, "only regular files are read")


def is_archive(path: Path) -> bool:
    """Whether a regular file begins as a .zip does; `list_members` says what is wrong with one. Raises OSError as `open` does."""
    try:
        with open_plain(path) as file:
            return file.read(4) in (_MEMBER_MAGIC, _EMPTY_MAGIC)
    except Rejected:
        return False


def list_members(path: Path) -> list[Member]:
    """All files of the archive, also those that cannot be read (with their refusal), sorted by the parts of their names.

    For a worker process: the list of a hostile archive can take gigabytes. Folders are left out, but for those that hold bytes.
    Raises Rejected: NOT_REGULAR, UNREADABLE, CHANGED (gone), MALFORMED, TRUNCATED, TOO_LARGE.
    """
    members = [Member(record.name, record.bytes, record.refusal) for record in _records_of(path)]
    return sorted(members, key=lambda member: member.name.replace("/", "\0"))


def open_member(archive: Path, name: str) -> BytesIO:
    """The member's bytes, inflated and checked; never more than it declares or `MEMBER_BYTES`.

    Raises Rejected: the member's own refusal; CHANGED where it is not there; SIZE_MISMATCH, TRUNCATED or DECODE_FAILED where what
    is stored is not what the directory declares; as `list_members` where there is no directory to read.
    """
    size, mtime_ns = _identity(archive)
    record = _record(archive, size, mtime_ns, name)
    content = _kept_content if record.bytes <= KEPT_BYTES else _content
    return BytesIO(content(archive, size, mtime_ns, name))


def member_status(archive: Path, name: str) -> tuple[int, int]:
    """(bytes of the member, the archive's own mtime_ns). Raises Rejected as `open_member` before it reads the member."""
    size, mtime_ns = _identity(archive)
    return _record(archive, size, mtime_ns, name).bytes, mtime_ns


def _identity(archive: Path) -> tuple[int, int]:
    try:
        found = os.stat(archive)
    except OSError:
        raise Rejected(RejectReason.CHANGED, "its archive is not there any more") from None
    return found.st_size, found.st_mtime_ns


def _record(archive: Path, size: int, mtime_ns: int, name: str) -> _Record:
    record = _directory(archive, size, mtime_ns).get(name)
    if record is None:
        raise Rejected(RejectReason.CHANGED, "it is not in the archive any more")
    if record.refusal is not None:
        raise Rejected(*record.refusal)
    return record


@lru_cache(maxsize=2)
def _directory(archive: Path, size: int, mtime_ns: int) -> dict[str, _Record]:
    """The members by name; `size` and `mtime_ns` are the archive's, so that another one is read anew."""
    return {record.name: record for record in _records_of(archive)}


def _content(archive: Path, size: int, mtime_ns: int, name: str) -> bytes:
    record = _record(archive, size, mtime_ns, name)
    with _opened(archive) as file:
        return _inflated(file, record)


_kept_content = lru_cache(maxsize=1)(_content)


def _opened(archive: Path) -> BinaryIO:
    try:
        return open_plain(archive)
    except FileNotFoundError:
        raise Rejected(RejectReason.CHANGED, "its archive is not there any more") from None
    except OSError as error:
        raise Rejected(RejectReason.UNREADABLE, error.strerror or type(error).__name__) from None


def _records_of(path: Path) -> list[_Record]:
    """All files of the directory; each one of those that share a name is refused."""
    with _opened(path) as file:
        try:
            place, size = _find_directory(file)
            file.seek(place)
            directory = file.read(size)
        except OSError as error:
            raise Rejected(RejectReason.UNREADABLE, error.strerror or type(error).__name__) from None
    records = _apart([record for record in _parsed(directory) if not record.name.endswith("/") or record.bytes])
    if len({record.name for record in records}) == len(records):
        return records
    counts = Counter(record.name for record in records)
    twice = (RejectReason.UNSAFE_NAME, "its name stands in the archive twice")
    return [record._replace(refusal=twice) if counts[record.name] > 1 else record for record in records]


def _apart(records: list[_Record]) -> list[_Record]:
    """The records, refused where their bytes are another's too: a bomb inflates the same bytes over and over."""
    order = sorted(range(len(records)), key=lambda number: records[number].offset)
    overlapping, end = set(), 0
    for before, number in zip([-1, *order], order, strict=False):
        record = records[number]
        if record.offset < end:
            overlapping |= {before, number}
        end = max(end, record.offset + _LOCAL.size + record.compressed)
    refusal = (RejectReason.UNSAFE_NAME, "its bytes in the archive are another file's too")
    return [
        record._replace(refusal=record.refusal or refusal) if number in overlapping else record
        for number, record in enumerate(records)
    ]


def _find_directory(file: BinaryIO) -> tuple[int, int]:
    """Where the central directory begins, and its bytes. Raises Rejected where there is none, or several volumes."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _END_SEARCHED)
    file.seek(start)
    tail = file.read()
    places = [
        place.start() for place in re.finditer(re.escape(_EMPTY_MAGIC), tail) if len(tail) - place.start() >= _END.size
    ]
    if not places:
        raise Rejected(RejectReason.TRUNCATED, "the end of a zip archive is missing")
    # The comment behind the record may hold its magic, too; where bytes follow the comment, the last one is taken.
    whole = [place for place in places if place + _END.size + _END.unpack_from(tail, place)[-1] == len(tail)]
    place = (whole or places)[-1]
    _, disk, directory_disk, _, _, length, offset, _ = _END.unpack_from(tail, place)
    end = start + place
    if _UNKNOWN_32 in (length, offset) or _UNKNOWN_16 in (disk, directory_disk):
        disk, directory_disk, length, offset = _find_directory_64(file, end)
    if disk or directory_disk:
        raise Rejected(RejectReason.UNREADABLE, "one volume of a zip archive of several; join them to one file")
    if offset + length > end:
        raise Rejected(RejectReason.MALFORMED, "its central directory does not lie within the archive")
    if length > DIRECTORY_BYTES:
        raise Rejected(RejectReason.TOO_LARGE, f"its central directory is longer than {DIRECTORY_BYTES >> 20} MiB")
    return offset, length


def _find_directory_64(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """The disks, bytes and offset that the zip64 end record says, by the locator before the end record."""
    broken = Rejected(RejectReason.MALFORMED, "its zip64 end record is broken")
    if end < _LOCATOR_64.size:
        raise broken
    file.seek(end - _LOCATOR_64.size)
    magic, _, place, _ = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
    if magic != b"PK\x06\x07" or place + _END_64.size > end:
        raise broken
    file.seek(place)
    magic, _, _, _, disk, directory_disk, _, _, length, offset = _END_64.unpack(file.read(_END_64.size))
    if magic != b"PK\x06\x06":
        raise broken
    return disk, directory_disk, length, offset


def _parsed(directory: bytes) -> Iterator[_Record]:
    """The records of a central directory in its order. Raises Rejected (MALFORMED) where it breaks off or holds other bytes."""
    position = 0
    while position < len(directory):
        if len(directory) - position < _ENTRY.size:
            raise Rejected(RejectReason.MALFORMED, "its central directory ends within an entry")
        magic, _, _, flags, method, _, _, crc, compressed, size, named, extra, comment, _, _, attributes, offset = (
            _ENTRY.unpack_from(directory, position)
        )
        name_end = position + _ENTRY.size + named
        after = name_end + extra + comment
        if magic != _ENTRY_MAGIC or after > len(directory):
            raise Rejected(RejectReason.MALFORMED, "its central directory is broken")
        raw = directory[name_end - named : name_end]
        if _UNKNOWN_32 in (size, compressed, offset):
            size, compressed, offset = _zip64(directory[name_end : name_end + extra], size, compressed, offset)
        name, readable = _decoded(raw, bool(flags & _UTF_8))
        refusal = _name_refusal(name, readable) or _refusal(size, compressed, flags, method, attributes >> 16)
        if name.endswith("/"):  # of no bytes as a rule, and then left out
            refusal = (RejectReason.NOT_REGULAR, "a folder that holds bytes")
        yield _Record(name, size, compressed, offset, crc, method, refusal)
        position = after


def _zip64(extra: bytes, *fields: int) -> tuple[int, ...]:
    """The fields, those of 32 bits that say "unknown" replaced from the zip64 extra field, in its order (4.5.3)."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1:
            body = extra[position : position + length]
            values = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
            return tuple(next(values, field) if field == _UNKNOWN_32 else field for field in fields)
        position += length
    return fields


def _decoded(raw: bytes, declared_utf8: bool) -> tuple[str, bool]:
    """The name, and whether its bytes are what they are declared to be (4.4.17). Many writers leave UTF-8 undeclared."""
    try:
        return raw.decode(), True
    except UnicodeDecodeError:
        return (raw.decode("utf-8", "backslashreplace"), False) if declared_utf8 else (raw.decode("cp437"), True)


def _name_refusal(name: str, readable: bool) -> tuple[RejectReason, str] | None:
    """Whether a name could lead anywhere but below the archive, on any system, or cannot stand in a table."""
    if not readable:
        return RejectReason.UNSAFE_NAME, "its name is not the UTF-8 that it says to be"
    if _CONTROL.search(name):
        return RejectReason.UNSAFE_NAME, "its name holds control characters"
    if "\\" in name:
        return RejectReason.UNSAFE_NAME, "its name holds backslashes; archive it again with / between folders"
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or _DRIVE.match(name):
        return RejectReason.UNSAFE_NAME, _LEADS_OUT
    return None


def _refusal(size: int, compressed: int, flags: int, method: int, unix_mode: int) -> tuple[RejectReason, str] | None:
    kind = stat.S_IFMT(unix_mode)
    if kind == stat.S_IFLNK:
        return RejectReason.NOT_REGULAR, "a symbolic link in an archive"
    if kind not in (0, stat.S_IFREG):
        return RejectReason.NOT_REGULAR, "no regular file"
    if flags & _ENCRYPTED:
        return RejectReason.UNREADABLE, "encrypted; archive it again without a password"
    if method not in (_STORED, _DEFLATED):
        return RejectReason.UNREADABLE, f"compressed by method {method}; archive it again with deflate"
    if size > MEMBER_BYTES:
        return RejectReason.TOO_LARGE, f"it inflates to {size} bytes; the budget is {MEMBER_BYTES}"
    if size > INFLATION_FREE_BYTES and size > INFLATION_RATIO * compressed:
        return RejectReason.TOO_LARGE, f"it inflates to more than {INFLATION_RATIO} times its size"
    return None


def _inflated(file: BinaryIO, record: _Record) -> bytes:
    """The bytes of a member, which are as many as the directory declares and have its CRC."""
    try:
        file.seek(record.offset)
        head = file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or not head.startswith(_MEMBER_MAGIC):
            raise Rejected(RejectReason.MALFORMED, "the archive holds no file where its directory says")
        *_, named, extra = _LOCAL.unpack(head)
        file.seek(named + extra, os.SEEK_CUR)
        content = _stored(file, record) if record.method == _STORED else _deflated(file, record)
    except (OSError, OverflowError, ValueError) as error:  # an offset beyond what a file can have
        raise Rejected(RejectReason.UNREADABLE, f"it cannot be read ({type(error).__name__})") from None
    if zlib.crc32(content) != record.crc:
        raise Rejected(RejectReason.DECODE_FAILED, "its content has not the checksum that the archive says")
    return content


def _stored(file: BinaryIO, record: _Record) -> bytes:
    if record.compressed != record.bytes:
        raise Rejected(RejectReason.SIZE_MISMATCH, "it is stored, but its two sizes differ")
    content = file.read(record.bytes)
    if len(content) < record.bytes:
        raise Rejected(RejectReason.TRUNCATED, "the archive ends within it")
    return content


def _deflated(file: BinaryIO, record: _Record) -> bytes:
    """Inflated piece by piece, and no further than one byte beyond the declared size."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    content, left, piece = bytearray(), record.compressed, b""
    try:
        while not inflate.eof and len(content) <= record.bytes:
            if not piece:
                piece = file.read(min(_CHUNK, left))
                left -= len(piece)
            if not piece:
                raise Rejected(RejectReason.TRUNCATED, "its compressed stream lacks its end")
            content += inflate.decompress(piece, min(_CHUNK, record.bytes + 1 - len(content)))
            piece = inflate.unconsumed_tail
    except zlib.error:
        raise Rejected(RejectReason.DECODE_FAILED, "its compressed stream is broken") from None
    if len(content) != record.bytes:
        raise Rejected(RejectReason.SIZE_MISMATCH, f"it declares {record.bytes} bytes, and has others")
    return bytes(content)
