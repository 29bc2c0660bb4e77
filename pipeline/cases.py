"""From an index to cases: what the rules leave in, which images make one case, and each case's label and patient.

Two tables: `images`, one row a file and frame (`case_id`, `source`, `path`, `frame` and the index's columns), and `cases`, one row a
case (`case_id`, UIDs, `path` of its first image, `label`, `patient_key`). What is left out is a row of `exclusions` with its rule.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey
from pipeline.index import Index
from pipeline.manifest import Blocks, JoinKey, Labels, Manifest, OpenedSource, Rules, Sheet, find_sheet

Unit = Literal["image", "series", "study"]

EXCLUSION_COLUMNS = ["source", "path", "rule"]
CASE_COLUMNS = ["case_id", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "path"]
OWN_MANUFACTURER, OWN_OBJECT, NO_IMAGE = "radloop", "radloop's own object", "no image: "
NOT_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose distribution",
}
"""SOP classes with pixels that are no picture of a patient: somebody's results, not something to classify."""
UNIT_COLUMN: dict[Unit, str] = {"series": "series_instance_uid", "study": "study_instance_uid"}
JOIN_COLUMN = {
    JoinKey.STUDY: "study_instance_uid",
    JoinKey.SERIES: "series_instance_uid",
    JoinKey.IMAGE: "sop_instance_uid",
    JoinKey.ACCESSION: "accession_key",
    JoinKey.PATIENT: "patient_key",
    JoinKey.PATH: "path",
}

NOT_PROVEN = "patient independence is not proven"
UNKNOWN_PATIENT = "unknown-"
"""How the stand-in for a patient begins who is not known."""


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
    rule = _broken_rules(table, rules, drop_collisions)
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


def label_cases(grouped: Cases, manifest: Manifest, opened: OpenedSource, key: IdentityKey) -> Cases:
    """Adds `label` and `patient_key`; cases without one clear label are left out, with the rule."""
    sheet = _read_sheet(manifest, opened, key) if manifest.sheet else None
    images = grouped.images.copy()
    warnings: list[str] = []
    if sheet is not None and manifest.sheet is not None:
        row_of_image = _match_sheet(images, sheet, manifest.sheet.join)
        matched = _join_values(images, manifest.sheet.join)
        unmatched = int((~sheet["join_value"].isin(matched)).sum())
        if unmatched:
            warnings.append(f"{unmatched} of {len(sheet)} rows of the label sheet match no image that the rules let in")
    else:
        row_of_image = pd.Series(pd.NA, index=images.index)
    images["label"] = _labels(images, manifest.labels, manifest.classes, sheet, row_of_image)
    images["patient_key"] = _patients(images, manifest, sheet, row_of_image, key)
    if manifest.patients.source == "blocks":
        warnings.append(
            f"{NOT_PROVEN}: patients are blocks of consecutive numbers, a patient may stand on both sides of a border"
        )
    unknown = images["patient_key"].isna()
    if unknown.any():
        stand_in = images["study_instance_uid"].replace("", pd.NA).fillna(images["case_id"])
        images.loc[unknown, "patient_key"] = [f"{UNKNOWN_PATIENT}{key.patient(value)}" for value in stand_in[unknown]]
        warnings.append(
            f"{NOT_PROVEN}: {images.loc[unknown, 'case_id'].nunique()} cases have no patient; each study (or file) stands for one"
        )
    return _resolve(replace(grouped, images=images, warnings=tuple(warnings)))


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


