"""What every derived object shares: its source's study, UIDs, references, equipment, and how it comes to the disk.

UIDs are hashes of sources, model, configuration and version, so that inferring again makes the same instance, and a
PACS keeps one copy. An object is checked before it is written, appears whole, and stays as it is where the same
content stands there.
"""

from __future__ import annotations

import datetime
import hashlib
import unicodedata
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pipeline import __version__
from pipeline.dicom import conformance
from pipeline.dicom.explicit_encoding import encoded, encoded_meta
from pipeline.dicom.source import (
    EQUIPMENT,
    KEPT,
    PATIENT_AND_STUDY,
    TYPE_2,
    UNREADABLE,
    carried,
    carry_all,
    frame_count,
    has_value,
    items,
)
from pipeline.errors import ObjectError
from pipeline.files import whole_file

MANUFACTURER = "radloop"
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")

VOLATILE = frozenset(
    {
        "ContentDate",
        "ContentTime",
        "InstanceCreationDate",
        "InstanceCreationTime",
        "DateOfSecondaryCapture",
        "TimeOfSecondaryCapture",
        "PresentationCreationDate",
        "PresentationCreationTime",
        "SeriesDate",
        "SeriesTime",
        "TimezoneOffsetFromUTC",
        "ContributionDateTime",
    }
)
"""When an object was made, at any depth: not part of its content."""

OTHER_ENCODINGS = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
"""Transfer syntaxes whose datasets are not in Explicit VR Little Endian: radloop writes them only where a source has them."""

IMPLEMENTATION_CLASS_UID = "2.25.226914029133711563716905834128403953721"
"""radloop as a writer of files (PS3.10 7.1); made once, at random."""


@dataclass(frozen=True)
class Algorithm:
    """Who made an object: radloop in its version, with the model of that name and digest (sha256, hexadecimal)."""

    name: str
    version: str
    model_name: str
    model_digest: str


@dataclass(frozen=True)
class SourceFrame:
    """One image that an object is derived from: its instance, frame (from 0) and the digest of its file."""

    sop_instance_uid: str
    frame: int
    digest: str


def shared_attributes(
    source: Dataset, algorithm: Algorithm, created: datetime.datetime, *, timezone: str = ""
) -> Dataset:
    """Patient, study, equipment, contributing equipment and times for an object derived from `source` (`as_source`).

    `created` with a time zone is written in the zone that the source declares, else in `timezone` (+HHMM), which is then declared, else
    as it stands: all times of a dataset are in one zone (PS3.3 C.12.1.1.8). Modality, series and UIDs are the object's own. Raises
    ObjectError as `patient_and_study` does.
    """
    shared = patient_and_study(source)
    shared.Manufacturer = MANUFACTURER
    shared.ManufacturerModelName = algorithm.name
    shared.SoftwareVersions = algorithm.version
    if timezone and "TimezoneOffsetFromUTC" not in shared:
        shared.TimezoneOffsetFromUTC = timezone
    local = _in_zone(created, shared.get("TimezoneOffsetFromUTC"))
    shared.ContributingEquipmentSequence = [*acquisition_equipment(source), _model_equipment(algorithm, local)]
    for name in ("Content", "InstanceCreation"):
        setattr(shared, f"{name}Date", local.strftime("%Y%m%d"))
        setattr(shared, f"{name}Time", local.strftime("%H%M%S.%f"))
    return shared


def patient_and_study(source: Dataset) -> Dataset:
    """What of the Patient and General Study modules an object has from its `source` (`as_source`), with the time zone of its dates.

    Raises ObjectError where one of `KEPT` is not valid; an empty PatientID is.
    """
    shared = Dataset()
    for keyword in TYPE_2:
        setattr(shared, keyword, "")
    carry_all(source, PATIENT_AND_STUDY, shared)
    for keyword in KEPT:
        if keyword not in shared or (shared[keyword].is_empty and has_value(source, keyword)):
            raise ObjectError(
                f"{keyword}: expected one valid value in the source, found none; an object could only be filed wrongly, "
                "so none is made; correct it in the PACS"
            )
    if shared.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in shared:
        shared.DeidentificationMethod = _deidentification(source)
    for keyword in ("IssuerOfPatientIDQualifiersSequence", "IssuerOfAccessionNumberSequence"):
        issuers = [issuer for item in items(source, keyword) if (issuer := _issuer(item))]
        if issuers:
            setattr(shared, keyword, issuers[:1])
    return shared


