"""The audit of a dataset: what a reviewer would ask, as `audit.json` and as a page.

How files became cases; the classes by split, sex, age, device, place and time; what the headers leave out; how well the class can
be told without looking at the anatomy; and warnings. Nothing is trained and nothing is remembered: a dataset may be audited as
often as one likes. No identity stands in what is written; paths stand in `exclusions.csv` alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import pipeline
from pipeline import RESEARCH_ONLY
from pipeline.auditing.breakdowns import (
    breakdowns,
    class_counts,
    flow,
    missing_values,
    patient_counts,
    split_counts,
    without_finding,
)  # fmt: skip
from pipeline.auditing.features import case_facts, words
from pipeline.auditing.shortcut_scores import WARN_OVER
from pipeline.auditing.shortcuts import QUICK, THOROUGH, Effort, audit_shortcuts
from pipeline.cohort.cases import Cases
from pipeline.cohort.dataset_split import dataset_split
from pipeline.cohort.labels import check_labels, labelled_cases
from pipeline.cohort.split import SPLIT_COLUMNS
from pipeline.columns import text
from pipeline.config import digest
from pipeline.errors import ConfigError, RunError
from pipeline.files import write_whole
from pipeline.identity import IdentityKey
from pipeline.indexing.index import Index
from pipeline.indexing.sources import OpenedSource, open_dataset
from pipeline.label_arrays import presence
from pipeline.manifest import Manifest
from pipeline.metrics.metrics import FEW_PATIENTS
from pipeline.pages.report import audit_page
from pipeline.run import EXCLUSIONS_FILE, INDEX_FOLDER, write_table

AUDIT_FILE = "audit.json"
PAGE_FILE = "audit.html"
SHEET_PROBLEMS_FILE = "sheet_problems.csv"

CARELESS = 0.05
"""So much more AUROC, where patients stand on both sides, is worth a word."""
FEWEST_CASES = 5
"""Of a class, below which it is no finding that they come from one place."""
PLACES = {
    "source": "source",
    "institution_name": "institution",
    "station_name": "station",
    "manufacturer": "manufacturer",
    "manufacturer_model_name": "scanner model",
}
"""Columns that say where a case comes from: a class that has only one of several is warned about."""


def audit(
    dataset: str,
    out: Path,
    *,
    root: Path | None = None,
    effort: Effort | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Audits a manifest's dataset; writes the tables and the page into `out`, and returns what `audit.json` holds.

    `effort`: how hard it looks for shortcuts, `THOROUGH` by default. Raises ConfigError or SourceError; a split that cannot be made is a
    warning.
    """
    opened = open_dataset(dataset, root)
    manifest, key = opened.manifest, opened.key()
    assert manifest is not None
    opened.refuse_output(out)
    check_labels(opened, manifest, key)
    index = opened.index(key, out=out / INDEX_FOLDER, workers=workers, progress=progress)
    cases = labelled_cases(index, opened, manifest, key, progress=progress)
    facts = case_facts(cases, index.table)
    facts["split"], split_warnings = _splits(cases, facts, opened, manifest, key)
    counted = _counted(facts, manifest)
    shortcuts = audit_shortcuts(
        facts, manifest, index.roots, effort=effort or THOROUGH, workers=workers, progress=progress
    )
    record = {**_head(manifest), "flow": flow(index, cases), **counted, "shortcuts": shortcuts}
    record["warnings"] = [*split_warnings, *_warnings(record, facts, index, cases, manifest)]
    _write(out, record, cases)
    return record


def quick_audit(
    cases: Cases, index: Index, manifest: Manifest, split: pd.DataFrame, *, workers: int | None = None
) -> dict[str, Any]:
    """Of a run's data in seconds what `audit` says, for its report: plain values, the same again for the same data; nothing is written.

    `cases`: those of the run, labelled or not: of them that `split` (`SPLIT_COLUMNS`, as RUN/split.csv) has, labels, patients and splits
    are taken from there. `index`: with all columns (`read_index(RUN/index)`); what it does not have counts as unknown. As `audit.json`,
    but without `flow`, which an index of images alone cannot tell; borders come from `QUICK.decoded` images.
    """
    known = split[SPLIT_COLUMNS].astype("str").set_index("case_id")
    inside = text(cases.images["case_id"]).isin(known.index).to_numpy()
    labelled = known.reset_index()[["case_id", "label", "patient_key"]]
    facts = case_facts(Cases(labelled, cases.images.loc[inside].reset_index(drop=True), cases.exclusions), index.table)
    facts["split"] = known["split"].reindex(facts.index)
    counted = _counted(facts, manifest)
    shortcuts = audit_shortcuts(facts, manifest, index.roots, effort=QUICK, workers=workers, progress=False)
    record = {**_head(manifest), "quick": True, **counted, "shortcuts": shortcuts}
    warnings = [*_shortcut_warnings(shortcuts, manifest), *_one_place(facts, manifest.classes)]
    record["warnings"] = _on_one_line(warnings)  # that patients are few, the evaluation says of its own split
    return record


