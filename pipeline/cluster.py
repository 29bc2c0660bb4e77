"""Ray in place of this machine's worker processes: a cluster whose nodes see the same storage under the same paths, or this machine alone.

`connected` makes this process Ray's driver; `ClusterPool.run_each` keeps the contract of `work.WorkerPool.run_each`: each item's result or
Failure, in order, read ahead within bounds. What runs in a task runs in a `WorkerPool` of the Ray process, so that a hostile file costs
exactly itself there, too. A node or process of Ray that dies is `Lost`: its task is done again. Needs the extra `ray`.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pipeline.errors import ConfigError, RadloopError, SourceError
from pipeline.progress import say
from pipeline.work import AHEAD, Failure, WorkerPool, preloaded

LOCAL, RAY = "local", "ray"
ENGINES = (LOCAL, RAY)
ADDRESS_VARIABLE = "RAY_ADDRESS"
"""The cluster, as Ray itself reads it; without it Ray is started on this machine and ends with the command."""

ATTEMPTS = 4
"""How often a task is begun by us; within each Ray itself tries `RETRIES` times more where a node died."""
RETRIES = 3
PROCESSES_A_CPU = 3
"""Of Ray, at most: tasks claim half a CPU, and there are the models."""
CHUNKS_A_TASK = 4
"""Ray takes about a millisecond a task, a worker's pipe some microseconds a chunk."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lost(Exception):
    """What a task made, or would have made, went with its node or process."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that answers."""

    id: str
    cpus: float
    gpus: int


@dataclass(frozen=True)
class Budget:
    """Of the worker process in which a task's items run, and what it must find; `work.WorkerPool` says what each means.

    `places`: files and folders of the shared storage.
    """

    timeout_s: float
    memory_bytes: int | None = None
    preload: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


def check_engine(engine: str) -> None:
    """ConfigError for an engine that there is none, or that is not installed."""
    if engine not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, found {engine!r}")
    if engine == RAY:
        load_ray()


def load_ray() -> Any:
    """The module; ConfigError that names the extra where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "the engine ray needs Ray, which is not installed; install it with: pip install 'radloop[ray]'"
        ) from None
    return ray


@contextmanager
def connected(cpus: int | None = None) -> Iterator[None]:
    """This process is Ray's driver: of the cluster that RAY_ADDRESS names, else of a Ray of `cpus` CPUs that ends with the block.

    Where it is a driver already it stays one. Nothing of Ray is printed: its messages repeat what processes print.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield
        return
    address = os.environ.get(ADDRESS_VARIABLE, "local")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        cpus = max(1, cpus or _cores())
        # Ray's processes give way to all others by default: here they are the work itself, as the local engine's are.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Beyond one a CPU Ray ends them when they are idle for a second: the next would import torch again.
        os.environ.setdefault("RAY_num_workers_soft_limit", str(PROCESSES_A_CPU * cpus))
        options |= {"num_cpus": cpus, "include_dashboard": False}
    _silence(ray)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{ADDRESS_VARIABLE}={address}: expected a Ray cluster of this version of Ray and Python, found none that can be used "
            f"({type(error).__name__}); start one with: ray start --head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _silence(ray: Any) -> None:
    """Ray prints on standard output what its daemons say of nodes and tasks that died, whatever `log_to_driver` is; no public switch."""
    if hasattr(ray._private.worker, "_worker_logs_enabled"):
        ray._private.worker._worker_logs_enabled = False


def nodes() -> list[Node]:
    """The cluster's machines that answer and have a CPU to give."""
    found = [(node["NodeID"], node["Resources"]) for node in load_ray().nodes() if node["Alive"]]
    return [Node(key, has["CPU"], int(has.get("GPU", 0))) for key, has in found if has.get("CPU", 0) > 0]


