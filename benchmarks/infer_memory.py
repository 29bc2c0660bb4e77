"""How much memory `radloop infer` takes, and that it does not grow with the number of images.

python benchmarks/infer_memory.py [--images 2500 5000 10000]

Each inference is a command of its own on so many generated CT slices of 64 x 64, one case each, with a ResNet18 at 32 pixels that nobody
trained, and writes a Secondary Capture of each. Told are the highest resident memory of the main process, and the highest sum over it
and its worker processes, sampled twice a second: of memory that processes share each counts its part (Pss, proc(5)).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDE, SIZE, ARCHITECTURE = 64, 32, "resnet18"
SAMPLED_S = 0.5
ALLOWED_GROWTH = 1.1
"""Of the largest inference over the smallest: the tables of index and cases are some hundred bytes an image, an image itself is 10 kB."""


def main() -> int:
    """Prints the figures; 1 where memory grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[2500, 5000, 10000])
    options = parser.parse_args()
    sums = []
    with tempfile.TemporaryDirectory(prefix="radloop-benchmark-") as name:
        folder = Path(name)
        prepare(folder, options.images)
        print("| images | main process | with all workers | images/s, start included | load |")
        print("|---|---|---|---|---|")
        for count in options.images:
            alone, together, seconds = inferred(folder / "run", folder / str(count), folder / f"out-{count}")
            written = sum(1 for _ in (folder / f"out-{count}").rglob("*.dcm"))
            assert written == count, f"expected {count} objects, found {written}"
            load = os.getloadavg()[0]
            print(
                f"| {count} | {alone:.0f} MiB | {together:.0f} MiB | {count / seconds:.0f} | {load:.1f} |", flush=True
            )
            sums.append(together)
    return 0 if sums[-1] <= ALLOWED_GROWTH * sums[0] else 1


def prepare(folder: Path, counts: list[int]) -> None:
    """The run, and a folder of slices for each count: the smaller ones link to the first of the largest's."""
    from untrained import write_run, write_slices

    write_run(folder / "run", ARCHITECTURE, SIZE)
    paths = write_slices(folder / "slices", max(counts), SIDE)
    for count in counts:
        for path in paths[:count]:
            link = folder / str(count) / path.relative_to(folder / "slices")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(path)


def inferred(run: Path, source: Path, out: Path) -> tuple[float, float, float]:
    """Peaks in MiB of the main process and of all together, and seconds, of a command."""
    command = [sys.executable, "-m", "pipeline", "infer", str(run), str(source), "--out", str(out), "--write", "sc"]
    begun = time.perf_counter()
    alone = together = 0.0
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told, process_group=0)
        while process.poll() is None:
            alone = max(alone, kilobytes(process.pid, "status", "VmHWM") / 1024)
            together = max(together, sum(kilobytes(pid, "smaps_rollup", "Pss") for pid in group(process.pid)) / 1024)
            time.sleep(SAMPLED_S)
        told.seek(0)
        assert process.returncode == 0, told.read()[-2000:]
    return alone, together, time.perf_counter() - begun


def group(number: int) -> list[int]:
    """The processes of a process group: the command and all that it has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == number:
            found.append(int(stat.parent.name))
    return found


def kilobytes(pid: int, file: str, field: str) -> int:
    """A field of a file in /proc; 0 where the process is gone."""
    try:
        match = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


if __name__ == "__main__":
    sys.exit(main())
