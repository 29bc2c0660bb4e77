"""How every object begins and ends, whatever its kind: study, series, instance, equipment, times, references, texts.

In: a `CaseResult` and those of its images that the object is about, all of one study. Out: a dataset to which a kind's own module adds
what it shows. Each kind has one series a study, model and configuration; where that would mix what a series may not mix (frames of
reference, body parts), the kind's module tells its series apart by a word of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydicom.dataset import Dataset

from pipeline import RESEARCH_ONLY
from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.derived import (
    SourceFrame,
    ascii_text,
    instance_uid,
    series_uid,
    shared_attributes,
    source_item,
)
from pipeline.dicom.source import carried, frame_count, settle_character_set
from pipeline.errors import ObjectError
from pipeline.profile_settings import Kind

LO_CHARACTERS, ST_CHARACTERS, LT_CHARACTERS = 64, 1024, 10240  # PS3.5 6.2

NAMES: Mapping[Kind, str] = {
    "sc": "secondary_capture",
    "sc-multiframe": "multiframe_capture",
    "overlay": "overlay_plane",
    "gsps": "presentation_state",
    "seg": "segmentation",
    "pmap": "parametric_map",
    "sr": "structured_report",
    "kos": "key_object_selection",
    "pdf": "encapsulated_pdf",
}
"""Part of every UID: a kind's key may be renamed, this never."""

DESCRIPTIONS: Mapping[Kind, str] = {
    "sc": "radloop {model} heatmap (research use only)",
    "sc-multiframe": "radloop {model} heatmaps (research use only)",
    "overlay": "radloop {model} outline (research use only)",
    "gsps": "radloop {model} annotation (research use only)",
    "seg": "radloop {model} region (research use only)",
    "pmap": "radloop {model} evidence (research use only)",
    "sr": "radloop {model} result (research use only)",
    "kos": "radloop {model} key images (research use only)",
    "pdf": "radloop {model} report (research use only)",
}
"""SeriesDescription, where the profile has none."""


def begin_object(
    result: CaseResult, kind: Kind, modality: str, images: Sequence[ResultImage], *, series: str | None = None
) -> Dataset:
    """Patient, study, series, equipment, UIDs, numbers and times of an object of `kind` about `images`, in this order.

    `series`: what tells several series of the kind in one study apart, e.g. the source's SeriesInstanceUID; None where there is one.
    InstanceNumber follows the first image's, so that objects sort like their sources. SOPClassUID and all else are the kind's own.
    Raises ObjectError where the images are of several studies, or one cannot be referred to.
    """
    _check(images)
    source = images[0].source
    begun = shared_attributes(source, result.algorithm, result.created, timezone=result.profile.timezone)
    study = str(begun.StudyInstanceUID)
    name, made_by = NAMES[kind], (result.algorithm, result.configuration_digest)
    frames = [SourceFrame(str(image.source.SOPInstanceUID), image.frame, result.content) for image in images]
    begun.SOPInstanceUID = instance_uid(study, frames, *made_by, name)
    begun.SeriesInstanceUID = series_uid(study, *made_by, name if series is None else f"{name} {series}")
    begun.Modality = modality
    begun.SeriesNumber = result.profile.series_number_of(kind)
    begun.SeriesDescription = series_description(result, kind)
    begun.SeriesDate, begun.SeriesTime = begun.ContentDate, begun.ContentTime
    begun.InstanceNumber = instance_number(images[0])
    return begun


def finish_object(dataset: Dataset, source: Dataset) -> Dataset:
    """`dataset`, complete but for its character set, with it: the source's where that has all letters, else UTF-8."""
    settle_character_set(dataset, source)
    return dataset


def series_description(result: CaseResult, kind: Kind) -> str:
    """The profile's, else radloop's own; a model's name that is too long for it is cut, not the words around it."""
    pattern = result.profile.series_descriptions.get(kind, DESCRIPTIONS[kind])
    room = LO_CHARACTERS - len(ascii_text(pattern.replace("{model}", "m"), LO_CHARACTERS)) + 1
    model = ascii_text(result.algorithm.model_name, max(room, len("...")))
    return ascii_text(pattern.replace("{model}", model), LO_CHARACTERS)


def instance_number(image: ResultImage) -> int:
    """The source's own InstanceNumber; frames follow it. 1 where there is none, or none that an IS may hold."""
    try:
        number = int(str(image.source.get("InstanceNumber"))) + image.frame
    except ValueError:
        number = 1 + image.frame
    return number if 0 < number < 2**31 else 1


def source_items(images: Sequence[ResultImage]) -> list[Dataset]:
    """Items of SourceImageSequence for `images`: one for each instance, in the order in which they first come, with its frames."""
    frames: dict[str, list[int]] = {}
    sources: dict[str, Dataset] = {}
    for image in images:
        uid = str(image.source.SOPInstanceUID)
        sources.setdefault(uid, image.source)
        frames.setdefault(uid, []).append(image.frame)
    found = []
    for uid, source in sources.items():
        item = source_item(source, frames[uid][0])
        if "ReferencedFrameNumber" in item and len(frames[uid]) > 1:
            item.ReferencedFrameNumber = [frame + 1 for frame in dict.fromkeys(frames[uid])]
        found.append(item)
    return found


def result_text(result: CaseResult, characters: int = LT_CHARACTERS) -> str:
    """What an attribute for comments says, ASCII: research use only, in the site's words too, the result, what must be said beside it."""
    sentences = (*dict.fromkeys((RESEARCH_ONLY, result.profile.texts.research_only)), result.said, *result.notes)
    return ascii_text(" ".join(f"{text.rstrip('.')}." for text in sentences if text), characters)


def derivation_text(result: CaseResult, images: Sequence[ResultImage], what: str) -> str:
    """DerivationDescription: by which model, configuration and version, of which frame, and `what` was made; ASCII."""
    algorithm = result.algorithm
    frame, count = images[0].frame, frame_count(images[0].source)
    of_frames = f" Frame {frame + 1} of {count}." if len(images) == 1 and count > 1 else ""
    return ascii_text(
        f"Model {algorithm.model_name}, digest {algorithm.model_digest}, configuration {result.configuration_digest}, "
        f"{algorithm.name} {algorithm.version}.{of_frames} {what}",
        ST_CHARACTERS,
    )


def _check(images: Sequence[ResultImage]) -> None:
    if not images:
        raise ObjectError("images: expected one or more, found none")
    for image in images:
        for keyword in ("SOPClassUID", "SOPInstanceUID"):
            if carried(image.source, keyword) is None:
                raise ObjectError(f"{keyword}: the source has none that is valid, so no object can refer to it")
        count = frame_count(image.source)
        if not 0 <= image.frame < count:
            raise ObjectError(f"frame: expected 0 to {count - 1}, found {image.frame}")
    studies = {str(image.source.get("StudyInstanceUID")) for image in images}
    if len(studies) > 1:
        raise ObjectError(f"images: expected all of one study, found {len(studies)} studies")
