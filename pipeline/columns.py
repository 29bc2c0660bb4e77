"""The columns of the index: what is kept of each image file, with its type. A named allow-list; nothing names a patient.

DICOM attributes keep their keywords, in snake_case. Several values of one attribute are joined by backslashes as in the file. In
pandas, text that repeats is categorical (`REPEATING`), so that millions of rows fit in memory: read such columns with `text` and
test them with `matches`, which look at each value once. Importing this module brings neither pandas nor pydicom.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

TEXT, INTEGER, REAL, FLAG = "text", "integer", "real", "flag"

ATTRIBUTES: Mapping[str, str] = {
    "SOPClassUID": TEXT,
    "SOPInstanceUID": TEXT,
    "SeriesInstanceUID": TEXT,
    "StudyInstanceUID": TEXT,
    "FrameOfReferenceUID": TEXT,
    "Modality": TEXT,
    "ImageType": TEXT,
    "PhotometricInterpretation": TEXT,
    "SamplesPerPixel": INTEGER,
    "BitsAllocated": INTEGER,
    "BitsStored": INTEGER,
    "PixelRepresentation": INTEGER,
    "RescaleSlope": REAL,
    "RescaleIntercept": REAL,
    "RescaleType": TEXT,
    "ImagePositionPatient": TEXT,
    "ImageOrientationPatient": TEXT,
    "PixelSpacing": TEXT,
    "ImagerPixelSpacing": TEXT,
    "SliceThickness": REAL,
    "SpacingBetweenSlices": REAL,
    "GantryDetectorTilt": REAL,
    "InstanceNumber": INTEGER,
    "AcquisitionNumber": INTEGER,
    "SeriesNumber": INTEGER,
    "TemporalPositionIdentifier": INTEGER,
    "EchoTime": REAL,
    "TriggerTime": REAL,
    "StudyDate": TEXT,
    "SeriesDate": TEXT,
    "AcquisitionDate": TEXT,
    "AcquisitionTime": TEXT,
    "PatientSex": TEXT,
    "PatientAge": TEXT,
    "BodyPartExamined": TEXT,
    "ViewPosition": TEXT,
    "Laterality": TEXT,
    "ImageLaterality": TEXT,
    "PatientPosition": TEXT,
    "Manufacturer": TEXT,
    "ManufacturerModelName": TEXT,
    "InstitutionName": TEXT,
    "StationName": TEXT,
    "StudyDescription": TEXT,
    "SeriesDescription": TEXT,
    "ProtocolName": TEXT,
    "ContrastBolusAgent": TEXT,
    "ConvolutionKernel": TEXT,
    "KVP": REAL,
    "BurnedInAnnotation": TEXT,
    "PresentationIntentType": TEXT,
    "LossyImageCompression": TEXT,
}
"""The allow-list: DICOM keywords that become columns of the same name in snake_case, with the column's type."""


def snake_case(keyword: str) -> str:
    """SOPInstanceUID → sop_instance_uid, KVP → kvp."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", keyword).lower()


HEADER_COLUMNS: Mapping[str, str] = {
    "patient_key": TEXT,
    "accession_key": TEXT,
    "path_holds_identity": FLAG,
    "transfer_syntax_uid": TEXT,
    **{snake_case(keyword): kind for keyword, kind in ATTRIBUTES.items()},
}
"""All columns that DICOM files have beyond those of every image file, in their order."""

COLUMNS: Mapping[str, str] = {
    "source": TEXT,
    "path": TEXT,
    "format": TEXT,
    "bytes": INTEGER,
    "mtime_ns": INTEGER,
    "frames": INTEGER,
    "rows": INTEGER,
    "columns": INTEGER,
    "color_mode": TEXT,
    "collision": TEXT,
    "sha256": TEXT,
    "listed": FLAG,
    "stack": INTEGER,
    **HEADER_COLUMNS,
}
"""The index's columns in their order. `color_mode`: of PNG, JPEG and TIFF, Pillow's word (L, RGB, RGBA, ...), alpha included.
`collision`: '', duplicate or conflict; `sha256`: of files that share a SOPInstanceUID and their size. `listed`: whether the source's
DICOMDIR lists the file. `stack`: of the file's series, from 0, missing where it is in none (pipeline.indexing.stacks)."""

_ARROW = {TEXT: pa.string(), INTEGER: pa.int64(), REAL: pa.float64(), FLAG: pa.bool_()}
SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in COLUMNS.items()])
"""Of index.parquet."""
BATCH_SCHEMA = pa.schema([*SCHEMA, ("reason", pa.string()), ("detail", pa.string())])
"""Of files that were read: image files have no reason, rejected ones nothing but source, path, bytes, mtime_ns, reason and detail."""

REJECT_COLUMNS = ("source", "path", "reason", "detail", "bytes", "mtime_ns")

REPEATING = tuple(
    name
    for name, kind in COLUMNS.items()
    if kind == TEXT and name not in ("path", "sop_instance_uid", "image_position_patient")
)
"""Columns of text whose values repeat from row to row: categorical in pandas."""


def text(column: pd.Series) -> pd.Series:
    """A column as plain text, '' where there is none, whatever its dtype."""
    import pandas as pd

    if isinstance(column.dtype, pd.StringDtype):
        return column.astype("str").fillna("")
    if column.dtype != "category":
        return column.astype("object").where(column.notna(), None).map(_shown).astype("str").fillna("")
    words = pa.array([str(value) for value in column.cat.categories], pa.large_string())
    codes = column.cat.codes.to_numpy()
    plain = pc.fill_null(words.take(pa.array(codes, mask=codes < 0)), "")
    return pd.Series(pd.array(plain, dtype="str"), index=column.index, name=column.name)


def _shown(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def matches(column: pd.Series, wanted: Callable[[str], bool]) -> NDArray[np.bool_]:
    """(n,) whether each value is `wanted`, which is asked once a distinct value; missing ones are ''."""
    if column.dtype == "category":
        codes, values = column.cat.codes.to_numpy(), [str(value) for value in column.cat.categories]
    else:
        codes, distinct = text(column).factorize()
        values = list(distinct)
    answers = np.array([*(bool(wanted(value)) for value in values), bool(wanted(""))], dtype=bool)
    return answers[codes]  # the code of a missing value is -1
