"""What a manifest's rules leave out of an index, and by which rule.

In: a table of index columns, text plain or categorical, `rule_columns` at least. Out: one text a row, '' for what stays in. Never in:
`is_never_in`. Out unless allowed: localizers, derived images, secondary captures (`Rules.allow`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.columns import COLUMNS, FLAG, INTEGER, REAL, matches
from pipeline.indexing.positions import PLANES, Integers, Reals, first_of, orientations, planes, ranks, refine
from pipeline.manifest import Condition, Rules, as_number

Flags = NDArray[np.bool_]

OWN_MANUFACTURER, OWN_OBJECT, NO_IMAGE, FOR_PROCESSING = (
    "radloop",
    "radloop's own object",
    "no image: ",
    "for processing",
)
NOT_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose distribution",
}
"""SOP classes with pixels that are no picture of a patient: somebody's results, not something to classify."""
FOR_PROCESSING_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{end}"
    for end in ("1.1.1", "1.2.1", "1.3.1", "13.1.5", "14.2")  # DX, MG, IO, breast projection, intravascular OCT
)
"""SOP classes "... For Processing": raw values of a detector, which nobody looks at."""
SECONDARY_CAPTURES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.7{end}" for end in ("", ".1", ".2", ".3", ".4")
)  # single-frame, and multi-frame of four kinds
RADIOGRAPHS = frozenset(("CR", "DX", "MG", "IO", "PX", "RG"))
"""Modalities of projection radiographs; film that was scanned (RG), and what research data sets export, is a secondary capture."""
TOMOGRAPHS = frozenset(("CT", "MR", "PT"))
PLAIN_DERIVED = (["AXIAL"], ["OTHER"])
"""All that follows DERIVED\\SECONDARY on ordinary slices of some scanners: CT and MR of Toshiba in the data seen (PS3.3 C.8.2.1.1.1,
C.8.3.1.1.1). A reformat or projection says so: MPR, REFORMATTED, PROJECTION IMAGE, CT_SOM5 MIP."""

SERIES_RULES = {
    "most_slices": "series: not the one with most slices",
    "thinnest": "series: not the thinnest",
    "first": "series: not the first",
    "last": "series: not the last",
}
NUMBERS = (INTEGER, REAL)
DUPLICATE, CONFLICT = "duplicate", "conflict"
COLLISIONS = (DUPLICATE, CONFLICT)
"""Files that share a SOPInstanceUID: further copies of one, and files of other content. Training leaves out both."""
_ALWAYS = ("manufacturer", "sop_class_uid", "presentation_intent_type", "collision", "image_type", "modality")
_OF_SERIES = ("study_instance_uid", "series_instance_uid", "frames", "slice_thickness", "series_number")


def broken_rules(table: pd.DataFrame, rules: Rules, collisions: Sequence[str]) -> pd.Series:
    """For each image the first rule that leaves it out, or ''. `collisions`: those of `COLLISIONS` that are out."""
    broken = _Broken(len(table))
    broken.add(matches(table["manufacturer"], lambda value: value.casefold() == OWN_MANUFACTURER), OWN_OBJECT)
    for uid, what in NOT_IMAGES.items():
        broken.add(matches(table["sop_class_uid"], uid.__eq__), NO_IMAGE + what)
    broken.add(
        matches(table["presentation_intent_type"], lambda value: value.upper() == "FOR PROCESSING"), FOR_PROCESSING
    )
    broken.add(matches(table["sop_class_uid"], FOR_PROCESSING_CLASSES.__contains__), FOR_PROCESSING)
    for collision in collisions:
        broken.add(matches(table["collision"], collision.__eq__), f"collision: {collision}")
    for column, condition in rules.include.items():
        broken.add(~_meets(table, column, condition), f"include {column}: {condition}")
    for column, condition in rules.exclude.items():
        broken.add(_meets(table, column, condition), f"exclude {column}: {condition}")
    for kind, is_kind in KINDS.items():
        if kind not in rules.allow:
            broken.add(is_kind(table), f"not in allow: {kind}")
    if rules.series != "all":
        broken.add(_other_series(table, broken.none, rules.series), SERIES_RULES[rules.series])
    return broken.texts(table.index)


def collisions_inferred_without(unit: str) -> tuple[str, ...]:
    """Inference predicts each file as an image of its own; in a series or study a copy would count twice."""
    return () if unit == "image" else (DUPLICATE,)


def is_never_in(rule: pd.Series) -> pd.Series:
    """Whether a rule of `broken_rules` holds in training and inference alike, whatever a manifest says."""
    return rule.isin([OWN_OBJECT, FOR_PROCESSING, *(NO_IMAGE + what for what in NOT_IMAGES.values())])


def rule_columns(rules: Rules) -> list[str]:
    """The columns of the index that `broken_rules` looks at, in the index's order."""
    named = {*rules.include, *rules.exclude}
    wanted = {*_ALWAYS, *named}
    if "orientation" in named:
        wanted.add("image_orientation_patient")
    if "slices" in named or rules.series != "all":
        wanted |= {*_OF_SERIES}
    return [name for name in COLUMNS if name in wanted]


class _Broken:
    """The first rule that each row breaks."""

    def __init__(self, rows: int) -> None:
        self._codes = np.zeros(rows, dtype=np.int16)
        self._texts = [""]

    @property
    def none(self) -> Flags:
        """(n,) rows that break no rule yet."""
        return self._codes == 0

    def add(self, where: Flags, text: str) -> None:
        if text not in self._texts:
            self._texts.append(text)
        self._codes[where & self.none] = self._texts.index(text)

    def texts(self, index: pd.Index) -> pd.Series:
        return pd.Series(pd.Categorical.from_codes(self._codes, pd.Index(self._texts)), index=index).astype("str")


