"""Thousands of broken files go through index and decoder: each ends in one table, with a reason, at a bounded cost.

What must hold is the same for every mutant, so it is asked of all of them, folder by folder: `survived`. What a mutant
decodes to is not judged, as many are valid files with other pixels; only that it has the promised shape, in finite numbers.
"""

from __future__ import annotations

import logging
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dicom.header import read_header
from pipeline.errors import Rejected, RejectReason
from pipeline.identity import IdentityKey
from pipeline.indexing.index import Index, index_source
from pipeline.prepared.dataset import ImageFile, read_image
from pipeline.work import Failure, WorkerPool
from tests.hostile import CANARIES, bad_files, dicom_originals, raster_originals
from tests.mutants import Mutant, dissect, kind_of, mutants
from transforms.intensity import WINDOWS, to_unit_range

KEY = IdentityKey(b"a key for tests only")
SEED = 3
OF_EACH_ORIGINAL = 130
OF_EACH_REAL_FILE = 12
REAL_FILE_BYTES = 60_000
A_FOLDER = 500
FRAMES_DECODED = 2

DECODE_MEMORY_BYTES = 2**30
"""A sixth of what dataset gives its workers: a mutant of a small image has no business with more."""
DECODE_TIMEOUT_S = 60.0
CPU_S = 10.0
"""Of one frame. The slowest needs well under one second; a loop that a mutant can lengthen has no such end."""
INDEX_GROWTH_BYTES = 300 * 2**20
"""Of the process that indexes, over all folders: tables of a few thousand rows, and room for what Python keeps."""


@dataclass(frozen=True)
class Look:
    """What came of decoding one frame."""

    shape: tuple[int, ...]
    finite: bool
    in_range: bool
    cpu_s: float


def look(image: ImageFile) -> Look:
    """Decodes in a worker, as training and inference do, and brings the values to 0-1."""
    started = time.process_time()
    pixels = read_image(image)
    shown = to_unit_range(pixels, WINDOWS["lung"])
    return Look(
        shape=pixels.values.shape,
        finite=bool(np.isfinite(pixels.values).all() and np.isfinite(shown).all()),
        in_range=bool(shown.min() >= 0 and shown.max() <= 1),
        cpu_s=time.process_time() - started,
    )


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2, timeout_s=DECODE_TIMEOUT_S, memory_bytes=DECODE_MEMORY_BYTES) as workers:
        yield workers


