"""What is wrong with the rows of a label sheet: which lines, and one sentence for each kind. No message quotes a cell."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.cohort.label_words import (
    EMPTY_FINDING,
    EMPTY_LABEL,
    NO_CLASS,
    NONE_AND_SOME,
    UNCERTAIN,
    UNKNOWN_CELL,
    Labelling,
)
from pipeline.cohort.sheet import NONE, Codes, LabelSheet
from pipeline.manifest import Manifest
from pipeline.wording import counted

EMPTY_KEY = "empty key"
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
    UNCERTAIN: ("has an uncertain finding", "have an uncertain finding"),
    EMPTY_FINDING: ("has a finding without a value", "have a finding without a value"),
    UNKNOWN_CELL: ("has a finding with an unknown value", "have a finding with an unknown value"),
    NONE_AND_SOME: (NONE_AND_SOME, "name a finding and say that there is none"),
    CONTRADICTS: ("contradicts another of the same key", "contradict another of the same key"),
    OTHER_PATIENT: ("has another patient than one of the same key", "have another patient than one of the same key"),
}
"""What can be wrong with a row of the sheet, and how it is said of one row and of several."""


def problem_rows(sheet: LabelSheet, where: NDArray[np.bool_], problem: str) -> pd.DataFrame:
    """`line`, `problem`: the same for each of these rows (rows,) of the sheet."""
    return pd.DataFrame({"line": sheet.lines[where], "problem": problem})


def contradicting_labels(sheet: LabelSheet, said: Labelling, manifest: Manifest) -> pd.DataFrame:
    """Rows with one key and different labels; where findings are added up, that there is none and that there is one."""
    codes = said.codes
    if manifest.labels.rows == "add":
        codes = codes.copy()
        clear = codes >= 0
        codes[clear] = np.select([said.present.any(axis=1), said.denied], [1, 0], NONE)[codes[clear]]
    return contradictions(sheet, codes, CONTRADICTS)


def contradictions(sheet: LabelSheet, codes: Codes, problem: str) -> pd.DataFrame:
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


def counted_problems(problems: pd.DataFrame, rows: int) -> list[str]:
    """One sentence for each kind of problem."""
    kinds = problems["problem"].str.replace(r" line \d+$", "", regex=True).value_counts()
    return [
        f"{kinds[problem]} of {counted(rows, 'row')} of the label sheet {one if kinds[problem] == 1 else many}"
        for problem, (one, many) in PROBLEMS.items()
        if problem in kinds.index
    ]
