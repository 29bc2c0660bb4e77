"""Objects that radloop made of a de-identified study become objects of the study that it was made from.

In: the files of one study below OUT, which may come from anywhere; only to be called in a worker process (`pipeline.work`), where time and
memory are bounded; and what the crosswalk says of the study's images. Out: the objects below the target, each checked, alone and among the
others, before it is written; or why one was left. What changes: patient, study, scanner, every UID, dates; what says that the source was
de-identified goes. What radloop itself said stays, and when it said it.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from pipeline.dicom.conformance_item import Item
from pipeline.dicom.conformance_references import references_of, set_findings
from pipeline.dicom.deidentification_values import moved, names_a_kind
from pipeline.dicom.derived import (
    ACQUISITION_EQUIPMENT,
    MANUFACTURER,
    acquisition_equipment,
    content_digest,
    uid_from,
    write_object,
)
from pipeline.dicom.key_objects import REJECTED
from pipeline.dicom.original import Original, dummies, read_original
from pipeline.dicom.source import PATIENT_AND_STUDY, UNREADABLE, items, settle_character_set
from pipeline.errors import ObjectError, Rejected
from pipeline.files import open_regular

_TEXTS = frozenset({"LO", "SH", "ST", "LT", "UT", "UC", "PN"})
_DATES = frozenset({"DA", "DT"})
_ZONE = "TimezoneOffsetFromUTC"
_KINDS = frozenset({"CodingSchemeUID", "ContextUID", "MappingResourceUID"})
"""UIDs that name no instance, and that de-identification leaves as they are."""
_ISSUERS = ("IssuerOfPatientIDQualifiersSequence", "IssuerOfAccessionNumberSequence")
_DAY = re.compile(r"\d{8}")
TRACKING = "112040"
"""Tracking Unique Identifier, DCM."""


class Left(StrEnum):
    """Why an object does not go back. Closed: `not_reidentified.csv` holds these, and reasons of `RejectReason`."""

    NOT_OURS = "not_a_radloop_object"
    """radloop did not make it: nobody knows which of its attributes speak of whom."""
    UNKNOWN_STUDY = "unknown_study"
    """The crosswalk has no image of its study."""
    UNFILABLE = "study_without_identity"
    """The original has no valid PatientID or StudyInstanceUID: an object could only be filed wrongly."""
    ANOTHER_PATIENT = "another_patient"
    """Its PatientID is not the pseudonym that the crosswalk has for the study."""
    UNKNOWN_UID = "unknown_uid"
    """It names something that neither the crosswalk nor OUT knows."""
    DUMMY = "dummy_value"
    """It holds a value that de-identification put in place of another, which would be taken for true."""
    INVALID = "invalid"
    """It would be no valid object, or refer to what is not there."""
    DEPENDS = "refers_to_one_that_is_left"
    """It refers to another object of OUT that does not go back."""
    UNREADABLE = "unreadable"
    """The file is gone, or cannot be parsed."""


@dataclass(frozen=True)
class Image:
    """A source of the objects as the crosswalk has it: its UIDs now and before."""

    new_study_instance_uid: str
    new_series_instance_uid: str
    new_sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    frame_of_reference_uid: str
    sop_class_uid: str
    frames: int
    new_patient_id: str
    days: int
    original: str

    @cached_property
    def identity(self) -> Original | None:
        """None where no object can be filed in its study."""
        return read_original(self.original) if self.original else None


@dataclass(frozen=True)
class StudyJob:
    """Objects of one study: their paths below `folder`, and the images of the study."""

    folder: str
    paths: tuple[str, ...]
    target: str
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Returned:
    """An object of the original study; `path` is relative to the target, `sources` are the images that it refers to."""

    path: str
    sop_instance_uid: str
    content_digest: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class NotReturned:
    """Why an object stays where it is; no value of it."""

    reason: Left
    detail: str


class _LeftBehind(Exception):
    def __init__(self, reason: Left, detail: str) -> None:
        super().__init__(detail)
        self.outcome = NotReturned(reason, detail)


def return_study(job: StudyJob) -> list[Returned | NotReturned]:
    """What became of each of the job's files, in their order."""
    with warnings.catch_warnings(), disable_value_validation():  # pydicom's warnings and logs quote values
        warnings.simplefilter("ignore")
        return _return_study(job)


