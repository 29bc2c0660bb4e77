"""Files that share a SOPInstanceUID: the same content, or another.

'': none, or the first path of files that are all the same byte for byte; 'duplicate': each further one of those; 'conflict': each file
of a group whose files are not all the same, the same image in another transfer syntax included. Only files that share UID and
size are read for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import from_numpy, from_values, to_numpy

COLLISION_COLUMNS = ("bytes", "sop_instance_uid", "sha256")


def find_collisions(
    table: pa.Table, digest_of: Callable[[NDArray[np.int64]], list[str | None]]
) -> tuple[pa.Array, pa.Array]:
    """`collision` and `sha256` (null where it was not needed) for each row of a table of `COLLISION_COLUMNS`.

    `digest_of` gives the content digests of the files of rows; None for a file that cannot be read, which proves
    nothing. Digests that the table knows already are not made again.
    """
    uid = pc.dictionary_encode(table["sop_instance_uid"]).combine_chunks()
    codes = to_numpy(uid.indices, missing=-1).astype(np.int64)
    known = codes >= 0
    counts = np.bincount(codes[known], minlength=len(uid.dictionary) + 1)
    shared = np.flatnonzero(known & (counts[np.maximum(codes, 0)] > 1))
    collision = np.full(len(table), "", dtype=object)
    sha256 = np.full(len(table), None, dtype=object)
    collision[shared] = "conflict"
    alike = _same_size(shared, codes, table)
    if len(alike):
        sha256[alike] = _digests(table["sha256"], alike, digest_of)
        for group in _groups(alike, codes[alike]):
            if len(set(sha256[group])) == 1 and sha256[group[0]] is not None:
                collision[group] = "duplicate"
                collision[group[0]] = ""
    return from_values(collision.tolist(), pa.string()), from_values(sha256.tolist(), pa.string())


def _same_size(shared: NDArray[np.int64], codes: NDArray[np.int64], table: pa.Table) -> NDArray[np.int64]:
    """Of the rows that share a UID those whose whole group has one size."""
    if not len(shared):
        return shared
    sizes = to_numpy(table["bytes"])[shared]
    alike = [group for group in _groups(np.arange(len(shared)), codes[shared]) if len(set(sizes[group])) == 1]
    return np.sort(shared[np.concatenate(alike)]) if alike else shared[:0]


def _groups(rows: NDArray[np.int64], codes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of each code, in their order."""
    order = np.argsort(codes, kind="stable")
    borders = np.flatnonzero(np.diff(codes[order])) + 1
    return np.split(rows[order], borders)


def _digests(
    known: pa.ChunkedArray, rows: NDArray[np.int64], digest_of: Callable[[NDArray[np.int64]], list[str | None]]
) -> list[str | None]:
    digests = known.take(from_numpy(rows)).to_pylist()
    unknown = [place for place, digest in enumerate(digests) if not digest]
    for place, digest in zip(unknown, digest_of(rows[unknown]), strict=True):
        digests[place] = digest
    return digests
