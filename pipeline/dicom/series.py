"""A series, in any order of its files → volumes: phases divided, slices sorted along the normal and checked, then put together.

Slices are sorted by their position along their common normal alone; InstanceNumber, names and the order of files decide nothing. What
is not one volume is refused with `NotAVolume`: its `problem` and, in words, what was found. Order: `read_series` (headers), `divide`
into phases, `plan_volume` (everything is checked, memory too, before a pixel is decoded), `build` (decodes and puts together).
`read_volume` and `read_volumes` do all of it. Files are opened in worker processes under a budget of time and memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path

from pipeline.dicom.arrangement import NotAVolume, Phase, Problem, SliceFailure, divide
from pipeline.dicom.assembly import (
    DecodedSlice,
    Tilt,
    Uneven,
    VolumePlan,
    assemble,
    decode_slices,
    plan_volume,
)
from pipeline.dicom.slices import Slice, read_slices
from pipeline.dicom.volume import Finding, Found, SourceSlice, Volume, to_sitk, write_nifti
from pipeline.work import Failure, WorkerPool, default_workers

__all__ = [
    "DecodedSlice",
    "Finding",
    "Found",
    "NotAVolume",
    "Phase",
    "Problem",
    "Slice",
    "SliceFailure",
    "SourceSlice",
    "Tilt",
    "Uneven",
    "Volume",
    "VolumePlan",
    "assemble",
    "build",
    "decoding_pool",
    "divide",
    "plan_volume",
    "read_series",
    "read_volume",
    "read_volumes",
    "to_sitk",
    "write_nifti",
]

DECODE_TIMEOUT_S = 120.0
"""For a job of some frames, each of which decodes in well under a second."""
DECODE_MEMORY_BYTES = 6 * 2**30
"""Above a worker's own size, as for single images."""
FRAMES_AT_ONCE, BYTES_AT_ONCE = 256, 64 * 2**20
"""Of a multi-frame file that a worker decodes as one job, which it answers in one piece. Each job parses the file's header: a quarter
of a second where there are 10,000 frames."""
HEADERS_AT_ONCE = 16
"""Files that go to a worker together; a header takes milliseconds."""


def read_volume(
    paths: Iterable[Path],
    *,
    uneven: Uneven = "refuse",
    tilt: Tilt = "keep",
    slice_spacing_mm: float | None = None,
    workers: int | None = None,
) -> Volume:
    """The volume of the files of one stack, or of one multi-frame file; `uneven`, `tilt`, `slice_spacing_mm` as `plan_volume` has them.

    `workers`: processes, by default one a CPU; 0 decodes in this process, without a budget. Raises NotAVolume: UNDECODABLE where a
    file cannot be read, PHASES where there are several volumes (`read_volumes` gives all), and whatever else keeps it from being one.
    """
    with decoding_pool(workers) as pool:
        phases = divide(read_series(paths, pool))
        if len(phases) > 1:
            found = f"{len(phases)} volumes, told apart by {' and '.join(phases[0].by)}"
            raise NotAVolume(Problem.PHASES, f"positions repeat: {found}; read_volumes gives each")
        return build(plan_volume(phases[0], uneven=uneven, tilt=tilt, slice_spacing_mm=slice_spacing_mm), pool)


def read_volumes(
    paths: Iterable[Path], *, uneven: Uneven = "refuse", tilt: Tilt = "keep", workers: int | None = None
) -> Iterator[Volume]:
    """The volumes of the phases of a stack, one at a time; else as `read_volume`."""
    with decoding_pool(workers) as pool:
        for phase in divide(read_series(paths, pool)):
            yield build(plan_volume(phase, uneven=uneven, tilt=tilt), pool)


def decoding_pool(workers: int | None = None) -> WorkerPool:
    """Workers for `read_series` and `build`; to be closed."""
    count = default_workers() if workers is None else workers
    return WorkerPool(count, timeout_s=DECODE_TIMEOUT_S, memory_bytes=DECODE_MEMORY_BYTES)


def read_series(paths: Iterable[Path], pool: WorkerPool) -> list[Slice]:
    """All frames of all files, by their headers. Raises NotAVolume (UNDECODABLE) with a failure for each file that cannot be read."""
    slices: list[Slice] = []
    failures: list[SliceFailure] = []
    with closing(pool.run_each(read_slices, paths, chunk=HEADERS_AT_ONCE)) as outcomes:
        for path, outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.append(SliceFailure(path, None, outcome.reason, outcome.detail))
            else:
                slices += outcome
    _refuse(failures, len(slices) + len(failures))
    return slices


def build(plan: VolumePlan, pool: WorkerPool) -> Volume:
    """Decodes the plan's slices and puts them together. Raises NotAVolume: UNDECODABLE with all failures, MIXED, NOT_GRAY."""
    with closing(_decoded(plan, pool)) as decoded:
        return assemble(plan, decoded)


def _decoded(plan: VolumePlan, pool: WorkerPool) -> Generator[DecodedSlice, None, None]:
    """The slices in order up to the first that fails; then the rest are tried only to name all that fail."""
    failures: list[SliceFailure] = []
    with closing(pool.run_each(decode_slices, _jobs(plan.slices))) as outcomes:
        for job, outcome in outcomes:
            if isinstance(outcome, Failure):
                failures += [SliceFailure(one.path, one.frame, outcome.reason, outcome.detail) for one in job]
            elif not failures:
                yield from outcome
    _refuse(failures, len(plan.slices))


def _jobs(slices: Sequence[Slice]) -> Iterator[list[Slice]]:
    """Runs of frames of one file, within the budget of a job."""
    for _, of_file in groupby(slices, key=lambda one: one.path):
        run = list(of_file)
        at_once = max(1, min(FRAMES_AT_ONCE, BYTES_AT_ONCE // (4 * max(1, run[0].rows * run[0].columns))))
        yield from (run[start : start + at_once] for start in range(0, len(run), at_once))


def _refuse(failures: Sequence[SliceFailure], of: int) -> None:
    if failures:
        first = failures[0]
        detail = (
            f"{len(failures)} of {of} slices cannot be read, the first ({first.path}): {first.reason}: {first.detail}"
        )
        raise NotAVolume(Problem.UNDECODABLE, detail, tuple(failures))
