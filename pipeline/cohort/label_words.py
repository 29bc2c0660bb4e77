"""What folders, headers and the rows of a sheet say of labels: one class of several, or several findings at once.

A `Labelling` holds, for n rows, images or cases, `codes` (n,): places in `names`, or why there is no label: NONE (nothing is said),
SEVERAL (it contradicts itself), UNCLEAR (a finding is uncertain, or a word is mapped to nothing). k classes, m distinct texts. No
message quotes a cell.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.cohort.patients import folders_of
from pipeline.cohort.sheet import NONE, SEVERAL, Codes, LabelSheet, agreed, distinct, taken, texts_of
from pipeline.columns import ATTRIBUTES, HEADER_COLUMNS, snake_case
from pipeline.errors import ConfigError
from pipeline.label_arrays import label_texts
from pipeline.manifest import Labels, Manifest
from pipeline.wording import counted

UNCLEAR = -3
EMPTY_LABEL, NO_CLASS = "empty label", "its label is mapped to no class"
UNCERTAIN, EMPTY_FINDING, UNKNOWN_CELL = "uncertain finding", "empty finding", "a finding's cell says nothing known"
NONE_AND_SOME = "names a finding and says that there is none"
ABSENT_CELL, PRESENT_CELL, UNCERTAIN_CELL, EMPTY_CELL, OTHER_CELL = range(5)
"""What a cell of a finding's own column says."""
IDENTITY_KEYWORD = re.compile(
    r"(Other)?Patients?(Names?|IDs?|BirthName|BirthDate|BirthTime|Address|TelephoneNumbers|MotherBirthName|Comments)(Sequence)?"
    r"|AccessionNumber|IssuerOfPatientID|MedicalRecordLocator|(patient|accession)key|pathholdsidentity",
    re.IGNORECASE,
)
"""Attributes and columns, without '_', that say who the patient is: a label never comes from them."""

Flags = NDArray[np.bool_]


def _no_flags(*shape: int) -> Flags:
    return np.zeros(shape or (0,), dtype=bool)


@dataclass(frozen=True)
class Labelling:
    """As above. Of several findings each name's `present` (names, k), and `denied` (names,): whether words say that there is none."""

    codes: Codes
    names: Sequence[str]
    present: Flags = field(default_factory=lambda: _no_flags(0, 0))
    denied: Flags = field(default_factory=_no_flags)