def _return_study(job: StudyJob) -> list[Returned | NotReturned]:
    outcomes: dict[str, Returned | NotReturned] = {}
    found: dict[str, Dataset] = {}
    for path in job.paths:
        try:
            found[path] = _read(Path(job.folder) / path)
        except _LeftBehind as left:
            outcomes[path] = left.outcome
    own = frozenset(uid for dataset in found.values() for uid in _own_uids(dataset))
    restored: dict[str, Dataset] = {}
    gone: set[str] = set()
    for path, dataset in found.items():
        uid = str(dataset.get("SOPInstanceUID", ""))
        try:
            restored[path] = _restored(dataset, job.images, own)
        except _LeftBehind as left:
            outcomes[path] = left.outcome
        except (
            Exception
        ) as error:  # whatever a hostile object makes of pydicom is its own fault, and its text quotes values
            outcomes[path] = NotReturned(Left.INVALID, f"it cannot be rewritten ({type(error).__name__})")
        if path in outcomes:
            gone |= {_new_own(image.study_instance_uid, uid) for image in job.images[:1]}
    outcomes |= _written(restored, gone, job)
    return [outcomes[path] for path in job.paths]


def _written(
    restored: Mapping[str, Dataset], gone: Collection[str], job: StudyJob
) -> dict[str, Returned | NotReturned]:
    """Each object written after those that it refers to; left where its references lead nowhere, or to one that is left (`gone`)."""
    outcomes: dict[str, Returned | NotReturned] = {}
    places = {str(dataset.SOPInstanceUID): path for path, dataset in restored.items()}
    images = [image.sop_instance_uid for image in job.images]
    sources = [*map(_header, job.images), _carried_on(restored.values(), {*images, *places, *gone})]
    wrong: dict[str, str] = {}
    for finding in set_findings(list(restored.values()), sources):
        uid, _, what = finding.partition(": ")
        wrong.setdefault(uid, what)
    for path in _in_order(restored, places):
        dataset = restored[path]
        uid = str(dataset.SOPInstanceUID)
        referred = dict.fromkeys(one.sop_instance_uid for one in references_of(Item(dataset)))
        beside = [places[one] for one in referred if one in places and one != uid]
        if any(one in gone for one in referred) or any(not isinstance(outcomes.get(one), Returned) for one in beside):
            outcomes[path] = NotReturned(Left.DEPENDS, "see the row of the other object")
        elif uid in wrong:
            outcomes[path] = NotReturned(Left.INVALID, wrong[uid])
        elif places[uid] != path:
            outcomes[path] = NotReturned(Left.INVALID, "another object of OUT has its SOPInstanceUID")
        else:
            outcomes[path] = _write(dataset, Path(job.target), tuple(one for one in referred if one not in places))
    return outcomes


def _write(dataset: Dataset, target: Path, sources: tuple[str, ...]) -> Returned | NotReturned:
    try:
        path = write_object(dataset, target)
    except ObjectError as error:
        return NotReturned(Left.INVALID, str(error))
    except UNREADABLE as error:
        return NotReturned(Left.INVALID, f"it cannot be written ({type(error).__name__})")
    return Returned(path.relative_to(target).as_posix(), str(dataset.SOPInstanceUID), content_digest(dataset), sources)


def _in_order(restored: Mapping[str, Dataset], places: Mapping[str, str]) -> list[str]:
    """What is referred to before what refers to it; in a circle, which radloop never makes, in the order of the paths."""
    order: dict[str, None] = {}
    begun: set[str] = set()

    def visit(path: str) -> None:
        if path in begun:
            return
        begun.add(path)
        for reference in references_of(Item(restored[path])):
            if reference.sop_instance_uid in places:
                visit(places[reference.sop_instance_uid])
        order[path] = None

    for path in restored:
        visit(path)
    return list(order)


# --- reading


def _read(path: Path) -> Dataset:
    """A whole object of radloop's."""
    try:
        with open_regular(path) as file:
            dataset = dcmread(file)
            dataset.decode()
            for element in dataset.iterall():
                _ = element.value
    except Rejected as error:
        raise _LeftBehind(Left.UNREADABLE, error.detail) from None
    except (OSError, InvalidDicomError, EOFError, RecursionError, *UNREADABLE) as error:
        raise _LeftBehind(Left.UNREADABLE, f"it cannot be read as DICOM ({type(error).__name__})") from None
    if str(dataset.get("Manufacturer", "")) != MANUFACTURER:
        raise _LeftBehind(Left.NOT_OURS, f"Manufacturer is not {MANUFACTURER}")
    return dataset


