"""Worker processes for files that may be hostile: a file that crashes, hangs or eats memory costs exactly itself.

In: a picklable function and any number of picklable items, also from a generator. Out: (item, result or Failure) in the
order of the items, streamed with a bounded read-ahead, so that millions of items need no memory. A worker that dies,
runs over its time or out of its memory is replaced. Budgets: seconds of wall clock an item, bytes above a worker's own
size. What a parser says in exceptions, warnings and logs can quote patient data: none of it leaves a worker.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import pickle
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from pipeline.errors import RadloopError, Rejected, RejectReason

STARTUP_LIMIT_S = 120.0
"""A worker imports the function's modules before its first item: seconds for torch, far more from a cold disk."""
STARTUP_ATTEMPTS = 3
"""Workers that die before their first item are the program's fault, not an item's: so many in a row end the run."""
BACKSTOP_S = 2.0
"""So long after the time budget the kernel ends a worker whose parent did not (because it was killed itself)."""
AHEAD = 4
"""Chunks a worker that are read ahead of the oldest item not done: something to work on while one file hangs."""
THREADS_SETTING = "OMP_NUM_THREADS"
"""Which OpenMP, OpenBLAS, MKL and torch all read, once, when they are loaded."""

_heavy_modules: list[str] = []

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """Why an item has no result. `detail` holds facts about the file, never patient data."""

    reason: RejectReason
    detail: str


def run_each(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    timeout_s: float,
    memory_bytes: int | None = None,
    chunk: int = 1,
) -> Generator[tuple[Item, Result | Failure], None, None]:
    """`WorkerPool.run_each` with a pool of its own, gone when the iteration ends or is given up."""
    with (
        WorkerPool(workers, timeout_s=timeout_s, memory_bytes=memory_bytes) as pool,
        closing(pool.run_each(function, items, chunk=chunk)) as outcomes,
    ):
        yield from outcomes


def outcome_of(function: Callable[[Item], Result], item: Item) -> Result | Failure:
    """The function's result, or why there is none: Rejected with its own reason. Lets MemoryError through.

    Any other exception is the parser's way of saying that the file breaks its format: malformed, with the
    exception's type and not its text, because parsers quote the value that they choke on.
    """
    try:
        return function(item)
    except Rejected as rejected:
        return Failure(rejected.reason, rejected.detail)
    except MemoryError:
        raise
    except Exception as error:
        return Failure(RejectReason.MALFORMED, f"the parser raised {type(error).__name__}")


class Pool(Protocol):
    """What runs a function over items: `WorkerPool`, or `cluster.ClusterPool`."""

    def __enter__(self) -> Pool: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def beside(self) -> Pool: ...

    def run_each(
        self, function: Callable[[Item], Result], items: Iterable[Item], *, chunk: int = 1
    ) -> Generator[tuple[Item, Result | Failure], None, None]: ...


