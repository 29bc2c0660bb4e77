"""Volumes: each stack of a source that is one, or its phases, as a NIfTI file, and a table that says why the others are none.

OUT/<StudyInstanceUID>/<SeriesInstanceUID>_<stack>.nii.gz (with _<phase> where positions repeat), `volumes.csv` (a row a volume, or a
stack that is none), `volume_images.csv` (a row an image of the index: which slice of which volume it is, or why none), `rejects.csv`.
Nothing of a patient stands in them but paths as they are. What stands in OUT is kept where its files and the arguments are the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pandas as pd

import pipeline
from pipeline.columns import text
from pipeline.dicom.series import (
    NotAVolume,
    Phase,
    Problem,
    Tilt,
    Uneven,
    Volume,
    build,
    decoding_pool,
    divide,
    plan_volume,
    read_series,
    write_nifti,
)
from pipeline.errors import Rejected, RejectReason
from pipeline.files import status_of, write_whole
from pipeline.indexing.index import Index
from pipeline.indexing.sources import open_source
from pipeline.nifti import MAX_VOLUME_BYTES as MAX_COMPRESSED_BYTES
from pipeline.progress import track
from pipeline.run import write_table
from pipeline.wording import counted
from pipeline.work import WorkerPool, preload

VOLUMES_FILE, IMAGES_FILE, REJECTS_FILE = "volumes.csv", "volume_images.csv", "rejects.csv"
RECORDS_FOLDER = ".volumes"
"""In OUT: what was written from what, one JSON a stack."""
REVISION = 1
"""Of what volumes hold: with another one all are made anew."""
STATUS_OK, STATUS_NONE, STATUS_FAILED = "ok", "no_volume", "failed"
NO_VOLUMES = frozenset({Problem.NO_PLANE, Problem.NOT_GRAY})
"""Of images that never were slices: nothing failed."""
VOLUME_COLUMNS = [
    *("study_instance_uid", "series_instance_uid", "stack", "phase", "path", "slices", "rows", "columns"),
    *("slice_spacing_mm", "row_spacing_mm", "column_spacing_mm", "orientation", "tilt_degrees", "unit", "type"),
    *("findings", "status", "reason"),
]
IMAGE_COLUMNS = ["source", "path", "frame", "series_instance_uid", "stack", "phase", "volume", "slice", "reason"]
"""`slice`: the place among the volume's slices, from 0; no whole number where slices were interpolated onto an even grid."""
_INDEX_COLUMNS = {
    *("source", "path", "format", "bytes", "mtime_ns", "frames", "collision", "stack"),
    *("series_instance_uid", "study_instance_uid"),
}
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)

preload(__name__)  # torch, which decoding brings, takes a worker seconds to import


@dataclass(frozen=True)
class VolumesSummary:
    """What was done."""

    volumes: int
    kept: int
    failed: int
    without: int
    images: int
    removed: int
    rejected: int
    findings: dict[str, int]

    def lines(self) -> list[str]:
        """For the terminal."""
        kept = f" ({self.kept} kept as they were)" if self.kept else ""
        lines = [f"volumes: {self.volumes}, made of {counted(self.images, 'image')}{kept}"]
        if not self.volumes:
            lines = [f"volumes: none ({VOLUMES_FILE} and {IMAGES_FILE} say why)"]
        if self.removed:
            lines.append(
                f"removed: {counted(self.removed, 'volume')} that an earlier call made of other files or with other options"
            )
        if self.findings:
            told = ", ".join(f"{name} {count}" for name, count in sorted(self.findings.items()))
            lines.append(f"found: {told} ({VOLUMES_FILE} has the figures)")
        if self.failed:
            lines.append(f"failed: {self.failed} stacks ({VOLUMES_FILE} says why)")
        if self.without or self.rejected:
            left = f"{self.without} stacks or series that are no volumes ({VOLUMES_FILE}), {self.rejected} files (rejects.csv)"
            lines.append(f"left out: {left}")
        return lines


@dataclass(frozen=True)
class _Settings:
    uneven: Uneven
    tilt: Tilt


