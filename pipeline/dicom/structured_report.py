"""The structured report of a case: Comprehensive 3D SR by TID 1500, as IHE AI Results asks for it (PS3.3 A.35.13, PS3.16 TID 1500).

In: a `CaseResult`, its key images, and the objects made of it before. Out: a dataset ready for `derived.write_object`. It says who observed
(the model, as a device), what (each finding, coded, called or not, with its probability), from which images, and where.

Its measurement groups are of one kind, because a viewer (OHIF) fails on a report that mixes them: where a region of evidence reaches the
threshold, a planar region of interest (TID 1410) for each of its connected parts; where none does on any key image, a group (TID 1501) for
each finding, about the whole key images. Either way the qualitative evaluations (TID 1500 row 12) hold the case's result in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from pipeline import RESEARCH_ONLY
from pipeline.dicom import documents
from pipeline.dicom.begin import LO_CHARACTERS, LT_CHARACTERS, begin_object, finish_object, source_items
from pipeline.dicom.body_region import ENTIRE_BODY, body_region
from pipeline.dicom.case_result import CaseResult, Finding, ResultImage
from pipeline.dicom.derived import MANUFACTURER, ascii_text, code_item, source_item, uid_from
from pipeline.dicom.documents import MEANING_CHARACTERS, has_pixels, image_item, instance_of
from pipeline.dicom.outline import Polyline, closed_polylines
from pipeline.dicom.source import carried
from pipeline.errors import ObjectError
from pipeline.wording import probability_text

if TYPE_CHECKING:
    from highdicom.sr import (
        AlgorithmIdentification,
        FindingSite,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        SourceImageForRegion,
        TrackingIdentifier,
    )

OWN_CODES = "99RADLOOP"
"""Designator of the codes that no public scheme has: a model's classes, and what only radloop measures (PS3.16 8.2)."""
TITLE = Code("126000", "DCM", "Imaging Measurement Report")
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
FINDING = Code("121071", "DCM", "Finding")
COMMENT = Code("121106", "DCM", "Comment")
PROBABILITY = Code("122157", "DCM", "Probability")
IMAGE_PROBABILITY = Code("IMAGE-PROB", OWN_CODES, "Probability from this image alone")
CALLED = Code("CALLED", OWN_CODES, "Finding is called by the model")
YES, NO = Code("373066001", "SCT", "Yes"), Code("373067005", "SCT", "No")
ILLUSTRATION = Code("121200", "DCM", "Illustration of ROI")
NO_UNITS = Code("1", "UCUM", "no units")
PIXELS = Code("{pixels}", "UCUM", "Pixels")
ALGORITHM_FAMILY = Code("123110", "DCM", "Artificial Intelligence")
SIDES = {
    "R": Code("24028007", "SCT", "Right"),
    "L": Code("7771000", "SCT", "Left"),
    "B": Code("51440002", "SCT", "Bilateral"),
}
PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
    "NM": Code("49118-3", "LN", "NM unspecified body region"),
}
"""Procedure reported (CID 100), by the source's modality. A code for radiographs came into the group after 2019: validators with older
tables call it an error, and the image library says the modality anyway."""
OTHER_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")

OWN_LANGUAGE = "en"
"""Of every code's meaning and of radloop's own words; texts of the site's profile tell theirs where they stand."""

MAXIMUM_POINTS = (2**16 - 2) // 8
"""Of one polyline: GraphicData is FL, whose length has 16 bits in explicit VR (PS3.5 7.1.2), and a point takes 8 bytes."""
FIRST_TOLERANCE_PIXELS = 0.5
"""By how much a polyline that has more points may be off at first; doubled until it has few enough. Half a pixel turns the stairs of an
oblique edge into a line, and moves it nowhere that anybody could see."""


def why_not(source: Dataset) -> str:
    """Why there can be no structured report of the source; '' where there can."""
    return documents.why_not(source)