def _broken_rules(table: pd.DataFrame, rules: Rules, drop_collisions: bool) -> pd.Series:
    """For each image the first rule that leaves it out, or ''."""
    rule = pd.Series("", index=table.index, dtype=object)

    def leave_out(where: pd.Series, text: str) -> None:
        rule.loc[where & (rule == "")] = text

    leave_out(table["manufacturer"].fillna("").str.lower() == OWN_MANUFACTURER, OWN_OBJECT)
    for uid, what in NOT_IMAGES.items():
        leave_out(table["sop_class_uid"].fillna("") == uid, NO_IMAGE + what)
    if drop_collisions:
        for collision in ("duplicate", "conflict"):
            leave_out(table["collision"] == collision, f"collision: {collision}")
    for mode, conditions in (("include", rules.include), ("exclude", rules.exclude)):
        for column, values in conditions.items():
            if column not in table.columns:
                raise ConfigError(
                    f"rules.{mode}: {column} is no column of the index; it has {', '.join(table.columns)}"
                )
            matches = _has_value(table[column], values)
            leave_out(matches if mode == "exclude" else ~matches, f"{mode} {column}: {', '.join(values)}")
    return rule


def _has_value(column: pd.Series, values: list[str]) -> pd.Series:
    """Whether one of the backslash-separated values of each entry is in `values`, whatever the case."""
    wanted = {value.casefold() for value in values}
    unique = {
        entry: any(part.strip().casefold() in wanted for part in str(entry).split("\\"))
        for entry in column.dropna().unique()
    }
    return column.map(unique).fillna(False).astype(bool)


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


def _read_sheet(manifest: Manifest, opened: OpenedSource, key: IdentityKey) -> pd.DataFrame:
    """The sheet as text, with a column `join_value` in which identifiers are already hashed."""
    sheet = manifest.sheet
    assert sheet is not None
    path = find_sheet(sheet, opened)
    try:
        table = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            sep="\t" if path.suffix == ".tsv" else ",",
            encoding="utf-8-sig",
            index_col=False,
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected a CSV or TSV in UTF-8 with a header line: {type(error).__name__}"
        ) from error
    wanted = {sheet.column}
    if manifest.labels.source == "sheet":
        wanted.add(manifest.labels.column)
    if manifest.patients.source == "column":
        wanted.add(manifest.patients.column)
    missing = sorted(wanted - set(table.columns))
    if missing:  # the columns that are there are not quoted: without a header line they are a patient's
        raise ConfigError(
            f"{path}: no column {', '.join(missing)} among its {len(table.columns)}; expected a header line with these names, "
            "values separated by commas (tabs in a .tsv)"
        )
    table = table[sorted(wanted)].apply(lambda column: column.fillna("").str.strip())
    table["join_value"] = [_join_value(value, sheet, key) for value in table[sheet.column]]
    return table


def _join_value(value: str, sheet: Sheet, key: IdentityKey) -> str | None:
    value = value.strip()
    if sheet.join is JoinKey.ACCESSION:
        return key.accession(value)
    if sheet.join is JoinKey.PATIENT:
        return key.patient(value, sheet.issuer)
    return value or None


def _match_sheet(images: pd.DataFrame, sheet: pd.DataFrame, join: JoinKey) -> pd.Series:
    """For each image its row of the sheet; rows that say the same of the same key are one. ConfigError where they contradict."""
    rows = sheet.dropna(subset="join_value").drop_duplicates()
    clashing = rows.loc[rows["join_value"].duplicated(keep=False), "join_value"]
    if len(clashing):
        raise ConfigError(
            f"the label sheet has {clashing.nunique()} key(s) with several different rows (first: line {clashing.index[0] + 2}); "
            "one row a key is expected: remove the wrong ones"
        )
    values = _join_values(images, join)
    if join is JoinKey.FILE_NAME:
        files = pd.DataFrame({"file": images["source"] + "/" + images["path"], "name": values}).drop_duplicates()
        repeated = files.loc[files["name"].isin(rows["join_value"]), "name"].duplicated()
        if repeated.any():
            raise ConfigError(
                f"{int(repeated.sum())} file name(s) of the label sheet stand in several folders; join by path instead of file_name"
            )
    return values.map(pd.Series(rows.index, index=rows["join_value"]))


