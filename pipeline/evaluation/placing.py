"""A run's data where they lie now: data are moved, copied and restored from backups after a model was trained on them.

A file is known by its path and size. One whose time alone is another is taken as the same, which is said; whoever must be sure trains
again, as a training indexes its data itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.archive import is_archive
from pipeline.errors import Rejected, RunError
from pipeline.files import status_of
from pipeline.indexing.index import Index
from pipeline.indexing.sources import open_manifest
from pipeline.overlap import in_lanes
from pipeline.run import MANIFEST_FILE
from pipeline.wording import counted

ASKING_THREADS = 8
"""On a network disk each answer takes its time."""


def placed(index: Index, run: Path, root: Path | None) -> Index:
    """The run's index with its sources under `root`, in the manifest's order. Without one they stay, and must be there: RunError."""
    if root is None:
        gone = [place for place in index.roots.values() if not place.exists()]
        if gone:
            raise RunError(f"{gone[0]}: the run's data are not there any more; --root DIR says where they lie now")
        return index
    places = [place for _, place in open_manifest(run / MANIFEST_FILE, root).places]
    folders = [place if place.is_dir() or is_archive(place) else place.parent for place in places]
    return replace(index, roots=dict(zip(index.roots, folders, strict=True)))


def with_times_of_now(images: pd.DataFrame, roots: Mapping[str, Path]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """`images` with `mtime_ns` as it is now where the size is still the index's, and a warning where that changed anything."""
    files = images[["source", "path", "bytes", "mtime_ns"]].drop_duplicates(["source", "path"])
    rows = files.itertuples(index=False, name=None)
    times = in_lanes(lambda row: _time_of_now(roots[row[0]] / row[1], row[2], row[3]), rows, ASKING_THREADS)
    files = files.assign(now=pd.array(list(times), dtype="Int64"))
    other = int((files["now"] != files["mtime_ns"]).sum())
    if not other:
        return images, ()
    of_image = images[["source", "path"]].merge(files[["source", "path", "now"]], how="left", on=["source", "path"])
    said = (
        f"{counted(other, 'file')} of {len(files)} written again since the model was trained, by the time of the file; "
        "path and size are the same, and so each is taken as the same"
    )
    return images.assign(mtime_ns=of_image["now"].to_numpy()), (said,)


def _time_of_now(place: Path, size: int, known: int) -> int:
    """The file's time; the known one where it is gone or of another size, which is said when it is read."""
    try:
        found, time = status_of(place)
    except Rejected:
        return known
    return time if found == size else known
