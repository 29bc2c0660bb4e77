"""How fast `radloop receive` takes instances, as a ratio to dcmtk's storescp on the same load, and what memory it takes on the way.

python benchmarks/receive_speed.py [--instances 1000] [--side 512] [--senders 1 4] [--memory 10000]

The load is sent by dcmtk's storescu, one process a sender, to a port of this machine; both receivers write to the same folder's disk.
radloop flushes each file and its folder to the disk before it answers, storescp flushes nothing. Memory is the node's own resident
memory, after a tenth of so many small instances and at their end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.uid import generate_uid

from pipeline.dicom.phantom import ct_slice, save

AET = "RADLOOP"
SMALL_SIDE = 64
ALLOWED_GROWTH = 1.1
STARTED_S, STOPPED_S, SENT_S = 120, 120, 3600


def main() -> int:
    """Prints the figures; 1 where memory grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--memory", type=int, default=10_000, help="instances over which memory is looked at; 0: none")
    options = parser.parse_args()
    if not shutil.which("storescp"):
        sys.exit("expected dcmtk's storescp and storescu")
    with tempfile.TemporaryDirectory(prefix="radloop-benchmark-") as name:
        folder = Path(name)
        speed(folder, options.instances, options.side, options.senders)
        return memory(folder, options.memory) if options.memory else 0


def speed(folder: Path, count: int, side: int, senders: list[int]) -> None:
    """Instances a second of both, for each number of senders."""
    print(f"| senders | storescp | radloop receive | ratio | load | ({count} instances of {side} x {side})")
    print("|---|---|---|---|---|")
    for number in senders:
        load = written(folder / f"load-{number}", count, side, number)
        rates = []
        for receiver in (storescp, node):
            with receiver(folder / f"{receiver.__name__}-{number}") as port:
                rates.append(count / seconds(load, port))
            shutil.rmtree(folder / f"{receiver.__name__}-{number}", ignore_errors=True)
        theirs, ours = rates
        print(
            f"| {number} | {theirs:.0f}/s | {ours:.0f}/s | {ours / theirs:.2f} | {os.getloadavg()[0]:.1f} |", flush=True
        )
        shutil.rmtree(folder / f"load-{number}")


def memory(folder: Path, count: int) -> int:
    """Resident memory of the node after a tenth of the instances, and at their end."""
    load = written(folder / "load", count, SMALL_SIDE, 10)
    with node(folder / "node") as port:
        process = _running[-1]
        first = last = 0.0
        for part in load:
            seconds([part], port)
            last = resident_mib(process.pid)
            first = first or last
    print(f"memory after {count // 10} instances {first:.0f} MiB, after {count} {last:.0f} MiB")
    return 0 if last <= ALLOWED_GROWTH * first else 1


def written(folder: Path, count: int, side: int, parts: int) -> list[Path]:
    """`count` CT slices in as many folders as there are senders; a study has 100."""
    dataset = ct_slice(side, instance_number=1)
    for number in range(count):
        if number % 100 == 0:
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
        dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), number % 100 + 1
        save(dataset, folder / str(number % parts) / f"{number:06d}.dcm")
    return sorted(folder.iterdir())


def seconds(load: list[Path], port: int) -> float:
    """Of all senders together."""
    begun = time.monotonic()
    command = ["storescu", "-q", "-aec", AET, "+sd", "localhost", str(port)]
    senders = [subprocess.Popen([*command, str(part)]) for part in load]
    codes = [sender.wait(SENT_S) for sender in senders]
    assert not any(codes), f"a sender failed: {codes}"
    return time.monotonic() - begun


_running: list[subprocess.Popen[bytes]] = []


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """dcmtk's, a process an association."""
    folder.mkdir(parents=True)
    port = free_port()
    with started(["storescp", "--fork", "-q", "-aet", AET, "-od", str(folder), str(port)], lambda: listens(port)):
        yield port


@contextmanager
def node(folder: Path) -> Iterator[int]:
    """radloop's, without a model."""
    port, status = free_port(), free_port()
    command = [sys.executable, "-m", "pipeline", "receive", "--spool", str(folder), "--port", str(port)]

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{status}/status.json", timeout=5) as answer:
                return bool(json.load(answer)) and listens(port)
        except OSError:
            return False

    with started([*command, "--status-port", str(status), "--min-free", "0"], answers):
        yield port


@contextmanager
def started(command: list[str], ready: Callable[[], bool]) -> Iterator[None]:
    """A process, from when it is ready to the block's end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _running.append(process)
    try:
        deadline = time.monotonic() + STARTED_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not start")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(STOPPED_S)


def listens(port: int) -> bool:
    """Whether anybody does."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """One that nobody uses."""
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def resident_mib(pid: int) -> float:
    """Of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
