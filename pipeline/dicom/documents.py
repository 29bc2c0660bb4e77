"""What structured reports and key object selections share: who says it and in which language, what they refer to, and how content becomes
attributes (PS3.3 C.17, PS3.16 TID 1001, 1204).

In: a case's images and the objects made of it before. Out: content items of highdicom's classes, and plain datasets. highdicom is imported
inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    GrayscaleSoftcopyPresentationStateStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.derived import MANUFACTURER, Algorithm, ascii_text, code_item, model_device_uid
from pipeline.dicom.source import carried, items

if TYPE_CHECKING:
    from highdicom.sr import LanguageOfContentItemAndDescendants, ObserverContext

PICTURES = frozenset({SecondaryCaptureImageStorage, MultiFrameTrueColorSecondaryCaptureImageStorage})
NEEDED_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")
MEANING_CHARACTERS = 64  # LO, of CodeMeaning
LANGUAGES: Mapping[str, str] = {
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "tr": "Turkish",
    "zh": "Chinese",
}
"""Names of some of the languages of CID 5000, by their tag of RFC 5646; another tag names itself."""


@dataclass(frozen=True, order=True)
class Instance:
    """An instance as evidence lists it."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


def why_not(source: Dataset) -> str:
    """Why no document can refer to the source; '' where one can."""
    for keyword in NEEDED_UIDS:
        if carried(source, keyword) is None:
            return f"the source has no valid {keyword}, so no document can refer to it"
    return ""


def instance_of(dataset: Dataset) -> Instance:
    """How `dataset`, a source or an object, is referred to."""
    return Instance(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(dataset.SeriesInstanceUID))


def predicted_instances(result: CaseResult) -> list[Instance]:
    """The instances of all images that the result depends on, in their order, but those that nothing can refer to (`why_not`).

    A case has one study: the objects are filed there, and evidence is listed under it.
    """
    sources = {id(image.source): image.source for image in result.images}.values()
    return list(dict.fromkeys(instance_of(source) for source in sources if not why_not(source)))


def evidence(study_instance_uid: str, instances: Iterable[Instance]) -> list[Dataset]:
    """CurrentRequestedProcedureEvidenceSequence (PS3.3 C.17.2.3): each of `instances`, all of one study, once, by series."""
    by_series: dict[str, dict[Instance, None]] = {}
    for instance in instances:
        by_series.setdefault(instance.series_instance_uid, {})[instance] = None
    study = Dataset()
    study.StudyInstanceUID = study_instance_uid
    study.ReferencedSeriesSequence = []
    for series_instance_uid, of_series in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = series_instance_uid
        series.ReferencedSOPSequence = [_reference(instance) for instance in of_series]
        study.ReferencedSeriesSequence.append(series)
    return [study]


def image_item(reference: Dataset, relationship: str, name: Code | None = None) -> Dataset:
    """A content item IMAGE (PS3.3 C.18.4). `reference`: class, instance and, where it is not about all of it, frames; what else
    there is (the purpose that SourceImageSequence has) is left behind: in documents the concept name says it."""
    item = _content_item("IMAGE", relationship, name)
    referenced = Dataset()
    for keyword in (
        "ReferencedSOPClassUID",
        "ReferencedSOPInstanceUID",
        "ReferencedFrameNumber",
        "ReferencedSOPSequence",
    ):
        if keyword in reference:
            referenced[keyword] = reference[keyword]
    item.ReferencedSOPSequence = [referenced]
    return item


def object_item(instance: Instance, relationship: str) -> Dataset:
    """A content item that refers to a whole instance: IMAGE for what has pixels, else COMPOSITE (PS3.3 C.18.3)."""
    if has_pixels(instance.sop_class_uid):
        return image_item(_reference(instance), relationship)
    item = _content_item("COMPOSITE", relationship)
    item.ReferencedSOPSequence = [_reference(instance)]
    return item


def has_pixels(sop_class_uid: str) -> bool:
    """Whether instances of the class are images: classes of IODs with pixel data, as far as highdicom knows them."""
    from highdicom._standard_utils import does_iod_have_pixel_data, get_sop_class_iod_map

    return sop_class_uid in get_sop_class_iod_map() and does_iod_have_pixel_data(sop_class_uid)


def with_presentation(reference: Dataset, made: Sequence[Dataset]) -> Dataset:
    """`reference` to an image, with the presentation state of `made` by which it is to be shown, where there is one (PS3.3 C.18.4)."""
    for state in made:
        if state.SOPClassUID != GrayscaleSoftcopyPresentationStateStorage:
            continue
        shown = [
            str(image.ReferencedSOPInstanceUID)
            for series in items(state, "ReferencedSeriesSequence")
            for image in items(series, "ReferencedImageSequence")
        ]
        if reference.ReferencedSOPInstanceUID in shown:
            presented = Dataset()
            presented.update(reference)
            presented.ReferencedSOPSequence = [_reference(instance_of(state))]
            return presented
    return reference


def is_picture_of(picture: Dataset, image: ResultImage) -> bool:
    """Whether `picture` is a Secondary Capture of this image alone."""
    sources = items(picture, "SourceImageSequence")
    if picture.SOPClassUID != SecondaryCaptureImageStorage or len(sources) != 1:
        return False
    shown = str(sources[0].get("ReferencedSOPInstanceUID")), int(sources[0].get("ReferencedFrameNumber", 1))
    return shown == (str(image.source.SOPInstanceUID), image.frame + 1)


def observer(algorithm: Algorithm) -> ObserverContext:
    """TID 1002: the observer is a device, the model; its UID is that of its weights."""
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext

    return ObserverContext(
        observer_type=Code("121007", "DCM", "Device"),
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=model_device_uid(algorithm),
            name=ascii_text(algorithm.name, MEANING_CHARACTERS),
            manufacturer_name=MANUFACTURER,
            model_name=ascii_text(algorithm.model_name, MEANING_CHARACTERS),
            serial_number=algorithm.model_digest,
        ),
    )


def language(tag: str) -> LanguageOfContentItemAndDescendants:
    """TID 1204, from a tag of RFC 5646."""
    from highdicom.sr import CodedConcept, LanguageOfContentItemAndDescendants

    return LanguageOfContentItemAndDescendants(CodedConcept(tag, "RFC5646", LANGUAGES.get(tag, tag)))


def set_root(dataset: Dataset, title: Code, template: str, content: Iterable[Dataset]) -> None:
    """The root content item of `dataset`, a document, as plain datasets: no reader needs highdicom for them."""
    dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
    dataset.ConceptNameCodeSequence = [code_item(title)]
    used = Dataset()
    used.MappingResource, used.TemplateIdentifier = "DCMR", template
    dataset.ContentTemplateSequence = [used]
    dataset.ContentSequence = [_plain(item) for item in content]


def _content_item(value_type: str, relationship: str, name: Code | None = None) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = relationship, value_type
    if name is not None:
        item.ConceptNameCodeSequence = [code_item(name)]
    return item


def _reference(instance: Instance) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = instance.sop_class_uid
    reference.ReferencedSOPInstanceUID = instance.sop_instance_uid
    return reference


def _plain(item: Dataset) -> Dataset:
    plain = Dataset()
    for element in item:
        if element.VR == "SQ":
            plain.add_new(element.tag, "SQ", [_plain(inner) for inner in element.value])
        else:
            plain.add(element)
    return plain