def acquisition_equipment(source: Dataset) -> list[Dataset]:
    """The source's scanner as an item of ContributingEquipmentSequence; none where its maker is not known."""
    scanner = carry_all(source, EQUIPMENT, Dataset())
    if "Manufacturer" not in scanner:
        return []
    scanner.ContributionDescription = "Acquired the source image"
    scanner.PurposeOfReferenceCodeSequence = [code_item(ACQUISITION_EQUIPMENT)]
    return [scanner]


def code_item(code: Code) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def source_item(source: Dataset, frame: int) -> Dataset:
    """An item of SourceImageSequence (PS3.3 C.12.4): the instance, its frame (here from 0) where it has several, and
    why."""
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if frame_count(source) > 1 and _may_have_frames(str(source.SOPClassUID)):
        item.ReferencedFrameNumber = frame + 1
    item.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
    return item


def ascii_text(text: str, characters: int) -> str:
    """`text` for an attribute of at most `characters`: ASCII, letters without their accents, '?' for others, one line, no backslash; cut
    with '...'."""
    apart = unicodedata.normalize("NFKD", " ".join(text.split()))
    unaccented = "".join(letter for letter in apart if not unicodedata.combining(letter))
    plain = unaccented.encode("ascii", "replace").decode().replace("\\", "/")
    plain = "".join(letter for letter in plain if letter.isprintable())
    return plain if len(plain) <= characters else plain[: characters - 3] + "..."