def _head(manifest: Manifest) -> dict[str, Any]:
    return {
        "intended_use": RESEARCH_ONLY,
        "radloop_version": pipeline.__version__,
        "manifest": _about(manifest),
    }


def _counted(facts: pd.DataFrame, manifest: Manifest) -> dict[str, Any]:
    """The dataset in numbers. `without_finding`: cases with none of several findings, null where each case has one class."""
    return {
        "patients": patient_counts(facts),
        "classes": class_counts(facts, manifest.classes),
        "without_finding": without_finding(facts) if manifest.labels.several else None,
        "splits": split_counts(facts, manifest.classes),
        "breakdowns": breakdowns(facts, manifest.classes),
        "missing": missing_values(facts, manifest.classes),
    }


def _splits(
    cases: Cases, facts: pd.DataFrame, opened: OpenedSource, manifest: Manifest, key: IdentityKey
) -> tuple[pd.Series, list[str]]:
    """Each case's split, '' where it has none; nothing is remembered."""
    try:
        split = dataset_split(cases, opened, manifest, key, keep=False)
    except (ConfigError, RunError) as error:
        return pd.Series("", index=facts.index, dtype="str"), [f"the dataset cannot be split: {error}"]
    place = split.table.set_index("case_id")["split"]
    return text(place.reindex(facts.index)), list(split.warnings)


def _about(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "description": manifest.description,
        "digest": digest(manifest),
        "unit": manifest.unit,
        "classes": list(manifest.classes),
        "several": manifest.labels.several,
        "positive": manifest.positive_class if len(manifest.classes) == 2 and not manifest.labels.several else None,
        "patients": manifest.patients.source,
    }


def _warnings(
    record: Mapping[str, Any], facts: pd.DataFrame, index: Index, cases: Cases, manifest: Manifest
) -> list[str]:
    """Sentences, what weighs most first. Another stage's may quote a manifest or a sheet: on one line, without control characters."""
    warnings = [
        *_shortcut_warnings(record["shortcuts"], manifest),
        *_flow_warnings(record["flow"]),
        *cases.warnings,
        *_few_patients(record, manifest),
        *_one_place(facts, manifest.classes),
        *_file_warnings(index.summary),
    ]
    return _on_one_line(warnings)


def _on_one_line(warnings: Sequence[str]) -> list[str]:
    return [" ".join("".join(sign if sign.isprintable() else " " for sign in one).split()) for one in warnings]


def _shortcut_warnings(shortcuts: Mapping[str, Any], manifest: Manifest) -> list[str]:
    warnings, who = [], _who(manifest)
    what = "findings" if manifest.labels.several else "the class"
    warned = [group for group in shortcuts["groups"] if group["warned"]]
    for group in sorted(warned, key=lambda one: -one["auroc"]["value"]):
        by_case, value, low = group["auroc_by_case"], group["auroc"]["value"], group["auroc"]["low"]
        best = group["told_best"]
        most = f"; best told: {best}, {bounds_text(group['auroc_of_class'][best])}" if best else ""
        careless = f"; {by_case:.2f} if {who} are ignored" if by_case and by_case > value + CARELESS else ""
        by_chance = group["auroc_by_chance"]
        chance = "; chance is not excluded" if low is None or low <= 0.5 else ""
        if value <= by_chance:
            chance = f"; chance is not excluded: with this number of {who} it reaches {by_chance:.2f} once in 40 times"
        trap = f" {group['trap']}." if group["trap"] else ""
        warnings.append(
            f"{what} can be told from {group['title'].lower()} with AUROC {bounds_text(group['auroc'])}{most}{careless}{chance}."
            f"{trap} What to do: {group['advice']}"
        )
    failed = sum(shortcuts["not_decoded"].values())
    if failed:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in shortcuts["not_decoded"].items())
        warnings.append(f"{failed:,} of {shortcuts['cases_to_decode']:,} images tried cannot be decoded: {reasons}")
    return warnings


def _who(manifest: Manifest) -> str:
    return "blocks" if manifest.patients.source == "blocks" else "patients"


def bounds_text(auroc: Mapping[str, float | None]) -> str:
    """0.93 (95 % interval 0.77 to 1.00)."""
    interval = "" if auroc["low"] is None else f" (95 % interval {auroc['low']:.2f} to {auroc['high']:.2f})"
    return f"{auroc['value']:.2f}{interval}"


def _flow_warnings(flow: Mapping[str, Any]) -> list[str]:
    files = flow["excluded"] + flow["unlabelled"] + flow["files"]
    if flow["found"] == flow["rejected"] + flow["indexed"] and flow["indexed"] == files:
        return []
    return [
        f"the numbers of files do not add up: found {flow['found']:,}, rejected {flow['rejected']:,}, indexed {flow['indexed']:,}, "
        f"left out or in cases {files:,}; this is a defect of radloop, please report it"
    ]


