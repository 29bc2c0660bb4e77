"""What is on this machine, and the whole loop at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.parsing import DONE, Commands, add_command
from pipeline.errors import ConfigError


def add(commands: Commands) -> None:
    """Adds this group's commands."""
    cache = add_command(
        commands, "cache", _cache, "show or remove prepared images", "radloop cache --clear --older-than 30"
    )
    cache.add_argument("--clear", action="store_true", help="remove them, but for those that a process uses")
    cache.add_argument(
        "--older-than", type=float, metavar="DAYS", help="with --clear: only what was not used for so long"
    )

    demo = add_command(
        commands, "demo", _demo, "the whole loop on a generated export, offline", "radloop demo --out demo"
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="made anew; demo where not given")

    add_command(commands, "doctor", _doctor, "versions, devices and decoders", "radloop doctor")


def _cache(options: argparse.Namespace) -> int:
    from pipeline.prepared.cache_folder import cache_root, clear, cleared_lines, listing

    days = options.older_than
    if days is not None and not options.clear:
        raise ConfigError("--older-than says what --clear removes: radloop cache --clear --older-than 30")
    if days is not None and not 0 <= days < float("inf"):
        raise ConfigError(f"--older-than {days:g}: expected days, from 0 on")
    root = cache_root()
    print("\n".join(cleared_lines(root, *clear(root, older_than_days=days or 0.0)) if options.clear else listing(root)))
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from pipeline.demo import demo

    print("\n".join(demo(options.out)))
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    from pipeline.doctor import report

    print("\n".join(report()))
    return DONE