def uid_from(*parts: str) -> str:
    """The UID of these parts in this order: 2.25 and a UUID (PS3.5 B.2), of version 8 (RFC 9562), from their SHA-256.

    Each part is preceded by its length, so that no other split of the same letters gives the same UID.
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    number = bytearray(digest.digest()[:16])
    number[6] = number[6] & 0x0F | 0x80  # version 8: made by the application's own rule
    number[8] = number[8] & 0x3F | 0x80  # the variant of RFC 9562
    return f"2.25.{uuid.UUID(bytes=bytes(number)).int}"


def model_device_uid(algorithm: Algorithm) -> str:
    """The model as a device: one UID for its weights, whatever it is called."""
    return uid_from("model", algorithm.model_digest)


def series_uid(study_instance_uid: str, algorithm: Algorithm, configuration_digest: str, kind: str) -> str:
    """One series a study, model, configuration, version and kind of object."""
    return uid_from("series", kind, study_instance_uid, algorithm.model_digest, configuration_digest, algorithm.version)


def instance_uid(
    study_instance_uid: str, sources: Sequence[SourceFrame], algorithm: Algorithm, configuration_digest: str, kind: str
) -> str:
    """One instance for these sources in this order with this content, model, configuration, version and kind of
    object."""
    frames = [part for source in sources for part in (source.sop_instance_uid, str(source.frame), source.digest)]
    made_by = (algorithm.model_digest, configuration_digest, algorithm.version)
    return uid_from("instance", kind, study_instance_uid, *made_by, str(len(sources)), *frames)


def content_digest(dataset: Dataset) -> str:
    """SHA-256 of all attributes and pixels but `VOLATILE`, hexadecimal; the same before writing and after reading
    again. Pixels are taken as they lie in memory, without a copy."""
    found = hashlib.sha256()
    for piece in encoded(dataset, without=VOLATILE):
        found.update(piece)
    return found.hexdigest()


def object_path(out: Path, dataset: Dataset) -> Path:
    """`out`/StudyInstanceUID/SeriesInstanceUID/SOPInstanceUID.dcm. Raises ObjectError where one is no UID, so no
    safe name."""
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    for keyword in keywords:
        if not conformance.is_uid(str(dataset.get(keyword, ""))):
            raise ObjectError(f"{keyword}: expected a UID (PS3.5 9.1), found none that can name a file; not written")
    study, series, instance = (str(dataset[keyword].value) for keyword in keywords)
    return out / study / series / f"{instance}.dcm"


def write_object(dataset: Dataset, out: Path, *, checked: bool = False) -> Path:
    """Checks `dataset`, unless the caller has `checked` it, and writes it, whole or not at all, to `object_path`; returns the path.

    Where an object of the same content stands there already, it stays as it is, with its times. Raises ObjectError
    where the dataset is not valid, OSError where it cannot be written.
    """
    if not checked:
        conformance.check(dataset)
    path = object_path(out, dataset)
    if path.is_file() and _stands(path, content_digest(dataset)):
        return path
    with whole_file(path) as file:
        _write(dataset, file)
    return path


def _write(dataset: Dataset, file: BinaryIO) -> None:
    meta = _file_meta(dataset)
    if meta.TransferSyntaxUID in OTHER_ENCODINGS:
        complete = Dataset()
        complete.update(dataset)
        complete.file_meta = meta
        dcmwrite(file, complete, enforce_file_format=True)
        return
    file.write(bytes(128) + b"DICM" + encoded_meta(meta))
    for piece in encoded(dataset):
        file.write(piece)


def _may_have_frames(sop_class_uid: str) -> bool:
    """Whether references to this class may name a frame: not where its IOD has one frame, whatever a file of it
    says."""
    from highdicom._standard_utils import get_sop_class_iod_map, is_attribute_in_iod

    return sop_class_uid not in get_sop_class_iod_map() or is_attribute_in_iod("NumberOfFrames", sop_class_uid)


def _stands(path: Path, digest: str) -> bool:
    """Whether a whole object of this content is at `path`; a broken one is none."""
    try:
        return content_digest(dcmread(path)) == digest
    except (OSError, InvalidDicomError, EOFError, *UNREADABLE):
        return False


def _file_meta(dataset: Dataset) -> FileMetaDataset:
    """PS3.10 7.1: who wrote the file is radloop, whichever library built the dataset."""
    given = getattr(dataset, "file_meta", None) or FileMetaDataset()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(given.get("TransferSyntaxUID", ExplicitVRLittleEndian))
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = f"radloop {__version__}"[:16]
    return meta


def _model_equipment(algorithm: Algorithm, local: datetime.datetime) -> Dataset:
    """The model as contributing equipment (PS3.3 C.12.1.1.5), its digest as the UID of a device."""
    model = Dataset()
    model.Manufacturer = MANUFACTURER
    model.ManufacturerModelName = ascii_text(algorithm.model_name, 64)  # LO
    model.SoftwareVersions = ascii_text(algorithm.version, 64)
    model.DeviceUID = model_device_uid(algorithm)
    model.ContributionDateTime = local.strftime("%Y%m%d%H%M%S.%f")
    model.ContributionDescription = "Model that predicted the result"
    model.PurposeOfReferenceCodeSequence = [code_item(PROCESSING_EQUIPMENT)]
    return model


def _in_zone(created: datetime.datetime, offset: str | None) -> datetime.datetime:
    """`created` in the zone that `offset` (+HHMM, as `carried` lets it pass) names; as it is where either has none."""
    if created.tzinfo is None or not offset:
        return created
    return created.astimezone(datetime.datetime.strptime(offset, "%z").tzinfo)


def _deidentification(source: Dataset) -> list[str]:
    """DeidentificationMethod (1C, PS3.3 C.7.1.1) from the codes that may stand in its place."""
    meanings = [carried(item, "CodeMeaning") for item in items(source, "DeidentificationMethodCodeSequence")]
    return [str(meaning.value) for meaning in meanings if meaning is not None] or ["not stated by the source"]


def _issuer(item: Dataset) -> Dataset:
    """The HL7v2 Hierarchic Designator (PS3.3 10.14) of `item`, as far as it is valid."""
    issuer = carry_all(item, ("LocalNamespaceEntityID",), Dataset())
    universal = carry_all(item, ("UniversalEntityID", "UniversalEntityIDType"), Dataset())
    if len(universal) == 2:  # each needs the other
        issuer.update(universal)
    return issuer