def survived(folder: Path, pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """Indexes the folder, decodes what is an image, checks all that must hold. Returns how often each end was met."""
    with caplog.at_level(logging.DEBUG):
        index = index_source(folder, key=KEY, workers=2)
    _accounted(index, folder)
    decoded = list(pool.run_each(look, _frames(index), chunk=8))
    failures = [outcome for _, outcome in decoded if isinstance(outcome, Failure)]
    for reason, detail in zip(index.rejects["reason"], index.rejects["detail"], strict=True):
        _affordable(RejectReason(reason), str(detail))
    for failure in failures:
        _affordable(failure.reason, failure.detail)
    sizes = {row.path: (row.rows, row.columns) for row in index.table.itertuples()}
    for image, outcome in decoded:
        if isinstance(outcome, Look):
            assert outcome.shape == sizes[image.path], image
            assert outcome.finite, image
            assert outcome.in_range, image
            assert outcome.cpu_s < CPU_S, image
    _anonymous(index.table.astype(str).to_csv(), index.rejects.to_csv(), str(index.summary), str(failures), caplog.text)
    ends = Counter(str(reason) for reason in index.rejects["reason"])
    ends.update("decoded" if isinstance(outcome, Look) else f"pixels: {outcome.reason}" for _, outcome in decoded)
    return ends


def _accounted(index: Index, folder: Path) -> None:
    """Every file once, in one of the two tables."""
    paths = [*index.table["path"].astype(str), *index.rejects["path"].astype(str)]
    assert sorted(paths) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _frames(index: Index) -> Iterator[ImageFile]:
    [root] = index.roots.values()
    for row in index.table.itertuples():
        for frame in range(min(row.frames, FRAMES_DECODED)):
            location = root / row.path
            yield ImageFile("", row.source, row.path, location, row.format, frame, row.bytes, row.mtime_ns)


def _affordable(reason: RejectReason, detail: str) -> None:
    """No process died or ran out of a budget: what is refused is refused by its header, not by its cost."""
    assert reason not in (RejectReason.CRASHED, RejectReason.TIMED_OUT), detail
    assert "of memory" not in detail
    assert "memory ran out" not in detail


def _anonymous(*texts: str) -> None:
    for text in texts:
        for canary in CANARIES:
            assert canary not in text, text[max(0, text.find(canary) - 200) : text.find(canary) + 50]


def folders(made: Iterable[Mutant], place: Path) -> Iterator[Path]:
    """The mutants as files, `A_FOLDER` at a time; each folder is gone when the next is asked for."""
    stream = iter(made)
    while batch := list(islice(stream, A_FOLDER)):
        place.mkdir()
        for number, (_, content) in enumerate(batch):
            (place / f"{number:03}").write_bytes(content)
        yield place
        shutil.rmtree(place)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mutants_of(originals: Iterable[bytes], count: int) -> Iterator[Mutant]:
    for number, original in enumerate(originals):
        yield from mutants(original, count=count, seed=SEED + number)


def _all_survive(
    made: Iterable[Mutant], place: Path, pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> Counter[str]:
    ends: Counter[str] = Counter()
    before = _peak_bytes()
    for folder in folders(made, place):
        ends += survived(folder, pool, caplog)
    assert _peak_bytes() - before < INDEX_GROWTH_BYTES
    return ends


def test_mutants_of_generated_files(tmp_path: Path, pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    originals = [*dicom_originals(tmp_path).values(), *raster_originals().values()]
    ends = _all_survive(_mutants_of(originals, OF_EACH_ORIGINAL), tmp_path / "mutants", pool, caplog)
    assert set(ends) >= {"decoded", "truncated", "malformed", "size_mismatch", "too_large", "pixels: decode_failed"}
    assert 0.1 < ends["decoded"] / ends.total() < 0.7  # or they were hardly broken, or broken beyond recognition


@pytest.mark.real_data
def test_mutants_of_real_files(
    tmp_path: Path, pool: WorkerPool, caplog: pytest.LogCaptureFixture, real_data: Path
) -> None:
    paths = sorted(path for path in (real_data / "dicom").rglob("*") if path.is_file())
    originals = [path.read_bytes() for path in paths if path.stat().st_size <= REAL_FILE_BYTES]
    readable = [original for original in originals if _has_kind(original)]
    assert len(readable) > 150
    _all_survive(_mutants_of(readable, OF_EACH_REAL_FILE), tmp_path / "mutants", pool, caplog)


def _has_kind(content: bytes) -> bool:
    try:
        kind_of(content)
    except ValueError:
        return False
    return True


def test_the_originals_are_images(tmp_path: Path, pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    made = (dicom_originals(tmp_path) | raster_originals()).items()
    for folder in folders(made, tmp_path / "originals"):
        assert set(survived(folder, pool, caplog)) == {"decoded"}


def test_files_that_other_readers_fall_for(tmp_path: Path, pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    files = bad_files(tmp_path)
    source = tmp_path / "bad"
    source.mkdir()
    for name, (content, _) in files.items():
        (source / name).write_bytes(content)
    index = index_source(source, key=KEY, workers=2)
    found: dict[str, Any] = dict(zip(index.rejects["path"], index.rejects["reason"], strict=True))
    for image, outcome in pool.run_each(look, _frames(index)):
        found[image.path] = str(outcome.reason) if isinstance(outcome, Failure) else None
    for name, (_, reasons) in files.items():
        assert found[name] in (reasons or (None,)), name
    survived(source, pool, caplog)


def test_mutants_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for original in (dicom_originals(tmp_path)["RLE Lossless"], *raster_originals().values()):
        first, again, other = (list(mutants(original, count=60, seed=seed)) for seed in (1, 1, 2))
        assert first == again != other
        assert sum(content != original for _, content in first) > 50


def test_nothing_is_printed_by_codec_or_worker(tmp_path: Path) -> None:
    """libpng and libtiff write what they think of a file to descriptor 2, past Python."""
    originals = raster_originals() | dicom_originals(tmp_path)
    loud = (
        "color PNG with alpha",
        "JPEG in TIFF",
        "color TIFF, LZW",
        "JPEG Baseline (Process 1)",
        "JPEG 2000 Image Compression",
    )
    made = islice(_mutants_of([originals[name] for name in loud], A_FOLDER // len(loud)), A_FOLDER)
    for folder in folders(made, tmp_path / "mutants"):
        code = f"from tests.hostile import decode_all; decode_all({str(folder)!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_length_that_swallows_the_patients_elements_shows_nothing_of_them(tmp_path: Path) -> None:
    """The value of ManufacturerModelName, StudyTime or another then holds the elements behind it, AccessionNumber or PatientName too."""
    path = tmp_path / "x"
    originals = dicom_originals(tmp_path)
    for name in ("Explicit VR Little Endian", "Implicit VR Little Endian", "Explicit VR Big Endian"):
        anatomy = dissect(originals[name])
        places = [place for place in anatomy.elements if place.tag >> 16 <= 0x10]
        for first, last in combinations(places, 2):
            size = "H" if first.length_bytes == 2 else "I"
            length = struct.pack(f"{anatomy.order}{size}", last.end - first.value)
            path.write_bytes(anatomy.replaced(first.length_at, first.value, length))
            try:
                shown = repr(read_header(path, KEY))
            except Rejected as rejected:
                shown = str(rejected)
            _anonymous(shown)
