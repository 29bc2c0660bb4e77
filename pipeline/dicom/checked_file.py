"""One DICOM file of anybody's, judged: what is wrong with it, what it is, and what it refers to.

In: the path of a file of unknown origin; only to be called in a worker process (`pipeline.work`), where time and memory are bounded. Out: a
`CheckedFile` that holds no value of the file but UIDs and names of SOP classes. What is no DICOM file is `Rejected`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, MediaStorageDirectoryStorage

from pipeline.dicom.bounded import Window, parsing
from pipeline.dicom.conformance import UNKNOWN_CLASS, is_uid, object_findings
from pipeline.dicom.conformance_item import Item
from pipeline.dicom.conformance_references import Instance, Reference, instance_of, leads_astray, references_of
from pipeline.dicom.header_values import holds_identity, identity_words
from pipeline.errors import Rejected, RejectReason
from pipeline.files import open_regular

_PREAMBLE_BYTES, _PREFIX = 128, b"DICM"  # PS3.10 7.1


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """What a check found out. `judged`: whether the tables know the class, so that its modules were judged."""

    class_name: str
    findings: tuple[str, ...]
    judged: bool
    instance: Instance
    references: tuple[Reference, ...]
    path_holds_identity: bool


def check_file(path: Path) -> CheckedFile:
    """Raises Rejected: not_an_image (no DICOM file), dicomdir, truncated, malformed, and as `open_regular` does."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(_PREAMBLE_BYTES)
        if file.read(len(_PREFIX)) != _PREFIX:
            raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOM file: it lacks the prefix DICM (PS3.10 7.1)")
        file.seek(0)
        window = Window(file, size, 2 * size + _PREAMBLE_BYTES)  # pydicom reads some bytes twice
        with parsing(window):
            dataset = dcmread(window)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                raise Rejected(RejectReason.DICOMDIR, "the directory of a DICOM medium, which this does not judge")
            checked = _judge(dataset, path)
        if window.ended_early:
            raise Rejected(RejectReason.TRUNCATED, "the file ends within a data element")
        return checked


def _judge(dataset: Dataset, path: Path) -> CheckedFile:
    root = Item(dataset)
    findings = dict.fromkeys(object_findings(root, dataset.file_meta))
    sop_class = root.text("SOPClassUID")
    judged = UNKNOWN_CLASS not in findings
    if is_uid(sop_class):
        findings.pop(UNKNOWN_CLASS, None)  # a class may be newer than the tables; what is no class at all is wrong
    words = identity_words(*(root.text(name) for name in ("PatientID", "AccessionNumber", "PatientName")))
    instance = instance_of(root)
    return CheckedFile(
        class_name=UID(sop_class).name if is_uid(sop_class) else "",
        findings=tuple(findings),
        judged=judged,
        instance=instance if is_uid(instance.sop_instance_uid) else replace(instance, sop_instance_uid=""),
        references=tuple(dict.fromkeys(references_of(root))),
        path_holds_identity=holds_identity(path.as_posix(), words),
    )


def cross_findings(files: list[CheckedFile]) -> list[tuple[str, ...]]:
    """For each file what its references say of other files among them that is not so, and whether its UID is another's too."""
    known: dict[str, Instance] = {}
    clashes: set[str] = set()
    for file in files:
        uid = file.instance.sop_instance_uid
        if uid and known.setdefault(uid, file.instance) != file.instance:
            clashes.add(uid)
    found = []
    for file in files:
        astray = [
            finding
            for reference in file.references
            if reference.sop_instance_uid in known and reference.sop_instance_uid != file.instance.sop_instance_uid
            for finding in leads_astray(reference, known[reference.sop_instance_uid])
        ]
        if file.instance.sop_instance_uid in clashes:
            astray.append("SOPInstanceUID is that of another, different instance among these files")
        found.append(tuple(dict.fromkeys(astray)))
    return found
