"""From an index to cases: what the rules leave in, and which images make one case.

Two tables: `images`, one row a file and frame (`case_id`, `source`, `path`, `frame` and the index's columns), and `cases`, one row a
case (`case_id`, UIDs, `path` of its first image; `label` and `patient_key` once pipeline.labels has found them). What is left out
is a row of `exclusions` with its rule.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.errors import ConfigError
from pipeline.index import Index
from pipeline.manifest import Rules
from pipeline.rules import NO_IMAGE, OWN_OBJECT, broken_rules

Unit = Literal["image", "series", "study"]

EXCLUSION_COLUMNS = ["source", "path", "rule"]
CASE_COLUMNS = ["case_id", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "path"]
UNIT_COLUMN: dict[Unit, str] = {"series": "series_instance_uid", "study": "study_instance_uid"}


@dataclass(frozen=True)
class Cases:
    """Cases, their images, and what was left out. `warnings` are sentences for the reader of any figure made from them."""

    cases: pd.DataFrame
    images: pd.DataFrame
    exclusions: pd.DataFrame
    warnings: tuple[str, ...] = field(default=())


def group_images(
    index: Index,
    unit: Unit,
    rules: Rules,
    *,
    drop_collisions: bool,
    facts: Mapping[str, str] | None = None,
    mark: Collection[str] = (),
) -> Cases:
    """Images that the rules admit, one row a frame, grouped by `unit`; a file without the unit's UID is a case of its own.

    `facts` fill columns that a file's header leaves empty. `mark`: file formats of which nothing is left out but radloop's own
    objects and what is no image; the column `rule` of the images says which rule each breaks, '' for none. `drop_collisions`:
    files that share a SOPInstanceUID with another are left out but for a duplicate's first path (training); otherwise each is
    predicted (inference).
    """
    table = _with_facts(index.table.reset_index(drop=True), facts or {})
    rule = broken_rules(table, rules, drop_collisions)
    never = (rule == OWN_OBJECT) | rule.str.startswith(NO_IMAGE)
    out = never | ((rule != "") & ~table["format"].isin(mark))
    exclusions = table.loc[out, ["source", "path"]].assign(rule=rule[out])
    kept = table.assign(rule=rule).loc[~out].reset_index(drop=True)
    kept["case_id"] = _case_ids(kept, unit)
    frames = kept["frames"].fillna(1).astype(int).clip(lower=1).to_numpy()
    images = kept.loc[np.repeat(np.arange(len(kept)), frames)].reset_index(drop=True)
    images["frame"] = np.concatenate([np.arange(count) for count in frames]) if len(frames) else np.array([], dtype=int)
    images = images.sort_values(["case_id", "source", "path", "frame"], kind="stable", ignore_index=True)
    cases = images.drop_duplicates("case_id")[CASE_COLUMNS].reset_index(drop=True)
    if unit != "image":
        cases["sop_instance_uid"] = ""
    if unit == "study":
        cases["series_instance_uid"] = ""
    return Cases(cases.fillna(""), images, exclusions[EXCLUSION_COLUMNS].reset_index(drop=True))


def _with_facts(table: pd.DataFrame, facts: Mapping[str, str]) -> pd.DataFrame:
    unknown = sorted(
        name for name in facts if name not in table.columns or not pd.api.types.is_string_dtype(table[name])
    )
    if unknown:
        raise ConfigError(
            f"facts: {', '.join(unknown)}: no column of text in the index; try modality or body_part_examined"
        )
    filled = {name: table[name].replace("", pd.NA).fillna(value) for name, value in facts.items()}
    return table.assign(**filled)


def _case_ids(table: pd.DataFrame, unit: Unit) -> pd.Series:
    several = table["source"].nunique() > 1
    own = table["source"] + "/" + table["path"] if several else table["path"]
    if unit != "image":
        uid = table[UNIT_COLUMN[unit]].fillna("")
        return uid.where(uid != "", own)
    uid = table["sop_instance_uid"].fillna("")
    nth = table.groupby(uid).cumcount() + 1
    numbered = uid.where(nth == 1, uid + "@" + nth.astype(str))
    return numbered.where(uid != "", own)
