"""pydicom on files that may be hostile: it reads through a window that ends where the file does, and says nothing.

`Window` gives pydicom no more bytes than there are and remembers whether it asked for more: a truncated file is
otherwise read without a word. `quietly` silences warnings and logs, which can quote patient data. `parsing` turns
whatever pydicom raises on broken bytes into `Rejected`, by the exception's type alone, for the same reason.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_preamble

from pipeline.errors import Rejected, RejectReason
from pipeline.files import open_regular

HEADER_BYTES = 64 * 2**20
"""Most that is read of one header. The functional groups of 20,000 frames take about half of it."""
HEADER_READS = 2**22
"""Most that pydicom reads one after another of a header, one or two an element: half a minute. 20,000 frames take half."""
VALUE_BYTES = 2**16
"""Longest value that is taken apart: what a length of 16 bits can say. pydicom makes an object of each of its numbers."""
INFLATED_BYTES = 2**30
"""Most that a deflated data set (PS3.5 A.5) may grow to; image and header inflate together, and are held in memory."""
INFLATION_RATIO = 1000
"""Most bytes a deflated byte may become; deflate's own limit is 1032, which only a bomb reaches."""
INFLATION_FREE_BYTES = 2**20
"""Up to here the ratio does not count: a small blank image inflates nearly as well as a bomb."""

_IN_ONE_PIECE = ("SQ", "OB", "OV", "OW", "US or OW")  # VRs whose values stay bytes, or have a length for each part


class Window:
    """A binary file as pydicom wants one (read, seek, tell), bounded by its size and by `budget` bytes in all."""

    def __init__(self, file: BinaryIO, size: int, budget: int | None = None) -> None:
        """`budget`: `HEADER_BYTES` where not given."""
        self.size = size
        self.ended_early = False
        self.refusal: Rejected | None = None
        self._file = file
        self._budget = self._limit = HEADER_BYTES if budget is None else budget
        self._reads = HEADER_READS
        self.seek = file.seek
        self.tell = file.tell

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes; fewer where the file ends first, which `ended_early` then says.

        A data set may end where the next element's 8 bytes would begin (and pydicom peeks for 1), at exactly the file's
        end: not beyond it after a jump, not within a value. A file cut just there cannot be told from a whole one.
        """
        left = self.size - self._file.tell()
        if left < 0 or 0 < left < count or (left == 0 and count not in (0, 1, 8)):
            self.ended_early = True
        wanted = left if count < 0 else min(count, left)
        self._budget -= max(0, wanted)
        self._reads -= 1
        if self._reads < 0:
            self.refusal = Rejected(RejectReason.TOO_LARGE, f"its header has more than {HEADER_READS // 2} elements")
            raise self.refusal
        if self._budget < 0:
            self.refusal = Rejected(RejectReason.TOO_LARGE, f"its header is longer than {self._limit >> 20} MiB")
            raise self.refusal
        return self._file.read(wanted) if wanted > 0 else b""

    def pixels(self, offset: int, count: int) -> bytes:
        """Bytes for the checks of the pixel data element: outside the header's budget, shorter at the file's end."""
        self._file.seek(offset)
        return self._file.read(count)


@contextmanager
def open_window(path: Path) -> Iterator[Window]:
    """The window on a regular file. Raises Rejected as `open_regular` does."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)  # a member of an archive has no descriptor to ask
        file.seek(0)
        yield Window(file, size)


@contextmanager
def quietly() -> Iterator[None]:
    """No warning, no log line, no validation by pydicom within the block."""
    mode, disabled = config.settings.reading_validation_mode, config.logger.disabled
    config.settings.reading_validation_mode = config.IGNORE
    config.logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = mode
        config.logger.disabled = disabled


@contextmanager
def parsing(window: Window) -> Iterator[None]:
    """Rejects the file when pydicom stumbles: too large, truncated where it asked beyond the end, else malformed."""
    try:
        with quietly():
            yield
    except Rejected:
        raise
    except MemoryError:
        raise
    except Exception as error:
        # pydicom raises about a dozen types on broken bytes, KeyError, struct.error and RecursionError among them.
        if window.refusal is not None:
            raise window.refusal from None
        if window.ended_early:
            raise Rejected(RejectReason.TRUNCATED, "the file ends within its header") from None
        if isinstance(error, RecursionError):
            raise Rejected(RejectReason.MALFORMED, "its sequences are nested too deep") from None
        detail = f"its header cannot be parsed ({type(error).__name__})"
        raise Rejected(RejectReason.MALFORMED, detail) from None


def read_meta(window: Window) -> Dataset:
    """The file meta information (PS3.10 7.1), empty where there is none; the window is left behind it.

    Only to be used within `parsing`, as is `inflated`.
    """
    window.seek(0)
    read_preamble(window, force=True)  # type: ignore[arg-type]
    return read_dataset(window, False, True, stop_when=lambda tag, _, __: tag >> 16 != 2)  # type: ignore[arg-type]


def inflated(window: Window) -> Window:
    """The deflated data set that follows, inflated within its budget; pydicom itself inflates without a limit."""
    start = window.tell()
    limit = min(INFLATED_BYTES, max(INFLATION_FREE_BYTES, INFLATION_RATIO * (window.size - start)))
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflate.decompress(window.pixels(start, window.size - start), limit + 1)
    if len(data) > limit:
        raise Rejected(RejectReason.TOO_LARGE, f"it inflates to more than {limit >> 20} MiB")
    if not inflate.eof:
        raise Rejected(RejectReason.TRUNCATED, "its deflated data set lacks its end")
    return Window(BytesIO(data), len(data))


def value_of(dataset: Dataset, keyword: str) -> Any:
    """An attribute's value, None where it is absent. Raises Rejected (MALFORMED) where it is a list that takes gigabytes.

    Any VR may be written in any element's place, and most of them turn each number or word of 64 MiB into an object.
    """
    element = dataset.get_item(keyword) if keyword in dataset else None
    if isinstance(element, RawDataElement) and element.value is not None and len(element.value) > VALUE_BYTES:
        written = element.VR if element.VR not in (None, "UN") else dictionary_VR(tag_for_keyword(keyword) or 0)
        if written not in _IN_ONE_PIECE:
            raise Rejected(RejectReason.MALFORMED, f"{keyword} is {len(element.value)} bytes long")
    return dataset.get(keyword)