class WorkerPool:
    """`workers` processes, started when first needed, that live until `close` (or the end of the `with` block).

    `workers=0` runs everything in this process, without budgets: for tests and debugging. `timeout_s`: wall clock an
    item. `memory_bytes`: what a worker may allocate above its size after importing the function (Linux only; elsewhere
    it has no effect). `preload`: modules that all workers need; imported once, in the server that workers are forked
    from, which begins with the first worker of this process and takes no modules after that.
    """

    def __init__(
        self, workers: int, *, timeout_s: float, memory_bytes: int | None = None, preload: Sequence[str] = ()
    ) -> None:
        if workers < 0 or timeout_s <= 0:
            raise ValueError(f"expected workers >= 0 and timeout_s > 0, found {workers} and {timeout_s}")
        self.size = workers
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        self._preload = tuple(preload)
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._running = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def beside(self) -> WorkerPool:
        """One of a single worker with the same budget, to use while this one runs."""
        return WorkerPool(min(self.size, 1), timeout_s=self.timeout_s, memory_bytes=self.memory_bytes)

    def close(self) -> None:
        """Ends all workers, busy or not."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def run_each(
        self, function: Callable[[Item], Result], items: Iterable[Item], *, chunk: int = 1
    ) -> Generator[tuple[Item, Result | Failure], None, None]:
        """(item, result or Failure) for each item, in their order. One run of a pool at a time.

        `chunk` items go to a worker at once, which saves waiting where an item takes milliseconds; each is still timed
        and answered alone: a worker that dies costs the item it was at, and the rest of its chunk goes to another one.
        Raises RadloopError where workers cannot start, or results cannot be sent.
        """
        if self.size == 0:
            for item in items:
                try:
                    yield item, outcome_of(function, item)
                except MemoryError:
                    yield item, _too_large(None)
            return
        if self._running:
            raise RuntimeError("this pool has a run that is not finished")
        self._running = True
        task = _Task(pickle.dumps(function), _modules_of(function, self._preload))
        stream: _Stream[Item, Result] = _Stream(iter(items), ahead=AHEAD * self.size * chunk)
        try:
            while stream.refill():
                self._assign(task, stream, chunk)
                self._collect(stream)
                yield from stream.finished()
        finally:
            self._running = False
            self._drop([worker for worker in self._workers if worker.jobs])

    def _assign(self, task: _Task, stream: _Stream[Any, Any], chunk: int) -> None:
        """Gives each idle worker a chunk, as long as there are items; starts workers up to the pool's size."""
        while stream.waiting:
            worker = next((one for one in self._workers if not one.jobs), None)
            if worker is None:
                if len(self._workers) == self.size:
                    return
                worker = _start(task.modules, self.memory_bytes, self.timeout_s)
                self._workers.append(worker)
            fair = -(-len(stream.waiting) // self.size)
            jobs = [stream.waiting.popleft() for _ in range(min(chunk, fair))]
            worker.send(task, jobs)

    def _collect(self, stream: _Stream[Any, Any]) -> None:
        """Waits until a worker says something, dies, or is over its time; books what that means."""
        busy = [worker for worker in self._workers if worker.jobs]
        # A worker that answered while the caller of the generator was away is heard before it is judged by the clock.
        patience = min((worker.deadline for worker in busy), default=0.0) - time.monotonic()
        heard = set(wait([w.connection for w in busy] + [w.process.sentinel for w in busy], max(0.0, patience)))
        for worker in busy:
            if worker.connection in heard or worker.process.sentinel in heard:
                self._hear(worker, stream)
            elif time.monotonic() >= worker.deadline and not worker.connection.poll():
                detail = f"took longer than {self.timeout_s:g} s"
                self._lost(worker, stream, Failure(RejectReason.TIMED_OUT, detail))

    def _hear(self, worker: _Worker, stream: _Stream[Any, Any]) -> None:
        try:
            kind, outcome = worker.connection.recv()
        except (EOFError, OSError):
            self._lost(worker, stream, Failure(RejectReason.CRASHED, worker.cause_of_death()))
            return
        worker.deadline = time.monotonic() + self.timeout_s
        if kind == "ready":
            worker.ready = True
            self._failed_starts = 0
        elif kind == "broken":
            raise RadloopError(f"a worker process cannot do its work: {outcome}")
        else:
            stream.book(worker.jobs.popleft(), outcome)
        if kind == "spent":
            stream.give_back(worker.jobs)
            self._drop([worker])

    def _lost(self, worker: _Worker, stream: _Stream[Any, Any], failure: Failure) -> None:
        if worker.ready:
            stream.book(worker.jobs.popleft(), failure)
        else:
            self._failed_starts += 1
        stream.give_back(worker.jobs)
        self._drop([worker])
        if self._failed_starts >= STARTUP_ATTEMPTS:
            raise RadloopError(
                f"worker processes end before their first item ({failure.detail}); expected that they can import what "
                "the main program imports. A script that calls radloop needs `if __name__ == '__main__':` around it"
            )

    def _drop(self, workers: list[_Worker]) -> None:
        for worker in workers:
            worker.end()
            self._workers.remove(worker)


@dataclass(frozen=True)
class _Task:
    """What a worker is told once: the pickled function, and the modules worth importing before workers are forked."""

    function: bytes
    modules: tuple[str, ...]


class _Stream(Generic[Item, Result]):
    """Items on their way: taken from the source, waiting, in a worker, or done and waiting for an older one."""

    def __init__(self, source: Iterator[Item], ahead: int) -> None:
        self.waiting: deque[tuple[int, Item]] = deque()
        self._source = source
        self._ahead = ahead
        self._done: dict[int, tuple[Item, Result | Failure]] = {}
        self._taken = 0
        self._given = 0
        self._exhausted = False

    def refill(self) -> bool:
        """Takes items up to the read-ahead; whether any item is still on its way."""
        while not self._exhausted and self._taken - self._given < self._ahead:
            try:
                item = next(self._source)
            except StopIteration:
                self._exhausted = True
            else:
                self.waiting.append((self._taken, item))
                self._taken += 1
        return self._given < self._taken

    def book(self, job: tuple[int, Item], outcome: Result | Failure) -> None:
        index, item = job
        self._done[index] = (item, outcome)

    def give_back(self, jobs: deque[tuple[int, Item]]) -> None:
        self.waiting.extendleft(reversed(jobs))
        jobs.clear()

    def finished(self) -> Iterator[tuple[Item, Result | Failure]]:
        while self._given in self._done:
            pair = self._done.pop(self._given)
            self._given += 1
            yield pair


@dataclass(eq=False)
class _Worker:
    """A process, the line to it, and the jobs it has not answered, the one it is at first."""

    process: BaseProcess
    connection: Connection
    timeout_s: float
    jobs: deque[tuple[int, Any]] = field(default_factory=deque)
    deadline: float = 0.0
    ready: bool = False
    task: _Task | None = None

    def send(self, task: _Task, jobs: list[tuple[int, Any]]) -> None:
        """Only ever to an idle worker: it reads, so that neither side waits for the other with a full pipe."""
        self.ready = self.ready and task is self.task
        self.deadline = time.monotonic() + (self.timeout_s if self.ready else STARTUP_LIMIT_S)
        self.jobs.extend(jobs)
        try:
            self.connection.send((None if self.ready else task.function, [item for _, item in jobs]))
        except OSError:
            pass  # it died while idle: its line reads as ended, which is where deaths are booked
        else:
            self.task = task

    def cause_of_death(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"its worker process ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"its worker process was ended by signal {name}"

    def end(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()


def _start(modules: tuple[str, ...], memory_bytes: int | None, timeout_s: float) -> _Worker:
    """A new worker, forked from a server without this process's threads (torch's, say); spawned where there is none."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "pipeline.work", *modules, *_heavy_modules])
    else:
        context = multiprocessing.get_context("spawn")  # type: ignore[assignment]
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, memory_bytes, timeout_s), daemon=True)
    with _one_thread_each():
        process.start()
    there.close()  # or the line would not end with the worker
    return _Worker(process, here, timeout_s)


def default_workers() -> int:
    """As many as this process may use cores, at most 16: disks are not faster for more."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16)


def start_server(modules: Sequence[str]) -> None:
    """Starts the process that workers are forked from, which imports `modules` while this one goes on; without it the first worker
    does, and waits."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "pipeline.work", *modules, *_heavy_modules])
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits: Ctrl-C is this process's affair
        try:
            with _one_thread_each():
                forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """What starts meanwhile gives its numeric libraries one thread: a worker is one core's, and idle threads of OpenBLAS wait for work by
    spinning, 30 ms after each product, on cores that other workers need. Who set a number in the environment keeps it."""
    if THREADS_SETTING in os.environ:
        yield
        return
    os.environ[THREADS_SETTING] = "1"
    try:
        yield
    finally:
        del os.environ[THREADS_SETTING]


def preload(module: str) -> None:
    """Has workers find `module` imported already. For modules that take seconds: to be said before the process's first pool."""
    if module not in _heavy_modules:
        _heavy_modules.append(module)


def preloaded() -> tuple[str, ...]:
    """What `preload` was told, for processes elsewhere."""
    return tuple(_heavy_modules)


def _modules_of(function: Callable[..., Any], preload: tuple[str, ...]) -> tuple[str, ...]:
    while isinstance(function, functools.partial):
        function = function.func
    module = getattr(function, "__module__", None)
    return (*preload, module) if module and module != "__main__" else preload


def _serve(connection: Connection, memory_bytes: int | None, timeout_s: float) -> None:
    """A worker's life: read jobs, answer each, until the line ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its workers itself
    _silence()
    warnings.simplefilter("ignore")
    logging.disable()
    function: Callable[[Any], Any] = _no_function
    while True:
        try:
            pickled, items = connection.recv()
            if pickled is not None:
                function = pickle.loads(pickled)
                _limit_memory(memory_bytes)
                connection.send(("ready", None))
            for item in items:
                connection.send_bytes(_answer(function, item, memory_bytes, timeout_s))
        except (EOFError, OSError):
            return  # the parent is gone
        except Exception as error:
            connection.send(("broken", f"{type(error).__name__}: {error}"))


def _silence() -> None:
    """libpng and libtiff print what they think of a file on descriptor 2, past Python, into the progress on a terminal."""
    with open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)


def _no_function(_: Any) -> Any:
    raise RuntimeError("items came before the function")


def _answer(function: Callable[[Any], Any], item: Any, memory_bytes: int | None, timeout_s: float) -> bytes:
    """The pickled answer. After MemoryError the worker is `spent`: its memory no longer says anything about a file."""
    _backstop(timeout_s + BACKSTOP_S)
    try:
        return pickle.dumps(("result", outcome_of(function, item)), pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        return pickle.dumps(("spent", _too_large(memory_bytes)))
    finally:
        _backstop(0.0)


def _too_large(memory_bytes: int | None) -> Failure:
    detail = "memory ran out" if memory_bytes is None else f"needs more than {memory_bytes / 2**20:.0f} MiB of memory"
    return Failure(RejectReason.TOO_LARGE, detail)


def _backstop(seconds: float) -> None:
    """SIGALRM's default action ends the process, also inside a codec's endless loop."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory(memory_bytes: int | None) -> None:
    """Caps private memory at what the worker has now plus `memory_bytes`.

    RLIMIT_DATA and not RLIMIT_AS: mapped files and address space that CUDA or malloc merely reserve do not count.
    """
    statm = Path("/proc/self/statm")
    if memory_bytes is None or not statm.exists():
        return
    import resource

    pages = int(statm.read_text().split()[5])  # data and stack, proc(5)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
