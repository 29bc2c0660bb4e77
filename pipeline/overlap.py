"""Stages of a stream that run at once: each takes what the one before gives while that makes the next, in a thread; or one stage
that works at several items at once.

For stages that leave Python to worker processes, a library or a device: threads of one interpreter take turns.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LOOK_S = 0.05
"""How often one who gives up looks whether the thread has ended."""


@dataclass(frozen=True)
class _End:
    """After the last item; `error`: what was raised in place of another."""

    error: BaseException | None


def made_ahead(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """What `items` gives, in its order, made in a thread up to `depth` items before they are asked for; with 0 when they are, in this one.

    What it raises is raised here, after all that it gave. Closed early, this closes `items`, too, as soon as that has given what it is at.
    """
    if depth == 0:
        yield from items
        return
    made: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
    given_up = threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, given_up), daemon=True)
    thread.start()
    try:
        while not isinstance(item := made.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        given_up.set()
        while thread.is_alive():
            _make_room(made)


def _make(items: Iterable[Item], made: queue.Queue[Item | _End], given_up: threading.Event) -> None:
    error: BaseException | None = None
    try:
        iterator = iter(items)
        for item in iterator:
            made.put(item)
            if given_up.is_set():
                break
        if isinstance(iterator, Generator):
            iterator.close()
    except BaseException as raised:  # whoever takes the items decides what it means
        error = raised
    made.put(_End(error))


def _make_room(made: queue.Queue[Item | _End]) -> None:
    """For a thread that waits to put what nobody will take."""
    try:
        made.get(timeout=LOOK_S)
    except queue.Empty:
        return


def in_lanes(
    work: Callable[[Item], Result], items: Iterable[Item], lanes: int, *, begin: Callable[[], None] = lambda: None
) -> Generator[Result, None, None]:
    """What `work` makes of each item, in their order, `lanes` at once, each in a thread that calls `begin` first; one more item is taken
    ahead, so that no lane waits for who takes the results.

    What `work` or `items` raises is raised here, after the results before it. Given up, it ends when the lanes have ended what they are at.
    """
    with ThreadPoolExecutor(lanes, initializer=begin) as pool:
        at_work: deque[Future[Result]] = deque()
        try:
            for item in items:
                at_work.append(pool.submit(work, item))
                if len(at_work) > lanes:
                    yield at_work.popleft().result()
            while at_work:
                yield at_work.popleft().result()
        finally:
            for left in at_work:
                left.cancel()
