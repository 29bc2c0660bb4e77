"""Arrow arrays from and to plain values and numpy, by their buffers.

pyarrow's own `pa.array`, `to_numpy` and whatever makes a scalar import pandas first, which takes a second: as long as indexing the
changed part of a source. Kinds are string, int64, float64 and bool.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_NUMPY = {pa.int64(): np.int64, pa.int32(): np.int32, pa.uint64(): np.uint64, pa.float64(): np.float64}


def from_values(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column of values of one kind, None where there is none."""
    missing = values.count(None)
    if missing == len(values) or (kind == pa.string() and values.count(values[0]) == len(values)):
        return _constant(values[0] if values else None, len(values), kind)
    present = [value is not None for value in values] if missing else None
    validity = None if present is None else pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [validity, *_buffers(values, kind)], missing)


@lru_cache(maxsize=1024)
def _constant(value: str | None, count: int, kind: pa.DataType) -> pa.Array:
    if value is None:
        return pa.nulls(count, kind)
    return pa.Array.from_buffers(kind, count, [None, *_buffers([value] * count, kind)], 0)


def _buffers(values: Sequence[Any], kind: pa.DataType) -> list[pa.Buffer]:
    if kind == pa.string():
        encoded = [b"" if value is None else value.encode() for value in values]
        offsets = np.zeros(len(encoded) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, encoded), np.int32, len(encoded)), out=offsets[1:])
        return [pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    filled = [0 if value is None else value for value in values]
    if kind == pa.bool_():
        return [pa.py_buffer(np.packbits(np.array(filled, bool), bitorder="little"))]
    return [pa.py_buffer(np.array(filled, _NUMPY[kind]))]


def empty(schema: pa.Schema) -> pa.Table:
    """A table without rows."""
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def from_numpy(values: NDArray[Any], *, missing: NDArray[np.bool_] | None = None) -> pa.Array:
    """(n,) integers, floats or bools as a column, without a value where it is `missing`."""
    kinds = {"b": (pa.bool_(), bool), "i": (pa.int64(), np.int64), "f": (pa.float64(), np.float64)}
    kind, dtype = kinds[values.dtype.kind]
    content = np.ascontiguousarray(values, dtype)
    buffer = pa.py_buffer(np.packbits(content, bitorder="little") if dtype is bool else content)
    validity = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [validity, buffer], 0 if missing is None else int(missing.sum()))


def to_numpy(column: pa.Array | pa.ChunkedArray, *, missing: float = 0) -> NDArray[Any]:
    """(n,) of a column of integers of 32 or 64 bits, float64 or bool, with `missing` in place of missing values."""
    if isinstance(column, pa.ChunkedArray):
        parts = [to_numpy(chunk, missing=missing) for chunk in column.chunks]
        return np.concatenate(parts) if parts else np.zeros(0, _NUMPY.get(column.type, bool))
    start, stop = column.offset, column.offset + len(column)
    validity, content = column.buffers()
    if column.type == pa.bool_():
        values: NDArray[Any] = _bits(content, start, stop)
    elif content is None:
        values = np.zeros(len(column), _NUMPY[column.type])
    else:
        values = np.frombuffer(content, _NUMPY[column.type])[start:stop]
    if not column.null_count:
        return values
    return np.where(_bits(validity, start, stop), values, np.array(missing, values.dtype))


def present(column: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """(n,) whether there is a value."""
    return to_numpy(column.is_valid()).astype(bool)


def equals(column: pa.Array | pa.ChunkedArray, word: str) -> NDArray[np.bool_]:
    """(n,) whether the text is the word."""
    return present(pc.index_in(column, value_set=from_values([word], pa.string())))


def _bits(buffer: pa.Buffer | None, start: int, stop: int) -> NDArray[np.bool_]:
    if buffer is None:
        return np.zeros(stop - start, bool)
    bits = np.unpackbits(np.frombuffer(buffer, np.uint8), count=stop, bitorder="little")
    return bits[start:stop].astype(bool)
