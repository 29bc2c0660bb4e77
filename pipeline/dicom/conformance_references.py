"""References between instances (PS3.3 10.3, 10.8): well formed, and leading to what exists.

`reference_findings` judges an object alone. `set_findings` judges a set of objects against the sources that they were made from: each
reference must lead to one of them or to another object of the set, by its true class, series and study, to a frame or segment that it
has. What a source itself refers to and an object carries on (a localizer, an earlier study) is nobody's to prove here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from pipeline.dicom.conformance_item import Item, name_of, path_name, tag_of
from pipeline.dicom.conformance_terms import PARAMETRIC_MAP, SEG

LISTS_WHAT_IT_NAMES = (SEG, PARAMETRIC_MAP)
"""Classes of radloop's that must list in the Common Instance Reference module whatever they refer to (usage C there)."""

NO_COMPOSITES = frozenset(
    map(
        tag_of,
        (
            "ReferencedPatientSequence",
            "ReferencedStudySequence",
            "ReferencedPerformedProcedureStepSequence",
            "ReferencedVisitSequence",
            "ReferencedRequestSequence",
            "ReferencedDefinedProtocolSequence",
            "ReferencedPerformedProtocolSequence",
        ),
    )
)
"""What these name are records of a hospital's systems, or protocols; no instance of an image archive."""

_STUDY, _SERIES = tag_of("StudyInstanceUID"), tag_of("SeriesInstanceUID")
_COMMON = tag_of("ReferencedSeriesSequence")


@dataclass(frozen=True, slots=True)
class Reference:
    """One item that names an instance. `study` and `series`: those under which it names it, '' where it names none."""

    where: str
    sop_class_uid: str
    sop_instance_uid: str
    study: str
    series: str
    frames: tuple[int, ...]
    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """What is known of an instance that a reference may lead to."""

    sop_class_uid: str
    sop_instance_uid: str
    study: str
    series: str
    frames: int
    segments: frozenset[int]
    frame_of_reference: str


def instance_of(root: Item) -> Instance:
    """What references to the object must say of it."""
    segments = (segment.number("SegmentNumber") for segment in root.items("SegmentSequence"))
    return Instance(
        sop_class_uid=root.text("SOPClassUID"),
        sop_instance_uid=root.text("SOPInstanceUID"),
        study=root.text("StudyInstanceUID"),
        series=root.text("SeriesInstanceUID"),
        frames=root.number("NumberOfFrames") or 1,
        segments=frozenset(number for number in segments if number is not None),
        frame_of_reference=root.text("FrameOfReferenceUID"),
    )


def references_of(root: Item) -> Iterator[Reference]:
    """Every reference to a composite instance, at any depth."""
    own = root.text("StudyInstanceUID")
    # PS3.3 C.12.2: at the root, ReferencedSeriesSequence is about the object's own study
    yield from _references(root, (), own if "ReferencedSeriesSequence" in root else "", "", at_root=True)


def _references(
    item: Item, path: tuple[int, ...], study: str, series: str, *, at_root: bool = False
) -> Iterator[Reference]:
    if not at_root:
        study = item.text("StudyInstanceUID") if _STUDY in item.elements else study
        series = item.text("SeriesInstanceUID") if _SERIES in item.elements else series
    if "ReferencedSOPInstanceUID" in item and not NO_COMPOSITES & set(path):
        yield Reference(
            path_name(path),
            item.text("ReferencedSOPClassUID"),
            item.text("ReferencedSOPInstanceUID"),
            study if series else "",
            series,
            tuple(_numbers(item.values("ReferencedFrameNumber"))),
            tuple(_numbers(item.values("ReferencedSegmentNumber"))),
        )
    for tag, inner in item.sequences.items():
        for one in inner:
            yield from _references(one, (*path, tag), study, series)


