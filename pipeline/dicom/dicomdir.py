"""Write the DICOMDIR of a medium: patients, studies, series and instances in the files they are in (PS3.3 F, PS3.10 8).

In: datasets with their file IDs below one folder; out: a Basic Directory file there. File IDs are upper-case components
of at most 8 characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

_LEVELS = (
    ("PATIENT", "PatientID", ("PatientName", "PatientID")),
    (
        "STUDY",
        "StudyInstanceUID",
        ("StudyDate", "StudyTime", "StudyDescription", "StudyInstanceUID", "StudyID", "AccessionNumber"),
    ),
    ("SERIES", "SeriesInstanceUID", ("Modality", "SeriesInstanceUID", "SeriesNumber")),
)
_SR_KEYS = (
    "InstanceNumber",
    "CompletionFlag",
    "VerificationFlag",
    "ContentDate",
    "ContentTime",
    "ConceptNameCodeSequence",
)


@dataclass
class _Node:
    record: Dataset
    children: dict[str, _Node] = field(default_factory=dict)


class Directory:
    """Collects instances; holds only what a directory record needs of each."""

    def __init__(self) -> None:
        self._root = _Node(Dataset())

    def add(self, dataset: Dataset, transfer_syntax: str, components: tuple[str, ...]) -> None:
        """List one instance, in the file that `components` name."""
        node = self._root
        for kind, key, keywords in _LEVELS:
            identifier = str(dataset[key].value)
            if identifier not in node.children:
                node.children[identifier] = _Node(_record(kind, dataset, keywords))
            node = node.children[identifier]
        kind = "SR DOCUMENT" if dataset.Modality == "SR" else "IMAGE"
        leaf = _record(kind, dataset, _SR_KEYS if kind == "SR DOCUMENT" else ("InstanceNumber",))
        leaf.ReferencedFileID = list(components)
        leaf.ReferencedSOPClassUIDInFile = dataset.SOPClassUID
        leaf.ReferencedSOPInstanceUIDInFile = dataset.SOPInstanceUID
        leaf.ReferencedTransferSyntaxUIDInFile = UID(transfer_syntax)
        node.children[str(dataset.SOPInstanceUID)] = _Node(leaf)

    def write(self, path: Path, *, file_set_id: str, instance_uid: str) -> None:
        """Write the directory. Its records point to each other by byte offsets, so it is encoded once to learn them."""
        nodes = list(_walk(self._root.children.values()))
        directory = Dataset()
        directory.FileSetID = file_set_id
        directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
        directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
        directory.FileSetConsistencyFlag = 0
        directory.DirectoryRecordSequence = [node.record for node in nodes]
        directory.file_meta = FileMetaDataset()
        directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
        directory.file_meta.MediaStorageSOPInstanceUID = UID(instance_uid)
        offsets = _record_offsets(directory)
        place = {id(node): offset for node, offset in zip(nodes, offsets, strict=True)}
        for siblings in (self._root.children, *(node.children for node in nodes)):
            following = list(siblings.values())
            for node, after in pairwise(following):
                node.record.OffsetOfTheNextDirectoryRecord = place[id(after)]
        for node in nodes:
            if node.children:
                node.record.OffsetOfReferencedLowerLevelDirectoryEntity = place[id(next(iter(node.children.values())))]
        first = list(self._root.children.values())
        directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = place[id(first[0])]
        directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = place[id(first[-1])]
        directory.save_as(path, enforce_file_format=True)


def _record(kind: str, dataset: Dataset, keywords: tuple[str, ...]) -> Dataset:
    record = Dataset()
    record.OffsetOfTheNextDirectoryRecord = 0
    record.RecordInUseFlag = 0xFFFF
    record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
    record.DirectoryRecordType = kind
    record.SpecificCharacterSet = dataset.SpecificCharacterSet
    for keyword in keywords:
        if keyword in dataset:
            setattr(record, keyword, dataset[keyword].value)
    return record


def _walk(nodes: Iterable[_Node]) -> Iterable[_Node]:
    for node in nodes:
        yield node
        yield from _walk(node.children.values())


def _record_offsets(directory: Dataset) -> list[int]:
    """Byte offset of each record in the file; offsets are of fixed length, so filling them in moves nothing."""
    buffer = BytesIO()
    directory.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return [int(item.seq_item_tell) for item in dcmread(buffer).DirectoryRecordSequence]
