"""The journal of a de-identification: what each file became, so that a call that was killed goes on, and one that comes later reads only
what has changed. Nothing in it but hashes under the key and what the tables hold."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.deidentifying.plan import Plan, SourceFile
from pipeline.dicom.deidentification_risk import Held
from pipeline.errors import RejectReason
from pipeline.files import write_whole

WORK_FOLDER = ".deidentify"
"""In DIR: the journal, and files until they have their place."""
JOURNAL_FILE = "journal.jsonl"
FLUSH_EVERY_S = 5.0
"""What is made again where the process is killed."""
PASSING = frozenset(
    map(
        str,
        (RejectReason.UNREADABLE, RejectReason.CHANGED, RejectReason.TIMED_OUT, RejectReason.CRASHED, Held.SAME_UID),
    )
)
"""Reasons that may be gone the next time although the file is the same."""


class Journal:
    """Outcomes as they come, a line each, on the disk every few seconds; a torn last line is one file that is made again."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self._path = out / WORK_FOLDER / JOURNAL_FILE
        self._plan = plan.name

    def __enter__(self) -> Journal:
        self._file = self._path.open("a", encoding="utf-8")
        self._since = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, file: SourceFile, record: dict[str, Any]) -> None:
        if record.get("reason") not in PASSING:
            self._file.write(_line(self._plan, file, record))
        if time.monotonic() - self._since > FLUSH_EVERY_S:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._since = time.monotonic()


def _line(plan: str, file: SourceFile, record: dict[str, Any]) -> str:
    # With a line end before it, too: the line before may have been torn.
    return "\n" + json.dumps({"plan": plan, "file": file.name, "state": file.state, **record}, sort_keys=True) + "\n"


def read_journal(out: Path, plan: Plan) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """Every path in DIR that an earlier call wrote, and by file and state the outcomes that this plan had."""
    paths: set[str] = set()
    outcomes: dict[str, dict[str, Any]] = {}
    path = out / WORK_FOLDER / JOURNAL_FILE
    if not path.exists():
        return paths, outcomes
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
                if record["kind"] == "cleaned":
                    paths.add(record["row"]["path"])
                if record["plan"] == plan.name:
                    outcomes.setdefault(record["file"], {})[record["state"]] = record
            except (ValueError, KeyError, TypeError):
                continue  # torn
    return paths, outcomes


def compact(out: Path, plan: Plan, files: Sequence[SourceFile]) -> None:
    """The journal without what is not so any more, and the work folder with nothing else in it."""
    _, journal = read_journal(out, plan)
    lines = []
    for file in files:
        record = journal.get(file.name, {}).get(file.state)
        if record is not None:
            kept = {name: value for name, value in record.items() if name not in ("plan", "file", "state")}
            lines.append(_line(plan.name, file, kept).lstrip())
    write_whole(out / WORK_FOLDER / JOURNAL_FILE, "".join(lines))
    for left in (out / WORK_FOLDER).iterdir():
        if left.name != JOURNAL_FILE:
            left.unlink(missing_ok=True)
