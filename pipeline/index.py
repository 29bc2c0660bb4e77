"""The index: one row for each image file of a source, one reject with its reason for everything else.

Everything that a folder holds is in exactly one of the two tables. Rows are sorted by path (entries.walk). Nothing names
a patient, but for paths, which stand as they are (`path_holds_identity` says which to mask elsewhere). Columns, their
order and dtypes are `COLUMNS` and `REJECT_COLUMNS`, also where a table is empty.

`collision` is about files that share a SOPInstanceUID, also across sources. '': none, or the first path of files that
are all the same byte for byte; 'duplicate': each further one of those; 'conflict': each file of a group whose files are
not all the same, the same image in another transfer syntax included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import COLUMNS, FLAG, INTEGER, REAL, REJECT_COLUMNS, TEXT
from pipeline.dicom.directory import listed_files
from pipeline.entries import Entry, read_entry, walk
from pipeline.errors import RejectReason, SourceError
from pipeline.files import file_digest, whole_file, write_whole
from pipeline.identity import IdentityKey
from pipeline.progress import track
from pipeline.summary import summarise
from pipeline.work import Failure, WorkerPool, default_workers

ARROW = {TEXT: pa.string(), INTEGER: pa.int64(), REAL: pa.float64(), FLAG: pa.bool_()}
SCHEMA = pa.schema([(name, ARROW[dtype]) for name, dtype in COLUMNS.items()])

HEADER_TIMEOUT_S = 60.0
"""A header takes a millisecond; a minute is for a network disk that wakes up."""
HEADER_MEMORY_BYTES = 3 * 2**30
"""Twice what a deflated data set may inflate to, as zlib joins its output, and room for the rest."""
DICOMDIR = "dicomdir"  # the name that PS3.10 8.6 gives it, case folded
FILES_A_CHUNK = 16
ROWS_A_BATCH = 8192
"""Rows that are plain Python objects before they become columns: a few tens of MiB."""


INDEX_FILE = "index.parquet"
REJECTS_FILE = "rejects.csv"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Index:
    """`table`: a row an image file (`COLUMNS`). `rejects`: a row for all else. `roots`: source → its folder."""

    table: pd.DataFrame
    rejects: pd.DataFrame
    summary: dict[str, Any]
    roots: dict[str, Path]


def index_source(
    source: Path, *, key: IdentityKey, name: str | None = None, workers: int | None = None, progress: bool = False
) -> Index:
    """Accounts for every file of a folder, a single file, or a DICOMDIR with its folder.

    `name` is the source's name in the tables, by default its folder's. Of a DICOMDIR the files that it lists and that
    are not there are rejects (`missing`); files it does not list are indexed all the same, and counted in the summary.
    `workers`: processes, by default one a CPU; 0 reads in this process, without a budget of time and memory.
    Raises SourceError where there is nothing to read.
    """
    place = _checked(source)
    root = place if place.is_dir() else place.parent
    name = name or root.name or str(root)
    with _header_pool(workers) as pool:
        listed = _listed(place, pool) if place.is_file() else None
        entries = iter([Entry(place.name)]) if place.is_file() and listed is None else walk(root)
        outcomes = pool.run_each(partial(read_entry, root=str(root), key=key), entries, chunk=FILES_A_CHUNK)
        table, rejects = _tables(track(outcomes, f"index {name}", show=progress), name)
        if len(table) + len(rejects) == 0:
            raise SourceError(f"{source}: expected image files, found a folder without any file")
        directories = {}
        if listed is not None:
            missing, directories[name] = _compared(listed, table, rejects, name)
            rejects = pd.concat([rejects, missing], ignore_index=True)
        table = _with_collisions(table, {name: root}, pool)
    return Index(table, rejects, summarise(table, rejects, {name: root}, directories), {name: root})


def merge(indexes: Sequence[Index], *, workers: int | None = None) -> Index:
    """One index of several sources, in their order; collisions are found anew, across sources."""
    roots: dict[str, Path] = {}
    directories: dict[str, Any] = {}
    for index in indexes:
        twice = sorted(roots.keys() & index.roots.keys())
        if twice:
            raise SourceError(f"two sources are called {twice[0]}; give each a name of its own")
        roots |= index.roots
        directories |= index.summary["directories"]
    table = pd.concat([index.table for index in indexes], ignore_index=True)
    rejects = pd.concat([index.rejects for index in indexes], ignore_index=True)
    with _header_pool(workers) as pool:
        table = _with_collisions(table, roots, pool)
    return Index(table, rejects, summarise(table, rejects, roots, directories), roots)


def _checked(source: Path) -> Path:
    """The source with links in its own path resolved: what the user points at is meant."""
    try:
        place = source.resolve(strict=True)
        if place.is_dir():
            os.scandir(place).close()
    except OSError as error:
        hint = "expected a folder, a DICOMDIR or an image file"
        raise SourceError(f"{source}: cannot be read ({error.strerror}); {hint}") from None
    if not place.is_dir() and not place.is_file():
        raise SourceError(f"{source}: expected a folder, a DICOMDIR or an image file, found a device or a FIFO")
    return place


def _header_pool(workers: int | None) -> WorkerPool:
    modules = (read_entry.__module__,)  # and not this one: workers need no pandas
    count = default_workers() if workers is None else workers
    return WorkerPool(
        count,
        timeout_s=HEADER_TIMEOUT_S,
        memory_bytes=HEADER_MEMORY_BYTES,
        preload=modules,
    )


def _listed(place: Path, pool: WorkerPool) -> list[str] | None:
    """The files that the source lists where it is a DICOMDIR; None where it is another file."""
    [(_, outcome)] = pool.run_each(listed_files, [place])
    if not isinstance(outcome, Failure):
        return outcome
    if place.name.casefold() == DICOMDIR:
        raise SourceError(
            f"{place}: expected the directory of a DICOM medium, found what cannot be read as one ({outcome.detail}); "
            f"give its folder instead: {place.parent}"
        )
    return None


def _tables(outcomes: Iterable[tuple[Entry, dict[str, Any] | Failure]], name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and rejects; rows become columns batch by batch, which keeps millions of them small."""
    batches: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    rejects: list[tuple[str, ...]] = []
    for entry, outcome in outcomes:
        if isinstance(outcome, Failure):
            rejects.append((name, entry.path, str(outcome.reason), outcome.detail, "", ""))
            continue
        rows.append({"source": name, "collision": "", **outcome})
        if len(rows) == ROWS_A_BATCH:
            batches.append(pa.Table.from_pylist(rows, SCHEMA))
            rows.clear()
    batches.append(pa.Table.from_pylist(rows, SCHEMA))
    return _as_frame(pa.concat_tables(batches)), _as_rejects(rejects)


