"""A CSV, TSV or XLSX with a header line, read as text: the cells under wanted headings, and on which line each row begins.

Cells are without surrounding blanks; lines count from 1, as in an editor. What cannot be told for certain (a row that is too long, a
quote that does not close, another encoding) is one ConfigError. No message quotes a cell, nor a heading but the wanted ones:
the first line of a sheet without headings is a patient's.
"""

from __future__ import annotations

import csv
import re
import warnings
import zipfile
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ConfigError

WORKBOOK_BYTES = 256 * 2**20
"""Most that an XLSX may inflate to: some million rows."""
SEPARATORS = (",", ";", "\t", "|")
"""Excel writes semicolons where the comma is the decimal sign."""
ROWS_A_BATCH = 8192
"""Rows that are Python objects before they become columns."""
SEPARATOR_NOTE = re.compile(r"sep=\W?")
OLE_FILE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""How an .xls begins, and an .xlsx that is encrypted with a password."""
EXACT_DIGITS = 2**53
"""Whole numbers below are exact in a spreadsheet; greater ones have lost digits already."""

Row = tuple[int, list[str]]
"""A line's number and its cells."""


def read_columns(
    path: Path, worksheet: str, wanted: Collection[str], *, every: bool = False
) -> tuple[NDArray[np.int64], dict[str, pa.ChunkedArray]]:
    """Line numbers (rows,) and the cells of each wanted heading, of `every` heading if asked for. Empty rows are left out."""
    with open(path, "rb") as file:
        head = file.read(8)
    workbook = _is_workbook(path, head)
    with (
        closing(_workbook_rows(path, worksheet) if workbook else _text_rows(path, head, wanted)) as rows,
        warnings.catch_warnings(action="ignore"),  # openpyxl's, about features of Excel that hold no cells
    ):
        header = [cell.strip() for cell in next(rows, (0, []))[1]]
        _check_header(path, header, wanted)
        headings = [heading for heading in header if heading and header.count(heading) == 1] if every else wanted
        places = {heading: header.index(heading) for heading in headings}
        batches: dict[str, list[pa.Array]] = {heading: [] for heading in places}
        lines: list[NDArray[np.int64]] = []
        for batch in _batches(rows):
            lines.append(np.array([line for line, _ in batch], dtype=np.int64))
            for heading, place in places.items():
                cells = [row[place].strip() if place < len(row) else "" for _, row in batch]
                batches[heading].append(pa.array(cells, pa.large_string()))
    chunked = {heading: pa.chunked_array(parts, pa.large_string()) for heading, parts in batches.items()}
    return np.concatenate(lines) if lines else np.array([], dtype=np.int64), chunked


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS_A_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_header(path: Path, header: list[str], wanted: Collection[str]) -> None:
    twice = sorted(heading for heading in wanted if header.count(heading) > 1)
    if twice:
        raise ConfigError(
            f"{path}: the heading {', '.join(twice)} stands twice; each that the manifest names may stand once"
        )
    missing = sorted(set(wanted) - set(header))
    if not missing:
        return
    folded = {heading.casefold() for heading in header}
    in_other_case = [heading for heading in missing if heading.casefold() in folded]
    hint = f" ({', '.join(in_other_case)}: there in other upper or lower case)" if in_other_case else ""
    raise ConfigError(
        f"{path}: no column {', '.join(missing)} among its {len(header)}{hint}; expected a header line with these names, "
        "values separated by commas, semicolons, tabs or |"
    )


def _is_workbook(path: Path, head: bytes) -> bool:
    """Whether it is an XLSX; ConfigError for its kin that cannot be read."""
    suffix = path.suffix.lower()
    zipped, named = head.startswith(b"PK\x03\x04"), suffix in (".xlsx", ".xlsm")
    if head == OLE_FILE:
        found = "an old .xls, or a workbook that is protected by a password"
    elif zipped != named:
        found = "another kind of file under that name"
    else:
        return zipped
    raise ConfigError(
        f"{path}: expected a CSV, TSV or XLSX, found {found}; save it as XLSX without a password, or as CSV"
    )


