"""What a dataset is: a YAML that names its sources, its classes, how labels and patients are found, and the split rule.

What is written there is checked as a whole before anything runs; pipeline.sources opens it.
"""

from __future__ import annotations

import difflib
import math
import re
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.columns import COLUMNS, INTEGER, REAL, snake_case
from pipeline.config import Settings


class JoinKey(StrEnum):
    """What a label sheet's key column holds."""

    STUDY = "StudyInstanceUID"
    SERIES = "SeriesInstanceUID"
    IMAGE = "SOPInstanceUID"
    ACCESSION = "AccessionNumber"
    """Joined through its keyed hash."""
    PATIENT = "PatientID"
    """Joined through its keyed hash."""
    FILE_NAME = "file_name"
    PATH = "path"
    """Relative to the source."""


class Source(Settings):
    """One place with images."""

    path: str
    """A folder, a .zip export, a DICOMDIR or a file; relative to the root."""
    name: str = ""
    """How tables call it; the path where empty."""

    @property
    def label(self) -> str:
        return self.name or self.path


class Sheet(Settings):
    """A CSV, TSV or XLSX with a header line."""

    path: str
    """Relative to the root, or to the manifest's folder."""
    join: JoinKey
    """What the key column holds."""
    column: str
    """The key column's heading."""
    issuer: str = ""
    """IssuerOfPatientID of the values, where they are PatientIDs with an issuer."""
    worksheet: str = ""
    """Of an XLSX; the first where empty."""
    facts: dict[str, str] = {}
    """Index column → heading: what the sheet knows where a file's header is silent, e.g. patient_sex: gender."""


class Labels(Settings):
    """Where a case's class comes from: a folder of its path, a column of the sheet, or an attribute of its headers."""

    source: Literal["folder", "sheet", "attribute"]
    """folder: a part of the path is a key of `values`. sheet: `column` of the manifest's sheet. attribute: of the index."""
    column: str = ""
    """The sheet's heading of the label."""
    attribute: str = ""
    """A DICOM keyword (BodyPartExamined) or a column of the index (body_part_examined); of several values any may be a class."""
    values: dict[str, str] = {}
    """From what stands there to a class; empty: the classes' own names. What is mapped to no class is no label."""

    @field_validator("values", mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if any(isinstance(value, bool) for value in given):
            raise ValueError("yes, no, true, false, on and off are truth values in YAML; put them in quotes")
        return {str(value): name for value, name in given.items()}


def _with_one_group(pattern: str, what: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"needs exactly one group for {what}, has {groups}")
    return pattern


class Blocks(Settings):
    """Consecutive numbers as stand-ins for patients that nobody recorded."""

    pattern: str
    """Regular expression on the path; its one group is the number."""
    size: Annotated[int, Field(ge=1)]
    """How many consecutive numbers make one block, within one folder."""

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        return _with_one_group(pattern, "the number")


class NearDuplicates(Settings):
    """Cases with images that look alike are taken for one patient's."""

    distance: Annotated[int, Field(ge=0, le=6)] = 2
    """Images are alike if their perceptual hashes (64 bits) differ in at most so many. On lung CT slices 2 finds neighbours of a series, 4
    begins to join strangers."""


class Patients(Settings):
    """Whose a case is; no patient ever stands in two splits."""

    source: Literal["dicom", "column", "path", "blocks"] = "dicom"
    """dicom: PatientID with its issuer. column: of the manifest's sheet. path: `pattern`. blocks: consecutive numbers."""
    column: str = ""
    """The sheet's heading of the patient."""
    pattern: str = ""
    """Regular expression on the path; its one group is the patient."""
    blocks: Blocks | None = None
    """Needed for source blocks."""
    near_duplicates: NearDuplicates | None = None
    """Joins patients whose images are near-duplicates into one; null: not looked for (every image must be decoded for it)."""

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        return _with_one_group(pattern, "the patient") if pattern else pattern

    @model_validator(mode="after")
    def _complete(self) -> Patients:
        if self.source == "blocks" and self.blocks is None:
            raise ValueError("source: blocks needs `blocks: {pattern: ..., size: ...}`")
        if self.source == "column" and not self.column:
            raise ValueError("source: column needs `column`")
        if self.source == "path" and not self.pattern:
            raise ValueError("source: path needs `pattern`")
        return self


class Condition(Settings):
    """What a column's value must be: one of `values` (a list, or one value, may be written alone), like `pattern`, or within `min` and
    `max`. A missing value is none of it; '' among the values stands for it."""

    values: list[str] = []
    """One of these, whatever the case; of a multi-valued attribute one of its values."""
    pattern: str = ""
    """Regular expression found somewhere in the value, whatever the case."""
    min: int | float | str | None = None
    """Smallest number, earliest date (20200131 or 2020-01-31) or least age (in years, or 006M); of several values all count."""
    max: int | float | str | None = None
    """Largest number, latest date or greatest age."""

    @model_validator(mode="before")
    @classmethod
    def _written_short(cls, given: Any) -> Any:
        if isinstance(given, cls):
            return given
        if given is None:
            raise ValueError(_CONDITION)
        if not isinstance(given, dict):
            given = {"values": given}
        unknown = [str(name) for name in given if name not in cls.model_fields]
        if unknown:
            nearest = difflib.get_close_matches(unknown[0], cls.model_fields, n=1)
            known = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(cls.model_fields)}"
            raise ValueError(f"unknown key {unknown[0]}; {known}")
        values = given.get("values", [])
        values = [_plain(value) for value in (values if isinstance(values, list) else [values])]
        return {**given, "values": values} | {name: _bound(given[name]) for name in ("min", "max") if name in given}

    @model_validator(mode="after")
    def _says_one_thing(self) -> Condition:
        bounded = self.min is not None or self.max is not None
        if sum((bool(self.values), bool(self.pattern), bounded)) != 1:
            raise ValueError(_CONDITION)
        if self.pattern:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        low, high = self.bounds
        if low > high:
            raise ValueError(f"min {self.min} is more than max {self.max}: nothing is between")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """`min` and `max` as numbers: dates as YYYYMMDD, ages in years; infinite where there is none."""
        low = -math.inf if self.min is None else as_number(self.min)
        return low, math.inf if self.max is None else as_number(self.max)

    def __str__(self) -> str:
        if self.values:
            return ", ".join(value or "(none)" for value in self.values)
        if self.pattern:
            return f"like {self.pattern}"
        bounds = (("from", self.min), ("to", self.max))
        return " ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)


