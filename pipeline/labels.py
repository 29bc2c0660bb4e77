"""Each case's label and patient: from the sheet, the path, the headers, or blocks of numbers.

A case has one label and one patient, or it is left out with the rule: whoever contradicts himself is never settled by choosing. What
is wrong with rows of the sheet is told by their line numbers, never by what they hold; paths that hold a patient's name are
masked. Codes are (n,) integers, as in pipeline.sheet: places in the classes or the patients, NONE, or SEVERAL.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.cases import Cases, group_images
from pipeline.columns import ATTRIBUTES, HEADER_COLUMNS, snake_case
from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey
from pipeline.index import Index
from pipeline.manifest import Labels, Manifest
from pipeline.patients import (
    NOT_PROVEN,
    PATH_HOLDS_IDENTITY,
    UNKNOWN_PATIENT,
    Groups,
    People,
    folders_of,
    known_by_company,
    people_of_images,
    people_of_rows,
    with_stand_ins,
)
from pipeline.sheet import (
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
    texts_of,
)  # fmt: skip
from pipeline.sources import OpenedSource
from pipeline.wording import counted

CASE_RULES = ("no label", "contradicting labels", "several patients in one case")
"""Why whole cases are left out, in the order in which it is said."""
EMPTY_KEY, EMPTY_LABEL, NO_CLASS = "empty key", "empty label", "its label is mapped to no class"
NO_IMAGE, NOT_LET_IN = "matches no image", "matches no image that the rules let in"
LEFT_OUT = "matches only images that the rules leave out"
CONTRADICTS, OTHER_PATIENT = "contradicts", "has another patient than"
PROBLEMS = {
    EMPTY_KEY: ("has an empty key", "have an empty key"),
    NO_IMAGE: (NO_IMAGE, "match no image"),
    NOT_LET_IN: (NOT_LET_IN, "match no image that the rules let in"),
    LEFT_OUT: (LEFT_OUT, "match only images that the rules leave out"),
    EMPTY_LABEL: ("has no label", "have no label"),
    NO_CLASS: ("has a label that is mapped to no class", "have labels that are mapped to no class"),
    CONTRADICTS: ("contradicts another of the same key", "contradict another of the same key"),
    OTHER_PATIENT: ("has another patient than one of the same key", "have another patient than one of the same key"),
}
"""What can be wrong with a row of the sheet, and how it is said of one row and of several."""
IDENTITY_KEYWORD = re.compile(
    r"(Other)?Patients?(Names?|IDs?|BirthName|BirthDate|BirthTime|Address|TelephoneNumbers|MotherBirthName|Comments)(Sequence)?"
    r"|AccessionNumber|IssuerOfPatientID|MedicalRecordLocator|(patient|accession)key|pathholdsidentity",
    re.IGNORECASE,
)
"""Attributes and columns, without '_', that say who the patient is: a label never comes from them."""


def check_labels(opened: OpenedSource, manifest: Manifest, key: IdentityKey) -> None:
    """ConfigError for a sheet or an attribute that cannot be, before hours of indexing rather than after."""
    if manifest.sheet:
        read_sheet(manifest, opened, key)
    if manifest.labels.source == "attribute":
        _attribute_column(manifest.labels)


def labelled_cases(
    index: Index, opened: OpenedSource, manifest: Manifest, key: IdentityKey, *, progress: bool = False
) -> Cases:
    """The dataset that a manifest describes: images by its rules, labels, patients, and near-duplicates joined if it asks for that."""
    sheet = read_sheet(manifest, opened, key) if manifest.sheet else None
    if sheet is not None and sheet.spec.facts:
        index = replace(index, table=fill_facts(index.table, sheet))
    keep = _columns_kept(manifest).intersection(index.table.columns)
    grouped = group_images(index, manifest.unit, manifest.rules, drop_collisions=True, facts=manifest.facts, keep=keep)
    cases = _label(grouped, _Dataset(manifest, opened, key, sheet, index.table))
    near = manifest.patients.near_duplicates
    if near is None:
        return cases
    from pipeline.duplicates import join_near_duplicates

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
    return kept | ({_attribute_column(manifest.labels)} if manifest.labels.source == "attribute" else set())


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
        labels, people = _own_labels(images, manifest), people_of_images(images, manifest.patients, dataset.key)
        return _resolve(grouped, labels, people, dataset, [])
    keys = _matched(images, dataset, sheet)
    row_labels = _row_labels(sheet, manifest)
    row_people = people_of_rows(sheet, manifest.patients, dataset.key)
    labels = _own_labels(images, manifest) if row_labels is None else taken(sheet.by_key(row_labels), keys)
    if row_people is None:
        people = people_of_images(images, manifest.patients, dataset.key)
    else:
        people = People(taken(sheet.by_key(row_people.codes), keys), row_people.names)
    problems = _problems(dataset, sheet, images, keys, row_labels, row_people)
    cases = _resolve(grouped, labels, people, dataset, _counted_problems(problems, len(sheet.lines)))
    return replace(cases, sheet_problems=problems)


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


# Labels


def _row_labels(sheet: LabelSheet, manifest: Manifest) -> Codes | None:
    """Each row's class; None where labels do not come from the sheet."""
    if manifest.labels.source != "sheet":
        return None
    column = sheet.columns[manifest.labels.column]
    meaning = _meaning(manifest)
    return taken(_as_codes(meaning.get(value, NONE) for value in texts_of(column.values)), column.codes)


