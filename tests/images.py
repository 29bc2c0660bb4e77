"""Tables of images as group_images leaves them, made of a few values, for tests that need no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.cohort.cases import CASE_COLUMNS, EXCLUSION_COLUMNS, Cases
from pipeline.columns import COLUMNS, REPEATING, TEXT
from pipeline.identity import IdentityKey
from pipeline.indexing.sources import OpenedSource, open_manifest

KEY = IdentityKey(b"k" * 32)


def image_table(rows: list[dict[str, Any]], *, categorical: bool = True) -> pd.DataFrame:
    """One row a file: what `rows` say, and nothing else; text that repeats as categories, as the index has it, or all as text."""
    given = pd.DataFrame(
        [{"source": "export", "format": "dicom", "path": f"{place}.dcm"} | row for place, row in enumerate(rows)]
    )
    columns = {}
    for name, kind in COLUMNS.items():
        column = given[name] if name in given else pd.Series([None] * len(given))
        columns[name] = column.astype("str" if kind == TEXT else "object")
        if categorical and name in REPEATING:
            columns[name] = columns[name].astype("category")
    return pd.DataFrame(columns)


def grouped_cases(rows: list[dict[str, Any]], *, unit: str = "", categorical: bool = True) -> Cases:
    """Images whose case is their column `unit`, by default their path."""
    images = image_table(rows, categorical=categorical)
    images["case_id"] = images[unit or "path"].astype("str")
    images["frame"] = 0
    images = images.sort_values(["case_id", "path"], ignore_index=True)
    cases = images.drop_duplicates("case_id")[CASE_COLUMNS].reset_index(drop=True)
    return Cases(cases, images, pd.DataFrame(columns=EXCLUSION_COLUMNS))


def opened(folder: Path, text: str) -> OpenedSource:
    """The manifest of this text in `folder`, with an empty source `export`."""
    (folder / "export").mkdir(exist_ok=True)
    path = folder / "manifest.yaml"
    path.write_text("name: t\nclasses: [neg, pos]\nsources: [{path: export}]\n" + text)
    return open_manifest(path)