def _own_uids(dataset: Dataset) -> Iterator[str]:
    """UIDs that an object gave itself; where the crosswalk knows one, it is the source's all the same (a copy has some)."""
    yield from (str(dataset.get(keyword, "")) for keyword in ("SOPInstanceUID", "SeriesInstanceUID"))
    for element in dataset.iterall():
        if element.keyword in ("DimensionOrganizationUID", "TrackingUID"):
            yield str(element.value)
    for item in _content(dataset):
        concept = items(item, "ConceptNameCodeSequence")
        if concept and concept[0].get("CodeValue") == TRACKING:
            yield str(item.get("UID", ""))
    if _is_rejection(dataset):  # of objects of an earlier OUT, which go back by the same rule
        for reference in references_of(Item(dataset)):
            yield from (reference.sop_instance_uid, reference.series)


def _content(item: Dataset) -> Iterator[Dataset]:
    for inner in items(item, "ContentSequence"):
        yield inner
        yield from _content(inner)


def _is_rejection(dataset: Dataset) -> bool:
    title = items(dataset, "ConceptNameCodeSequence")
    return bool(title) and title[0].get("CodeValue") == REJECTED.value and dataset.get("Modality") == "KO"


# --- the way back


def _restored(dataset: Dataset, images: Sequence[Image], own: frozenset[str]) -> Dataset:
    """The object as one of the original study."""
    image = _source_of(dataset, images)
    identity = image.identity
    if identity is None:
        raise _LeftBehind(
            Left.UNFILABLE, "the original has no valid PatientID or StudyInstanceUID; correct it in the PACS"
        )
    if str(dataset.get("PatientID", "")) != image.new_patient_id:
        raise _LeftBehind(Left.ANOTHER_PATIENT, "its PatientID is not the pseudonym of the crosswalk")
    created = str(dataset.get("InstanceCreationDate", ""))
    _put_identity(dataset, identity)
    _move_dates(dataset, -image.days, created)
    _put_uids(dataset, _uids_of(images), own, _devices(dataset), image.study_instance_uid)
    _put_study(dataset, identity)
    left = dummies(dataset)
    if left:
        raise _LeftBehind(Left.DUMMY, f"{left[0]} holds a dummy of the de-identification")
    if any(image.new_patient_id in str(element.value) for element in dataset.iterall() if element.VR in _TEXTS):
        raise _LeftBehind(Left.DUMMY, "the patient's pseudonym stands in a text of it")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    settle_character_set(dataset, identity.study)
    return dataset


def _source_of(dataset: Dataset, images: Sequence[Image]) -> Image:
    """The image whose patient and study the object has: the first that it refers to, else any of its study."""
    study = str(dataset.get("StudyInstanceUID", ""))
    of_study = {image.new_sop_instance_uid: image for image in images if image.new_study_instance_uid == study}
    if not of_study:
        raise _LeftBehind(Left.UNKNOWN_STUDY, "the crosswalk has no image of its study")
    referred = (reference.sop_instance_uid for reference in references_of(Item(dataset)))
    return next((of_study[uid] for uid in referred if uid in of_study), next(iter(of_study.values())))


def _uids_of(images: Sequence[Image]) -> dict[str, str]:
    """What each UID of the de-identified study stands for."""
    uids: dict[str, str] = {}
    for image in images:
        uids |= image.identity.uids if image.identity is not None else {}
    for image in images:
        for name in ("study_instance_uid", "series_instance_uid", "sop_instance_uid"):
            uids[getattr(image, f"new_{name}")] = getattr(image, name)
    return uids


def _devices(dataset: Dataset) -> frozenset[str]:
    """The model's UID, which is the same wherever its weights are."""
    contributed = items(dataset, "ContributingEquipmentSequence")
    return frozenset(
        str(item.get("DeviceUID", "")) for item in contributed if item.get("Manufacturer") == MANUFACTURER
    ) - {""}


def _put_identity(dataset: Dataset, identity: Original) -> None:
    """The scanner, and what de-identification put a dummy for, as the original has it; nothing says any more that it was de-identified."""
    for element in identity.replaced:
        if element.tag in dataset and element.keyword in dummies(dataset):
            dataset.add(element)
    contributed = list(items(dataset, "ContributingEquipmentSequence"))
    scanner, model = (
        contributed[-2:-1],
        contributed[-1:],
    )  # as `derived.shared_attributes` puts them, behind a copied source's own
    if scanner and _purpose(scanner[0]) == ACQUISITION_EQUIPMENT.value:
        contributed = [*contributed[:-2], *acquisition_equipment(identity.equipment), *model]
    dataset.ContributingEquipmentSequence = contributed
    if "DeidentificationMethodCodeSequence" in dataset:
        del dataset.DeidentificationMethodCodeSequence


def _purpose(item: Dataset) -> str:
    codes = items(item, "PurposeOfReferenceCodeSequence")
    return str(codes[0].get("CodeValue", "")) if codes else ""


