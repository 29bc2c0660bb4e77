"""Index tables for tests, in both forms that they are met in: text plain, and categorical where it repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pipeline.columns import COLUMNS, REPEATING, SCHEMA
from pipeline.indexing.index import DTYPES, Index

DEFAULTS: Mapping[str, Any] = {
    "source": "export", "format": "dicom", "bytes": 100, "mtime_ns": 1, "frames": 1, "rows": 64, "columns": 64,
    "collision": "", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "modality": "CT", "study_instance_uid": "1.1",
    "series_instance_uid": "1.1.1", "image_type": "ORIGINAL\\PRIMARY\\AXIAL",
}  # fmt: skip
"""A CT slice; its path and SOPInstanceUID are its number."""


def index_table(rows: Sequence[Mapping[str, Any]], *, categorical: bool) -> pd.DataFrame:
    """The columns of the index with these values, other columns as `DEFAULTS` has them or missing."""
    full = [
        {**dict.fromkeys(COLUMNS), "path": f"{number:04d}", "sop_instance_uid": f"1.1.1.{number}", **DEFAULTS, **row}
        for number, row in enumerate(rows)
    ]
    table = pa.Table.from_pylist(full, SCHEMA).to_pandas(types_mapper=DTYPES.get)
    return table.astype(dict.fromkeys(REPEATING, "category")) if categorical else table


def index_of(table: pd.DataFrame) -> Index:
    """An index of these images, without rejects."""
    return Index(table, pd.DataFrame(), {}, {"export": Path("export")})
