"""Taking stock of sources: `index.parquet`, `rejects.csv`, `stacks.csv` and `summary.json` in one folder.

Every file that the sources hold is in exactly one of the first two, in the order of the sources and of their paths. Three steps, each of
which can be killed at any moment: list (nothing is opened), read what is not known from earlier (in worker processes; every few
seconds what was read becomes a part on disk), and write the tables, which follow from the listing and the rows alone. A source that has
not changed is not read again: files by path, size and time. Memory holds some hundred bytes a file. Without pandas, for the start.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import pipeline
from pipeline.archive import is_archive, list_members
from pipeline.arrow import from_numpy, from_values, to_numpy
from pipeline.cluster import LOCAL, RAY, Budget, ClusterPool, check_engine
from pipeline.columns import BATCH_SCHEMA, SCHEMA
from pipeline.errors import SourceError
from pipeline.files import alone, left_behind
from pipeline.identity import IdentityKey
from pipeline.indexing.header_jobs import PRELOADED, Files, list_directory, read_files
from pipeline.indexing.known import PASSING, KnownRows, part_names, parts_in, write_part
from pipeline.indexing.listing import Entry, Listed, as_table, listed_members, walk
from pipeline.indexing.tables import INDEX_FILE, REJECTS_FILE, STACKS_FILE, SUMMARY_FILE, write_tables
from pipeline.progress import say, track
from pipeline.wording import counted
from pipeline.work import Failure, Pool, WorkerPool, default_workers

WORK_FOLDER = ".indexing"
REVISION = 2
"""Of what rows say: with another one all files are read again."""

ROWS_A_PART = 65_536
FILES_A_BATCH = 128
"""Files that go to a worker at once; where one kills it, each of them goes to one alone."""
BATCHES_A_WORKER = 4
PART_EVERY_S = 5.0
"""What is lost where the process is killed."""
HEADER_TIMEOUT_S = 60.0
"""A header takes a millisecond; a minute is for a network disk that wakes up."""
HEADER_MEMORY_BYTES = 3 * 2**30
"""Twice what a deflated data set may inflate to, as zlib joins its output, and room for the rest."""
DICOMDIR = "dicomdir"  # the name that PS3.10 8.6 gives it, case folded


def take_inventory(
    places: Sequence[tuple[str | None, Path]],
    out: Path,
    *,
    key: IdentityKey,
    workers: int | None = None,
    engine: str = LOCAL,
    progress: bool = False,
) -> dict[str, Any]:
    """Writes the tables of all sources (name or None, place) to `out`; returns the summary.

    `workers`: processes, by default one a CPU; 0 reads in this process, without a budget of time and memory. `engine`: local, or ray
    (`cluster`), which reads on a cluster; the tables are the same. Raises SourceError where there is nothing to read.
    """
    check_engine(engine)
    with alone(out, "indexes into"), _header_pool(workers, engine, places) as pool:
        sources = [_list(name, place, pool) for name, place in places]
        _check(sources)
        state = _state(sources, key)
        summary = _current(out, state)
        if summary is None:
            _tidy(out)
            work = {source.name: _work_folder(out, key, source) for source in sources}
            parts = [part for folder in work.values() for part in parts_in(folder)]
            known = KnownRows(*_tables_before(out, key), parts, {source.name: str(source.root) for source in sources})
            rows = [_rows_of(source, known, work[source.name], pool, key, progress) for source in sources]
            known.forget_keys()
            summary = write_tables(sources, rows, known, out, pool, metadata={"state": state, "version": _version(key)})
        shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return summary


# --- list


def _list(name: str | None, source: Path, pool: Pool) -> Listed:
    """One source listed: a folder, an archive, a DICOMDIR with its folder, or a single file."""
    place = _checked(source)
    if place.is_dir():
        return Listed(name or place.name or str(place), place, as_table(walk(place)))
    if is_archive(place):
        members = _only(pool.run_each(list_members, [place]))
        if isinstance(members, Failure):
            raise SourceError(f"{source}: expected a .zip export, found one that cannot be read ({members.detail})")
        files = as_table(listed_members(members, place.stat().st_mtime_ns))
        return Listed(name or place.name, place, files)
    directory = _directory(place, pool)
    root = place.parent
    status = place.stat()
    alone = [Entry(place.name, None, status.st_size, status.st_mtime_ns)]
    return Listed(name or root.name or str(root), root, as_table(alone if directory is None else walk(root)), directory)


def _checked(source: Path) -> Path:
    """The source with links in its own path resolved: what the user points at is meant."""
    expected = "expected a folder, a .zip, a DICOMDIR or an image file"
    try:
        place = source.resolve(strict=True)
        if place.is_dir():
            os.scandir(place).close()
    except OSError as error:
        raise SourceError(f"{source}: cannot be read ({error.strerror}); {expected}") from None
    if not place.is_dir() and not place.is_file():
        raise SourceError(f"{source}: {expected}, found a device or a FIFO")
    return place


def _directory(place: Path, pool: Pool) -> list[str] | None:
    """The files that the source lists where it is a DICOMDIR; None where it is another file."""
    outcome = _only(pool.run_each(list_directory, [place]))
    if not isinstance(outcome, Failure):
        return outcome
    if place.name.casefold() == DICOMDIR:
        raise SourceError(
            f"{place}: expected the directory of a DICOM medium, found what cannot be read as one ({outcome.detail}); "
            f"give its folder instead: {place.parent}"
        )
    return None


def _only(outcomes: Iterable[tuple[Any, Any]]) -> Any:
    [(_, outcome)] = outcomes
    return outcome


def _check(sources: Sequence[Listed]) -> None:
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"two sources are called {twice[0]}; give each a name of its own")
    if not sum(len(source.files) for source in sources):
        raise SourceError(f"{sources[0].root}: expected image files, found a folder without any file")


# --- what is known


def _state(sources: Sequence[Listed], key: IdentityKey) -> str:
    """Names all that the tables follow from: radloop, the key, and every file with its size and time."""
    state = hashlib.sha256(_version(key).encode())
    for source in sources:
        state.update(f"\x1e{source.name}\x1e{source.root}\x1e{source.directory is not None}\x1e".encode())
        for batch in source.files.to_batches():
            for column in ("path", "reason"):
                state.update("\x1f".join(value or "" for value in batch[column].to_pylist()).encode())
            for column in ("bytes", "mtime_ns"):
                state.update(to_numpy(batch[column], missing=-1).tobytes())
    return state.hexdigest()


def _version(key: IdentityKey) -> str:
    return f"{pipeline.__version__} {REVISION} {key.fingerprint}"


def _current(out: Path, state: str) -> dict[str, Any] | None:
    """The summary that stands in `out`, if its tables are those of this state and nothing should be tried again."""
    try:
        written = pq.read_schema(out / INDEX_FILE).metadata or {}
        summary: dict[str, Any] = json.loads((out / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, pa.ArrowException):
        return None
    whole = written.get(b"state") == state.encode() and summary.get("state") == state
    again = summary.get("unhashed", 0) or PASSING & summary.get("rejected_by_reason", {}).keys()
    there = all((out / name).is_file() for name in (REJECTS_FILE, STACKS_FILE))
    return summary if whole and there and not again else None


def _tables_before(out: Path, key: IdentityKey) -> tuple[Path | None, Path | None]:
    """The index and rejects that stand in `out`, if this version wrote them under this key."""
    try:
        schema = pq.read_schema(out / INDEX_FILE)
    except (OSError, pa.ArrowException):
        return None, None
    usable = (schema.metadata or {}).get(b"version") == _version(key).encode() and schema.names == SCHEMA.names
    if not usable or not (out / REJECTS_FILE).is_file():
        return None, None
    return out / INDEX_FILE, out / REJECTS_FILE


def _tidy(out: Path) -> None:
    """Removes what a killed call left of tables that it was writing."""
    for name in (INDEX_FILE, REJECTS_FILE, STACKS_FILE, SUMMARY_FILE):
        for left in left_behind(out / name):
            left.unlink(missing_ok=True)


def _work_folder(out: Path, key: IdentityKey, source: Listed) -> Path:
    """Where a source's parts are kept until the tables are written; parts of another version or key are removed."""
    ours = out / WORK_FOLDER / _digest(_version(key))
    for other in (out / WORK_FOLDER).glob("*"):
        if other != ours:
            shutil.rmtree(other, ignore_errors=True)
    folder = ours / _digest(f"{source.name}\x1f{source.root}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(said: str) -> str:
    return hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()[:16]


# --- read


def _header_pool(workers: int | None, engine: str, places: Sequence[tuple[str | None, Path]]) -> Pool:
    if engine == RAY:
        seen = tuple(str(place.resolve()) for _, place in places)
        return ClusterPool(Budget(HEADER_TIMEOUT_S, HEADER_MEMORY_BYTES, PRELOADED, seen), cpus=workers)
    count = default_workers() if workers is None else workers
    return WorkerPool(count, timeout_s=HEADER_TIMEOUT_S, memory_bytes=HEADER_MEMORY_BYTES, preload=PRELOADED)


def _rows_of(
    source: Listed, known: KnownRows, work: Path, pool: Pool, key: IdentityKey, progress: bool
) -> NDArray[np.int64]:
    """(n,) for each listed file the number of its known row, after what was not known was read; -1 where it may not be opened."""
    numbers = known.find(source.name, source.files)
    readable = source.readable
    numbers[~readable] = -1
    unread = np.flatnonzero(readable & (numbers < 0))
    if progress and parts_in(work):
        before = int((readable & (numbers >= 0)).sum())
        say(f"index {source.name}: going on: {before:,} of {counted(len(source.files), 'file')} were read before")
    names = part_names(work)
    done, held, since = 0, [], time.monotonic()
    batches = _read(source, unread, pool, key)
    for batch in track(batches, f"index {source.name}", len(unread), show=progress, size=len):
        held.append(batch)
        rows = sum(map(len, held))
        if rows >= ROWS_A_PART - FILES_A_BATCH or time.monotonic() - since > PART_EVERY_S:
            numbers[unread[done : done + rows]] = _keep(held, known, next(names))
            done, held, since = done + rows, [], time.monotonic()
    if held:  # what was read last need not go to the disk: it is written as tables at once
        numbers[unread[done:]] = _rows_from(known.hold(pa.concat_tables(held)), len(unread) - done)
    return numbers


def _keep(held: list[pa.Table], known: KnownRows, part: Path) -> NDArray[np.int64]:
    """Makes rows a part; returns their numbers."""
    table = pa.concat_tables(held)
    write_part(part, table)
    return _rows_from(known.add(part), len(table))


def _rows_from(first: int, count: int) -> NDArray[np.int64]:
    return np.arange(first, first + count)


def _read(source: Listed, unread: NDArray[np.int64], pool: Pool, key: IdentityKey) -> Iterator[pa.Table]:
    """The rows of the unread files, in their order. A batch that fails is read file by file, each under the budget alone."""
    read = partial(read_files, root=str(source.root), source=source.name, key=key)
    with pool.beside() as alone:
        for files, outcome in pool.run_each(read, _batches(source.files, unread), chunk=BATCHES_A_WORKER):
            if not isinstance(outcome, Failure):
                yield _unpacked(outcome)
                continue
            each: Iterator[Files] = (([path], [size], [time_ns]) for path, size, time_ns in zip(*files, strict=True))
            for file, single in alone.run_each(read, each):
                yield _failed(source.name, file, single) if isinstance(single, Failure) else _unpacked(single)


def _batches(files: pa.Table, unread: NDArray[np.int64]) -> Iterator[Files]:
    for start in range(0, len(unread), FILES_A_BATCH):
        rows = files.select(["path", "bytes", "mtime_ns"]).take(from_numpy(unread[start : start + FILES_A_BATCH]))
        paths, sizes, times_ns = (column.to_pylist() for column in rows.columns)
        yield paths, sizes, times_ns


def _unpacked(batch: bytes) -> pa.Table:
    with pa.ipc.open_stream(batch) as reader:
        return reader.read_all()


def _failed(source: str, file: Files, failure: Failure) -> pa.Table:
    (path,), (size,), (mtime_ns,) = file
    row = {"source": source, "path": path, "bytes": size, "mtime_ns": mtime_ns}
    row |= {"reason": str(failure.reason), "detail": failure.detail}
    return pa.Table.from_arrays(
        [from_values([row.get(field.name)], field.type) for field in BATCH_SCHEMA], schema=BATCH_SCHEMA
    )
