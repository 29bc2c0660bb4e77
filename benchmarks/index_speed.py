"""How fast `radloop index` is, against a plain pydicom loop over the same files in the same run.

python benchmarks/index_speed.py [--files 100000] [--like FILE ...] [--folder DIR]

Writes copies of a CT slice (of the phantom, or of the DICOM files given with --like, whose pixels are left out where that is possible) with
UIDs, positions and numbers of their own, reads each once (warm cache), and times: the loop (one process, 13 header elements, before and
after, on 20,000 of the files, the better of both), the command on nothing, and the command again on what has not changed. Times are wall
clock of the whole, start included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread, dcmwrite

from pipeline.dicom.phantom_objects import ct_slice, save

ELEMENTS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality", "Rows"),
    *("Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "InstanceNumber", "StudyDate"),
]
FILES_A_SERIES = 200
LOOP_FILES = 20_000
ALLOWED_AGAIN_S, ALLOWED_AGAIN_A_FILE_S = 1.0, 30e-6


def main() -> int:
    """Prints the figures; 1 where one is below what is promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--like", type=Path, nargs="*", default=[])
    parser.add_argument("--folder", type=Path, help="where to write (and leave) the files; else a temporary folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="radloop-benchmark-")) if options.folder is None else options.folder
    try:
        return measure(folder, options.files, options.like)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def measure(folder: Path, count: int, like: list[Path]) -> int:
    export = folder / "export"
    if not export.exists():
        make_files(export, count, like)
    paths = sorted(path for path in export.rglob("*") if path.is_file())
    for path in paths:
        path.read_bytes()
    some = paths[:LOOP_FILES]
    plain_before = seconds(lambda: plain_loop(some))
    shutil.rmtree(folder / "index", ignore_errors=True)
    first = seconds(lambda: index(export, folder / "index"))
    again = seconds(lambda: index(export, folder / "index"))
    plain = min(plain_before, seconds(lambda: plain_loop(some))) * len(paths) / len(some)
    allowed = ALLOWED_AGAIN_S + ALLOWED_AGAIN_A_FILE_S * len(paths)
    print(f"{len(paths)} files, {os.cpu_count()} CPUs")
    print(f"pydicom loop, 13 elements, one process: {plain:.2f} s, {len(paths) / plain:.0f} files/s")
    print(f"radloop index, first:  {first:.2f} s, {len(paths) / first:.0f} files/s, {plain / first:.1f} times the loop")
    print(f"radloop index, second: {again:.2f} s, of {allowed:.2f} s allowed")
    return 0 if plain / first >= 10 and again <= allowed else 1


def make_files(export: Path, count: int, like: list[Path]) -> None:
    templates = [without_most_pixels(dcmread(path)) for path in like] or [phantom()]
    for number in range(count):
        dataset = templates[number % len(templates)]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.1{number:020d}"
        dataset.SeriesInstanceUID = f"2.25.2{number // FILES_A_SERIES:020d}"
        dataset.StudyInstanceUID = f"2.25.3{number // FILES_A_SERIES // 3:020d}"
        dataset.PatientID = f"P{number // FILES_A_SERIES // 3:06d}"
        dataset.InstanceNumber = number % FILES_A_SERIES + 1
        dataset.ImagePositionPatient = [-150, -150, number % FILES_A_SERIES * 2.5]
        path = export / f"S{number // FILES_A_SERIES:05d}" / f"IM{number % FILES_A_SERIES:05d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        dcmwrite(path, dataset)


def phantom() -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        return dcmread(BytesIO(save(ct_slice(64), Path(folder) / "slice").read_bytes()))


def without_most_pixels(dataset: Dataset) -> Dataset:
    """With 64 x 64 pixels where they are native: the header is what is read."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset.Rows = dataset.Columns = 64
        dataset.PixelData = bytes(64 * 64 * dataset.SamplesPerPixel * dataset.BitsAllocated // 8)
    return dataset


def plain_loop(paths: list[Path]) -> None:
    """What people write."""
    for path in paths:
        dataset = dcmread(path, stop_before_pixels=True)
        [dataset.get(keyword) for keyword in ELEMENTS]


def index(export: Path, out: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "index", str(export), "--out", str(out)]
    environment = os.environ | {
        "RADLOOP_KEY": "a key for benchmarks only",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
