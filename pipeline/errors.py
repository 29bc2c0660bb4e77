"""What can go wrong, one class a kind, and the closed list of reasons for which a file is not used.

Every message says what was expected, what was found, where, and what to do; it never holds a patient's name or ID.
`RadloopError` is the base: the command line prints it in one piece and exits with 2.
"""

from __future__ import annotations

from enum import StrEnum


class RejectReason(StrEnum):
    """Why a file of a source is not in the index, or an indexed image could not be decoded. Closed: tables hold no other value."""

    NOT_AN_IMAGE = "not_an_image"
    """Neither DICOM nor another format that radloop reads (text, PDF, an archive within a source, ...)."""
    EMPTY = "empty"
    """A file of no bytes."""
    UNREADABLE = "unreadable"
    """The operating system refuses it (permission, input/output error)."""
    NOT_REGULAR = "not_a_regular_file"
    """A symbolic link out of the source, a FIFO, a device, a socket."""
    UNSAFE_NAME = "unsafe_name"
    """A name in an archive that leads out of it, or that stands there twice."""
    MISSING = "missing"
    """A DICOMDIR lists it, but it is not there."""
    DICOMDIR = "dicomdir"
    """The directory of a DICOM medium, not an image."""
    NO_PIXELS = "no_pixels"
    """DICOM without pixel data: SR, PR, KO, RT structures, ..."""
    MISSING_UID = "missing_uid"
    """An image without SOPInstanceUID, SeriesInstanceUID, StudyInstanceUID or SOPClassUID."""
    MALFORMED = "malformed"
    """Says that it is DICOM, PNG, JPEG, TIFF or NIfTI but breaks that format's rules: it cannot be parsed."""
    TRUNCATED = "truncated"
    """Ends before its pixels do, or its compressed stream lacks its end."""
    SIZE_MISMATCH = "size_mismatch"
    """Rows, columns, frames and bits promise another number of bytes than there are."""
    TOO_LARGE = "too_large"
    """Decoding it would exceed the memory budget."""
    TIMED_OUT = "timed_out"
    """Reading or decoding it took longer than the time budget."""
    CRASHED = "crashed"
    """The worker process that read or decoded it died."""
    UNSUPPORTED_SYNTAX = "unsupported_transfer_syntax"
    """Its transfer syntax is not that of an image radloop decodes (MPEG, unknown UIDs)."""
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    """A pixel format outside what radloop can give a meaning to (odd bit depths, unknown photometric interpretation)."""
    DECODE_FAILED = "decode_failed"
    """The codec reports an error in the compressed stream."""
    NOT_FINITE = "not_finite"
    """The network's output for it is no number."""
    CHANGED = "changed"
    """The file is not the one that was indexed: its size or time differs, or it is gone."""


class RadloopError(Exception):
    """Base of all errors that radloop raises on purpose."""


class SourceError(RadloopError):
    """A source that cannot be used at all: not there, not readable, no image in it."""


class ConfigError(RadloopError):
    """A configuration, a manifest or a command-line value that is wrong."""


class WeightsError(RadloopError):
    """Weights that cannot be had, or that do not fit the network."""


class RunError(RadloopError):
    """A run folder that is incomplete or that contradicts what is asked of it."""


class CacheError(RadloopError):
    """The folder of prepared images cannot be used: not writable, somebody else's, or its disk is full."""


class ObjectError(RadloopError):
    """A DICOM object that would not be valid; it is not written."""


class PeerError(RadloopError):
    """Another machine that cannot be reached, refuses us, or breaks off. `passing`: trying again later may help."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class Rejected(RadloopError):
    """One file that cannot be used, with its reason. Carries facts about the file only, never patient data."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Rejected], tuple[RejectReason, str]]:
        return type(self), (self.reason, self.detail)