def _put_study(dataset: Dataset, identity: Original) -> None:
    """The patient and study modules of the original. Of an object whose own times are in another zone, they are told in the original's;
    where it says none, the object goes without, as nobody knows how far the two are apart."""
    zone, new_zone = str(dataset.get(_ZONE, "")), str(identity.study.get(_ZONE, ""))
    for keyword in (*PATIENT_AND_STUDY, *_ISSUERS, "SpecificCharacterSet"):
        if keyword in dataset:
            del dataset[keyword]
    for element in identity.study:
        if element.keyword not in (_ZONE, "SpecificCharacterSet"):
            dataset.add(element)
    if zone and new_zone and zone != new_zone:
        _tell_in_zone(dataset, zone, new_zone)
    if zone:
        dataset.TimezoneOffsetFromUTC = new_zone or zone


def _tell_in_zone(dataset: Dataset, zone: str, new_zone: str) -> None:
    """Dates and times at which the object was made."""
    before, after = (datetime.datetime.strptime(one, "%z").tzinfo for one in (zone, new_zone))
    created = f"{dataset.get('InstanceCreationDate', '')} {dataset.get('InstanceCreationTime', '')}"
    try:
        told = datetime.datetime.strptime(created, "%Y%m%d %H%M%S.%f").replace(tzinfo=before).astimezone(after)
    except ValueError:
        raise _LeftBehind(Left.INVALID, "it does not say when it was made") from None
    day, time = created.split()
    for element in dataset.iterall():
        value = str(element.value)
        if element.VR == "DA" and value == day:
            element.value = told.strftime("%Y%m%d")
        elif element.VR == "TM" and value == time:
            element.value = told.strftime("%H%M%S.%f")
        elif element.VR == "DT" and value == day + time:
            element.value = told.strftime("%Y%m%d%H%M%S.%f")


def _move_dates(dataset: Dataset, days: int, created: str) -> None:
    """Back to when it was. Dates of the day on which the object was made are its own."""
    if not days:
        return
    for element in dataset.iterall():
        if element.VR in _DATES and not element.is_empty:
            several = isinstance(element.value, MultiValue)
            values = [str(value) for value in (element.value if several else [element.value])]
            told = [
                value if _DAY.match(value) and value[:8] == created else moved(value, element.VR, days)
                for value in values
            ]
            if None in told:
                raise _LeftBehind(Left.INVALID, f"{element.keyword} holds no date")
            element.value = told if several else told[0]


def _put_uids(
    dataset: Dataset, uids: Mapping[str, str], own: frozenset[str], devices: frozenset[str], study_instance_uid: str
) -> None:
    """Every UID of an instance, at any depth: what the crosswalk says, else, of those that objects of OUT gave themselves, a new one."""

    def known(uid: str, keyword: str) -> str:
        if not uid or names_a_kind(uid) or uid in devices:
            return uid
        if uid in uids:
            return uids[uid]
        if uid in own:
            return _new_own(study_instance_uid, uid)
        raise _LeftBehind(Left.UNKNOWN_UID, f"{keyword} names what neither the crosswalk nor OUT knows")

    for element in dataset.iterall():
        if element.VR == "UI" and element.keyword not in _KINDS:
            several = isinstance(element.value, MultiValue)
            told = [known(str(one), element.keyword) for one in (element.value if several else [element.value or ""])]
            element.value = told if several else told[0]


def _new_own(study_instance_uid: str, uid: str) -> str:
    """The same each time; no object that inference itself makes in the original study has it."""
    return uid_from("reidentified", study_instance_uid, uid)


# --- what references may lead to


def _header(image: Image) -> Dataset:
    """What references must say of an image of the original study."""
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    header.SeriesInstanceUID, header.StudyInstanceUID = image.series_instance_uid, image.study_instance_uid
    header.NumberOfFrames, header.FrameOfReferenceUID = image.frames, image.frame_of_reference_uid
    return header


def _carried_on(made: Iterable[Dataset], known: Collection[str]) -> Dataset:
    """A stand-in that refers to all the others: what copies of a source still refer to, and rejection notes reject, need not be at hand."""
    stand_in = Dataset()
    stand_in.ReferencedImageSequence = []
    for dataset in made:
        for reference in references_of(Item(dataset)):
            if reference.sop_instance_uid not in known:
                item = Dataset()
                item.ReferencedSOPClassUID = reference.sop_class_uid
                item.ReferencedSOPInstanceUID = reference.sop_instance_uid
                stand_in.ReferencedImageSequence.append(item)
    return stand_in
