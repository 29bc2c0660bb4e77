"""How much memory an index of a million images takes: written, read, labelled and split in one process.

python benchmarks/index_memory.py [--rows 1000000]

The rows are made up, 200 images a series with the header of the phantom's CT slice, and stand as the parts that an indexing leaves on disk;
no file is read. What is printed is the highest resident memory of the process after each step, Python and its packages included.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.columns import BATCH_SCHEMA
from pipeline.indexing.known import KnownRows, part_names, parts_in, write_part
from pipeline.indexing.listing import Entry, Listed, as_table

ROWS_A_PART, IMAGES_A_SERIES, SERIES_A_PATIENT = 50_000, 200, 2
ALLOWED_BYTES = 10**9
TIME_NS, SIZE = 1_700_000_000_000_000_000, 525_000


def main() -> int:
    """Prints the figures; 1 where it took more than 1 GB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--step", choices=["parts", "use"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        return {"parts": make_parts, "use": use}[options.step](options.folder, options.rows)
    folder = Path(tempfile.mkdtemp(prefix="radloop-benchmark-"))
    try:
        for step in ("parts", "use"):
            command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--rows", str(options.rows)]
            code = subprocess.run(command).returncode
        return code
    finally:
        shutil.rmtree(folder)


def place_of(row: int) -> str:
    series = row // IMAGES_A_SERIES
    patient = series // SERIES_A_PATIENT
    return f"{'ab'[patient % 2]}/P{patient:07d}/S{series:07d}/IM{row % IMAGES_A_SERIES:05d}.dcm"


def make_parts(folder: Path, rows: int) -> int:
    from pipeline.dicom.header import read_header
    from pipeline.dicom.phantom_objects import ct_slice, save
    from pipeline.identity import IdentityKey

    header = read_header(save(ct_slice(64), folder / "slice"), IdentityKey(b"k" * 32))
    names = part_names(folder / "parts")
    for start in range(0, rows, ROWS_A_PART):
        some = [made_up(header, row) for row in range(start, min(rows, start + ROWS_A_PART))]
        write_part(next(names), pa.Table.from_pylist(some, BATCH_SCHEMA))
    return 0


def made_up(header: dict[str, Any], row: int) -> dict[str, Any]:
    series = row // IMAGES_A_SERIES
    patient = series // SERIES_A_PATIENT
    return header | {
        "source": "export",
        "path": place_of(row),
        "format": "dicom",
        "bytes": SIZE,
        "mtime_ns": TIME_NS,
        "collision": "",
        "sop_instance_uid": f"1.2.826.0.1.3680043.10.1561.4.{row:030d}",
        "series_instance_uid": f"1.2.826.0.1.3680043.10.1561.3.{series:030d}",
        "study_instance_uid": f"1.2.826.0.1.3680043.10.1561.2.{series:030d}",
        "frame_of_reference_uid": f"1.2.826.0.1.3680043.10.1561.5.{series:030d}",
        "patient_key": f"{patient:032x}",
        "accession_key": f"{series:032x}",
        "instance_number": row % IMAGES_A_SERIES + 1,
        "image_position_patient": f"-150\\-150\\{row % IMAGES_A_SERIES * 2.5}",
    }


def use(folder: Path, rows: int) -> int:
    from pipeline.work import WorkerPool

    tell("started")
    listing = as_table(entries(rows))
    known = KnownRows(None, None, parts_in(folder / "parts"))
    source = Listed("export", Path("/no/such/export"), listing)
    numbers = known.find("export", listing)
    known.forget_keys()
    tell("listed and matched with the parts")
    from pipeline.indexing.tables import write_tables

    with WorkerPool(0, timeout_s=60) as pool:
        write_tables([source], [numbers], known, folder / "index", pool, metadata={"state": "", "version": ""})
    del listing, known, source, numbers
    tell("written")
    dataset(folder)
    peak = tell("split")
    return 0 if peak <= ALLOWED_BYTES else 1


def dataset(folder: Path) -> None:
    from pipeline.cohort.cases import columns_needed
    from pipeline.cohort.labels import labelled_cases
    from pipeline.cohort.split import split_cases
    from pipeline.identity import IdentityKey
    from pipeline.indexing.index import read_index
    from pipeline.indexing.sources import open_manifest

    (folder / "export").mkdir()
    path = folder / "manifest.yaml"
    path.write_text(
        "name: large\nclasses: [a, b]\nsources: [{path: export}]\nlabels: {source: folder}\n"
        "rules: {include: {modality: [CT]}, exclude: {image_type: [LOCALIZER]}}\n"
    )
    opened = open_manifest(path)
    manifest = opened.manifest
    assert manifest is not None
    index = read_index(folder / "index", columns_needed(manifest))
    tell(f"read: {len(index.table)} rows")
    cases = labelled_cases(index, opened, manifest, IdentityKey(b"k" * 32))
    tell(f"labelled: {len(cases.cases)} cases")
    split = split_cases(cases.cases, manifest.split, manifest.classes)
    assert split.groupby("patient_key")["split"].nunique().max() == 1


def entries(rows: int) -> Iterator[Entry]:
    for row in range(rows):
        yield Entry(place_of(row), None, SIZE, TIME_NS)


def tell(what: str, start: float = time.perf_counter()) -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{time.perf_counter() - start:6.1f} s  {peak / 2**20:6.0f} MiB  {what}", flush=True)
    return peak


if __name__ == "__main__":
    sys.exit(main())