@dataclass(frozen=True)
class Told:
    """What rows or images say; `problems`: which of them (n,) have what wrong; `notes`: what was taken for what, in sentences."""

    said: Labelling
    problems: Sequence[tuple[Flags, str]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Sayings:
    """Distinct things that are said: findings (m, k), `denied` (m,), and `state` (m,): 0, or NONE, SEVERAL, UNCLEAR."""

    present: Flags
    denied: Flags
    state: Codes

    def of(self, places: Codes, manifest: Manifest) -> Labelling:
        """For places (n,) among them, NONE for the last."""
        denied = self.denied & (manifest.labels.rows == "add")  # else nothing is added up that words could contradict
        clear = self.state == 0
        rows = np.column_stack([self.present, denied])
        kinds, number = np.unique(rows[clear], axis=0, return_inverse=True)
        codes = self.state.copy()
        codes[clear] = number.reshape(-1)
        present = kinds[:, :-1]
        return Labelling(codes[places], label_texts(present, manifest.classes), present, kinds[:, -1])


def labels_of_rows(sheet: LabelSheet, manifest: Manifest) -> Told | None:
    """Each row's label; None where labels do not come from the sheet."""
    labels = manifest.labels
    if labels.source != "sheet":
        return None
    if labels.columns:
        return _of_columns(sheet, manifest)
    column = sheet.columns[labels.column]
    if labels.several:
        return _of_words(column.codes, [cell.split(labels.separator) for cell in texts_of(column.values)], manifest)
    meaning = _meaning(manifest)
    codes = taken(_as_codes(meaning.get(value, NONE) for value in texts_of(column.values)), column.codes)
    there = column.codes != NONE
    return Told(Labelling(codes, manifest.classes), [(~there, EMPTY_LABEL), (there & (codes == NONE), NO_CLASS)])


def labels_of_images(images: pd.DataFrame, manifest: Manifest) -> Told:
    """Each image's label, by its folders or its header."""
    labels, meaning = manifest.labels, _meaning(manifest)
    folders = labels.source == "folder"
    places, texts = distinct(folders_of(images) if folders else images[attribute_column(labels)])
    words = [_parts(text, folders, meaning) for text in texts_of(texts)]
    if not labels.several:
        return Told(Labelling(taken(_as_codes(_one_class(one, meaning) for one in words), places), manifest.classes))
    if not folders:
        return _of_words(places, words, manifest, "image")
    known = meaning.keys() | set(labels.no_finding)  # folders have other names, too
    named = [[word for word in one if word in known] for one in words]
    there = _as_codes(place if one else NONE for place, one in enumerate(named))
    told = _of_words(taken(there, places), named, manifest, "image")
    return Told(told.said, notes=told.notes)


def _parts(text: str, folders: bool, meaning: Mapping[str, int]) -> list[str]:
    """The folders of a path, or the values of an attribute."""
    if folders:
        return text.split("/")
    return [text] if text in meaning else [value.strip() for value in text.split("\\")]


def together(groups: Codes, told: Labelling, count: int, manifest: Manifest) -> Labelling:
    """What the members of each group (a key's rows, a case's images; NONE for no group) say as one: (count,) codes."""
    if manifest.labels.rows == "agree":
        codes = agreed(groups, told.codes, count)
        unclear = groups[(groups != NONE) & (told.codes == UNCLEAR)]
        codes[unclear[codes[unclear] != SEVERAL]] = UNCLEAR
        return Labelling(codes, told.names, told.present, told.denied)
    inside = groups != NONE
    known = inside & (told.codes >= 0)
    of, codes = groups[known], told.codes[known]
    present = np.column_stack([_is_among(of[flags[codes]], count) for flags in told.present.T])
    state = np.where(_is_among(of, count), 0, NONE)
    state[_is_among(of[told.denied[codes]], count) & present.any(axis=1)] = SEVERAL
    for code in (SEVERAL, UNCLEAR):
        state[groups[inside & (told.codes == code)]] = code
    return _Sayings(present, _no_flags(count), state).of(np.arange(count), manifest)


def _is_among(numbers: Codes, count: int) -> Flags:
    """(count,) whether each number is there."""
    return np.bincount(numbers, minlength=count) > 0


# Words


def _meaning(manifest: Manifest) -> dict[str, int]:
    """From what stands for a class to its place in the classes."""
    values = manifest.labels.values or {name: name for name in manifest.classes}
    return {word.strip(): manifest.classes.index(name) for word, name in values.items()}


def _one_class(words: Iterable[str], meaning: Mapping[str, int]) -> int:
    found = {meaning[word] for word in words if word in meaning}
    return NONE if not found else found.pop() if len(found) == 1 else SEVERAL


def _of_words(places: Codes, texts: Sequence[Sequence[str]], manifest: Manifest, noun: str = "row") -> Told:
    """Several findings, from the words of each distinct text (m); `places` (n,) among these, NONE for an empty one."""
    labels, meaning = manifest.labels, _meaning(manifest)
    present, denied, unknown = (
        _no_flags(len(texts) + 1, len(manifest.classes)),
        *(_no_flags(len(texts) + 1) for _ in range(2)),
    )
    for row, words in enumerate(texts):
        for word in filter(None, map(str.strip, words)):
            if word in meaning:
                present[row, meaning[word]] = True
            denied[row] |= word in labels.no_finding
            unknown[row] |= word not in meaning and word not in labels.no_finding
    state = np.zeros(len(denied), dtype=np.int64)
    state[-1] = 0 if labels.empty_means == "absent" else NONE
    unclear = unknown & (labels.unknown_means == "leave_out")
    both = denied & present.any(axis=1)
    state[unclear], state[both] = UNCLEAR, SEVERAL
    empty = places == NONE
    told = [(empty & (state[-1] == NONE), EMPTY_LABEL), (unclear[places], NO_CLASS), (both[places], NONE_AND_SOME)]
    notes = []
    if labels.empty_means == "absent":
        notes += _note(int(empty.sum()), noun, "without a label", "no finding at all")
    if labels.unknown_means == "absent":
        notes += _note(
            int(unknown[places].sum()), noun, "with a word that is mapped to no class", "none of these findings"
        )
    return Told(_Sayings(present, denied, state).of(places, manifest), told, notes)


def _note(number: int, noun: str, which: str, what: str) -> list[str]:
    return [f"labels: {counted(number, noun)} {which}, taken for {what}"] if number else []


# Columns


def _of_columns(sheet: LabelSheet, manifest: Manifest) -> Told:
    """Several findings, each from a column of its own."""
    labels = manifest.labels
    cells = np.column_stack([_kinds_of_cells(sheet, labels.columns[name], labels) for name in manifest.classes])
    kinds, places = np.unique(cells, axis=0, return_inverse=True)
    places = places.reshape(-1).astype(np.int64)
    wholly_empty = (kinds == EMPTY_CELL).all(axis=1)
    rules = (
        (UNCERTAIN_CELL, labels.uncertain_means, UNCERTAIN),
        (EMPTY_CELL, labels.empty_means, EMPTY_FINDING),
        (OTHER_CELL, labels.unknown_means, UNKNOWN_CELL),
    )
    present, state = kinds == PRESENT_CELL, np.zeros(len(kinds), dtype=np.int64)
    problems, notes = [], []
    for kind, means, problem in rules:
        there = kinds == kind
        if means == "leave_out":
            rows = there.any(axis=1) & ~(wholly_empty & (kind == EMPTY_CELL))
            state[rows] = UNCLEAR
            problems.append((rows[places], problem))
        else:
            present |= there & (means == "present")
            notes += _counted_cells((cells == kind).sum(axis=0), problem, means, manifest.classes)
    if labels.empty_means == "leave_out":
        state[wholly_empty] = NONE
        problems.append((wholly_empty[places], EMPTY_LABEL))
    return Told(_Sayings(present, _no_flags(len(kinds)), state).of(places, manifest), problems, notes)


def _kinds_of_cells(sheet: LabelSheet, heading: str, labels: Labels) -> NDArray[np.int8]:
    """(rows,) what each cell of a finding's column says."""
    column = sheet.columns[heading]
    said = {
        value: kind for kind, values in enumerate((labels.absent, labels.present, labels.uncertain)) for value in values
    }
    kinds = np.array([*(said.get(value, OTHER_CELL) for value in texts_of(column.values)), EMPTY_CELL], dtype=np.int8)
    return kinds[column.codes]  # the code of an empty cell is NONE, the last


def _counted_cells(counts: NDArray[np.int64], problem: str, means: str, classes: Sequence[str]) -> list[str]:
    which = {UNCERTAIN: "uncertain", EMPTY_FINDING: "empty", UNKNOWN_CELL: "unknown"}[problem]
    each = [f"{name} {count:,}" for name, count in zip(classes, counts.tolist(), strict=True) if count]
    return [f"labels: {which} cells are taken for {means} ({', '.join(each)})"] if each else []


# Attributes


def attribute_column(labels: Labels) -> str:
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
