"""What is evaluated: labelled cases with their images, of a split of the run's own data, of its folds, or of other data altogether.

Nothing that the model was trained or validated on passes as other data, and no patient stands in two splits: both are errors, as the
figures would be wrong. Of patients that are not known, `warnings` say that independence is not proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pipeline.cohort.cases import EXCLUSION_COLUMNS, Cases, columns_needed, group_images
from pipeline.cohort.labels import NOT_PROVEN, UNKNOWN_PATIENT, check_labels, labelled_cases
from pipeline.cohort.rules import COLLISIONS
from pipeline.cohort.split import FOLD, SPLIT_COLUMNS, SPLITS, check_patients, check_split
from pipeline.columns import COLUMNS, text
from pipeline.errors import ConfigError, RunError
from pipeline.evaluation.placing import placed, with_times_of_now
from pipeline.files import file_digest
from pipeline.indexing.index import Index, read_index
from pipeline.indexing.sources import open_dataset
from pipeline.manifest import Manifest
from pipeline.run import (
    EVALUATION_FOLDER,
    EXCLUSIONS_FILE,
    INDEX_FOLDER,
    SHEET_FACTS_FILE,
    SPLIT_FILE,
    ModelFacts,
    identity_fingerprint,
    read_manifest,
    read_table,
)  # fmt: skip
from pipeline.wording import counted


@dataclass(frozen=True)
class Subject:
    """Cases in the order of their images, the index they are from, and where results go."""

    name: str
    cases: pd.DataFrame  # case_id, UIDs, path, label, patient_key; fold where the run has folds
    images: pd.DataFrame
    index: Index
    folder: Path
    warnings: tuple[str, ...]
    manifest: Manifest
    dataset: Cases
    """All that the manifest describes, also what is in other splits, and what was left out."""
    own: bool = True
    """Whether it is the run's own data."""

    def part(self, name: str, cases: pd.Series) -> Subject:
        """Only the cases for which `cases` (a mask) is true."""
        some = self.cases[cases.to_numpy()].reset_index(drop=True)
        images = self.images[self.images["case_id"].isin(some["case_id"])].reset_index(drop=True)
        return replace(self, name=name, cases=some, images=images)


def own_split(
    run: Path, split: str, facts: ModelFacts, columns: Sequence[str] = (), root: Path | None = None
) -> Subject:
    """A split of the run's own data, which lie under `root` if not where they were trained on.

    `columns` of the index are kept besides, as far as there are.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    whole = _own_data(run, facts, columns, root)
    wanted = whole.cases["split"] == split
    if not wanted.any():
        hint = "; its folds are validated by one another: see cross_validation in metrics.json" if facts.members else ""
        raise ConfigError(f"--split {split}: the run has no case in it{hint}")
    subject = whole.part(split, wanted)
    folder = run / EVALUATION_FOLDER if split == "test" else run / EVALUATION_FOLDER / split
    images, touched = with_times_of_now(subject.images, subject.index.roots)
    warnings = (*_independence_warnings(subject.manifest, subject.cases["patient_key"]), *touched)
    return replace(subject, images=images, folder=folder, warnings=warnings)


def own_folds(run: Path, facts: ModelFacts, root: Path | None = None) -> dict[str, Subject]:
    """Of an ensemble's run the cases of each fold, by the name of the member that was validated on them."""
    whole = _own_data(run, facts, (), root)
    whole = replace(whole, images=with_times_of_now(whole.images, whole.index.roots)[0])
    if FOLD not in whole.cases:
        raise RunError(f"{run / SPLIT_FILE}: no column {FOLD}, though the run has members; it is damaged")
    return {member: whole.part(member, whole.cases[FOLD] == member.rpartition("-")[2]) for member in facts.members}


def _own_data(run: Path, facts: ModelFacts, columns: Sequence[str], root: Path | None) -> Subject:
    """All cases of split.csv, with their images."""
    manifest = read_manifest(run)
    table = read_table(run / SPLIT_FILE, SPLIT_COLUMNS)
    check_split(table)
    keep = [name for name in columns if name in COLUMNS]
    index = placed(read_index(run / INDEX_FOLDER, [*columns_needed(manifest), *keep]), run, root)
    grouped = _grouped(run, index, manifest, keep)
    if manifest.patients.source == "dicom":
        check_patients(table, grouped.images)
    if facts.split_sha256 not in ("", file_digest(run / SPLIT_FILE)):
        raise RunError(
            f"{run / SPLIT_FILE}: is not the one that the model was trained with; restore it, or train again"
        )
    wanted = table[[name for name in (*SPLIT_COLUMNS, FOLD) if name in table]]
    cases = grouped.cases.assign(case_id=text(grouped.cases["case_id"])).merge(wanted, on="case_id", how="inner")
    if len(cases) < len(wanted):
        gone = counted(len(wanted) - len(cases), "case")
        raise RunError(f"{run / SPLIT_FILE}: {gone} of it not found in {run / INDEX_FOLDER}; the run is damaged")
    images = grouped.images[grouped.images["case_id"].isin(cases["case_id"])].reset_index(drop=True)
    dataset = Cases(cases, images, read_table(run / EXCLUSIONS_FILE, EXCLUSION_COLUMNS))
    return Subject("all", cases, images, index, run / EVALUATION_FOLDER, (), manifest, dataset)