def _as_frame(table: pa.Table) -> pd.DataFrame:
    """The table of `SCHEMA` with the dtypes of `COLUMNS`."""
    dtypes = {
        pa.string(): pd.StringDtype("pyarrow"),
        pa.int64(): pd.Int64Dtype(),
        pa.float64(): pd.Float64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    return table.to_pandas(types_mapper=dtypes.get)


def _as_rejects(rejects: Iterable[tuple[str, ...]]) -> pd.DataFrame:
    return pd.DataFrame(list(rejects), columns=list(REJECT_COLUMNS), dtype=pd.StringDtype("pyarrow"))


def _compared(
    listed: list[str], table: pd.DataFrame, rejects: pd.DataFrame, name: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rejects for the listed files that are not there, and the counts of a DICOMDIR for the summary.

    Whatever the case, as media are often copied with their upper-case names made lower-case.
    """
    there = {path.casefold() for path in (*table["path"], *rejects["path"])}
    wanted = {path.casefold(): path for path in listed}
    gone = [path for folded, path in wanted.items() if folded not in there]
    unlisted = sum(path.casefold() not in wanted for path in table["path"])
    reason = str(RejectReason.MISSING)
    missing = _as_rejects([(name, _encodable(path), reason, "the DICOMDIR lists it", "", "") for path in gone])
    return missing, {"listed": len(wanted), "missing": len(gone), "unlisted": unlisted}


def _encodable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _with_collisions(table: pd.DataFrame, roots: Mapping[str, Path], pool: WorkerPool) -> pd.DataFrame:
    """The table with `collision` as the module says. Only possible duplicates are read: same UID and same size."""
    collision = pd.Series("", index=table.index, dtype=table["collision"].dtype)
    known = table[table["sop_instance_uid"].notna()]
    shared = known[known.duplicated("sop_instance_uid", keep=False)]
    sizes = shared.groupby("sop_instance_uid")["bytes"].transform("nunique")
    collision[shared.index] = "conflict"
    alike = shared[sizes == 1]
    files = [roots[source] / path for source, path in zip(alike["source"], alike["path"], strict=True)]
    outcomes: Iterator[tuple[Path, str | Failure]] = pool.run_each(file_digest, files)
    # A file that cannot be read again proves nothing: its digest is its own, and so the group is a conflict.
    digests = [digest if isinstance(digest, str) else str(file) for file, digest in outcomes]
    contents = pd.Series(digests, index=alike.index, dtype=object)
    for _, group in contents.groupby(alike["sop_instance_uid"]):
        if (group == group.iloc[0]).all():
            collision[group.index] = "duplicate"
            collision[group.index[0]] = ""
    return table.assign(collision=collision)


def write_index(index: Index, out: Path) -> None:
    """`rejects.csv`, `summary.json`, then `index.parquet` (zstd, `SCHEMA`) into the folder `out`, each whole."""
    write_whole(out / REJECTS_FILE, index.rejects.to_csv(index=False, lineterminator="\n"))
    write_whole(out / SUMMARY_FILE, json.dumps(index.summary, indent=2, ensure_ascii=False) + "\n")
    with whole_file(out / INDEX_FILE) as file:
        pq.write_table(pa.Table.from_pandas(index.table, SCHEMA, preserve_index=False), file, compression="zstd")


def read_index(folder: Path) -> Index:
    """What `write_index` wrote. Raises SourceError where it is not there, or was written by another version."""
    try:
        table = pq.read_table(folder / INDEX_FILE)
        rejects = pd.read_csv(folder / REJECTS_FILE, dtype=str, na_filter=False, lineterminator="\n")
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        roots = {name: Path(root) for name, root in summary["sources"].items()}
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise SourceError(
            f"{folder}: expected {INDEX_FILE}, {REJECTS_FILE} and {SUMMARY_FILE} as radloop index writes them, found "
            f"{type(error).__name__}; index the source again"
        ) from error
    if table.schema.names != SCHEMA.names or tuple(rejects.columns) != REJECT_COLUMNS:
        raise SourceError(
            f"{folder}: expected the columns of this version of radloop, found others; index the source again"
        )
    return Index(_as_frame(table), _as_rejects(rejects.itertuples(index=False, name=None)), summary, roots)
