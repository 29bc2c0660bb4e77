"""A dataset's split, as its manifest asks for it: by fractions, in folds, or from a file, around what the project remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from pipeline.cohort.cases import Cases
from pipeline.cohort.split import FOLD, Split, check_split, noun_of, renamed, split_cases
from pipeline.cohort.split_file import split_from_file
from pipeline.cohort.split_ledger import LEDGER_COLUMNS, ledger_path, read_ledger, write_ledger
from pipeline.errors import ConfigError
from pipeline.files import alone
from pipeline.identity import IdentityKey
from pipeline.indexing.sources import OpenedSource
from pipeline.manifest import Manifest, SplitRule
from pipeline.wording import counted


def dataset_split(
    cases: Cases, opened: OpenedSource, manifest: Manifest, key: IdentityKey, *, keep: bool = True
) -> Split:
    """The split of a dataset's cases after the manifest's rule, around what its ledger remembers.

    `keep`: remembers the split before it is returned; where the project's folder cannot be written, a warning says so.
    Raises ConfigError or RunError, and then nothing was remembered.
    """
    if manifest.split.file and manifest.split.others == "leave_out":
        return _around(cases, opened, manifest, key, pd.DataFrame(columns=LEDGER_COLUMNS, dtype="str"))
    path = ledger_path(opened, manifest, key)
    if not keep:
        return _around(cases, opened, manifest, key, read_ledger(opened, manifest, key))
    try:
        with alone(path.parent, "divides patients in"):
            earlier = read_ledger(opened, manifest, key)
            split = _around(cases, opened, manifest, key, earlier)
            write_ledger(path, split.table, cases.joined, earlier)
    except OSError as error:
        split = _around(cases, opened, manifest, key, read_ledger(opened, manifest, key))
        unkept = f"the split is not remembered, as {path} cannot be written ({error.strerror}): new patients may move old ones"
        split = replace(split, warnings=(*split.warnings, unkept))
    return split


def _around(cases: Cases, opened: OpenedSource, manifest: Manifest, key: IdentityKey, earlier: pd.DataFrame) -> Split:
    """The split around what a ledger remembers."""
    earlier = _joined(earlier, cases.joined, manifest.split)
    if manifest.split.file:
        split = split_from_file(cases, opened, manifest, key, earlier=earlier)
    else:
        several = manifest.labels.several
        table = split_cases(cases.cases, manifest.split, manifest.classes, earlier=earlier, several=several)
        split = Split(table, _said(table, earlier, manifest))
    check_split(split.table)
    return split


def _joined(earlier: pd.DataFrame, joined: Mapping[str, str], rule: SplitRule) -> pd.DataFrame:
    """A ledger in terms of the patients as they are joined now; ConfigError where that would join two splits."""
    if not joined:
        return earlier
    places = ["patient_key", FOLD if rule.folds else "split"]
    rows = earlier.assign(patient_key=renamed(earlier["patient_key"], joined)).drop_duplicates(places)
    several = rows.loc[rows["patient_key"].duplicated(), "patient_key"].nunique()
    if several:
        raise ConfigError(
            f"near-duplicates join patients into {counted(several, 'group')} of which some stand in one split and some in another since "
            "an earlier training; take another split.seed, which divides all patients anew, or a smaller "
            "patients.near_duplicates.distance"
        )
    return rows


def _said(table: pd.DataFrame, earlier: pd.DataFrame, manifest: Manifest) -> tuple[str, ...]:
    patients = table["patient_key"].drop_duplicates()
    before = int(patients.isin(earlier["patient_key"]).sum())
    new = f", {len(patients) - before} new" if len(patients) > before else ""
    return (f"split: {counted(before, noun_of(manifest))} as before{new}",) if before else ()
