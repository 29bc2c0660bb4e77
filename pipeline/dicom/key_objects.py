"""Key Object Selections: the images that decided a case, and the rejection of what a newer result replaces (PS3.3 A.35.4, PS3.16 TID 2010).

In: a `CaseResult`, its key images and the objects made of it before; or the instances to reject. Out: a dataset ready for
`derived.write_object`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, KeyObjectSelectionDocumentStorage

from pipeline import RESEARCH_ONLY
from pipeline.dicom import conformance, documents
from pipeline.dicom.begin import LO_CHARACTERS, begin_object, finish_object, result_text, source_items
from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.derived import (
    Algorithm,
    SourceFrame,
    ascii_text,
    instance_uid,
    series_uid,
    shared_attributes,
)
from pipeline.dicom.documents import Instance, image_item, instance_of, object_item
from pipeline.dicom.source import as_source
from pipeline.errors import ObjectError
from pipeline.profile_settings import Profile

OF_INTEREST = Code("113000", "DCM", "Of Interest")
"""Not 'For Report Attachment': what goes into a report is a radiologist's choice, and this is for research."""
REJECTED = Code("113001", "DCM", "Rejected for Quality Reasons")
"""Of IHE IOCM's reasons (RAD TF-3 4.66) the one for objects that should no longer be shown although they are what they say they are: the
archive keeps and hides them, and can bring them back. 113037 (patient safety) is for objects that would be wrong to see, such as another
patient's; 113038 is for a wrong worklist entry; 113039 (retention expired) has the archive delete them."""
DESCRIPTION = Code("113012", "DCM", "Key Object Description")
TEMPLATE = "2010"
REJECTION = "rejection_note"
"""Part of the UIDs of rejection notes."""


def why_not(source: Dataset) -> str:
    """Why there can be no Key Object Selection of the source; '' where there can."""
    return documents.why_not(source)


def key_objects(result: CaseResult, images: Sequence[ResultImage], made: Sequence[Dataset]) -> Dataset:
    """A Key Object Selection of the case's key `images`, and of what shows and tells of them in `made`: pictures and structured report.

    Where `made` has a presentation state for an image, the reference to the image names it. Raises ObjectError where an image cannot be
    referred to.
    """
    for reason in filter(None, (why_not(image.source) for image in images)):
        raise ObjectError(reason)
    selection = begin_object(result, "kos", "KO", images)
    references = [documents.with_presentation(reference, made) for reference in source_items(images)]
    telling = [
        instance_of(dataset)
        for dataset in made
        if dataset.SOPClassUID in documents.PICTURES or dataset.SOPClassUID == Comprehensive3DSRStorage
    ]
    chosen = [image_item(reference, "CONTAINS") for reference in references]
    chosen += [object_item(instance, "CONTAINS") for instance in telling]
    listed = [instance_of(image.source) for image in images] + telling
    states = {str(item.ReferencedSOPInstanceUID) for one in references for item in one.get("ReferencedSOPSequence", ())}
    listed += [instance_of(dataset) for dataset in made if dataset.SOPInstanceUID in states]
    _complete(selection, OF_INTEREST, result_text(result), result.algorithm, chosen, listed)
    return finish_object(selection, images[0].source)


def rejection_note(
    study_source: Dataset,
    rejected: Sequence[tuple[str, str, str]],
    algorithm: Algorithm,
    profile: Profile,
    created: datetime.datetime,
) -> Dataset:
    """A Key Object Selection that rejects older objects of radloop's in the study of `study_source`, its source or any other object of it.

    `rejected`: (SOPClassUID, SOPInstanceUID, SeriesInstanceUID) of each, in any order. Raises ObjectError where there is none, or one of
    them is no UID. The archive that gets it acts on exactly these instances (IHE IOCM).
    """
    instances = sorted({Instance(*map(str, uids)) for uids in rejected})
    _check_rejected(instances)
    source = as_source(study_source)
    note = shared_attributes(source, algorithm, created, timezone=profile.timezone)
    study, made_by = str(note.StudyInstanceUID), (algorithm, profile.content_digest)
    frames = [SourceFrame(instance.sop_instance_uid, 0, instance.series_instance_uid) for instance in instances]
    note.SOPInstanceUID = instance_uid(study, frames, *made_by, REJECTION)
    note.SeriesInstanceUID = series_uid(study, *made_by, REJECTION)
    note.Modality = "KO"
    note.SeriesNumber, note.InstanceNumber = profile.series_number_of("kos"), 1
    note.SeriesDescription = ascii_text("radloop replaced results (research use only)", LO_CHARACTERS)
    note.SeriesDate, note.SeriesTime = note.ContentDate, note.ContentTime
    text = f"{RESEARCH_ONLY}. A newer result of {algorithm.name} {algorithm.version} replaces these objects."
    _complete(note, REJECTED, text, algorithm, [object_item(one, "CONTAINS") for one in instances], instances)
    return finish_object(note, source)


def _check_rejected(instances: Sequence[Instance]) -> None:
    if not instances:
        raise ObjectError("rejected: expected one object or more, found none")
    for instance in instances:
        uids = (instance.sop_class_uid, instance.sop_instance_uid, instance.series_instance_uid)
        if not all(conformance.is_uid(uid) for uid in uids):
            raise ObjectError("rejected: expected UIDs of class, instance and series (PS3.5 9.1), found something else")
    if len({instance.sop_instance_uid for instance in instances}) < len(instances):
        raise ObjectError("rejected: expected each instance in one series and of one class, found one in several")


def _complete(
    selection: Dataset,
    title: Code,
    description: str,
    algorithm: Algorithm,
    chosen: Iterable[Dataset],
    listed: Iterable[Instance],
) -> None:
    """TID 2010, and the attributes of the modules that are a selection's own."""
    from highdicom.sr import TextContentItem

    selection.SOPClassUID = KeyObjectSelectionDocumentStorage
    selection.ReferencedPerformedProcedureStepSequence = []
    text = TextContentItem(DESCRIPTION, description, "CONTAINS")
    context = [*documents.language("en"), *documents.observer(algorithm)]
    documents.set_root(selection, title, TEMPLATE, [*context, text, *chosen])
    selection.CurrentRequestedProcedureEvidenceSequence = documents.evidence(str(selection.StudyInstanceUID), listed)
