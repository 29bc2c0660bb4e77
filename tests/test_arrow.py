"""Arrow columns by their buffers are what pyarrow makes, and nothing on the way imports pandas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrow import equals, from_numpy, from_values, present, to_numpy
from pipeline.dicom.phantom_objects import ct_slice, save

TEXTS = st.lists(st.none() | st.text(max_size=5).filter(lambda text: text.isprintable()) | st.just("same"), min_size=1)
INTEGERS = st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1)
REALS = st.lists(st.none() | st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0]), min_size=1)
FLAGS = st.lists(st.none() | st.booleans(), min_size=1)


@settings(deadline=None)  # the first pa.array of a process imports pandas
@given(
    st.tuples(st.just(pa.string()), TEXTS)
    | st.tuples(st.just(pa.int64()), INTEGERS)
    | st.tuples(st.just(pa.float64()), REALS)
    | st.tuples(st.just(pa.bool_()), FLAGS)
)
def test_columns_are_those_of_arrow(column: tuple[pa.DataType, list[object]]) -> None:
    kind, values = column
    made = from_values(values, kind)
    made.validate(full=True)
    assert repr(made.to_pylist()) == repr(pa.array(values, kind).to_pylist())
    assert made.null_count == values.count(None)


@given(INTEGERS, st.integers(0, 9), st.integers(0, 9))
def test_numbers_there_and_back(values: list[int | None], start: int, length: int) -> None:
    column = pa.chunked_array([pa.array(values, pa.int64()).slice(start, length), pa.array(values, pa.int64())])
    expected = [7 if value is None else value for value in column.to_pylist()]
    assert to_numpy(column, missing=7).tolist() == expected
    assert present(column).tolist() == [value is not None for value in column.to_pylist()]


@given(FLAGS, st.integers(0, 9))
def test_flags_there_and_back(values: list[bool | None], start: int) -> None:
    column = pa.array(values, pa.bool_()).slice(start)
    assert to_numpy(column).tolist() == [bool(value) for value in column.to_pylist()]


@pytest.mark.parametrize("values", [[1, -2], [0.5, np.nan], [True, False], []])
def test_from_numpy(values: list[float]) -> None:
    array = np.array(values, dtype=None if values else np.int64)
    assert repr(from_numpy(array).to_pylist()) == repr(array.tolist())
    missing = np.arange(len(values)) == 0
    assert from_numpy(array, missing=missing).to_pylist()[:1] == [None][: len(values)]


def test_equals() -> None:
    assert equals(pa.array(["a", None, "b", ""]), "b").tolist() == [False, False, True, False]


def test_indexing_needs_no_pandas_nor_pydicom(tmp_path: Path) -> None:
    for number in range(3):
        save(ct_slice(8, instance_number=number + 1), tmp_path / "export" / str(number))
    (tmp_path / "export" / "copy").write_bytes((tmp_path / "export" / "0").read_bytes())
    (tmp_path / "export" / "text").write_text("text")
    code = f"""
import sys
from pipeline.cli import main

if __name__ == "__main__":
    for expected in (5, 5, 6):
        if expected == 6:
            open({str(tmp_path / "export" / "new")!r}, "w").write("new")
        assert main(["index", {str(tmp_path / "export")!r}, "--out", {str(tmp_path / "out")!r}]) == 0
        print([name for name in ("pandas", "pydicom", "PIL", "torch", "matplotlib") if name in sys.modules])
"""
    (tmp_path / "script.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True, env=environment
    )
    assert [line for line in run.stdout.splitlines() if line.startswith("[")] == ["[]"] * 3