def structured_report(result: CaseResult, images: Sequence[ResultImage], made: Sequence[Dataset]) -> Dataset:
    """A Comprehensive 3D SR of the case, about its key `images`; `made`: the case's other objects, which it lists as evidence.

    Raises ObjectError where an image cannot be referred to, or the class shown is none of the findings.
    """
    for reason in filter(None, (why_not(image.source) for image in images)):
        raise ObjectError(reason)
    report = begin_object(result, "sr", "SR", images)
    report.SOPClassUID = Comprehensive3DSRStorage
    report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag = "COMPLETE", "UNVERIFIED", "PRELIMINARY"
    report.PerformedProcedureCodeSequence = []  # Type 2: the study's own, which a source does not tell
    report.ReferencedPerformedProcedureStepSequence = []
    report.CodingSchemeIdentificationSequence = [_own_codes()]
    documents.set_root(report, TITLE, "1500", _content(result, images, made, report))
    key = [instance_of(image.source) for image in images]
    others = [instance_of(dataset) for dataset in made]
    report.CurrentRequestedProcedureEvidenceSequence = documents.evidence(
        str(report.StudyInstanceUID), [*key, *documents.predicted_instances(result), *others]
    )
    return finish_object(report, images[0].source)


def class_code(name: str) -> Code:
    """The code of a class: the same for the same name, whichever model has it."""
    return Code(f"C{uid_from('class', name)[-14:]}", OWN_CODES, ascii_text(name, MEANING_CHARACTERS))


def _own_codes() -> Dataset:
    """Who is responsible for `OWN_CODES` (PS3.3 C.12.1.1.7.1)."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator = OWN_CODES
    scheme.CodingSchemeName = "Classes of models trained with radloop"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme


def _content(
    result: CaseResult, images: Sequence[ResultImage], made: Sequence[Dataset], report: Dataset
) -> list[Dataset]:
    """Rows of TID 1500, in its order."""
    from highdicom.sr import MeasurementReport, ObservationContext

    groups = _region_groups(result, images, made, report) or _finding_groups(result, images, report)
    modality = carried(images[0].source, "Modality")
    measured = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=documents.observer(result.algorithm)),
        procedure_reported=PROCEDURES.get(str(modality.value) if modality is not None else "", OTHER_PROCEDURE),
        imaging_measurements=groups,
        title=TITLE,
        language_of_content_item_and_descendants=documents.language(OWN_LANGUAGE),
    )
    *context, measurements = measured[0].ContentSequence
    return [*context, _image_library(images, made), measurements, _evaluations(result)]


def _region_groups(
    result: CaseResult, images: Sequence[ResultImage], made: Sequence[Dataset], report: Dataset
) -> list[PlanarROIMeasurementsAndQualitativeEvaluations]:
    """TID 1410 for each connected part of each key image's region; none where no image has a region."""
    from highdicom.sr import ImageContentItem, ImageRegion, PlanarROIMeasurementsAndQualitativeEvaluations

    shown = _shown(result)
    groups = []
    for image in images:
        for number, outline in enumerate(_outlines(result, image), start=1):
            identifier = f"{shown.name}, key image {image.key}, region {number}"
            region = ImageRegion("POLYLINE", outline, _source_of_region(image))
            _set_pixel_origin(region, image)
            group = PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=_tracking(report, identifier, image, str(number)),
                referenced_region=region,
                finding_type=_concept(class_code(shown.name)),
                algorithm_id=_algorithm(result),
                finding_sites=_finding_sites(image),
                measurements=_measurements(result, shown, image),
                qualitative_evaluations=[_called(shown)],
            )
            pictures = [instance_of(picture) for picture in made if documents.is_picture_of(picture, image)]
            for picture in pictures[:1]:  # TID 1410 has room for one
                illustration = ImageContentItem(
                    ILLUSTRATION, picture.sop_class_uid, picture.sop_instance_uid, relationship_type="CONTAINS"
                )
                group[0].ContentSequence.append(illustration)
            groups.append(group)
    return groups


