"""The command line: parse, call a stage, print what it returns. Exit codes: 0 done, 1 some cases failed, 2 wrong use or input.

Stages are imported when their command runs, so that `radloop index` needs no torch.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence

from pipeline import __version__
from pipeline.commands import data, house, model, network, privacy, results
from pipeline.commands.parsing import DONE, INTERRUPTED, WRONG_USE
from pipeline.errors import RadloopError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser, commands = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        parser.print_help(sys.stderr)
        return WRONG_USE
    if not given[0].startswith("-") and given[0] not in commands:
        nearest = difflib.get_close_matches(given[0], commands, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(commands)}"
        print(f"radloop: no command {given[0]!r}; {hint}", file=sys.stderr)
        return WRONG_USE
    options = parser.parse_args(given)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except RadloopError as error:
        print(f"radloop: {error}", file=sys.stderr)
        return WRONG_USE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has enough
        return DONE
    except OSError as error:
        print(f"radloop: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("radloop: interrupted; what was finished is kept", file=sys.stderr)
        return INTERRUPTED


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and the names of its commands."""
    parser = argparse.ArgumentParser(
        prog="radloop",
        description="From a PACS export to a trained model and back: DICOM in, DICOM out. Research use only - not for diagnosis.",
    )
    parser.add_argument("--version", action="version", version=f"radloop {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in (data, model, results, network, privacy, house):
        group.add(commands)
    return parser, list(commands.choices)


if __name__ == "__main__":
    sys.exit(main())
