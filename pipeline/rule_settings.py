"""The key `rules` of a manifest: which images belong to a dataset, by conditions on columns of the index."""

from __future__ import annotations

import difflib
import math
import re
from datetime import date
from typing import Any, Literal

from pydantic import field_validator, model_validator

from pipeline.columns import COLUMNS, INTEGER, REAL, snake_case
from pipeline.config import Settings


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