def _few_patients(record: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """Classes in which figures will be rough: in the test split, or in all where there is none."""
    test = next((split for split in record["splits"] or [] if split["name"] == "test"), None)
    where = "the test split" if test else "the dataset"
    counts = test["classes"] if test else {row["name"]: row for row in record["classes"]}
    few = [f"{name} {counts[name]['patients']}" for name in manifest.classes if counts[name]["patients"] < FEW_PATIENTS]
    if not few:
        return []
    return [
        f"few {_who(manifest)} in {where} ({', '.join(few)}): below {FEW_PATIENTS} of a class, intervals are rough and too narrow"
    ]


def _one_place(facts: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """Classes that come from one scanner or site alone, where the dataset has several."""
    warnings = []
    members = pd.DataFrame(presence(facts["label"], classes), index=facts.index, columns=list(classes))
    for column, what in PLACES.items():
        values = words(facts, column)
        known = values[values != ""]
        if known.nunique() < 2:
            continue
        for name in classes:
            ours = known[members.loc[known.index, name]]
            if ours.nunique() == 1 and len(ours) >= FEWEST_CASES:
                warnings.append(
                    f"all {len(ours):,} cases of class {name} with a known {what} are of one, {ours.iloc[0]}, "
                    f"of the dataset's {known.nunique():,}: class and {what} cannot be told apart"
                )
    return warnings


def _file_warnings(summary: Mapping[str, Any]) -> list[str]:
    warnings = []
    collisions = summary["collisions"]
    if collisions:
        warnings.append(
            f"files share a SOPInstanceUID: {collisions.get('duplicate', 0):,} duplicates (same content), "
            f"{collisions.get('conflict', 0):,} in conflict (other content); they are left out but for a duplicate's first file"
        )
    if summary["paths_that_hold_identity"]:
        warnings.append(
            f"{summary['paths_that_hold_identity']:,} paths hold the name or a number of their patient: "
            f"keep {EXCLUSIONS_FILE} and the index to yourself, or rename the files"
        )
    return warnings


def _write(out: Path, record: Mapping[str, Any], cases: Cases) -> None:
    write_table(out / EXCLUSIONS_FILE, cases.exclusions)
    if len(cases.sheet_problems):
        write_table(out / SHEET_PROBLEMS_FILE, cases.sheet_problems)
    else:
        (out / SHEET_PROBLEMS_FILE).unlink(missing_ok=True)  # of an earlier audit
    write_whole(out / PAGE_FILE, audit_page(record))
    write_whole(out / AUDIT_FILE, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def summary_lines(record: Mapping[str, Any]) -> list[str]:
    """The audit for a terminal: the flow, the classes, the shortcuts, the warnings."""
    files, patients = record["flow"], record["patients"]
    who = "blocks" if record["manifest"]["patients"] == "blocks" else "patients"
    lines = [
        f"{record['manifest']['name']}: {files['cases']:,} cases of {patients['count']:,} {who}",
        f"Found {files['found']:,} files → indexed {files['indexed']:,}, rejected {files['rejected']:,}",
        *(f"  {count:>9,}  {reason}" for reason, count in files["rejected_by_reason"].items()),
        f"Left out by the rules {files['excluded']:,}, with their case {files['unlabelled']:,}",
        *(f"  {n:>9,}  {rule}" for rule, n in (files["excluded_by_rule"] | files["unlabelled_by_rule"]).items()),
        f"In cases: {files['files']:,} files, {files['images']:,} images",
        *_class_lines(record, who),
        f"How well the class is told without the anatomy (AUROC by patient; warned over {WARN_OVER})",
        *_shortcut_lines(record["shortcuts"]),
    ]
    lines += [f"warning: {warning}" for warning in record["warnings"]]
    return lines


def _class_lines(record: Mapping[str, Any], who: str) -> list[str]:
    """A table of the classes, with their cases in each split."""
    splits = record["splits"] or []
    rows = [["class", "cases", who, *(split["name"] or "in none" for split in splits)]]
    for one in record["classes"]:
        counts = [one["cases"], one["patients"], *(split["classes"][one["name"]]["cases"] for split in splits)]
        rows.append([one["name"], *(f"{count:,}" for count in counts)])
    widths = np.array([[len(cell) for cell in row] for row in rows]).max(axis=0)
    return [
        "  "
        + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _shortcut_lines(shortcuts: Mapping[str, Any]) -> list[str]:
    tested = [group for group in shortcuts["groups"] if group["auroc"]]
    if not tested:
        return [f"  not tested: {shortcuts['groups'][-1]['reason']}"]
    lines = [f"  {'!' if one['warned'] else ' '} {one['title']}: {bounds_text(one['auroc'])}" for one in tested]
    reasons: dict[str, list[str]] = {}
    for group in shortcuts["groups"]:
        if not group["auroc"]:
            reasons.setdefault(group["reason"], []).append(group["title"].lower())
    return lines + [f"    {reason}: {', '.join(titles)}" for reason, titles in reasons.items()]