def _join_values(images: pd.DataFrame, join: JoinKey) -> pd.Series:
    """What each image has of what the sheet's key column holds."""
    if join is JoinKey.FILE_NAME:
        return images["path"].map(lambda path: Path(path).name)
    return images[JOIN_COLUMN[join]]


def _labels(
    images: pd.DataFrame, labels: Labels, classes: list[str], sheet: pd.DataFrame | None, row: pd.Series
) -> pd.Series:
    """Each image's class; missing where nothing says, or where what is said is mapped to no class."""
    meaning = labels.values or {name: name for name in classes}
    if labels.source == "folder":
        return images["path"].map(lambda path: _folder_label(path, meaning))
    assert sheet is not None
    return row.map(sheet[labels.column].str.strip()).map(meaning)


def _folder_label(path: str, meaning: dict[str, str]) -> str | None:
    found = {meaning[part] for part in Path(path).parent.parts if part in meaning}
    return found.pop() if len(found) == 1 else None


def _patients(
    images: pd.DataFrame, manifest: Manifest, sheet: pd.DataFrame | None, row: pd.Series, key: IdentityKey
) -> pd.Series:
    patients = manifest.patients
    if patients.source == "dicom":
        return images["patient_key"]
    if patients.source == "column":
        assert sheet is not None
        return row.map(sheet[patients.column].str.strip()).map(
            lambda value: key.patient(value) if isinstance(value, str) else None
        )
    assert patients.blocks is not None
    return _block_keys(images, patients.blocks)


def _block_keys(images: pd.DataFrame, blocks: Blocks) -> pd.Series:
    """`folder#k`: the k-th block of consecutive numbers within a file's folder; ConfigError names a path without a number."""
    pattern = re.compile(blocks.pattern)

    def block(path: str) -> str:
        match = pattern.search(path)
        if match is None or not match.group(1).isdigit():
            raise ConfigError(
                f"patients.blocks: the pattern {blocks.pattern!r} finds no number in the path of a file ({Path(path).name})"
            )
        number = (int(match.group(1)) - 1) // blocks.size
        return f"{Path(path).parent.as_posix()}#{number:04d}"

    return images["path"].map(block)


def _resolve(grouped: Cases) -> Cases:
    """One label and one patient a case; cases without, or with contradicting ones, move to the exclusions."""
    images, warnings = grouped.images, list(grouped.warnings)
    by_case = images.groupby("case_id", sort=False)
    labels, patients = by_case["label"].nunique(), by_case["patient_key"].nunique()
    unlabelled, contradicting, several = labels == 0, labels > 1, patients > 1
    rules = pd.Series("", index=labels.index, dtype=object)
    for where, rule in (
        (unlabelled, "no label"),
        (contradicting, "contradicting labels"),
        (several, "several patients in one case"),
    ):
        rules.loc[where & (rules == "")] = rule
        if where.any():
            warnings.append(f"{int(where.sum())} cases left out: {rule}")
    image_rule = images["case_id"].map(rules)
    out = images.loc[image_rule != "", ["source", "path"]].assign(rule=image_rule[image_rule != ""]).drop_duplicates()
    kept = images.loc[image_rule == ""].reset_index(drop=True)
    kept["label"] = kept["case_id"].map(by_case["label"].first())  # a sheet may name one image of a series
    cases = grouped.cases[grouped.cases["case_id"].map(rules) == ""].reset_index(drop=True)
    first = by_case[["label", "patient_key"]].first()
    cases = cases.join(first, on="case_id")
    exclusions = pd.concat([grouped.exclusions, out], ignore_index=True)
    if cases.empty:
        reasons = ", ".join(f"{count} by {rule!r}" for rule, count in exclusions["rule"].value_counts().head(4).items())
        raise ConfigError(
            f"no labelled case is left: {len(exclusions)} images are left out ({reasons}). {'; '.join(grouped.warnings)}. "
            "Check `rules`, `labels` and the sheet's `join` and `column`"
        )
    return Cases(cases, kept, exclusions, tuple(warnings))
