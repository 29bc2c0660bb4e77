"""Each case's label and patient, from the sheet, the path, the headers, or blocks of numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.cases import Cases
from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey
from pipeline.manifest import Blocks, Labels, Manifest, OpenedSource
from pipeline.sheet import join_values, match_sheet, read_sheet

NOT_PROVEN = "patient independence is not proven"
UNKNOWN_PATIENT = "unknown-"
"""How the stand-in for a patient begins who is not known."""


def label_cases(grouped: Cases, manifest: Manifest, opened: OpenedSource, key: IdentityKey) -> Cases:
    """Adds `label` and `patient_key`; cases without one clear label are left out, with the rule."""
    sheet = read_sheet(manifest, opened, key) if manifest.sheet else None
    images = grouped.images.copy()
    warnings: list[str] = []
    if sheet is not None and manifest.sheet is not None:
        row_of_image = match_sheet(images, sheet, manifest.sheet.join)
        matched = join_values(images, manifest.sheet.join)
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
