"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere (logs, CI). Always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

LINE_EVERY_S = 15.0

Item = TypeVar("Item")


def track(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    *,
    show: bool = True,
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Item]:
    """`items`, with what was done of `total` told on the way; each counts for its `size`."""
    if not show:
        yield from items
        return
    if sys.stderr.isatty():
        with tqdm(desc=what, total=total, unit="", dynamic_ncols=True, leave=False) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    last, count = time.monotonic(), 0
    for item in items:
        yield item
        count += size(item)
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            say(f"{what}: {count}" + (f" of {total}" if total else ""))


def say(line: str) -> None:
    """One line for whoever watches, without breaking a bar."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
