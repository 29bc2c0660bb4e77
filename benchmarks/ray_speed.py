"""What Ray costs on one machine, and how both engines grow with workers: `radloop index` and `radloop infer`, local against Ray.

PYTHONPATH=. python benchmarks/ray_speed.py [--files 40000] [--images 192] [--workers 1 2] [--architecture resnet50] [--size 224]

For each number of workers both engines do the same in turn, with the same files (in the page cache), network and number of workers; of Ray
that is the number of CPUs that it is started with. Start is told apart: Ray's daemons, then a first inference and index of a few files, in
which all processes import what they need. Tables are compared byte for byte. Ratios are of one run; a machine of more cores says more.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

SIDE = 512
WARM_UP = 32
TABLES = ("predictions.csv", "image_predictions.csv", "objects.csv", "references.csv", "not_written.csv")
Rates = dict[tuple[str, int], float]


def main() -> int:
    """Prints the figures; 1 where the engines' tables differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=40_000, help="to index")
    parser.add_argument("--images", type=int, default=192, help="to infer")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="radloop-benchmark-") as folder:
        return compare(Path(folder), options)


def compare(folder: Path, options: argparse.Namespace) -> int:
    # Not above: workers import what the main script does.
    from index_speed import make_files
    from untrained import write_run, write_slices

    from pipeline.indexing.tables import INDEX_FILE, REJECTS_FILE, STACKS_FILE

    make_files(folder / "headers", options.files, [])
    make_files(folder / "few headers", WARM_UP, [])
    write_slices(folder / "slices", options.images, SIDE)
    write_slices(folder / "few slices", WARM_UP, SIDE)
    write_run(folder / "run", options.architecture, options.size)
    print(
        f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; {options.architecture}, {options.size}"
    )
    same = True
    index_rates: Rates = {}
    infer_rates: Rates = {}
    for workers in options.workers:
        for engine in ("local", "ray"):
            measure(folder, engine, workers, options, index_rates, infer_rates)
        outs = [folder / f"{engine}-{workers}" for engine in ("local", "ray")]
        same &= all(alike(outs, f"index/{name}") for name in (INDEX_FILE, REJECTS_FILE, STACKS_FILE))
        same &= all(alike(outs, f"out/{name}") for name in TABLES)
    tell("index", "files/s", index_rates, options.workers)
    tell("infer", "images/s", infer_rates, options.workers)
    print("tables of both engines: " + ("the same, byte for byte" if same else "DIFFERENT"))
    return 0 if same else 1


def measure(
    folder: Path, engine: str, workers: int, options: argparse.Namespace, index_rates: Rates, infer_rates: Rates
) -> None:
    """Files and images a second of an engine that has started."""
    from pipeline.cluster import connected
    from pipeline.identity import IdentityKey
    from pipeline.indexing.inventory import take_inventory
    from pipeline.infer import infer

    key, out = IdentityKey(b"a key for benchmarks only"), folder / f"{engine}-{workers}"

    def index(source: str, name: str) -> None:
        take_inventory([(None, folder / source)], out / name, key=key, workers=workers, engine=engine)

    def predict(source: str, name: str) -> None:
        infer(
            folder / "run",
            str(folder / source),
            out / name,
            write=["sc"],
            engine=engine,
            workers=workers,
            progress=False,
        )

    begun = time.perf_counter()
    with connected(workers) if engine == "ray" else nullcontext():
        up = time.perf_counter() - begun
        index("few headers", "few index")
        predict("few slices", "few out")
        start = time.perf_counter() - begun
        index_rates[engine, workers] = options.files / seconds(lambda: index("headers", "index"))
        infer_rates[engine, workers] = options.images / seconds(lambda: predict("slices", "out"))
    daemons = f", of which Ray's daemons {up:.1f} s" if engine == "ray" else ""
    print(f"{engine}, {workers} workers: start with {WARM_UP} files of each {start:.1f} s{daemons}")


def tell(what: str, unit: str, rates: Rates, workers: list[int]) -> None:
    for count in workers:
        local, ray = rates["local", count], rates["ray", count]
        print(f"{what}, {count} workers: local {local:.1f} {unit}, ray {ray:.1f}; ray / local {ray / local:.2f}")
    for engine in ("local", "ray"):
        growth = rates[engine, workers[-1]] / rates[engine, workers[0]]
        print(f"{what}, {engine}: {workers[-1]} workers are {growth:.2f} times as fast as {workers[0]}")


def alike(outs: list[Path], name: str) -> bool:
    return len({(out / name).read_bytes() for out in outs}) == 1


def seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