def _grouped(run: Path, index: Index, manifest: Manifest, keep: Sequence[str] = ()) -> Cases:
    """The run's images as its training had them; what `sheet.facts` told of them is in the run, as the rules went by it too."""
    rules, known = manifest.rules, run / SHEET_FACTS_FILE
    if known.is_file():
        told = read_table(known, ["source", "path"])
        facts = told.columns.drop(["source", "path"])
        table = index.table.reset_index(drop=True)
        of_row = table[["source", "path"]].astype("str").merge(told, how="left", on=["source", "path"])
        table = table.assign(**{name: of_row[name].astype("category") for name in facts})
        index = replace(index, table=table.loc[of_row[facts[0]].notna().to_numpy()].reset_index(drop=True))
        rules = rules.model_copy(
            update={"include": {}, "exclude": {}, "series": "all"}
        )  # those that are left passed them
    return group_images(index, manifest.unit, rules, collisions=COLLISIONS, facts=manifest.facts, keep=keep)


def other_data(
    run: Path, data: str, root: Path | None, facts: ModelFacts, columns: Sequence[str], progress: bool
) -> Subject:
    """All labelled cases of another manifest; ConfigError where they are not of the model's kind, RunError where it has seen them."""
    opened = open_dataset(data, root)
    manifest = opened.manifest
    assert manifest is not None
    _same_task(data, facts, manifest)
    key = opened.key()
    check_labels(opened, manifest, key)
    folder = run / EVALUATION_FOLDER / f"data-{manifest.name}"
    wanted = [*columns_needed(manifest), *(name for name in columns if name in COLUMNS)]
    index = opened.index(key, out=folder / INDEX_FOLDER, columns=wanted, progress=progress)
    labelled = labelled_cases(index, opened, manifest, key, progress=progress)
    _refuse_shared(run, data, labelled, manifest)
    warnings = labelled.warnings
    if key.fingerprint != identity_fingerprint(run):
        warnings += (
            f"{NOT_PROVEN}: the run's patients were hashed under another key, so shared patients cannot be found",
        )
    return Subject(
        manifest.name, labelled.cases, labelled.images, index, folder, warnings, manifest, labelled, own=False
    )


def _same_task(data: str, facts: ModelFacts, manifest: Manifest) -> None:
    for name, own, others in (
        ("classes", facts.classes, manifest.classes),
        ("unit", facts.unit, manifest.unit),
        ("labels.several", facts.several, manifest.labels.several),
    ):
        if own != others:
            raise ConfigError(f"--data {data}: its {name} is {others}, the model's is {own}")


def _refuse_shared(run: Path, data: str, labelled: Cases, manifest: Manifest) -> None:
    """RunError if patients or images of `labelled` were trained or validated on.

    Images are told by SOPInstanceUID, without one by name and size. Stand-ins for patients say nothing across datasets.
    """
    table = read_table(run / SPLIT_FILE, SPLIT_COLUMNS)
    check_split(table)
    fitted = table[table["split"] != "test"]
    own = read_manifest(run)
    before = _grouped(run, read_index(run / INDEX_FOLDER, columns_needed(own)), own).images
    before = before[before["case_id"].isin(fitted["case_id"])]
    seen = set(fitted["patient_key"])
    if own.patients.source == "dicom":  # near-duplicates may have joined patients under another's key
        seen |= set(text(before["patient_key"]).unique())
    patients = text(labelled.cases["patient_key"])
    known = ~patients.str.startswith(UNKNOWN_PATIENT) & (manifest.patients.source != "blocks")
    seen |= {group for patient, group in labelled.joined.items() if patient in seen}
    shared = patients[known & patients.isin(seen)].nunique()
    images = int(_image_identities(labelled.images).isin(_image_identities(before)).sum())
    if shared or images:
        raise RunError(
            f"--data {data}: {shared} of its patients and {images} of its images were trained or validated on; "
            "the figures would be wrong, so nothing is done"
        )


def _image_identities(images: pd.DataFrame) -> pd.Series:
    by_name = text(images["path"]).str.replace(r"^.*/", "", regex=True) + "\x1f" + images["bytes"].astype("str")
    uid = text(images["sop_instance_uid"])
    return uid.where(uid != "", by_name)


def _independence_warnings(manifest: Manifest, patients: pd.Series) -> tuple[str, ...]:
    """Why patients may stand in two splits although no key does."""
    if manifest.patients.source == "blocks":
        return (f"{NOT_PROVEN}: patients are blocks of consecutive numbers",)
    unknown = int(patients.str.startswith(UNKNOWN_PATIENT).sum())
    cases = counted(len(patients), "case")
    return (f"{NOT_PROVEN}: {unknown} of {cases} without a known patient",) if unknown else ()