def _finding_groups(
    result: CaseResult, images: Sequence[ResultImage], report: Dataset
) -> list[MeasurementsAndQualitativeEvaluations]:
    """TID 1501 for each finding, about all key images as a whole."""
    from highdicom.sr import MeasurementsAndQualitativeEvaluations

    return [
        MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(report, finding.name, images[0], f"finding {number}"),
            finding_type=_concept(class_code(finding.name)),
            algorithm_id=_algorithm(result),
            finding_sites=_finding_sites(images[0]),
            measurements=[_whole_image_measurement(finding, images[0])],
            qualitative_evaluations=[_called(finding)],
            source_images=[_source_of_group(image) for image in images],
        )
        for number, finding in enumerate(result.findings, start=1)
    ]


def _outlines(result: CaseResult, image: ResultImage) -> list[Polyline]:
    """The outer boundary of each connected part of the image's region, in spatial coordinates (PS3.3 C.18.6.1: 0\\0 is the top left
    corner of the top left pixel). Holes are not cut out: a planar region of interest is one closed line."""
    region = result.region(image)
    expected = int(image.source.Rows), int(image.source.Columns)
    if region.shape != expected:
        raise ObjectError(f"evidence: expected (rows, columns) {expected} of the source, found {region.shape}")
    return [fitting(line) for line in closed_polylines(region) if _is_clockwise(line)]


def _is_clockwise(line: Polyline) -> bool:
    """Whether the line goes around pixels, not around a hole (`outline.closed_polylines`)."""
    x, y = line.astype(np.float64).T
    return bool(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0)


def fitting(line: Polyline) -> Polyline:
    """`line`, closed, as it is where it has at most `MAXIMUM_POINTS`; else with fewer points, within the smallest tolerance that does."""
    tolerance = FIRST_TOLERANCE_PIXELS
    simple = line
    while len(simple) > MAXIMUM_POINTS:
        simple = _simplified(line, tolerance)
        tolerance *= 2
    return simple


