"""A project's memory of its splits: a ledger beside its key, so that who was placed once stays there when others arrive."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.cohort.split import FOLD, FOLDED, SPLITS, numbered, strata_of
from pipeline.errors import RunError
from pipeline.files import whole_file
from pipeline.identity import IdentityKey
from pipeline.indexing.sources import OpenedSource
from pipeline.manifest import Manifest

LEDGER_COLUMNS = ["patient_key", "stratum", "split"]
DIGEST_CHARACTERS = 8


def ledger_path(opened: OpenedSource, manifest: Manifest, key: IdentityKey) -> Path:
    """Where a project remembers this rule's split. Another fold is the same split; another seed, fraction or key is another."""
    rule = manifest.split
    told = (rule.train, rule.validation, rule.test, rule.seed, rule.folds, rule.file, key.fingerprint)
    digest = hashlib.sha256("\x1f".join(map(str, told)).encode()).hexdigest()[:DIGEST_CHARACTERS]
    return opened.folder / f".radloop-split-{manifest.name}-{digest}.csv"


def read_ledger(opened: OpenedSource, manifest: Manifest, key: IdentityKey) -> pd.DataFrame:
    """What the project remembers: `LEDGER_COLUMNS`, one row a patient, and `FOLD` where the rule has folds. No rows where there is
    nothing yet. RunError where it is damaged."""
    import pyarrow.csv

    path = ledger_path(opened, manifest, key)
    columns = [*LEDGER_COLUMNS, *([FOLD] if manifest.split.folds else [])]
    if not path.is_file():
        return pd.DataFrame(columns=columns, dtype="str")
    options = pyarrow.csv.ConvertOptions(
        column_types={name: pyarrow.string() for name in columns}, include_columns=columns
    )
    try:
        read = pyarrow.csv.read_csv(
            path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=options
        )
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path, f"expected a CSV with the columns {', '.join(columns)}") from error
    table = read.to_pandas().astype("str")
    if table["patient_key"].duplicated().any():
        raise _damaged(path, "a patient stands in it twice")
    rule = manifest.split
    allowed = {(split, "") for split in SPLITS}
    if rule.folds is not None:
        allowed = {("test", ""), *((FOLDED, str(fold)) for fold in range(rule.folds))}
    found = table[columns[2:]].drop_duplicates().itertuples(index=False, name=None)
    if not {(row[0], row[1] if len(row) > 1 else "") for row in found} <= allowed:
        raise _damaged(path, "it holds a split that is none")
    return table


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path}: damaged: {what}; restore it from a backup, or remove it to divide all patients anew")


def _ledger_rows(table: pd.DataFrame, joined: Mapping[str, str]) -> pd.DataFrame:
    """A split as a ledger has it: one row for each patient, those who are joined too, as they may be apart another time."""
    of_case, keys = numbered(table["patient_key"])
    strata, names = strata_of(of_case, *numbered(table["label"]))
    first = np.unique(of_case, return_index=True)[1]
    split = table["split"].iloc[first].reset_index(drop=True)
    columns = {"patient_key": keys, "stratum": pd.Series(pd.array(names, dtype="str").take(strata)), "split": split}
    if FOLD in table:
        columns[FOLD] = table[FOLD].iloc[first].reset_index(drop=True)
        columns["split"] = split.where(split == "test", FOLDED)
    rows = pd.DataFrame(columns)
    members = pd.DataFrame({"member": joined.keys(), "patient_key": joined.values()}, dtype="str")
    theirs = members.merge(rows, on="patient_key").drop(columns="patient_key")
    return pd.concat([rows, theirs.rename(columns={"member": "patient_key"})], ignore_index=True)


def write_ledger(path: Path, table: pd.DataFrame, joined: Mapping[str, str], earlier: pd.DataFrame) -> None:
    """The ledger with a split's patients, and those of before who are gone. Not touched where nothing changed."""
    import pyarrow.csv

    rows = _ledger_rows(table, joined)
    gone = earlier[~earlier["patient_key"].isin(rows["patient_key"])]
    merged = pd.concat([gone, rows], ignore_index=True).sort_values("patient_key", ignore_index=True)
    if merged.equals(earlier):
        return
    with whole_file(path) as file:
        pyarrow.csv.write_csv(pyarrow.Table.from_pandas(merged, preserve_index=False), file)
