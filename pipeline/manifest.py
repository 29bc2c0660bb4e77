"""What a dataset is: a YAML that names its sources, its classes, how labels and patients are found, and the split rule.

What is written there is checked as a whole before anything runs; indexing.sources opens it. The keys of `rules` are in `rule_settings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config import Settings
from pipeline.label_arrays import JOINED_BY, NO_FINDING
from pipeline.rule_settings import Condition as Condition
from pipeline.rule_settings import Rules as Rules
from pipeline.rule_settings import as_number as as_number


class JoinKey(StrEnum):
    """What a label sheet's key column holds."""

    STUDY = "StudyInstanceUID"
    SERIES = "SeriesInstanceUID"
    IMAGE = "SOPInstanceUID"
    ACCESSION = "AccessionNumber"
    """Joined through its keyed hash."""
    PATIENT = "PatientID"
    """Joined through its keyed hash."""
    FILE_NAME = "file_name"
    PATH = "path"
    """Relative to the source."""


class Source(Settings):
    """One place with images."""

    path: str
    """A folder, a .zip export, a DICOMDIR or a file; relative to the root."""
    name: str = ""
    """How tables call it; the path where empty."""

    @property
    def label(self) -> str:
        return self.name or self.path


class Sheet(Settings):
    """A CSV, TSV or XLSX with a header line."""

    path: str
    """Relative to the root, or to the manifest's folder."""
    join: JoinKey
    """What the key column holds."""
    column: str
    """The key column's heading."""
    issuer: str = ""
    """IssuerOfPatientID of the values, where they are PatientIDs with an issuer."""
    worksheet: str = ""
    """Of an XLSX; the first where empty."""
    facts: dict[str, str] = {}
    """Index column → heading: what the sheet knows where a file's header is silent, e.g. patient_sex: gender."""