def _simplified(line: Polyline, tolerance: float) -> Polyline:
    """The points of `line` that a line within `tolerance` of all of them needs (Douglas and Peucker 1973). Closed stays closed."""
    points = line.astype(np.float64)
    kept = np.zeros(len(points), bool)
    far = int(np.argmax(np.linalg.norm(points - points[0], axis=1)))
    kept[[0, far, len(points) - 1]] = True
    spans = [(0, far), (far, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distances = _distances(points[first + 1 : last], points[first], points[last])
        if distances.max() > tolerance:
            middle = first + 1 + int(distances.argmax())
            kept[middle] = True
            spans += [(first, middle), (middle, last)]
    return line[kept]


def _distances(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) of `points` (n, 2) from the segment between `start` and `end`, which may be one point."""
    along = end - start
    length = along @ along
    share = np.clip((points - start) @ along / length, 0, 1) if length > 0 else np.zeros(len(points))
    return np.asarray(np.linalg.norm(points - start - share[:, None] * along, axis=1))


def _shown(result: CaseResult) -> Finding:
    for finding in result.findings:
        if finding.name == result.shown:
            return finding
    raise ObjectError(f"shown: expected one of the {len(result.findings)} findings, found another class")


def _tracking(report: Dataset, identifier: str, image: ResultImage, part: str) -> TrackingIdentifier:
    """TID 4108. Each observation of each report is one: nothing is claimed about what an earlier study showed."""
    from highdicom.sr import TrackingIdentifier

    uid = uid_from("tracking", str(report.SOPInstanceUID), str(image.source.SOPInstanceUID), str(image.frame), part)
    return TrackingIdentifier(uid=uid, identifier=ascii_text(identifier, LO_CHARACTERS))


def _algorithm(result: CaseResult) -> AlgorithmIdentification:
    """TID 4019."""
    from highdicom.sr import AlgorithmIdentification

    algorithm = result.algorithm
    parameters = (
        f"model digest {algorithm.model_digest}",
        f"configuration {result.configuration_digest}",
        f"{result.method}, scale {result.scale:g} {result.unit}",
        f"region from {result.region_threshold:g} {result.unit}; {result.cell}",
    )
    return AlgorithmIdentification(
        name=ascii_text(algorithm.model_name, LO_CHARACTERS),
        version=ascii_text(f"{algorithm.name} {algorithm.version}, {algorithm.model_digest[:12]}", LO_CHARACTERS),
        parameters=[ascii_text(parameter, LT_CHARACTERS) for parameter in parameters],
        family=ALGORITHM_FAMILY,
    )


def _finding_sites(image: ResultImage) -> list[FindingSite] | None:
    """The part of the body that the image shows, where it is known: the model tells no more."""
    from highdicom.sr import FindingSite

    region = body_region(image.source, image.frame)
    return None if region.code == ENTIRE_BODY else [FindingSite(region.code, laterality=SIDES.get(region.laterality))]


def _measurements(result: CaseResult, finding: Finding, image: ResultImage) -> list[Measurement]:
    """The case's probability, and where it comes from several images, this one's own."""
    from highdicom.sr import Measurement

    measured = [Measurement(PROBABILITY, _number(finding.probability), NO_UNITS)]
    if len(result.images) > 1:
        measured.append(Measurement(_concept(IMAGE_PROBABILITY), _number(image.probability), NO_UNITS))
    return measured


def _whole_image_measurement(finding: Finding, image: ResultImage) -> Measurement:
    """A finding's probability, inferred from a rectangle that is the whole first key image: OHIF fails on a number that refers to no
    coordinates."""
    from highdicom.sr import CoordinatesForMeasurement, Measurement

    rows, columns = int(image.source.Rows), int(image.source.Columns)
    corners = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows), (0, 0)], np.float32)
    whole = CoordinatesForMeasurement("POLYLINE", corners, _source_of_region(image))
    _set_pixel_origin(whole, image)
    return Measurement(PROBABILITY, _number(finding.probability), NO_UNITS, referenced_coordinates=[whole])


def _number(probability: float) -> float:
    """Six decimals: what a decimal string of 16 characters holds of any probability, and more than a model knows."""
    return round(float(probability), 6)


def _called(finding: Finding) -> QualitativeEvaluation:
    from highdicom.sr import QualitativeEvaluation

    return QualitativeEvaluation(_concept(CALLED), YES if finding.called else NO)


def _frames(image: ResultImage) -> list[int] | None:
    """ReferencedFrameNumber, where the source has several."""
    item = source_item(image.source, image.frame)
    return [int(item.ReferencedFrameNumber)] if "ReferencedFrameNumber" in item else None


def _source_of_region(image: ResultImage) -> SourceImageForRegion:
    from highdicom.sr import SourceImageForRegion

    return SourceImageForRegion(str(image.source.SOPClassUID), str(image.source.SOPInstanceUID), _frames(image))


def _source_of_group(image: ResultImage) -> SourceImageForMeasurementGroup:
    from highdicom.sr import SourceImageForMeasurementGroup

    return SourceImageForMeasurementGroup(
        str(image.source.SOPClassUID), str(image.source.SOPInstanceUID), _frames(image)
    )


def _set_pixel_origin(coordinates: Dataset, image: ResultImage) -> None:
    """Coordinates are those of the frame, which is to be said of tiled images only (PS3.3 C.18.6.1.1)."""
    if "TotalPixelMatrixColumns" in image.source:
        coordinates.PixelOriginInterpretation = "FRAME"


def _concept(code: Code) -> Dataset:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme_designator, code.meaning)


def _image_library(images: Sequence[ResultImage], made: Sequence[Dataset]) -> Dataset:
    """TID 1600: the key images, and in a group of their own the images that were made of them. A viewer that reads one group reads the
    first."""
    groups = [_library_group([_library_entry(item, images, made) for item in source_items(images)])]
    derived = [instance_of(dataset) for dataset in made if has_pixels(str(dataset.SOPClassUID))]
    if derived:
        groups.append(_library_group([documents.object_item(instance, "CONTAINS") for instance in derived]))
    return _container(IMAGE_LIBRARY, groups)


def _library_entry(reference: Dataset, images: Sequence[ResultImage], made: Sequence[Dataset]) -> Dataset:
    """TID 1601, with the presentation state by which the image is to be shown, and with the descriptors of TID 1602 as far as the source
    has them; none where its modality is none that acquires (CID 29), as TID 1602 has no room for another."""
    entry = image_item(documents.with_presentation(reference, made), "CONTAINS")
    source = next(image.source for image in images if image.source.SOPInstanceUID == reference.ReferencedSOPInstanceUID)
    modality = _acquisition_modality(source)
    if modality is not None:
        entry.ContentSequence = _descriptors(source, modality)
    return entry


def _acquisition_modality(source: Dataset) -> Code | None:
    modality = carried(source, "Modality")
    known = {code.value: code for code in codes.CID29.concepts.values()}
    return known.get(str(modality.value)) if modality is not None else None


def _descriptors(source: Dataset, modality: Code) -> list[Dataset]:
    from highdicom.sr import CodeContentItem, NumContentItem, UIDRefContentItem

    acquired = "HAS ACQ CONTEXT"
    found: list[Dataset] = [CodeContentItem(codes.DCM.Modality, modality, acquired)]
    space = carried(source, "FrameOfReferenceUID")
    if space is not None:
        found.append(UIDRefContentItem(codes.DCM.FrameOfReferenceUID, str(space.value), acquired))
    found.append(NumContentItem(codes.DCM.PixelDataRows, int(source.Rows), PIXELS, relationship_type=acquired))
    found.append(NumContentItem(codes.DCM.PixelDataColumns, int(source.Columns), PIXELS, relationship_type=acquired))
    return found


def _library_group(entries: list[Dataset]) -> Dataset:
    return _container(IMAGE_LIBRARY_GROUP, entries)


def _evaluations(result: CaseResult) -> Dataset:
    """TID 1500 row 12: the case's result, by codes for programs and in words for people."""
    from highdicom.sr import CodeContentItem

    called = [finding for finding in result.findings if finding.called]
    coded = [CodeContentItem(FINDING, _concept(class_code(finding.name)), "CONTAINS") for finding in called]
    texts = result.profile.texts
    told = [
        (texts.finding_called if finding.called else texts.finding_not_called).format(
            name=finding.name, probability=probability_text(finding.probability, 3)
        )
        for finding in result.findings
    ]
    said = [_sites_text(FINDING, text, result) for text in (result.said, *told)]
    own_notes = [note for note in (texts.research_only, *result.notes) if note != RESEARCH_ONLY]
    comments = [_text(COMMENT, RESEARCH_ONLY), *(_sites_text(COMMENT, note, result) for note in own_notes)]
    return _container(QUALITATIVE_EVALUATIONS, [*coded, *said, *comments])


def _sites_text(name: Code, text: str, result: CaseResult) -> Dataset:
    """`_text` in the words of the site's profile: it tells their language where that is not the report's."""
    item = _text(name, text)
    if result.profile.texts.language != OWN_LANGUAGE:
        item.ContentSequence = documents.language(result.profile.texts.language)
    return item


def _text(name: Code, text: str) -> Dataset:
    from highdicom.sr import TextContentItem

    return TextContentItem(name, ascii_text(text, LT_CHARACTERS), "CONTAINS")


def _container(name: Code, content: list[Dataset]) -> Dataset:
    container = Dataset()
    container.RelationshipType, container.ValueType, container.ContinuityOfContent = "CONTAINS", "CONTAINER", "SEPARATE"
    container.ConceptNameCodeSequence = [code_item(name)]
    container.ContentSequence = content
    return container
