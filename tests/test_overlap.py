"""Items made ahead in a thread: all of them, in order, what was raised too, and nothing left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.overlap import in_lanes, made_ahead


@given(items=st.lists(st.integers(), max_size=30), depth=st.integers(0, 5))
def test_the_same_items_in_the_same_order(items, depth):
    assert list(made_ahead(items, depth)) == items


def test_the_next_is_made_while_one_is_held():
    seen: list[int] = []
    items = made_ahead(_noted(10, seen), 2)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen[:3] == [0, 1, 2]
    items.close()


def test_no_more_is_made_than_asked_for():
    seen: list[int] = []
    items = made_ahead(_noted(100, seen), 3)
    assert [next(items), next(items)] == [0, 1]
    time.sleep(0.2)
    assert len(seen) <= 2 + 3 + 1  # taken, waiting, and the one that waits to be put
    items.close()


def test_what_is_raised_comes_after_what_was_made():
    items = made_ahead(_fails_after(3), 8)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="third"):
        next(items)


def test_giving_up_closes_the_source_and_ends_the_thread():
    before = threading.active_count()
    closed: list[bool] = []
    items = made_ahead(_closable(closed), 2)
    assert next(items) == 0
    items.close()
    assert closed == [True]
    assert threading.active_count() == before


def test_what_the_taker_raises_closes_the_source():
    closed: list[bool] = []

    def taken() -> Iterator[int]:
        for item in made_ahead(_closable(closed), 1):
            if item == 5:
                raise ValueError
            yield item

    with pytest.raises(ValueError):  # noqa: PT011
        list(taken())
    assert closed == [True]


def _noted(count: int, seen: list[int]) -> Iterator[int]:
    for number in range(count):
        seen.append(number)
        yield number


def _fails_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise KeyError("third")


def _closable(closed: list[bool]) -> Iterator[int]:
    try:
        number = 0
        while True:
            yield number
            number += 1
    finally:
        closed.append(True)


@given(items=st.lists(st.integers(), max_size=20), lanes=st.integers(1, 4))
@settings(max_examples=30)
def test_lanes_give_each_result_in_order(items, lanes):
    assert list(in_lanes(lambda item: 2 * item, items, lanes)) == [2 * item for item in items]


def test_lanes_work_at_once_and_each_begins_first():
    together, begun = threading.Barrier(3, timeout=10), threading.Semaphore(0)
    list(in_lanes(lambda _: together.wait(), range(6), 3, begin=begun.release))  # a barrier of three breaks with fewer
    assert all(begun.acquire(blocking=False) for _ in range(3))


def test_lanes_take_one_item_more_than_they_work_at():
    seen: list[int] = []
    results = in_lanes(lambda item: item, _noted(100, seen), 2)
    assert next(results) == 0
    assert len(seen) == 3
    results.close()


def test_what_work_raises_comes_after_the_results_before_it():
    results = in_lanes(lambda item: 6 // (3 - item), range(6), 2)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_the_items_raise_comes_too_and_no_lane_is_left():
    before = threading.active_count()
    with pytest.raises(KeyError, match="third"):
        list(in_lanes(lambda item: item, _fails_after(3), 2))
    assert threading.active_count() == before
