"""From an index to cases: what the rules leave in, and which images make one case.

Two tables: `images`, one row a file and frame (`case_id`, `frame`, `rule` and `IMAGE_COLUMNS` of the index, categorical as there), and
`cases`, one row a case (`case_id`, UIDs, `path` of its first image, all plain text; `label` and `patient_key` once cohort.labels has
found them). What is left out is a row of `exclusions` with its rule. Made for a million images: no row is a Python object.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.cohort.rules import broken_rules, is_never_in, rule_columns
from pipeline.columns import COLUMNS, TEXT, matches, snake_case
from pipeline.errors import ConfigError
from pipeline.indexing.index import Index
from pipeline.indexing.positions import Integers, Reals, first_of, normals, orientations, parse_numbers, ranks, refine
from pipeline.manifest import Manifest, Rules

Unit = Literal["image", "series", "study"]

IMAGE_COLUMNS = (
    *("source", "path", "format", "bytes", "mtime_ns", "stack", "patient_key", "accession_key", "path_holds_identity"),
    *("sop_instance_uid", "series_instance_uid", "study_instance_uid"),
    *("modality", "body_part_examined", "view_position"),
)
"""Of the index, what the images of cases keep: where a file is, whose and what it is, and what a model's scope is told by."""
EXCLUSION_COLUMNS = ["source", "path", "rule"]
CASE_COLUMNS = ["case_id", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "path"]
UNIT_COLUMN: dict[Unit, str] = {
    "image": "sop_instance_uid",
    "series": "series_instance_uid",
    "study": "study_instance_uid",
}
_ORDER_COLUMNS = ("frames", "image_position_patient", "image_orientation_patient", "instance_number")
_ROUNDED_MM = 2
"""Decimals of positions by which images are sorted: about `positions.POSITION_TOLERANCE_MM`."""


@dataclass(frozen=True)
class Cases:
    """Cases, their images, and what was left out. `warnings` are sentences for the reader of any figure made from them;
    `sheet_problems`: what is wrong with lines of the label sheet (`line`, `problem`)."""

    cases: pd.DataFrame
    images: pd.DataFrame
    exclusions: pd.DataFrame
    warnings: tuple[str, ...] = ()
    sheet_problems: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=["line", "problem"]))
    joined: Mapping[str, str] = field(default_factory=dict)
    """Patients that near-duplicates joined to another: patient_key → the key that stands for them now."""


def group_images(
    index: Index,
    unit: Unit,
    rules: Rules,
    *,
    collisions: Sequence[str],
    facts: Mapping[str, str] | None = None,
    mark: Collection[str] = (),
    keep: Collection[str] = (),
) -> Cases:
    """Images that the rules admit, one row a frame, grouped by `unit`; a file without the unit's UID is a case of its own.

    Rows are sorted by case; within it by series, stack, position along the slices' normal, where there is none by InstanceNumber, and
    then as in the index. `facts` fill columns that a file's header leaves empty. `mark`: file formats of which nothing is left out but
    what never is in; the column `rule` of the images says which rule each breaks, '' for none. `collisions`: which of
    `rules.COLLISIONS` are left out: both in training, `rules.collisions_inferred_without` in inference.
    `keep`: further columns of the index that the images keep, as they do those of `facts`.
    """
    table = _with_facts(index.table.reset_index(drop=True), facts or {})
    rule = broken_rules(table, rules, collisions)
    out = is_never_in(rule).to_numpy() | ((rule != "").to_numpy() & ~matches(table["format"], set(mark).__contains__))
    left_out = _plain_table(table.loc[out, ["source", "path"]]).assign(rule=rule[out]).reset_index(drop=True)
    kept = np.flatnonzero(~out)
    ids, only_uids = _case_ids(table, kept, unit)
    rank = _ranks(ids)
    order = _order(table, kept, rank)
    frames = np.maximum(_whole(table["frames"].take(kept[order]), 1), 1)
    order = np.repeat(order, frames)
    own_ids = None if only_uids else ids.take(pa.array(order))
    del ids  # as large as the paths: gone before the images are copied
    names = [name for name in COLUMNS if name in (*IMAGE_COLUMNS, *keep, *(facts or ()))]
    images = table[names].assign(rule=rule).take(kept[order]).reset_index(drop=True)
    case_id = _plain(images[UNIT_COLUMN[unit]]) if own_ids is None else pd.Series(pd.array(own_ids, dtype="str"))
    images.insert(0, "case_id", case_id)
    images["frame"] = np.arange(len(order)) - np.repeat(np.cumsum(frames) - frames, frames)
    return Cases(_cases(images, rank[order], unit), images, left_out)


def columns_needed(manifest: Manifest) -> list[str]:
    """The columns of the index that a manifest's cases, labels and patients depend on, in the index's order."""
    wanted = {*IMAGE_COLUMNS, *_ORDER_COLUMNS, *rule_columns(manifest.rules), *manifest.facts}
    wanted |= {snake_case(manifest.labels.attribute), *(manifest.sheet.facts if manifest.sheet else ())}
    if manifest.patients.source == "blocks":
        wanted.add("path_holds_identity")
    return [name for name in COLUMNS if name in wanted]


def _with_facts(table: pd.DataFrame, facts: Mapping[str, str]) -> pd.DataFrame:
    unknown = sorted(name for name in facts if COLUMNS.get(name) != TEXT)
    if unknown:
        raise ConfigError(
            f"facts: {', '.join(unknown)}: no column of text in the index; try modality or body_part_examined"
        )
    return table.assign(**{name: _filled(table[name], value) for name, value in facts.items()})


