"""What a `Child` does in tests; a module of its own, because the child imports it."""

from __future__ import annotations

import os
import time


def calculate(what: str) -> int:
    """The number that `what` is, or what a child can do wrong."""
    if what == "die":
        os._exit(3)
    if what == "hang":
        time.sleep(600)
    return int(what)
