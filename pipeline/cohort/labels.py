"""Each case's label and patient: from the sheet, the path, the headers, or blocks of numbers.

A case has one label (a class, or the findings of several that it has) and one patient, or it is left out with the rule: whoever
contradicts himself is never settled by choosing. What is wrong with rows of the sheet is told by their line numbers, never by what they
hold; paths that hold a patient's name are masked. Codes are (n,) integers, as in pipeline.cohort.sheet and pipeline.cohort.label_words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.cohort.cases import Cases, group_images
from pipeline.cohort.label_words import (
    UNCLEAR,
    Labelling,
    Told,
    attribute_column,
    labels_of_images,
    labels_of_rows,
    together,
)  # fmt: skip
from pipeline.cohort.patients import (
    NOT_PROVEN,
    PATH_HOLDS_IDENTITY,
    UNKNOWN_PATIENT,
    Groups,
    People,
    known_by_company,
    people_of_images,
    people_of_rows,
    with_stand_ins,
)
from pipeline.cohort.rules import COLLISIONS
from pipeline.cohort.sheet import (
    NONE,
    SEVERAL,
    Codes,
    LabelSheet,
    agreed,
    ambiguous_keys,
    as_arrow,
    categories,
    distinct,
    fill_facts,
    no_match,
    places_in,
    read_sheet,
    taken,
)  # fmt: skip
from pipeline.cohort.sheet_problems import (
    EMPTY_KEY,
    LEFT_OUT,
    NO_IMAGE,
    NOT_LET_IN,
    OTHER_PATIENT,
    contradicting_labels,
    contradictions,
    counted_problems,
    problem_rows,
)  # fmt: skip
from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey
from pipeline.indexing.index import Index
from pipeline.indexing.sources import OpenedSource
from pipeline.manifest import Manifest
from pipeline.wording import counted

CASE_RULES = ("no label", "contradicting labels", "unclear label", "several patients in one case")
"""Why whole cases are left out, in the order in which it is said."""


def check_labels(opened: OpenedSource, manifest: Manifest, key: IdentityKey) -> None:
    """ConfigError for a sheet or an attribute that cannot be, before hours of indexing rather than after."""
    if manifest.sheet:
        read_sheet(manifest, opened, key)
    if manifest.labels.source == "attribute":
        attribute_column(manifest.labels)


def labelled_cases(
    index: Index, opened: OpenedSource, manifest: Manifest, key: IdentityKey, *, progress: bool = False
) -> Cases:
    """The dataset that a manifest describes: images by its rules, labels, patients, and near-duplicates joined if it asks for that."""
    sheet = read_sheet(manifest, opened, key) if manifest.sheet else None
    if sheet is not None and sheet.spec.facts:
        index = replace(index, table=fill_facts(index.table, sheet))
    keep = _columns_kept(manifest).intersection(index.table.columns)
    grouped = group_images(index, manifest.unit, manifest.rules, collisions=COLLISIONS, facts=manifest.facts, keep=keep)
    cases = _label(grouped, _Dataset(manifest, opened, key, sheet, index.table))
    near = manifest.patients.near_duplicates
    if near is None:
        return cases
    from pipeline.cohort.duplicates import join_near_duplicates

    return join_near_duplicates(cases, index.roots, near, progress=progress)


def label_cases(grouped: Cases, manifest: Manifest, opened: OpenedSource, key: IdentityKey) -> Cases:
    """Adds `label` and `patient_key`; cases without one clear label and one patient are left out, with the rule.

    The images must have kept the column of `labels.attribute`, if labels come from there. What is wrong with lines of the sheet
    stands in `sheet_problems`: `line`, `problem`.
    """
    sheet = read_sheet(manifest, opened, key) if manifest.sheet else None
    return _label(grouped, _Dataset(manifest, opened, key, sheet, grouped.images))


def _columns_kept(manifest: Manifest) -> set[str]:
    """Columns of the index that labels, patients, and whoever describes the dataset need of its images."""
    kept = {PATH_HOLDS_IDENTITY, *(manifest.sheet.facts if manifest.sheet else ())}
    return kept | ({attribute_column(manifest.labels)} if manifest.labels.source == "attribute" else set())


@dataclass(frozen=True)
class _Dataset:
    """What labels depend on beside the images; `everything`: images that the rules leave out too, where they are known."""

    manifest: Manifest
    opened: OpenedSource
    key: IdentityKey
    sheet: LabelSheet | None
    everything: pd.DataFrame


def _label(grouped: Cases, dataset: _Dataset) -> Cases:
    images, sheet, manifest = grouped.images, dataset.sheet, dataset.manifest
    if sheet is None:
        told, people = labels_of_images(images, manifest), people_of_images(images, manifest.patients, dataset.key)
        return _resolve(grouped, told.said, people, dataset, told.notes)
    keys = _matched(images, dataset, sheet)
    of_rows = labels_of_rows(sheet, manifest)
    row_people = people_of_rows(sheet, manifest.patients, dataset.key)
    told = of_rows or labels_of_images(images, manifest)
    labels = told.said
    if of_rows:
        entries = together(sheet.key_of_row, labels, len(sheet.keys), manifest)
        labels = replace(entries, codes=taken(entries.codes, keys))
    if row_people is None:
        people = people_of_images(images, manifest.patients, dataset.key)
    else:
        people = People(taken(sheet.by_key(row_people.codes), keys), row_people.names)
    problems = _problems(dataset, sheet, images, keys, of_rows, row_people)
    warnings = (*counted_problems(problems, len(sheet.lines)), *told.notes)
    return replace(_resolve(grouped, labels, people, dataset, warnings), sheet_problems=problems)


def _matched(images: pd.DataFrame, dataset: _Dataset, sheet: LabelSheet) -> Codes:
    """For each image the place of its key in the sheet; ConfigError where none has one, or a name is several files'."""
    keys = sheet.keys_of(images)
    if len(images) and (keys == NONE).all():
        if dataset.everything is not images and (sheet.keys_of(dataset.everything) != NONE).any():
            raise ConfigError(
                f"{sheet.path}: `rules` leave out every image that its rows match by {sheet.spec.join}; "
                "check `rules`, or whether it is the sheet of these images"
            )
        raise no_match(images, sheet, dataset.opened, dataset.manifest, dataset.key)
    ambiguous = len(ambiguous_keys(images, keys, sheet.spec.join))
    if ambiguous:
        what = "file name" if sheet.spec.join == "file_name" else "path"
        hint = "folders; join by path instead of file_name" if what == "file name" else "sources; make them one source"
        raise ConfigError(
            f"{sheet.path}: {counted(ambiguous, what)} of it {_one_or_many(ambiguous, 'stands', 'stand')} in several {hint}"
        )
    return keys


