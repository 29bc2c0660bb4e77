"""A table of what became of each instance, on the disk: written whole at most every few seconds, and in the end.

Whoever is killed in between does the last seconds again, which changes nothing: an instance that is sent or fetched twice is there once.
UIDs, peers, paths within the folder and statuses stand in it; nothing that identifies a patient.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import write_whole

WRITE_EVERY_S = 2.0

Row = dict[str, str]


class Journal:
    """Rows of `columns` by their values of `key`, as they stand in `path`; a context, at whose end it is written."""

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str]) -> None:
        """Raises ConfigError where `path` is no such table."""
        self.path, self._columns, self._key = path, tuple(columns), tuple(key)
        self._rows: dict[tuple[str, ...], Row] = {}
        self._written_s, self._changed = time.monotonic(), False
        if path.is_file():
            for row in _read(path, self._columns):
                self._rows[self._key_of(row)] = row

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def __iter__(self) -> Iterator[Row]:
        return iter(list(self._rows.values()))

    def get(self, *key: str) -> Row | None:
        """The row of these values of the key."""
        return self._rows.get(key)

    def put(self, row: Mapping[str, str]) -> None:
        """Takes the place of the row of the same key."""
        complete = {column: row.get(column, "") for column in self._columns}
        self._rows[self._key_of(complete)] = complete
        self._changed = True
        if time.monotonic() - self._written_s > WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """To the disk, whole."""
        if self._changed:
            text = io.StringIO()
            writer = csv.DictWriter(text, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows.values())
            write_whole(self.path, text.getvalue())
            self._changed = False
        self._written_s = time.monotonic()

    def _key_of(self, row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row[column] for column in self._key)


def _read(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != columns:
                raise ConfigError(f"{path}: expected a journal with the columns {', '.join(columns)}; move it away")
            for row in reader:
                yield {column: row[column] or "" for column in columns}
    except (UnicodeDecodeError, csv.Error):
        raise ConfigError(f"{path}: expected a journal of radloop, found no table; move it away") from None
