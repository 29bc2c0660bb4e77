"""The worker pool: order, budgets, deaths, and that nothing is left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import RadloopError, Rejected, RejectReason
from pipeline.work import Failure, WorkerPool, run_each

MIB = 2**20


def behave(item: object) -> object:
    """Does what the item says."""
    match item:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(600)
        case "allocate":
            return len(bytearray(700 * MIB))
        case "reject":
            raise Rejected(RejectReason.EMPTY, "no bytes")
        case "quote":
            raise ValueError("Doe^Jane")
        case "unpicklable":
            return threading.Lock()
        case "process":
            return os.getpid()
    return item


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


class FailsToLoad:
    """A function that no worker can unpickle."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return _kill_self_in_worker, ()

    def __call__(self, item: object) -> object:
        return item


def _kill_self_in_worker() -> None:
    os._exit(9)


def reason(outcome: object) -> RejectReason:
    assert isinstance(outcome, Failure)
    return outcome.reason


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("chunk", [1, 7])
def test_results_come_in_the_order_of_the_items(workers: int, chunk: int) -> None:
    outcomes = list(run_each(behave, range(100), workers=workers, timeout_s=20, chunk=chunk))
    assert outcomes == [(number, number) for number in range(100)]


def test_a_slow_item_does_not_change_the_order() -> None:
    times = [0.3, 0.0, 0.1, 0.0, 0.2, 0.0]
    assert [result for _, result in run_each(nap, times, workers=2, timeout_s=20)] == times


@pytest.mark.parametrize("workers", [0, 2])
def test_exceptions_become_failures_that_quote_nothing(workers: int) -> None:
    outcomes = dict(run_each(behave, ["reject", "quote", "fine"], workers=workers, timeout_s=20))
    assert outcomes["reject"] == Failure(RejectReason.EMPTY, "no bytes")
    assert reason(outcomes["quote"]) == RejectReason.MALFORMED
    assert "Doe" not in str(outcomes["quote"])
    assert "ValueError" in str(outcomes["quote"])
    assert outcomes["fine"] == "fine"


@pytest.mark.parametrize("chunk", [1, 5])
def test_a_death_costs_one_item(chunk: int) -> None:
    items = [1, "die", 2, "segfault", 3, "exit", 4]
    outcomes = list(run_each(behave, items, workers=2, timeout_s=20, chunk=chunk))
    assert [item for item, _ in outcomes] == items
    for item, outcome in outcomes:
        if isinstance(item, int):
            assert outcome == item
        else:
            assert reason(outcome) == RejectReason.CRASHED
    assert "SIGKILL" in str(outcomes[1][1])
    assert "exit code 3" in str(outcomes[5][1])


@pytest.mark.parametrize("chunk", [1, 5])
def test_a_hang_costs_one_item_and_the_time_budget(chunk: int) -> None:
    started = time.monotonic()
    items = [1, "hang", 2, 3]
    outcomes = dict(run_each(behave, items, workers=1, timeout_s=1, chunk=chunk))
    assert reason(outcomes["hang"]) == RejectReason.TIMED_OUT
    assert [outcomes[number] for number in (1, 2, 3)] == [1, 2, 3]
    assert time.monotonic() - started < 15


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory budgets need Linux")
def test_the_memory_budget_is_above_the_workers_own_size() -> None:
    items = ["allocate", 1, "allocate", 2]
    outcomes = list(run_each(behave, items, workers=1, timeout_s=20, memory_bytes=500 * MIB, chunk=4))
    assert [reason(outcomes[n][1]) for n in (0, 2)] == [RejectReason.TOO_LARGE] * 2
    assert [outcomes[n][1] for n in (1, 3)] == [1, 2]
    [(_, size)] = run_each(behave, ["allocate"], workers=1, timeout_s=20, memory_bytes=800 * MIB)
    assert size == 700 * MIB


def test_reading_ahead_is_bounded() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            yield taken
            taken += 1

    outcomes = run_each(behave, endless(), workers=2, timeout_s=20, chunk=2)  # type: ignore[arg-type]
    for _ in range(50):
        next(outcomes)
    outcomes.close()
    assert 50 <= taken <= 50 + 4 * 2 * 2


def test_the_clock_does_not_run_while_the_caller_is_away() -> None:
    outcomes = run_each(nap, [0.01] * 8, workers=2, timeout_s=0.8, chunk=4)
    next(outcomes)
    time.sleep(1.5)
    assert [result for _, result in outcomes] == [0.01] * 7


def test_a_pool_keeps_its_workers_between_runs_and_takes_other_functions() -> None:
    with WorkerPool(1, timeout_s=20) as pool:
        [(_, first)] = pool.run_each(behave, ["process"])
        assert list(pool.run_each(nap, [0.0])) == [(0.0, 0.0)]
        [(_, second)] = pool.run_each(partial(behave), ["process"])
        assert first == second != os.getpid()


def test_giving_a_run_up_leaves_no_stale_answers() -> None:
    with WorkerPool(2, timeout_s=20) as pool:
        abandoned = pool.run_each(nap, [0.0, 0.5, 0.5, 0.5])
        next(abandoned)
        abandoned.close()
        assert list(pool.run_each(behave, [1, 2, 3])) == [(1, 1), (2, 2), (3, 3)]


def test_a_worker_that_dies_while_idle_is_replaced() -> None:
    with WorkerPool(1, timeout_s=20) as pool:
        [(_, process)] = pool.run_each(behave, ["process"])
        os.kill(process, signal.SIGKILL)  # type: ignore[arg-type]
        time.sleep(0.2)
        outcomes = list(pool.run_each(behave, [1, 2]))
    assert outcomes[-1] == (2, 2)


def test_what_cannot_be_sent_or_started_is_an_error_of_the_program() -> None:
    with pytest.raises(RadloopError, match="pickle"):
        list(run_each(behave, ["unpicklable"], workers=1, timeout_s=20))
    with pytest.raises(RadloopError, match="before their first item"):
        list(run_each(FailsToLoad(), [1], workers=1, timeout_s=20))


def test_no_items_start_no_worker() -> None:
    with WorkerPool(2, timeout_s=20) as pool:
        assert list(pool.run_each(behave, [])) == []
        assert pool._workers == []


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_work import behave, nap
from pipeline.work import run_each
if __name__ == "__main__":
    print([r for _, r in run_each(behave, ["process"] * 1, workers=1, timeout_s=30)], flush=True)
    outcomes = run_each(behave, ["process", "process", "hang", "hang"], workers=2, timeout_s=2)
    print(next(outcomes)[1], next(outcomes)[1], flush=True)
    {end}
"""


def run_script(tmp_path: Path, end: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), end=end))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def gone(process: int, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("end", "by", "within_s"),
    [("pass", None, 5), ("next(outcomes)", signal.SIGINT, 5), ("next(outcomes)", signal.SIGKILL, 15)],
    ids=["exit", "ctrl-c", "killed"],
)
def test_no_orphans(tmp_path: Path, end: str, by: signal.Signals | None, within_s: float) -> None:
    program = run_script(tmp_path, end)
    assert program.stdout is not None
    program.stdout.readline()
    workers = [int(word) for word in program.stdout.readline().split()]
    assert workers
    if by is not None:
        time.sleep(0.3)
        program.send_signal(by)
    program.wait(timeout=15)
    assert all(gone(worker, within_s) for worker in workers)
    program.communicate()
