"""Label sheets in all the ways that spreadsheet programs write them: each reads as the same cells, or says what is wrong."""

from __future__ import annotations

import csv
import datetime
import io
from pathlib import Path

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cohort.worksheet import SEPARATORS, read_columns
from pipeline.errors import ConfigError

WANTED = ("file", "what")


def _read(path: Path, worksheet: str = "") -> list[tuple[int, str, str]]:
    lines, cells = read_columns(path, worksheet, WANTED)
    return list(zip(lines.tolist(), *(cells[name].to_pylist() for name in WANTED), strict=True))


def _written(tmp_path: Path, content: str | bytes, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _workbook(tmp_path: Path, rows: list[list[object]], title: str = "Sheet") -> Path:
    book = openpyxl.Workbook()
    book.active.title = "first"
    sheet = book.active if title == "first" else book.create_sheet(title)
    for row in rows:
        sheet.append(row)
    path = tmp_path / "labels.xlsx"
    book.save(path)
    return path


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("file,what\n1,yes\n", [(2, "1", "yes")]),
        ("\ufefffile,what\r\n1,yes\r\n", [(2, "1", "yes")]),
        ('"file";"what"\r"0001";"ye;s"\r', [(2, "0001", "ye;s")]),
        ("sep=;\r\nfile;what\r\n1,5;yes\r\n", [(3, "1,5", "yes")]),
        ("file\twhat\tnote\n1\tyes, surely\t\n", [(2, "1", "yes, surely")]),
        ("what|file\nyes|1\n", [(2, "1", "yes")]),
        (" file , what ,,\n 1 , yes ,,\n", [(2, "1", "yes")]),
        ("\n\nfile,what\n\n1,yes\n,\n2\n", [(5, "1", "yes"), (7, "2", "")]),
        ('note,file,what\n"two\nlines",1,yes\nx,2,no\n', [(2, "1", "yes"), (4, "2", "no")]),
        ("note,file,note,what\n,1,,yes,,\n", [(2, "1", "yes")]),
        ('file,what\n"say ""ah""",5" wide\n', [(2, 'say "ah"', '5" wide')]),
        ("file,what\n", []),
    ],
)
def test_texts_are_read_as_they_are_meant(tmp_path: Path, content: str, rows: list[tuple[int, str, str]]):
    assert _read(_written(tmp_path, content)) == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str):
    assert _read(_written(tmp_path, "file,what\nÄß.png,ja\n".encode(encoding))) == [(2, "Äß.png", "ja")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("DOE^JOHN,4711\n1.png,DOE\n", "no column file, what among its 2"),
        ("File,what,DOE\n", r"no column file among its 3 \(file: there in other upper or lower case\)"),
        ("", "no column file, what among its 0"),
        ("file,what,file\n1,DOE,2\n", "the heading file stands twice"),
        ("note,file,what\nDOE, JOHN,1,yes\n", "line 2: 4 values under 3 headings"),
        ('file,what\n1,yes\n2,"DOE\n3,yes\n', "line 3: a quote that does not close"),
        ('file,what\n"DOE" JOHN,yes\n', "line 2: a quote that does not close, or text after"),
        ("file,what\nDOE-Ä,yes\n".encode("latin-1"), "expected text in UTF-8"),
        ("file,what\nDOE,yes\n".encode("utf-16-le"), "expected text in UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1DOE", "protected by a password"),
        (b"PK\x03\x04DOE", "another kind of file"),
    ],
)
def test_what_cannot_be_told_is_one_error_that_quotes_nobody(tmp_path: Path, content: str | bytes, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        _read(_written(tmp_path, content))
    assert "DOE" not in str(caught.value)
    assert "4711" not in str(caught.value)
    assert "labels.csv" in str(caught.value)


def test_a_workbook_reads_as_its_reader_sees_it(tmp_path: Path):
    noon = datetime.datetime(2020, 1, 31, 12, 30)
    path = _workbook(
        tmp_path,
        [
            [" what ", None, "file"],
            [12345, None, "00123"],
            [2.0, "note", 2.5],
            [],
            [True, None, datetime.datetime(2020, 1, 31)],
            [noon, None, datetime.time(8, 5)],
            [None, "note", None],
        ],
    )
    assert _read(path, "Sheet") == [
        (2, "00123", "12345"),
        (3, "2.5", "2"),
        (5, "2020-01-31", "TRUE"),
        (6, "08:05:00", "2020-01-31 12:30:00"),
        (7, "", ""),
    ]


def test_formulas_count_by_the_value_that_was_saved(tmp_path: Path):
    path = _workbook(tmp_path, [["file", "what"], ["=1+1", "yes"]], title="first")
    assert _read(path) == [(2, "", "yes")]  # openpyxl computes nothing: no value was saved
    book = openpyxl.load_workbook(path)
    assert book.active["A2"].value == "=1+1"


@pytest.mark.parametrize(
    ("worksheet", "message"), [("elsewhere", "expected a worksheet called elsewhere"), ("", "no column file, what")]
)
def test_a_workbook_without_the_worksheet(tmp_path: Path, worksheet: str, message: str):
    path = _workbook(tmp_path, [["DOE", "JOHN"]])
    with pytest.raises(ConfigError, match=message) as caught:
        _read(path, worksheet)
    assert "DOE" not in str(caught.value)


def test_what_is_no_workbook_is_said_without_a_traceback(tmp_path: Path):
    for content in (b"PK\x03\x04 broken", b"file,what\n", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        with pytest.raises(ConfigError, match=r"save it as XLSX"):
            _read(_written(tmp_path, content, "labels.xlsx"))


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n"), max_size=12).map(str.strip)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8),
    separator=st.sampled_from(SEPARATORS),
    newline=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_whatever_is_written_is_read_again(
    tmp_path: Path, rows: list[tuple[str, str, str]], separator: str, newline: str, encoding: str
):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator=newline)
    writer.writerows([("note", *WANTED), *rows])
    path = tmp_path / "labels.csv"
    path.write_bytes(buffer.getvalue().encode(encoding))
    assert [row[1:] for row in _read(path)] == [row[1:] for row in rows if any(row)]
