"""`radloop receive` as a process of its own, as a hospital runs it: started, killed, stopped, and asked how it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
STARTED_S = 600
"""With a model, torch is imported first: seconds, on a busy machine minutes."""


@dataclass
class Node:
    """A running node."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    port: int = 0
    status_url: str = ""

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.status_url}status.json", timeout=10) as answer:
            return json.load(answer)

    def until(self, holds: Callable[[dict[str, Any]], bool], patience_s: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + patience_s
        while True:
            status = self.status()
            if holds(status):
                return status
            assert time.monotonic() < deadline, (status, self.lines)
            time.sleep(0.2)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(120)

    def memory_bytes(self) -> int:
        """Resident, of the node itself."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if line.startswith("listening as"):
                words = line.split()
                self.status_url = words[-1]
                self.port = int(words[words.index("port") + 1].rstrip(";"))


def start_node(spool: Path, *options: str, port: int = 0) -> Node:
    """A node on free ports that answers."""
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "receive",
        "--spool",
        str(spool),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--status-port", "0", "--min-free", "0.001", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    node = Node(process)
    threading.Thread(target=node._listen, daemon=True).start()
    deadline = time.monotonic() + STARTED_S
    while not node.port and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if not node.port:
        process.kill()
        process.wait(30)
        raise AssertionError(node.lines)
    return node


@contextmanager
def running_node(spool: Path, *options: str, port: int = 0) -> Iterator[Node]:
    node = start_node(spool, *options, port=port)
    try:
        yield node
    finally:
        with suppress(ProcessLookupError):
            node.process.kill()
        node.process.wait(30)