_CONDITION = "expected a value, a list of values, or `pattern`, or `min` and `max`"


def _plain(value: Any) -> Any:
    """A value as the index has it: YAML reads dates, and NO and YES, which DICOM has as words, as something else."""
    if isinstance(value, bool):
        return "YES" if value else "NO"
    if isinstance(value, date):
        return f"{value:%Y%m%d}"
    return str(value) if isinstance(value, (int, float)) else "" if value is None else value


def _bound(value: Any) -> Any:
    """A bound that is a number, or a text that `as_number` reads; whole numbers as such."""
    if isinstance(value, bool):
        raise ValueError(_BOUND.format("yes or no"))
    if isinstance(value, date):
        return f"{value:%Y%m%d}"
    if isinstance(value, (int, float, str)):
        number = as_number(value)
        if isinstance(value, float) and number.is_integer():
            return int(number)
    return value


_BOUND = "expected a number, a date (20200131 or 2020-01-31) or an age (045Y), found {}"
_DATE = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)", re.ASCII)
_AGE = re.compile(r"(\d{1,3})([DWMY])", re.ASCII)
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}


def as_number(value: float | str) -> float:
    """A number, a date as YYYYMMDD, or an age (PS3.5 6.2, AS) in years; ValueError for anything else."""
    text = str(value).strip()
    age = _AGE.fullmatch(text.upper())
    if age:
        return int(age[1]) * _YEARS[age[2]]
    day = _DATE.fullmatch(text)
    try:
        number = float("".join(day.groups()) if day else text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(_BOUND.format(repr(value)))
    return number


BEYOND_COLUMNS = ("orientation", "slices")
"""What rules may name beside the columns of the index."""
DATE_COLUMNS = ("study_date", "series_date", "acquisition_date")
BOUNDED_TEXT = (*DATE_COLUMNS, "acquisition_time", "patient_age", "pixel_spacing", "imager_pixel_spacing")
"""Columns of text that hold numbers, dates or ages."""


class Rules(Settings):
    """Which images belong to the dataset, by columns of the index (or their DICOM keywords), and two more: `orientation` (axial,
    coronal, sagittal, oblique; '' where it is not known) and `slices` (images of the series, each once). What is left out stands in
    exclusions.csv with its rule.

    Never in: radloop's own objects, segmentations, label maps, parametric maps, doses, and what is FOR PROCESSING.
    """

    include: dict[str, Condition] = {}
    """Column → condition: an image must meet it, for every column named."""
    exclude: dict[str, Condition] = {}
    """Column → condition: an image must meet none."""
    allow: list[Literal["localizer", "derived", "secondary_capture"]] = []
    """Kinds that are left out unless they stand here. localizer: ImageType LOCALIZER. derived: ImageType DERIVED\\SECONDARY of CT, MR
    and PET (reformats, projections, maps), but for plain ones (AXIAL or OTHER and no more), as some scanners call every image.
    secondary_capture: of these SOP classes, but for projection radiographs, which are often exported so."""
    series: Literal["all", "most_slices", "thinnest", "first", "last"] = "all"
    """Which series of a study is its case's, of those that are left: all of them or one, by slices, SliceThickness, or
    SeriesNumber."""

    @field_validator("include", "exclude")
    @classmethod
    def _of_columns(cls, given: dict[str, Condition]) -> dict[str, Condition]:
        conditions: dict[str, Condition] = {}
        for name, condition in given.items():
            column = _column(name)
            if column in conditions:
                raise ValueError(f"{column}: stands there twice")
            _refuse_bounds(column, condition)
            conditions[column] = condition
        return conditions


def _column(name: str) -> str:
    """The column of that name or DICOM keyword."""
    known = (*COLUMNS, *BEYOND_COLUMNS)
    for column in (name, snake_case(name)):
        if column in known:
            return column
    nearest = difflib.get_close_matches(snake_case(name), known, n=3)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"it has {', '.join(known)}"
    raise ValueError(f"{name} is no column of the index; {hint}")


def _refuse_bounds(column: str, condition: Condition) -> None:
    """ValueError for `min` and `max` that could say nothing of the column."""
    given = [bound for bound in (condition.min, condition.max) if bound is not None]
    numeric = column == "slices" or COLUMNS.get(column) in (INTEGER, REAL) or column in BOUNDED_TEXT
    if given and not numeric:
        raise ValueError(f"{column}: holds no numbers or dates; give values or a `pattern`")
    if column in DATE_COLUMNS and not all(_DATE.fullmatch(str(bound).strip()) for bound in given):
        raise ValueError(f"{column}: expected a date (20200131 or 2020-01-31), found {given[0]}")


class SplitRule(Settings):
    """How patients are divided, within each class; validation chooses epochs, test is for the figures alone."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Weights are fitted on these."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Epoch and scale are chosen on these."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Figures come from these."""
    seed: int = 0
    """Another seed, another split."""
    folds: Annotated[int, Field(ge=2, le=20)] | None = None
    """Divides the patients of train and validation together into so many folds; null: by the fractions."""
    fold: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Which fold validates; the others train. all: one network a fold, which speak as one. The test split is the same for each."""
    file: str = ""
    """A CSV with the column `split`, and a column case_id, patient_key, or named as a key of a sheet (PatientID, path, ...): its
    split is taken. Relative to the root, or to the manifest's folder. Any run's split.csv is such a file."""
    others: Literal["leave_out", "assign"] = "leave_out"
    """What becomes of patients that `file` does not name."""

    @model_validator(mode="after")
    def _whole(self) -> SplitRule:
        if abs(self.train + self.validation + self.test - 1.0) > 1e-6:
            raise ValueError(f"train + validation + test is {self.train + self.validation + self.test:g}, not 1")
        if self.folds is None and self.fold == "all":
            raise ValueError("fold all: how many `folds`?")
        if self.folds is not None and self.fold != "all" and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold}: the {self.folds} folds are numbered from 0 to {self.folds - 1}")
        if self.folds is not None and self.file:
            raise ValueError("folds and file: give one of them")
        return self


class Manifest(Settings):
    """A dataset."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$")]
    """What the dataset is called: letters, digits, space, and _ . - (a folder is named after it)."""
    description: str = ""
    """Where it comes from, and what to beware of."""
    classes: Annotated[list[str], Field(min_length=2)]
    """In the order of the probabilities."""
    positive: str = ""
    """Of two classes, the finding; the last where empty."""
    sources: Annotated[list[Source], Field(min_length=1)]
    """Where the images are."""
    facts: dict[str, str] = {}
    """Index columns that files without a header cannot tell, e.g. modality: CT."""
    sheet: Sheet | None = None
    """The label sheet."""
    labels: Labels
    """Where classes come from."""
    patients: Patients = Patients()
    """Where patients come from."""
    unit: Literal["image", "series", "study"] = "image"
    """What one prediction is about."""
    rules: Rules = Rules()
    """What is in and what is out."""
    split: SplitRule = SplitRule()
    """How cases are divided."""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: each name once")
        if self.positive and self.positive not in self.classes:
            raise ValueError(f"positive: {self.positive} is none of the classes")
        unknown = sorted(set(self.labels.values.values()) - set(self.classes))
        if unknown:
            raise ValueError(f"labels.values: {', '.join(unknown)}: none of the classes {', '.join(self.classes)}")
        wants_sheet = self.labels.source == "sheet" or self.patients.source == "column"
        if wants_sheet and self.sheet is None:
            raise ValueError("labels or patients come from a sheet: `sheet` is missing")
        if self.labels.source == "sheet" and not self.labels.column:
            raise ValueError("labels.source is sheet: `labels.column` is missing")
        if self.labels.source == "attribute" and not self.labels.attribute:
            raise ValueError("labels.source is attribute: `labels.attribute` is missing")
        labels = [source.label for source in self.sources]
        if len(set(labels)) != len(labels):
            raise ValueError("sources: each name once")
        return self

    @property
    def positive_class(self) -> str:
        return self.positive or self.classes[-1]