@dataclass(frozen=True)
class _Stack:
    """A stack of a series, by the index. `files`: (source, path, location, bytes, mtime_ns) of each."""

    study: str
    series: str
    number: int
    files: tuple[tuple[str, str, Path, int, int], ...]

    @cached_property
    def named(self) -> dict[Path, tuple[str, str]]:
        """(source, path) of each location."""
        return {location: (source, path) for source, path, location, _, _ in self.files}

    def key(self, settings: _Settings) -> str:
        """Names all that its volumes follow from, but for the code of this version."""
        told = [REVISION, pipeline.__version__, asdict(settings), self.study, self.series, self.number]
        files = sorted((source, path, size, time_ns) for source, path, _, size, time_ns in self.files)
        return hashlib.sha256(json.dumps([told, files]).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class _Rows:
    """Of the tables, about one stack. `bytes`: of each volume's file, by its path in OUT."""

    volumes: list[dict[str, Any]]
    images: list[dict[str, Any]]
    bytes: dict[str, int]


def write_volumes(
    source: str,
    out: Path,
    *,
    root: Path | None = None,
    uneven: Uneven = "resample",
    tilt: Tilt = "keep",
    workers: int | None = None,
    progress: bool = True,
) -> VolumesSummary:
    """Writes the volumes of `source` and the tables to `out`. A stack that fails costs itself. `uneven`, `tilt`: as `plan_volume`."""
    opened = open_source(source, root)
    opened.refuse_output(out)
    index = opened.index(columns=_INDEX_COLUMNS, workers=workers, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    settings = _Settings(uneven, tilt)
    stacks = list(_stacks(index))
    kept, removed, rows = 0, 0, []
    with decoding_pool(workers) as pool:
        for stack in track(stacks, "volumes", len(stacks), show=progress):
            record = out / RECORDS_FOLDER / f"{stack.key(settings)}.json"
            standing = _standing(record, out)
            kept += standing is not None
            if standing is None:
                removed += _remove_earlier(stack, out)
            rows.append(standing or _written(stack, out, settings, pool, record))
    return _write_tables(out, index, rows, kept, removed)


# --- stacks


def _stacks(index: Index) -> Iterator[_Stack]:
    """By study, series and number."""
    table = index.table[index.table["stack"].notna().to_numpy()]
    keys = [text(table["study_instance_uid"]), text(table["series_instance_uid"]), table["stack"].astype(int)]
    for key, rows in pd.DataFrame(dict(enumerate(keys))).groupby([0, 1, 2]).groups.items():
        study, series, number = cast(tuple[str, str, int], key)
        of_stack = table.loc[rows, ["source", "path", "bytes", "mtime_ns"]].itertuples(index=False, name=None)
        files = tuple(
            (str(source), path, index.roots[str(source)] / path, int(size), int(time_ns))
            for source, path, size, time_ns in of_stack
        )
        yield _Stack(study, series, int(number), files)


def _written(stack: _Stack, out: Path, settings: _Settings, pool: WorkerPool, record: Path) -> _Rows:
    """A stack's volumes made and written; what failed is in its rows, and is tried again next time."""
    rows = _Rows([], [], {})
    try:
        phases = divide(read_series(_unchanged(stack), pool))
    except NotAVolume as problem:
        _say_failed(rows, stack, None, problem)
        return rows
    for phase in phases:
        try:
            _write_one(rows, stack, phase, out, settings, pool)
        except NotAVolume as problem:
            _say_failed(rows, stack, phase, problem)
    if all(row["status"] == STATUS_OK for row in rows.volumes):
        write_whole(record, json.dumps(asdict(rows)))
    return rows


def _unchanged(stack: _Stack) -> list[Path]:
    """The files' places. Raises NotAVolume (UNDECODABLE) where one is no longer the one that was indexed."""
    for _, _, location, size, time_ns in stack.files:
        try:
            changed = status_of(location) != (size, time_ns)
        except Rejected:
            changed = True
        if changed:
            raise NotAVolume(Problem.UNDECODABLE, f"{RejectReason.CHANGED}: a file is not the one that was indexed")
    return [location for _, _, location, _, _ in stack.files]


def _write_one(rows: _Rows, stack: _Stack, phase: Phase, out: Path, settings: _Settings, pool: WorkerPool) -> None:
    plan = plan_volume(phase, uneven=settings.uneven, tilt=settings.tilt)
    volume = build(plan, pool)
    name = _name(stack, phase, volume)
    place = write_nifti(volume, out / name)
    rows.bytes[name] = place.stat().st_size
    rows.volumes.append(_volume_row(stack, phase, name, volume))
    for one, at in zip(plan.slices, plan.place.tolist(), strict=True):
        shown = f"{at:.4f}".rstrip("0").rstrip(".")
        rows.images.append(_image_row(stack, phase, one.path, one.frame, volume=name, place=shown))


def _name(stack: _Stack, phase: Phase, volume: Volume) -> str:
    """Relative to OUT. Compressed, unless radloop would then have to inflate more than it may to read it."""
    number = f"{stack.number}_{phase.number}" if phase.phases > 1 else str(stack.number)
    suffix = ".nii.gz" if volume.voxels.nbytes < MAX_COMPRESSED_BYTES - 2**16 else ".nii"
    return f"{_folder(stack.study)}/{_folder(stack.series)}_{number}{suffix}"


def _folder(uid: str) -> str:
    """The UID; of what stands in a UID's place and may lead anywhere, a digest."""
    return uid if _UID.fullmatch(uid) and len(uid) <= 64 else hashlib.sha256(uid.encode()).hexdigest()[:16]


# --- what stands


def _standing(record: Path, out: Path) -> _Rows | None:
    """The rows of a stack that was written before from the same, if its files stand in OUT as they were written."""
    try:
        rows = _Rows(**json.loads(record.read_text(encoding="utf-8")))
        whole = all((out / name).stat().st_size == size for name, size in rows.bytes.items())
    except (OSError, ValueError, TypeError):
        return None
    return rows if whole else None


def _remove_earlier(stack: _Stack, out: Path) -> int:
    """Volumes of this stack from other arguments or files: each belongs to what its table says, or is not there. Returns how many."""
    start = f"{_folder(stack.series)}_{stack.number}"
    removed = 0
    for place in (out / _folder(stack.study)).glob(f"{start}*"):
        if re.fullmatch(r"(_\d+)?\.nii(\.gz)?", place.name[len(start) :]):
            place.unlink()
            removed += 1
    return removed


# --- tables


def _volume_row(stack: _Stack, phase: Phase, name: str, volume: Volume) -> dict[str, Any]:
    slices, rows, columns = volume.voxels.shape
    spacing = dict(zip(("slice_spacing_mm", "row_spacing_mm", "column_spacing_mm"), volume.spacing_mm, strict=True))
    return {
        **_stack_row(stack, phase),
        "path": name,
        "slices": slices,
        "rows": rows,
        "columns": columns,
        **{column: f"{value:.6g}" for column, value in spacing.items()},
        "orientation": volume.orientation,
        "tilt_degrees": f"{volume.tilt_degrees:.3f}",
        "unit": str(volume.unit),
        "type": str(volume.voxels.dtype),
        "findings": "; ".join(map(str, volume.findings)),
        "status": STATUS_OK,
        "reason": "",
    }


def _stack_row(stack: _Stack, phase: Phase | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(VOLUME_COLUMNS, "")
    row |= {"study_instance_uid": stack.study, "series_instance_uid": stack.series, "stack": stack.number}
    return row | {"phase": phase.number if phase is not None and phase.phases > 1 else ""}


def _say_failed(rows: _Rows, stack: _Stack, phase: Phase | None, problem: NotAVolume) -> None:
    """A row for the stack or the phase, and one for each of its images, with its own reason where it has one."""
    images = (
        [(one[2], None) for one in stack.files] if phase is None else [(one.path, one.frame) for one in phase.slices]
    )
    own = {(failure.path, failure.frame): f"{failure.reason}: {failure.detail}" for failure in problem.failures}
    detail = f"{len(own)} of {len(images)} images cannot be read ({IMAGES_FILE} says why)" if own else problem.detail
    reason = f"{problem.problem}: {detail}"
    status = STATUS_NONE if problem.problem in NO_VOLUMES else STATUS_FAILED
    rows.volumes.append({**_stack_row(stack, phase), "status": status, "reason": reason})
    for location, frame in images:
        rows.images.append(_image_row(stack, phase, location, frame, reason=own.get((location, frame), reason)))


def _image_row(
    stack: _Stack,
    phase: Phase | None,
    location: Path,
    frame: int | None,
    *,
    volume: str = "",
    place: str = "",
    reason: str = "",
) -> dict[str, Any]:
    """`frame` is None for all of a file."""
    source, path = stack.named[location]
    told = _stack_row(stack, phase)
    return {
        "source": source,
        "path": path,
        "frame": "" if frame is None else frame,
        **{name: told[name] for name in ("series_instance_uid", "stack", "phase")},
        "volume": volume,
        "slice": place,
        "reason": reason,
    }


def _left_out(index: Index) -> list[dict[str, Any]]:
    """A row for each image that is in no stack."""
    table = index.table[index.table["stack"].isna().to_numpy()]
    plain = {name: text(table[name]) for name in ("source", "path", "format", "collision", "series_instance_uid")}
    return [
        {
            **dict.fromkeys(IMAGE_COLUMNS, ""),
            "source": source,
            "path": path,
            "series_instance_uid": series,
            "reason": _why_left_out(kind, collision),
        }
        for source, path, kind, collision, series in zip(*plain.values(), strict=True)
    ]


def _why_left_out(kind: str, collision: str) -> str:
    if kind != "dicom":
        return f"{kind}: only DICOM images are put together"
    if collision == "duplicate":
        return "duplicate: the same image is there under another path"
    return f"{Problem.NO_PLANE}: it does not say where it lies, and others of its series do, or neither"


def _write_tables(out: Path, index: Index, rows: Sequence[_Rows], kept: int, removed: int) -> VolumesSummary:
    volumes = [row for of_stack in rows for row in of_stack.volumes]
    images = [*(row for of_stack in rows for row in of_stack.images), *_left_out(index)]
    write_table(out / VOLUMES_FILE, pd.DataFrame(volumes, columns=VOLUME_COLUMNS))
    write_table(out / IMAGES_FILE, pd.DataFrame(images, columns=IMAGE_COLUMNS))
    write_table(out / REJECTS_FILE, index.rejects)
    status = Counter(row["status"] for row in volumes)
    kinds = Counter(told.split(" ")[0] for row in volumes for told in row["findings"].split("; ") if told)
    return VolumesSummary(
        volumes=status[STATUS_OK],
        kept=kept,
        failed=status[STATUS_FAILED],
        without=status[STATUS_NONE],
        images=sum(row["volume"] != "" for row in images),
        removed=removed,
        rejected=len(index.rejects),
        findings=dict(kinds),
    )