# Cases


def _resolve(grouped: Cases, labels: Labelling, people: People, dataset: _Dataset, warnings: Sequence[str]) -> Cases:
    """One label and one patient a case; cases without, or with contradicting ones, move to the exclusions."""
    images, cases = grouped.images, grouped.cases
    studies, own = Groups(*distinct(images["study_instance_uid"])), _cases_of_images(images, cases)
    people = with_stand_ins(known_by_company(people, studies, own), studies, own, dataset.key)
    case_of_image = own.codes
    of_case = together(case_of_image, labels, len(cases), dataset.manifest)
    label, names = of_case.codes, pa.array(of_case.names, pa.large_string())
    patient = agreed(case_of_image, people.codes, len(cases))
    reasons = [label == NONE, label == SEVERAL, label == UNCLEAR, patient == SEVERAL]
    broken = np.select(reasons, range(len(CASE_RULES)), NONE)
    kept = broken == NONE
    out = _exclusions(images, broken[case_of_image])
    counts = zip(CASE_RULES, np.bincount(broken[~kept], minlength=len(CASE_RULES)).tolist(), strict=True)
    left_out = [f"{counted(count, 'case')} left out: {rule}" for rule, count in counts if count]
    case_of_kept, kept_images = case_of_image[kept[case_of_image]], kept[case_of_image]
    of_studies = agreed(studies.codes[kept_images], people.codes[kept_images], len(studies.names))
    proven = _independence(patient[kept], people.names, dataset.manifest, int((of_studies == SEVERAL).sum()))
    labelled = _rows(cases, kept).assign(
        label=_plain(label[kept], names), patient_key=_plain(patient[kept], people.names)
    )
    described = _rows(images, kept_images).assign(
        label=categories(label[case_of_kept], names),
        patient_key=_repeating(patient[case_of_kept], people.names),
    )
    result = replace(
        grouped,
        cases=labelled,
        images=described,
        exclusions=pd.concat([grouped.exclusions, out], ignore_index=True),
        warnings=(*grouped.warnings, *warnings, *proven, *left_out),
    )
    if not kept.any():
        raise ConfigError(_nothing_left(result))
    return result


