"""A process that lives long and does one thing after the other: what takes memory, may crash, or imports for seconds.

In: a function of a module, called with picklable arguments. Out: its result, `ChildError` with the message of a RadloopError, or
`ChildDied`. It ends with its parent, however that ends, and leaves signals from the terminal and the system to it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pipeline.errors import RadloopError

WATCH_S = 1.0
ENDED_S = 10.0


class ChildError(RadloopError):
    """The function raised: its message, where it was a RadloopError, else the exception's type."""


class ChildDied(RadloopError):
    """The process ended, or took too long and was ended."""


class Child:
    """`function` in a process of its own, started when first needed, and again after it died."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._process: Any = None
        self._line: Connection | None = None

    def call(self, *arguments: Any, limit_s: float) -> Any:
        """The function's result. Raises ChildError, ChildDied."""
        if self._process is None or not self._process.is_alive():
            self._start()
        line = self._line
        assert line is not None
        try:
            line.send(arguments)
            if not line.poll(limit_s):
                self.close()
                raise ChildDied(f"took longer than {limit_s:g} s")
            kind, value = line.recv()
        except (EOFError, OSError):
            code = self._code()
            self.close()
            raise ChildDied(f"its process ended ({code})") from None
        if kind == "raised":
            raise ChildError(value)
        return value

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._line is not None:
            self._line.close()
        if self._process is not None:
            self._process.kill()
            self._process.join(ENDED_S)
        self._process = self._line = None

    def _start(self) -> None:
        self.close()
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, self._function, os.getpid()), name="radloop-child")
        self._process.start()
        there.close()
        self._line = here

    def _code(self) -> str:
        self._process.join(ENDED_S)
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _serve(line: Connection, function: Callable[..., Any], parent: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # and so do its own workers: whoever stops the node lets it finish a study
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while True:
        try:
            arguments = line.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            answer = ("done", function(*arguments))
        except RadloopError as error:
            answer = ("raised", str(error))
        except MemoryError:
            answer = ("raised", "memory ran out")
        except OSError as error:
            answer = ("raised", error.strerror or type(error).__name__)
        except Exception as error:  # its text could quote a patient's data
            answer = ("raised", type(error).__name__)
        line.send(answer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(0)