def fetched(reference: Any) -> Any:
    """The value of a reference. Raises Lost, or the RadloopError that its task raised; of any other error only the type is told."""
    ray = load_ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RadloopError):
            raise cause from None
        if isinstance(cause, ray.exceptions.RayError):
            raise Lost(type(cause).__name__) from None
        raise RadloopError(f"a task on the cluster raised {type(cause).__name__}") from error
    except ray.exceptions.RayError as error:
        raise Lost(type(error).__name__) from None


class ClusterPool:
    """`WorkerPool` on the cluster, or on a Ray of `cpus` CPUs on this machine; connected from `__enter__` on."""

    def __init__(self, budget: Budget, *, cpus: int | None = None) -> None:
        self.budget = budget
        self._cpus = cpus
        self._connection: Any = None

    def __enter__(self) -> ClusterPool:
        self._connection = connected(self._cpus)
        self._connection.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.__exit__(kind, value, trace)

    def beside(self) -> ClusterPool:
        """Another with the same budget, to use while this one runs."""
        return ClusterPool(self.budget)

    def run_each(
        self, function: Callable[[Item], Result], items: Iterable[Item], *, chunk: int = 1
    ) -> Generator[tuple[Item, Result | Failure], None, None]:
        """(item, result or Failure) for each item, in their order. `chunk`: as `WorkerPool.run_each` has it; some of them are a task.

        Raises RadloopError where a task failed so often that the cluster is at fault.
        """
        task = load_ray().remote(run_chunk).options(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")
        ahead = AHEAD * max(1, round(sum(node.cpus for node in nodes())))
        chunks = _chunks(items, chunk * CHUNKS_A_TASK)
        budget = replace(self.budget, preload=(*self.budget.preload, *preloaded()))
        pending: deque[tuple[list[Item], Any]] = deque()

        def begin(some: list[Item]) -> Any:
            return task.remote(function, some, budget, chunk)

        try:
            while True:
                pending.extend((some, begin(some)) for some in islice(chunks, ahead - len(pending)))
                if not pending:
                    return
                some, reference = pending.popleft()
                yield from zip(some, _in_the_end(reference, lambda some=some: begin(some)), strict=True)  # type: ignore[misc]
        finally:
            for _, reference in pending:
                load_ray().cancel(reference)


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def _in_the_end(reference: Any, again: Callable[[], Any]) -> Any:
    """The value of a reference, begun `again` where it was lost."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return fetched(reference)
        except Lost as lost:
            tell_lost("a task", attempt, lost)
            reference = again()
    raise AssertionError  # the last attempt raises


def tell_lost(what: str, attempt: int, lost: Lost) -> None:
    """Says that something is done again; RadloopError after the last attempt."""
    if attempt >= ATTEMPTS:
        raise RadloopError(
            f"{what} on the cluster failed {ATTEMPTS} times, at last with Ray's {lost}; what was finished is kept: see `ray status` and "
            "the memory of its nodes, then call again"
        ) from None
    say(f"ray: {what} was lost with its node or process ({lost}); it is done again")


def run_chunk(
    function: Callable[[Item], Result], items: Sequence[Item], budget: Budget, chunk: int
) -> list[Result | Failure]:
    """What a task does: items in a worker process, which the next task of this Ray process finds ready."""
    check_places(budget.places)
    pool = pool_here(budget.timeout_s, budget.memory_bytes, budget.preload)
    with closing(pool.run_each(function, items, chunk=chunk)) as outcomes:
        return [outcome for _, outcome in outcomes]


@lru_cache(maxsize=4)
def pool_here(timeout_s: float, memory_bytes: int | None, preload: tuple[str, ...] = ()) -> WorkerPool:
    """This process's worker for a budget; it ends with this process."""
    return WorkerPool(1, timeout_s=timeout_s, memory_bytes=memory_bytes, preload=preload)


@lru_cache(maxsize=64)
def check_places(places: tuple[str, ...]) -> None:
    """SourceError where this node does not see the shared storage: else all its files would be rejects."""
    for place in places:
        if not Path(place).exists():
            raise SourceError(
                f"{place}: not there on the cluster's node {socket.gethostname()}; every node needs the storage under the same path"
            )