def _cases_of_images(images: pd.DataFrame, cases: pd.DataFrame) -> Groups:
    """Each image's row among the cases; both are in the same order, so that the ids need not be looked up."""
    ids, names = as_arrow(images["case_id"]), as_arrow(cases["case_id"])
    changes = np.ones(len(ids), dtype=bool)
    changes[1:] = pc.not_equal(ids.slice(1), ids.slice(0, max(len(ids) - 1, 0))).to_numpy(zero_copy_only=False)
    if (ids if changes.all() else ids.filter(pa.array(changes))).equals(names):
        return Groups(np.cumsum(changes) - 1, names)
    return Groups(places_in(images["case_id"], names), names)


def _rows(table: pd.DataFrame, kept: NDArray[np.bool_]) -> pd.DataFrame:
    return table if kept.all() else table.loc[kept].reset_index(drop=True)


def _plain(codes: Codes, names: pa.Array) -> pd.api.extensions.ExtensionArray:
    return pd.array(names.take(pa.array(codes)), dtype="str")


def _repeating(codes: Codes, names: pa.Array) -> pd.Categorical | pd.api.extensions.ExtensionArray:
    """Categories, but plain text where hardly any name comes twice."""
    few = np.count_nonzero(np.bincount(codes)) * 2 <= len(codes)
    return categories(codes, names) if few else _plain(codes, names)


def _exclusions(images: pd.DataFrame, broken: Codes) -> pd.DataFrame:
    """One row a file of a case that breaks one of `CASE_RULES`."""
    out = broken != NONE
    table = images.loc[out, ["source", "path"]].assign(rule=[CASE_RULES[place] for place in broken[out].tolist()])
    return table.drop_duplicates(["source", "path"])


def _independence(patient: Codes, names: pa.Array, manifest: Manifest, mixed: int) -> list[str]:
    """Why one patient may stand in two splits although no key does. `mixed`: studies whose images are of several patients."""
    told = []
    if mixed:
        told.append(
            f"{NOT_PROVEN}: {'1 study has' if mixed == 1 else f'{mixed} studies have'} images under several patients, as where only "
            "some carry an IssuerOfPatientID; one person may stand for two"
        )
    if manifest.patients.source == "blocks":
        told.append(
            f"{NOT_PROVEN}: patients are blocks of consecutive numbers, a patient may stand on both sides of a border"
        )
    stand_ins = pc.starts_with(names, UNKNOWN_PATIENT).to_numpy(zero_copy_only=False)
    unknown = int(stand_ins[patient].sum())
    if unknown:
        told.append(
            f"{NOT_PROVEN}: {counted(unknown, 'case')} without a known patient; each study (or file) stands for one"
        )
    return told


def _nothing_left(cases: Cases) -> str:
    counts = cases.exclusions["rule"].value_counts().head(4)
    reasons = ", ".join(f"{count} by {rule!r}" for rule, count in counts.items())
    told = "".join(f" {warning}." for warning in cases.warnings)
    return (
        f"no labelled case is left: {counted(len(cases.exclusions), 'image')} left out ({reasons}).{told} "
        "Check `rules`, `labels` and the sheet's `join` and `column`"
    )


# What is wrong with the sheet


def _problems(
    dataset: _Dataset,
    sheet: LabelSheet,
    images: pd.DataFrame,
    key_of_image: Codes,
    row_labels: Told | None,
    row_people: People | None,
) -> pd.DataFrame:
    """`line`, `problem`: a row for each thing that is wrong with a line of the sheet, in their order."""
    empty = sheet.key_of_row == NONE
    told = [(empty, EMPTY_KEY)]
    unmatched = ~empty & ~np.isin(sheet.key_of_row, key_of_image)
    if dataset.everything is images:
        told.append((unmatched, NOT_LET_IN))
    else:
        left_out = unmatched & np.isin(sheet.key_of_row, sheet.keys_of(dataset.everything))
        told += [(unmatched & ~left_out, NO_IMAGE), (left_out, LEFT_OUT)]
    told += row_labels.problems if row_labels else ()
    parts = [problem_rows(sheet, where, problem) for where, problem in told]
    if row_labels is not None:
        parts.append(contradicting_labels(sheet, row_labels.said, dataset.manifest))
    if row_people is not None:
        parts.append(contradictions(sheet, row_people.codes, OTHER_PATIENT))
    return pd.concat(parts, ignore_index=True).sort_values("line", kind="stable", ignore_index=True)


def _one_or_many(number: int, one: str, many: str) -> str:
    return one if number == 1 else many