def _workbook_rows(path: Path, worksheet: str) -> Generator[Row, None, None]:
    """Rows of an XLSX's worksheet, formulas by the value that the spreadsheet program stored."""
    from openpyxl import load_workbook

    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
        if inflated > WORKBOOK_BYTES:
            raise ConfigError(
                f"{path}: inflates to {inflated >> 20} MiB, of {WORKBOOK_BYTES >> 20} allowed; save the worksheet as CSV"
            )
        with closing(load_workbook(path, read_only=True, data_only=True)) as book:
            sheet = _named_worksheet(path, book.worksheets, worksheet)
            sheet.reset_dimensions()  # some programs write a wrong size, and rows beyond it would be lost
            for line, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                cells = [_cell_text(value) for value in row]
                if any(cells):
                    yield line, cells
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # openpyxl raises what its parsers raise, and quotes the cell
        raise ConfigError(
            f"{path}: cannot be read as XLSX ({type(error).__name__}); open it in a spreadsheet program and save it as XLSX or CSV"
        ) from None


def _named_worksheet(path: Path, worksheets: list[Any], name: str) -> Any:
    found = [sheet for sheet in worksheets if not name or sheet.title == name]
    if not found:
        called = f"a worksheet called {name}" if name else "a worksheet with cells"
        raise ConfigError(f"{path}: expected {called}, found {len(worksheets)} others; check `sheet.worksheet`")
    return found[0]


def _cell_text(value: Any) -> str:
    """A cell as its reader sees it: whole numbers without '.0', dates as ISO 8601, text as it is."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT_DIGITS:
        return str(int(value))
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(sep=" ")
    return value.isoformat() if isinstance(value, (date, time)) else str(value).strip()


def _text_rows(path: Path, head: bytes, wanted: Collection[str]) -> Generator[Row, None, None]:
    """Rows, split at the separator with which the first one has the wanted headings."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"

    def found(separator: str) -> tuple[int, int]:
        with closing(_separated(path, encoding, separator, strict=False)) as rows:
            header = [cell.strip() for cell in next(rows, (0, []))[1]]
        return len(set(wanted) & set(header)), len(header)

    width = 0
    with closing(_separated(path, encoding, max(SEPARATORS, key=found))) as rows:
        for line, cells in rows:
            width = width or len(cells)
            if len(cells) > width and any(
                map(str.strip, cells[width:])
            ):  # a separator too many shifts values into other columns
                raise ConfigError(
                    f"{path}, line {line}: {len(cells)} values under {width} headings; put values that hold a separator in quotes"
                )
            yield line, cells


def _separated(path: Path, encoding: str, separator: str, *, strict: bool = True) -> Generator[Row, None, None]:
    """Rows that are not empty, with the number of the line they begin on; the note `sep=;` of Excel is none."""
    line = 1
    try:
        with open(path, encoding=encoding, newline="") as file:
            reader = csv.reader(file, delimiter=separator, strict=strict)
            for cells in reader:
                if line == 1 and any("\0" in cell for cell in cells):
                    raise UnicodeError("two bytes a character")
                if any(map(str.strip, cells)) and not (line == 1 and SEPARATOR_NOTE.fullmatch("".join(cells))):
                    yield line, cells
                line = reader.line_num + 1
    except UnicodeError:
        raise ConfigError(
            f"{path}: expected text in UTF-8 (or UTF-16 with its byte order mark), found other bytes; "
            "save it as 'CSV UTF-8', or as XLSX"
        ) from None
    except csv.Error:
        raise ConfigError(
            f"{path}, line {line}: a quote that does not close, or text after a closing quote; save the sheet anew as CSV or XLSX"
        ) from None