def reference_findings(root: Item, sop_class_uid: str) -> Iterator[str]:
    """Each reference names class and instance, not the object itself, and frames from 1; SEG and parametric maps list all they name."""
    yield from dict.fromkeys(_form_findings(root))
    if sop_class_uid in LISTS_WHAT_IT_NAMES:
        lists = ("ReferencedSeriesSequence", "StudiesContainingOtherReferencedInstancesSequence")
        references = list(references_of(root))
        listed = {reference.sop_instance_uid for reference in references if reference.where.startswith(lists)}
        if any(reference.sop_instance_uid not in listed for reference in references):
            yield "an instance that is referred to is not listed in ReferencedSeriesSequence (Common Instance Reference)"


def _form_findings(root: Item) -> Iterator[str]:
    own = root.text("SOPInstanceUID")
    for path, item in root.walk():
        if not path:
            continue
        name = name_of(path[-1])
        if ("ReferencedSOPClassUID" in item) != ("ReferencedSOPInstanceUID" in item):
            yield f"{name} has a reference with only one of class and instance"
        if own and item.text("ReferencedSOPInstanceUID") == own:
            yield f"{name} refers to the object itself"
        if any(number < 1 for number in _numbers(item.values("ReferencedFrameNumber"))):
            yield f"{name} refers to a frame below 1"


def set_findings(made: Sequence[Dataset], sources: Iterable[Dataset]) -> list[str]:
    """What is wrong with the references of `made`, each finding beginning with the object's SOPInstanceUID."""
    objects = [Item(dataset) for dataset in made]
    origins = [Item(source) for source in sources]
    known = {found.sop_instance_uid: found for found in map(instance_of, (*origins, *objects))}
    inherited = {
        (reference.sop_class_uid, reference.sop_instance_uid)
        for origin in origins
        for reference in references_of(origin)
    }
    spaces = {instance.frame_of_reference for instance in known.values()}
    findings = []
    for item in objects:
        own = item.text("SOPInstanceUID")
        found = dict.fromkeys(_followed(references_of(item), known, own, inherited))
        found |= dict.fromkeys(_space_findings(item, spaces))
        findings += [f"{own}: {finding}" for finding in found]
    return findings


def _followed(
    references: Iterable[Reference], known: Mapping[str, Instance], own: str, inherited: set[tuple[str, str]]
) -> Iterator[str]:
    for reference in references:
        if reference.sop_instance_uid == own:
            yield f"{reference.where} refers to the object itself"
        elif reference.sop_instance_uid in known:
            yield from leads_astray(reference, known[reference.sop_instance_uid])
        elif (reference.sop_class_uid, reference.sop_instance_uid) not in inherited:
            yield f"{reference.where} refers to an instance that is neither a source nor made with it"


def leads_astray(reference: Reference, instance: Instance) -> Iterator[str]:
    """What `reference` says of `instance`, to which it leads, that is not so."""
    if reference.sop_class_uid != instance.sop_class_uid:
        yield f"{reference.where} names an instance by another SOP class than its own"
    if reference.series and reference.series != instance.series:
        yield f"{reference.where} names an instance in another series than its own"
    if reference.study and reference.study != instance.study:
        yield f"{reference.where} names an instance in another study than its own"
    if any(not 1 <= frame <= instance.frames for frame in reference.frames):
        yield f"{reference.where} names a frame that the instance does not have"
    if instance.segments and any(segment not in instance.segments for segment in reference.segments):
        yield f"{reference.where} names a segment that the instance does not have"


def _space_findings(root: Item, spaces: set[str]) -> Iterator[str]:
    """Coordinates in the patient lie in a frame of reference of a source, or they lie nowhere."""
    for _, item in root.walk():
        if item.text("ValueType") == "SCOORD3D" and item.text("ReferencedFrameOfReferenceUID") not in spaces:
            yield "SCOORD3D is in a frame of reference that no source has"


def _numbers(values: Iterable[object]) -> Iterator[int]:
    for value in values:
        try:
            yield int(str(value))
        except ValueError:
            continue
