"""What worker processes do for an inventory. Light to import, so that neither the main process waits for pydicom nor a worker for
Parquet: each imports what it needs when it is called.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.identity import IdentityKey
from pipeline.indexing.listing import Entry

PRELOADED = ("pipeline.indexing.header_jobs", "pipeline.indexing.entries")


Files = tuple[list[str], list[int], list[int]]
"""Paths, sizes and times of files that were listed: lists travel between processes faster than objects."""


def read_files(files: Files, *, root: str, source: str, key: IdentityKey) -> bytes:
    """`entries.read_batch`."""
    from pipeline.indexing.entries import read_batch

    entries = [Entry(path, None, size, mtime_ns) for path, size, mtime_ns in zip(*files, strict=True)]
    return read_batch(entries, root=root, source=source, key=key)


def list_directory(place: Path) -> list[str]:
    """`dicom.directory.listed_files`."""
    from pipeline.dicom.directory import listed_files

    return listed_files(place)


def name_uid(uid: str) -> str:
    """`dicom.header.uid_name`, '' for none."""
    from pipeline.dicom.header import uid_name

    return uid_name(uid) if uid else ""