class Labels(Settings):
    """Where a case's class comes from: a folder of its path, a column of the sheet, or an attribute of its headers; with `several`, its
    findings: none, one or more of the classes. What says nothing clear is no label: the case is left out, and counted."""

    source: Literal["folder", "sheet", "attribute"]
    """folder: a part of the path is a key of `values`. sheet: `column` of the manifest's sheet. attribute: of the index."""
    column: str = ""
    """The sheet's heading of the label."""
    attribute: str = ""
    """A DICOM keyword (BodyPartExamined) or a column of the index (body_part_examined); of several values any may be a class."""
    values: dict[str, str] = {}
    """From what stands there to a class; empty: the classes' own names. What is mapped to no class is no label."""
    several: bool = False
    """Whether a case may have several of the classes, or none: each is then a finding that is present or absent."""
    separator: str = "|"
    """several: between the findings in a cell of `column`."""
    columns: dict[str, str] = {}
    """several: class → heading of its own column of the sheet, in place of `column`; every class has one."""
    present: list[str] = ["1", "1.0"]
    """columns: cells that say that the finding is there."""
    absent: list[str] = ["0", "0.0"]
    """columns: cells that say that it is not."""
    uncertain: list[str] = ["-1", "-1.0"]
    """columns: cells that say that it may be."""
    uncertain_means: Literal["leave_out", "absent", "present"] = "leave_out"
    """several: what an uncertain finding is taken for; leave_out: its case is left out."""
    empty_means: Literal["leave_out", "absent"] = "leave_out"
    """several: what an empty cell is taken for."""
    unknown_means: Literal["leave_out", "absent"] = "leave_out"
    """several: what a word is taken for that is none of `values` (absent: none of these findings), and a cell of `columns` that is none of
    the above."""
    no_finding: list[str] = ["No Finding", NO_FINDING]
    """several: words that say that no finding is there."""
    rows: Literal["agree", "add"] = "agree"
    """several: of rows with one key, and images of one case. agree: all must say the same; add: a row a finding, they are added up."""

    @field_validator("values", mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        _refuse_truth_values(given)
        return {str(value): name for value, name in given.items()}

    @field_validator("present", "absent", "uncertain", "no_finding", mode="before")
    @classmethod
    def _as_texts(cls, given: Any) -> Any:
        if not isinstance(given, list):
            return given
        _refuse_truth_values(given)
        return [str(value).strip() if isinstance(value, (int, float, str)) else value for value in given]

    @model_validator(mode="after")
    def _says_where(self) -> Labels:
        if self.source == "sheet" and bool(self.column) == bool(self.columns):
            missing = "`labels.column` is missing" if not self.columns else "give one of `column` and `columns`"
            raise ValueError(f"labels.source is sheet: {missing}")
        if self.source == "attribute" and not self.attribute:
            raise ValueError("labels.source is attribute: `labels.attribute` is missing")
        if not self.several and (self.columns or self.rows == "add"):
            raise ValueError(f"`{'columns' if self.columns else 'rows'}` needs `several: true`")
        if self.columns and (self.source != "sheet" or self.rows == "add" or self.values):
            raise ValueError("`columns` goes with source: sheet, rows: agree and no `values`")
        if not self.separator.strip():
            raise ValueError("separator: expected a sign such as |, ; or a comma, found blanks")
        said = [*self.present, *self.absent, *self.uncertain]
        if len(set(said)) != len(said):
            raise ValueError("present, absent, uncertain: a value stands twice")
        return self


def _refuse_truth_values(given: Iterable[Any]) -> None:
    if any(isinstance(value, bool) for value in given):
        raise ValueError("yes, no, true, false, on and off are truth values in YAML; put them in quotes")


def _with_one_group(pattern: str, what: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"needs exactly one group for {what}, has {groups}")
    return pattern


class Blocks(Settings):
    """Consecutive numbers as stand-ins for patients that nobody recorded."""

    pattern: str
    """Regular expression on the path; its one group is the number."""
    size: Annotated[int, Field(ge=1)]
    """How many consecutive numbers make one block, within one folder."""

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        return _with_one_group(pattern, "the number")


class NearDuplicates(Settings):
    """Cases with images that look alike are taken for one patient's."""

    distance: Annotated[int, Field(ge=0, le=6)] = 2
    """Images are alike if their perceptual hashes (64 bits) differ in at most so many. On lung CT slices 2 finds neighbours of a series, 4
    begins to join strangers."""


class Patients(Settings):
    """Whose a case is; no patient ever stands in two splits."""

    source: Literal["dicom", "column", "path", "blocks"] = "dicom"
    """dicom: PatientID with its issuer. column: of the manifest's sheet. path: `pattern`. blocks: consecutive numbers."""
    column: str = ""
    """The sheet's heading of the patient."""
    pattern: str = ""
    """Regular expression on the path; its one group is the patient."""
    blocks: Blocks | None = None
    """Needed for source blocks."""
    near_duplicates: NearDuplicates | None = None
    """Joins patients whose images are near-duplicates into one; null: not looked for (every image must be decoded for it)."""

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        return _with_one_group(pattern, "the patient") if pattern else pattern

    @model_validator(mode="after")
    def _complete(self) -> Patients:
        if self.source == "blocks" and self.blocks is None:
            raise ValueError("source: blocks needs `blocks: {pattern: ..., size: ...}`")
        if self.source == "column" and not self.column:
            raise ValueError("source: column needs `column`")
        if self.source == "path" and not self.pattern:
            raise ValueError("source: path needs `pattern`")
        return self


class SplitRule(Settings):
    """How patients are divided, within each class; validation chooses epochs, test is for the figures alone."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Weights are fitted on these."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Epoch and scale are chosen on these."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Figures come from these."""
    seed: int = 0
    """Another seed, another split."""
    folds: Annotated[int, Field(ge=2, le=20)] | None = None
    """Divides the patients of train and validation together into so many folds; null: by the fractions."""
    fold: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Which fold validates; the others train. all: one network a fold, which speak as one. The test split is the same for each."""
    file: str = ""
    """A CSV with the column `split`, and a column case_id, patient_key, or named as a key of a sheet (PatientID, path, ...): its
    split is taken. Relative to the root, or to the manifest's folder. Any run's split.csv is such a file."""
    others: Literal["leave_out", "assign"] = "leave_out"
    """What becomes of patients that `file` does not name."""

    @model_validator(mode="after")
    def _whole(self) -> SplitRule:
        if abs(self.train + self.validation + self.test - 1.0) > 1e-6:
            raise ValueError(f"train + validation + test is {self.train + self.validation + self.test:g}, not 1")
        if self.folds is None and self.fold == "all":
            raise ValueError("fold all: how many `folds`?")
        if self.folds is not None and self.fold != "all" and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold}: the {self.folds} folds are numbered from 0 to {self.folds - 1}")
        if self.folds is not None and self.file:
            raise ValueError("folds and file: give one of them")
        return self


class Manifest(Settings):
    """A dataset."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$")]
    """What the dataset is called: letters, digits, space, and _ . - (a folder is named after it)."""
    description: str = ""
    """Where it comes from, and what to beware of."""
    classes: Annotated[list[str], Field(min_length=2)]
    """In the order of the probabilities."""
    positive: str = ""
    """Of two classes, the finding; the last where empty."""
    sources: Annotated[list[Source], Field(min_length=1)]
    """Where the images are."""
    facts: dict[str, str] = {}
    """Index columns that files without a header cannot tell, e.g. modality: CT."""
    sheet: Sheet | None = None
    """The label sheet."""
    labels: Labels
    """Where classes come from."""
    patients: Patients = Patients()
    """Where patients come from."""
    unit: Literal["image", "series", "study"] = "image"
    """What one prediction is about."""
    rules: Rules = Rules()
    """What is in and what is out."""
    split: SplitRule = SplitRule()
    """How cases are divided."""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: each name once")
        if self.positive and self.positive not in self.classes:
            raise ValueError(f"positive: {self.positive} is none of the classes")
        unknown = sorted(set(self.labels.values.values()) - set(self.classes))
        if unknown:
            raise ValueError(f"labels.values: {', '.join(unknown)}: none of the classes {', '.join(self.classes)}")
        wants_sheet = self.labels.source == "sheet" or self.patients.source == "column"
        if wants_sheet and self.sheet is None:
            raise ValueError("labels or patients come from a sheet: `sheet` is missing")
        if self.labels.several:
            self._check_findings()
        labels = [source.label for source in self.sources]
        if len(set(labels)) != len(labels):
            raise ValueError("sources: each name once")
        return self

    def _check_findings(self) -> None:
        joined = [name for name in self.classes if JOINED_BY in name or name == NO_FINDING or not name.strip()]
        if joined:
            raise ValueError(f"classes: with labels.several no name may hold {JOINED_BY} or be {NO_FINDING}")
        if self.positive:
            raise ValueError("positive: with labels.several each of the classes is a finding, leave it out")
        columns = self.labels.columns
        if columns and set(columns) != set(self.classes):
            other = sorted(set(columns) ^ set(self.classes))
            raise ValueError(f"labels.columns: expected each of the classes and no other; look at {', '.join(other)}")

    @property
    def positive_class(self) -> str:
        return self.positive or self.classes[-1]