def _own_labels(images: pd.DataFrame, manifest: Manifest) -> Codes:
    """Each image's class by folder or header; NONE where nothing says, or where what is said is mapped to no class."""
    meaning = _meaning(manifest)
    if manifest.labels.source == "folder":
        places, texts = distinct(folders_of(images))
        return taken(_as_codes(_one_class(folder.split("/"), meaning) for folder in texts_of(texts)), places)
    places, texts = distinct(images[_attribute_column(manifest.labels)])
    found = (meaning.get(value, _one_class(map(str.strip, value.split("\\")), meaning)) for value in texts_of(texts))
    return taken(_as_codes(found), places)


def _meaning(manifest: Manifest) -> dict[str, int]:
    """From what stands for a class to its place in the classes."""
    values = manifest.labels.values or {name: name for name in manifest.classes}
    return {word.strip(): manifest.classes.index(name) for word, name in values.items()}


def _one_class(words: Iterable[str], meaning: Mapping[str, int]) -> int:
    found = {meaning[word] for word in words if word in meaning}
    return NONE if not found else found.pop() if len(found) == 1 else SEVERAL


def _attribute_column(labels: Labels) -> str:
    """The index's column of `labels.attribute`; ConfigError where there is none, or it says who the patient is."""
    name = labels.attribute
    column = snake_case(name)
    if IDENTITY_KEYWORD.fullmatch(name.replace("_", "")):
        raise ConfigError(
            f"labels.attribute: {name} says who the patient is; the index does not keep it in clear, and no label may come from it"
        )
    if column in HEADER_COLUMNS:
        return column
    nearest = difflib.get_close_matches(column, HEADER_COLUMNS, n=1, cutoff=0.5)
    keyword = {snake_case(known): known for known in ATTRIBUTES}
    hint = f"did you mean {keyword.get(nearest[0], nearest[0])}?" if nearest else f"it keeps {', '.join(ATTRIBUTES)}"
    raise ConfigError(f"labels.attribute: {name} is none that the index keeps; {hint}")


def _as_codes(values: Iterable[int]) -> Codes:
    return np.fromiter(values, dtype=np.int64)


# Cases