def _filled(column: pd.Series, value: str) -> pd.Series:
    """The column with `value` where it has none."""
    if column.dtype != "category":
        return _plain(column).replace("", value)
    column = column.cat.remove_categories([""]) if "" in column.cat.categories else column
    known = value in column.cat.categories
    return (column if known else column.cat.add_categories([value])).fillna(value)


def _case_ids(table: pd.DataFrame, kept: Integers, unit: Unit) -> tuple[pa.Array, bool]:
    """(k,) the unit's UID; of a file without it, its path, with its source where there are several. Of files that share
    a SOPInstanceUID, all but the first have a number behind it. And whether all are UIDs and no more."""
    uids = _arrow(table[UNIT_COLUMN[unit]], kept)
    ids = _numbered(uids) if unit == "image" else uids
    missing = pc.equal(uids, "")
    if not pc.any(missing).as_py():
        return ids, ids is uids
    sources, own = table["source"], _arrow(table["path"], kept)
    if len(table) and matches(sources, sources.iloc[0].__ne__)[kept].any():
        own = pc.binary_join_element_wise(_arrow(sources, kept), own, pa.scalar("/", own.type))
    return pc.if_else(missing, own, ids), False


def _numbered(uids: pa.Array) -> pa.Array:
    """The UIDs, with @2 behind the second of equal ones, and so on; empty ones stay."""
    rank = _ranks(uids)
    shared = np.flatnonzero((np.bincount(rank)[rank] > 1) & ~_flags(pc.equal(uids, "")))
    if not len(shared):
        return uids
    of_shared = rank[shared]
    order = np.argsort(of_shared, kind="stable")
    first = np.searchsorted(of_shared[order], of_shared[order], side="left")
    nth = np.empty(len(shared), dtype=np.int64)
    nth[order] = np.arange(len(order)) - first + 1
    later, nth = shared[nth > 1], nth[nth > 1]
    mask = np.zeros(len(uids), dtype=bool)
    mask[later] = True
    numbers = pc.cast(pa.array(nth), uids.type)
    named = pc.binary_join_element_wise(uids.take(pa.array(later)), numbers, pa.scalar("@", uids.type))
    return pc.replace_with_mask(uids, pa.array(mask), named)


def _order(table: pd.DataFrame, kept: Integers, rank: Integers) -> Integers:
    """(k,) in which order the kept rows are the images of cases, which are given by the rank of their ids."""
    if rank.max(initial=-1) + 1 == len(rank):
        return np.argsort(rank)
    some = table[["series_instance_uid", "stack", *_ORDER_COLUMNS]].take(kept)
    series = ranks(pa.array(some["series_instance_uid"], from_pandas=True))
    last = np.iinfo(np.int64).max // 2
    stack = _whole(some["stack"], last)
    stack[stack < 0] = last
    place = _places(some, refine(refine(np.zeros(len(kept), dtype=np.int64), series), np.minimum(stack, 1 << 32)))
    return np.lexsort((_whole(some["instance_number"], last), place, stack, series, rank))


def _places(table: pd.DataFrame, stack: Integers) -> Reals:
    """(k,) millimetres along the normal of each stack (from 0, none empty), infinite where a file has no position."""
    orientation, cosines = orientations(pa.array(table["image_orientation_patient"], from_pandas=True))
    if not len(cosines):
        return np.full(len(table), np.inf)
    known = np.where(orientation < 0, len(cosines), orientation)
    normal = np.vstack([normals(cosines), np.full((1, 3), np.nan)])[first_of(stack, known)]
    position = parse_numbers(pa.array(table["image_position_patient"], from_pandas=True), 3)
    place = np.zeros(len(table))
    for axis in range(3):
        place += position[:, axis] * normal[stack, axis]
    return np.where(np.isfinite(place) & (orientation >= 0), np.round(place, _ROUNDED_MM), np.inf)


def _cases(images: pd.DataFrame, rank: Integers, unit: Unit) -> pd.DataFrame:
    """One row a case, from its first image."""
    first = np.append(True, rank[1:] != rank[:-1])[: len(rank)]
    cases = images[CASE_COLUMNS]
    cases = _plain_table(cases if first.all() else cases.loc[first].reset_index(drop=True))
    if unit != "image":
        cases["sop_instance_uid"] = ""
    if unit == "study":
        cases["series_instance_uid"] = ""
    return cases


def _ranks(texts: pa.Array) -> Integers:
    """(n,) each text's place among the distinct ones, from 0."""
    return pc.rank(texts, sort_keys="ascending", tiebreaker="dense").to_numpy().astype(np.int64) - 1


def _whole(column: pd.Series, missing: int) -> Integers:
    """(n,) a column of whole numbers."""
    return column.to_numpy(dtype=np.int64, na_value=missing)


def _flags(values: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=bool)


def _plain_table(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: _plain(table[name]) for name in table.columns})


def _plain(column: pd.Series) -> pd.Series:
    """A column as plain text, '' where there is none; without a Python object a row."""
    if isinstance(column.dtype, pd.StringDtype):
        return column.astype("str").fillna("")  # shares its memory
    return pd.Series(pd.array(_arrow(column, np.arange(len(column))), dtype="str"), index=column.index)


def _arrow(column: pd.Series, rows: Integers) -> pa.Array:
    """Some rows of a column of text in Arrow, '' where there is none."""
    array = pa.array(column, from_pandas=True)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    some = array if len(rows) == len(array) else array.take(pa.array(rows))
    return pc.fill_null(pc.cast(some, pa.large_string()), "")