def _is_localizer(table: pd.DataFrame) -> Flags:
    return matches(table["image_type"], lambda value: "LOCALIZER" in _parts(value))


def _is_derived(table: pd.DataFrame) -> Flags:
    def derived(value: str) -> bool:
        parts = _parts(value)
        plain = parts[2:] in PLAIN_DERIVED or "LOCALIZER" in parts
        return parts[:2] == ["DERIVED", "SECONDARY"] and not plain

    return matches(table["image_type"], derived) & matches(table["modality"], TOMOGRAPHS.__contains__)


def _is_secondary_capture(table: pd.DataFrame) -> Flags:
    captured = matches(table["sop_class_uid"], SECONDARY_CAPTURES.__contains__)
    return captured & ~matches(table["modality"], RADIOGRAPHS.__contains__)


KINDS: dict[str, Callable[[pd.DataFrame], Flags]] = {
    "localizer": _is_localizer,
    "derived": _is_derived,
    "secondary_capture": _is_secondary_capture,
}
"""What is out unless `Rules.allow` names it."""


def _parts(value: str) -> list[str]:
    return [part.strip().upper() for part in value.split("\\")]


def _meets(table: pd.DataFrame, column: str, condition: Condition) -> Flags:
    """(n,) whether the condition holds; never for a missing value, unless '' is among the condition's values."""
    if column == "orientation":
        codes, cosines = orientations(_arrow(table["image_orientation_patient"]))
        plane = np.append(planes(cosines), 0)[codes]
        return np.array([_is_met(word, condition) for word in PLANES])[plane]
    if column == "slices" or COLUMNS[column] in NUMBERS:
        numbers = _slices(table) if column == "slices" else _reals(table[column])
        if not condition.pattern:
            return _is_number_met(numbers, condition)
    if COLUMNS.get(column) == FLAG:
        condition = condition.model_copy(update={"values": [_FLAGS.get(v.casefold(), v) for v in condition.values]})
    return matches(table[column], lambda value: _is_met(value, condition))


_FLAGS = {"yes": "true", "no": "false", "1": "true", "0": "false"}


def _is_met(value: str, condition: Condition) -> bool:
    if condition.pattern:
        return re.search(condition.pattern, value, re.IGNORECASE) is not None
    parts = value.split("\\")
    if condition.values:
        return not {_folded(part) for part in parts}.isdisjoint(map(_folded, condition.values))
    low, high = condition.bounds
    try:
        return all(low <= as_number(part) <= high for part in parts)
    except ValueError:
        return False


def _folded(value: str) -> str:
    """Without case, and without the zeros that YAML drops from 00 and 01."""
    folded = value.strip().casefold()
    return folded.lstrip("0") or "0" if folded.isdecimal() else folded


def _is_number_met(numbers: Reals, condition: Condition) -> Flags:
    if not condition.values:
        low, high = condition.bounds
        return np.asarray((numbers >= low) & (numbers <= high))
    wanted = [math.nan if value == "" else _number(value) for value in condition.values]
    return np.asarray(np.isin(numbers, wanted) | (np.isnan(numbers) & ("" in condition.values)))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _slices(table: pd.DataFrame) -> Reals:
    """(n,) images of the row's series, further copies of a file not counted; of a file without a series its own."""
    frames, series = _frames(table), ranks(_arrow(table["series_instance_uid"]))
    first = np.where(matches(table["collision"], "duplicate".__eq__), 0.0, frames)
    of_series = np.bincount(series + 1, weights=first)
    return np.asarray(np.where(series < 0, frames, of_series[series + 1]))


def _other_series(table: pd.DataFrame, left: Flags, rule: str) -> Flags:
    """(n,) images of a series that is not its study's chosen one. Equals are told apart by slices, thickness, number, and then UID."""
    study, series = (ranks(_arrow(table[name])) for name in ("study_instance_uid", "series_instance_uid"))
    rows = np.flatnonzero(left & (study >= 0))
    pair = refine(refine(np.zeros(len(rows), dtype=np.int64), study[rows]), series[rows])
    slices = np.bincount(pair, weights=_frames(table)[rows])
    thickness = _least(pair, _reals(table["slice_thickness"])[rows])
    number = _least(pair, _reals(table["series_number"])[rows])
    keys = {
        "most_slices": (number, thickness, -slices),
        "thinnest": (number, -slices, thickness),
        "first": (thickness, -slices, number),
        "last": (thickness, -slices, np.where(np.isinf(number), number, -number)),
    }
    owner = first_of(pair, study[rows])
    order = np.lexsort((*keys[rule], owner))  # stable: pairs ascend by UID
    chosen = np.zeros(len(owner), dtype=bool)
    chosen[order[np.append(True, np.diff(owner[order]) != 0)[: len(order)]]] = True
    other = np.zeros(len(table), dtype=bool)
    other[rows] = ~chosen[pair]
    return other


def _least(group: Integers, values: Reals) -> Reals:
    """(k,) the smallest of each group's values; infinite where it has none."""
    least = np.full(group.max(initial=-1) + 1, np.inf)
    np.minimum.at(least, group, np.nan_to_num(values, nan=np.inf))
    return least


def _frames(table: pd.DataFrame) -> Reals:
    return np.maximum(np.nan_to_num(_reals(table["frames"]), nan=1.0), 1.0)


def _reals(column: pd.Series) -> Reals:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _arrow(column: pd.Series) -> pa.Array:
    return pa.array(column, from_pandas=True)