def _resolve(grouped: Cases, labels: Codes, people: People, dataset: _Dataset, warnings: Sequence[str]) -> Cases:
    """One label and one patient a case; cases without, or with contradicting ones, move to the exclusions."""
    images, cases, classes = grouped.images, grouped.cases, dataset.manifest.classes
    studies, own = Groups(*distinct(images["study_instance_uid"])), _cases_of_images(images, cases)
    people = with_stand_ins(known_by_company(people, studies, own), studies, own, dataset.key)
    case_of_image = own.codes
    label = agreed(case_of_image, labels, len(cases))
    patient = agreed(case_of_image, people.codes, len(cases))
    broken = np.select([label == NONE, label == SEVERAL, patient == SEVERAL], range(len(CASE_RULES)), NONE)
    kept = broken == NONE
    out = _exclusions(images, broken[case_of_image])
    counts = zip(CASE_RULES, np.bincount(broken[~kept], minlength=len(CASE_RULES)).tolist(), strict=True)
    left_out = [f"{counted(count, 'case')} left out: {rule}" for rule, count in counts if count]
    case_of_kept, kept_images = case_of_image[kept[case_of_image]], kept[case_of_image]
    of_studies = agreed(studies.codes[kept_images], people.codes[kept_images], len(studies.names))
    proven = _independence(patient[kept], people.names, dataset.manifest, int((of_studies == SEVERAL).sum()))
    labelled = _rows(cases, kept).assign(
        label=_plain(label[kept], pa.array(classes)), patient_key=_plain(patient[kept], people.names)
    )
    described = _rows(images, kept_images).assign(
        label=categories(label[case_of_kept], pa.array(classes)),
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
    row_labels: Codes | None,
    row_people: People | None,
) -> pd.DataFrame:
    """`line`, `problem`: a row for each thing that is wrong with a line of the sheet, in their order."""
    lines, parts = sheet.lines, []

    def tell(where: NDArray[np.bool_], problem: str) -> None:
        parts.append(pd.DataFrame({"line": lines[where], "problem": problem}))

    empty = sheet.key_of_row == NONE
    tell(empty, EMPTY_KEY)
    unmatched = ~empty & ~np.isin(sheet.key_of_row, key_of_image)
    if dataset.everything is images:
        tell(unmatched, NOT_LET_IN)
    else:
        left_out = unmatched & np.isin(sheet.key_of_row, sheet.keys_of(dataset.everything))
        tell(unmatched & ~left_out, NO_IMAGE)
        tell(left_out, LEFT_OUT)
    if row_labels is not None:
        there = sheet.columns[dataset.manifest.labels.column].codes != NONE
        tell(~there, EMPTY_LABEL)
        tell(there & (row_labels == NONE), NO_CLASS)
        parts.append(_contradictions(sheet, row_labels, CONTRADICTS))
    if row_people is not None:
        parts.append(_contradictions(sheet, row_people.codes, OTHER_PATIENT))
    return pd.concat(parts, ignore_index=True).sort_values("line", kind="stable", ignore_index=True)


def _contradictions(sheet: LabelSheet, codes: Codes, problem: str) -> pd.DataFrame:
    """Of rows with one key and different codes each with the first line that it contradicts."""
    rows = np.flatnonzero((sheet.key_of_row != NONE) & (codes >= 0))
    keys, first, place = np.unique(sheet.key_of_row[rows], return_index=True, return_inverse=True)
    other = first[place]
    differs = np.flatnonzero(codes[rows] != codes[rows][other])
    clashing, first_different = np.unique(place[differs], return_index=True)
    second = np.full(len(keys), NONE, dtype=np.int64)
    second[clashing] = differs[first_different]
    agrees = np.ones(len(rows), dtype=bool)
    agrees[differs] = False
    other = np.where(agrees, second[place], other)
    clashes = other != NONE
    lines = sheet.lines[rows]
    return pd.DataFrame(
        {"line": lines[clashes], "problem": [f"{problem} line {line}" for line in lines[other[clashes]]]}
    )


def _counted_problems(problems: pd.DataFrame, rows: int) -> list[str]:
    """One sentence for each kind of problem."""
    kinds = problems["problem"].str.replace(r" line \d+$", "", regex=True).value_counts()
    return [
        f"{kinds[problem]} of {counted(rows, 'row')} of the label sheet {_one_or_many(kinds[problem], *words)}"
        for problem, words in PROBLEMS.items()
        if problem in kinds.index
    ]


def _one_or_many(number: int, one: str, many: str) -> str:
    return one if number == 1 else many
