"""What all groups of commands share: how one is added, and exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from pipeline.cluster import ENGINES, LOCAL

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, SOME_FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    what: str,
    example: str,
) -> argparse.ArgumentParser:
    """A command that calls `run` with what was parsed."""
    command = commands.add_parser(name, help=what, description=what, epilog=f"example: {example}")
    command.set_defaults(command=run)
    return command


def add_root(command: argparse.ArgumentParser) -> None:
    """For commands that take a manifest."""
    command.add_argument(
        "--root", type=Path, metavar="DIR", help="where a manifest's relative paths begin (or set RADLOOP_DATA)"
    )


def add_engine(command: argparse.ArgumentParser) -> None:
    """Where the work is done."""
    command.add_argument(
        "--engine",
        choices=ENGINES,
        default=LOCAL,
        help="local: processes of this machine (the default); ray: a Ray cluster with shared storage, that of RAY_ADDRESS",
    )
