"""The label sheet: read as text, and joined to images by UID, keyed hash, file name or path."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey
from pipeline.manifest import JoinKey, Manifest, OpenedSource, Sheet, find_sheet

JOIN_COLUMN = {
    JoinKey.STUDY: "study_instance_uid",
    JoinKey.SERIES: "series_instance_uid",
    JoinKey.IMAGE: "sop_instance_uid",
    JoinKey.ACCESSION: "accession_key",
    JoinKey.PATIENT: "patient_key",
    JoinKey.PATH: "path",
}


def read_sheet(manifest: Manifest, opened: OpenedSource, key: IdentityKey) -> pd.DataFrame:
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


def match_sheet(images: pd.DataFrame, sheet: pd.DataFrame, join: JoinKey) -> pd.Series:
    """For each image its row of the sheet; rows that say the same of the same key are one. ConfigError where they contradict."""
    rows = sheet.dropna(subset="join_value").drop_duplicates()
    clashing = rows.loc[rows["join_value"].duplicated(keep=False), "join_value"]
    if len(clashing):
        raise ConfigError(
            f"the label sheet has {clashing.nunique()} key(s) with several different rows (first: line {clashing.index[0] + 2}); "
            "one row a key is expected: remove the wrong ones"
        )
    values = join_values(images, join)
    if join is JoinKey.FILE_NAME:
        files = pd.DataFrame({"file": images["source"] + "/" + images["path"], "name": values}).drop_duplicates()
        repeated = files.loc[files["name"].isin(rows["join_value"]), "name"].duplicated()
        if repeated.any():
            raise ConfigError(
                f"{int(repeated.sum())} file name(s) of the label sheet stand in several folders; join by path instead of file_name"
            )
    return values.map(pd.Series(rows.index, index=rows["join_value"]))


def join_values(images: pd.DataFrame, join: JoinKey) -> pd.Series:
    """What each image has of what the sheet's key column holds."""
    if join is JoinKey.FILE_NAME:
        return images["path"].map(lambda path: Path(path).name)
    return images[JOIN_COLUMN[join]]
