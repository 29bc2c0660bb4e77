"""What Segmentations and Parametric Maps share: which images of a case can stand in one object, in what order, and how their frames say
where they lie (PS3.3 C.7.6.16, C.7.6.17).

In: images of a case. Out: `Stack`s of images that lie parallel to each other, one at each place, and the modules of an object about one.
Both kinds of object have the pixels of their sources, so that a frame has the plane of the image that it was made from, whether that is a
file of a series or a frame of an enhanced object. Positions are LPS in mm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.valuerep import DSfloat

from pipeline import RESEARCH_ONLY
from pipeline.dicom.arrangement import POSITION_TOLERANCE_MM
from pipeline.dicom.begin import LO_CHARACTERS, begin_object, derivation_text, instance_number, result_text
from pipeline.dicom.body_region import anatomy_item, body_region
from pipeline.dicom.case_result import CaseResult, FloatImage, ResultImage
from pipeline.dicom.derived import ascii_text, code_item, source_item, uid_from
from pipeline.dicom.geometry import NoPlane, Plane, frame_group, frame_plane, places_mm
from pipeline.dicom.source import carried, carry_all, frame_count, inherited_marks
from pipeline.errors import ObjectError
from pipeline.profile_settings import Kind

COSINE_DECIMALS = 3
"""To which direction cosines of one object agree: half a millimetre over an image of 500 mm, as `arrangement.COSINE_TOLERANCE`."""
SPACING_DECIMALS = 3
"""To which pixel spacings and thicknesses of one object agree, in mm: half a millimetre over an image of 512 pixels."""
EVEN_TOLERANCE_MM = 2 * POSITION_TOLERANCE_MM
"""How far gaps between slices may be off their mean, and corners off one line along the normal: each end of a gap is rounded to about
POSITION_TOLERANCE_MM."""
PLANE_POSITION = ("PlanePositionSequence", "ImagePositionPatient")
"""The functional group and attribute by which frames are ordered, as `set_dimensions` takes it."""
UNKNOWN_THICKNESS = "Slice thickness unknown: a pixel's width stands in its place, and volumes mean nothing."
"""Said on the object: it cannot do without a thickness (dciodvfy calls it invalid, dcmqi cannot read it), and none is to be believed."""
GEOMETRY_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
NEEDED_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class Stack:
    """Images of one `group_key` in ascending order along the normal of their planes, one at each place.

    `spacing_mm`: between neighbours, perpendicular to them, where all gaps are the same; None where they differ or there is one image.
    `is_block`: whether, besides, each lies straight above the last, as slices of a tilted gantry do not.
    `thickness_mm`: of each, as the source states it, else the spacing; `caveat` says so where it is neither, but a stand-in.
    """

    images: tuple[ResultImage, ...]
    planes: tuple[Plane, ...]
    spacing_mm: float | None
    is_block: bool
    thickness_mm: float
    caveat: str = ""

    @property
    def source(self) -> Dataset:
        """The header that the object takes patient and study from."""
        return self.images[0].source


def why_not(source: Dataset) -> str:
    """Why no object with voxels in patient space can be made of the source, '' where it can. All frames are looked at: ask once a file."""
    reason = _unfit(source)
    if reason:
        return reason
    try:
        for frame in range(frame_count(source)):
            _plane(source, frame)
    except NoPlane as error:
        return f"the source does not say where its pixels lie in the patient ({error})"
    return ""


def group_key(image: ResultImage) -> Hashable:
    """Images with the same key can stand in one object: same study, series, frame of reference, size, orientation, spacing, thickness.

    Raises ObjectError for an image without a place in the patient (`why_not`).
    """
    source, plane = image.source, _placed(image)
    cosines = np.round([*plane.row_direction, *plane.column_direction], COSINE_DECIMALS) + 0.0  # -0.0 is 0.0
    spacing = np.round([*plane.spacing_mm, _thickness_mm(image) or 0.0], SPACING_DECIMALS)
    uids = tuple(str(source.get(keyword, "")) for keyword in GEOMETRY_KEYWORDS)
    return (*uids, source.get("Rows"), source.get("Columns"), *map(float, cosines), *map(float, spacing))


def groups(images: Sequence[ResultImage]) -> list[tuple[ResultImage, ...]]:
    """The images as they go into objects: by `group_key`, and with one image at each place.

    Where places repeat (phases, echoes), the first image at each place goes into one object, the second into another, and so on, by
    InstanceNumber. An image that comes twice counts once.
    """
    by_key: dict[Hashable, dict[tuple[str, int], ResultImage]] = defaultdict(dict)
    for image in images:
        by_key[group_key(image)].setdefault(_identity(image), image)
    found: list[tuple[ResultImage, ...]] = []
    for unique in by_key.values():
        at_place: dict[tuple[int, ...], list[ResultImage]] = defaultdict(list)
        for image in sorted(unique.values(), key=lambda image: (instance_number(image), _identity(image))):
            at_place[_place(_placed(image))].append(image)
        most = max(map(len, at_place.values()))
        layers: list[list[ResultImage]] = [[] for _ in range(most)]
        for repeated in at_place.values():
            for layer, image in zip(layers, repeated, strict=False):
                layer.append(image)
        found += [tuple(layer) for layer in layers]
    return found


def stack(images: Sequence[ResultImage]) -> Stack:
    """The images of one object in their order, which does not depend on the order in which they come.

    Raises ObjectError where they cannot stand in one object: none, of different keys, or several at one place (`groups` divides them).
    """
    unique = list({_identity(image): image for image in reversed(images)}.values())
    keys = {group_key(image) for image in unique}
    if len(keys) != 1:
        raise ObjectError(
            f"images: expected those of one group, which can stand in one object, found {len(keys)} groups"
        )
    reason = _unfit(unique[0].source)
    if reason:
        raise ObjectError(reason)
    planes = [_placed(image) for image in unique]
    if len({_place(plane) for plane in planes}) < len(planes):
        raise ObjectError(f"images: expected one at each place, found {len(planes)} images at fewer places")
    places = places_mm(planes, min(planes))
    along, across = places[:, 0], places[:, 1:]
    order = sorted(range(len(unique)), key=lambda n: (along[n], planes[n].position_mm, _identity(unique[n])))
    gaps = np.diff(along[order])
    even = (
        gaps.size > 0 and gaps.min() > POSITION_TOLERANCE_MM and np.abs(gaps - gaps.mean()).max() <= EVEN_TOLERANCE_MM
    )
    spacing = round(float(gaps.mean()), 6) if even else None
    first = unique[order[0]]
    stated = _thickness_mm(first) or spacing
    return Stack(
        images=tuple(unique[n] for n in order),
        planes=tuple(planes[n] for n in order),
        spacing_mm=spacing,
        is_block=spacing is not None and bool(np.ptp(across, axis=0).max() <= EVEN_TOLERANCE_MM),
        thickness_mm=stated or min(planes[order[0]].spacing_mm),
        caveat="" if stated else UNKNOWN_THICKNESS,
    )


def evidence(image: ResultImage) -> FloatImage:
    """The image's evidence, checked: (rows, columns) of its source, every value finite. ObjectError where it is not."""
    found = np.asarray(image.evidence_of(), np.float32)
    expected = int(image.source.Rows), int(image.source.Columns)
    if found.shape != expected:
        raise ObjectError(f"evidence: expected (rows, columns) {expected} of the source, found {found.shape}")
    if not np.isfinite(found).all():
        raise ObjectError("evidence: expected finite numbers, found others")
    return found


def begin_voxels(result: CaseResult, kind: Kind, modality: str, of: Stack, what: str) -> Dataset:
    """Everything that both kinds have in common but functional groups, dimensions and pixels; `what` the object holds, in words.

    Each source series and frame of reference has a series of its own: a series has one of the latter (PS3.3 C.7.4.1).
    """
    source = of.source
    own_series = f"{source.SeriesInstanceUID} {source.FrameOfReferenceUID}"
    begun = begin_object(result, kind, modality, of.images, series=own_series)
    carry_all(source, ("FrameOfReferenceUID", "BodyPartExamined", "AnatomicalOrientationType"), begun)
    position_reference = carried(source, "PositionReferenceIndicator")
    begun.PositionReferenceIndicator = position_reference.value if position_reference is not None else ""
    begun.DeviceSerialNumber = ascii_text(result.algorithm.model_digest, LO_CHARACTERS)  # Type 1 of Enhanced Equipment
    begun.ContentDescription = ascii_text(f"{RESEARCH_ONLY}: {result.shown}", LO_CHARACTERS)
    begun.ContentCreatorName = ""  # no person made it
    begun.ImageComments = result_text(result)
    begun.DerivationDescription = derivation_text(result, of.images, f"{what} {of.caveat}".strip())
    begun.Rows, begun.Columns = source.Rows, source.Columns
    begun.SamplesPerPixel, begun.PhotometricInterpretation = 1, "MONOCHROME2"
    begun.update(_lossy_history(of))
    return begun


def set_dimensions(dataset: Dataset, pointers: Sequence[tuple[str, str]]) -> None:
    """The Multi-frame Dimension module (PS3.3 C.7.6.17): what each value of DimensionIndexValues counts, as (functional group, attribute).

    The UID of the organization follows from the object's own.
    """
    organization = Dataset()
    organization.DimensionOrganizationUID = uid_from("dimensions", str(dataset.SOPInstanceUID))
    dataset.DimensionOrganizationSequence = [organization]
    dataset.DimensionIndexSequence = []
    for group, attribute in pointers:
        index = Dataset()
        index.DimensionOrganizationUID = organization.DimensionOrganizationUID
        index.DimensionIndexPointer = tag_for_keyword(attribute)
        index.FunctionalGroupPointer = tag_for_keyword(group)
        index.DimensionDescriptionLabel = attribute
        dataset.DimensionIndexSequence.append(index)


def shared_group(of: Stack) -> Dataset:
    """Plane orientation and pixel measures (PS3.3 C.7.6.16.2.4, .1), the same for all frames: as the first image's source has them."""
    plane, first = of.planes[0], of.images[0]
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = _as_source_has_it(
        first, "PlaneOrientationSequence", "ImageOrientationPatient", [*plane.row_direction, *plane.column_direction]
    )
    measures.PixelSpacing = _as_source_has_it(first, "PixelMeasuresSequence", "PixelSpacing", plane.spacing_mm)
    measures.SliceThickness = _decimal(of.thickness_mm)
    if of.spacing_mm is not None:
        measures.SpacingBetweenSlices = _decimal(of.spacing_mm)
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    return shared


def frame_groups(of: Stack, index: int, derivation: Code, dimension_values: Sequence[int]) -> Dataset:
    """The functional groups of the frame made from image `index` of the stack: where it lies, which image it was made from and how."""
    image = of.images[index]
    content, position, derived = Dataset(), Dataset(), Dataset()
    content.DimensionIndexValues = list(dimension_values)
    position.ImagePositionPatient = _as_source_has_it(image, *PLANE_POSITION, of.planes[index].position_mm)
    made_from = source_item(image.source, image.frame)
    made_from.SpatialLocationsPreserved = "YES"
    derived.DerivationCodeSequence = [code_item(derivation)]
    derived.SourceImageSequence = [made_from]
    groups = Dataset()
    groups.FrameContentSequence, groups.PlanePositionSequence = [content], [position]
    groups.DerivationImageSequence = [derived]
    return groups


def set_frame_anatomy(images: Sequence[ResultImage], shared: Dataset, per_frame: Sequence[Dataset]) -> None:
    """FrameAnatomySequence: shared where all images show the same, else of each frame."""
    regions = [body_region(image.source, image.frame) for image in images]
    for groups, region in [(shared, regions[0])] if len(set(regions)) == 1 else zip(per_frame, regions, strict=True):
        groups.FrameAnatomySequence = [anatomy_item(region)]


def referenced_series(images: Sequence[ResultImage]) -> list[Dataset]:
    """Items of ReferencedSeriesSequence (PS3.3 C.12.2): each instance that frames were made from, once."""
    series = Dataset()
    series.SeriesInstanceUID = images[0].source.SeriesInstanceUID
    series.ReferencedInstanceSequence = []
    for source in {str(image.source.SOPInstanceUID): image.source for image in images}.values():
        instance = Dataset()
        instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        series.ReferencedInstanceSequence.append(instance)
    return [series]


def _unfit(source: Dataset) -> str:
    """What a source lacks of what all its frames share; '' where nothing."""
    for keyword in NEEDED_UIDS:
        if carried(source, keyword) is None:
            return f"the source has no valid {keyword}, so no object can refer to it"
    if carried(source, "FrameOfReferenceUID") is None:
        return "the source has no frame of reference, so its pixels have no place that an object could share"
    for keyword in ("Rows", "Columns"):
        if carried(source, keyword) is None:
            return f"the source has no valid {keyword}"
    return ""


def _plane(source: Dataset, frame: int) -> Plane:
    if frame_count(source) > 1 and not source.get("PerFrameFunctionalGroupsSequence"):
        raise NoPlane("several frames without functional groups, which alone could say where each lies")
    return frame_plane(source, frame)


def _placed(image: ResultImage) -> Plane:
    try:
        return _plane(image.source, image.frame)
    except NoPlane as error:
        raise ObjectError(f"the source does not say where its pixels lie in the patient ({error})") from None


def _identity(image: ResultImage) -> tuple[str, int]:
    return str(image.source.get("SOPInstanceUID", "")), image.frame


def _place(plane: Plane) -> tuple[int, ...]:
    """A position in steps of the tolerance: equal for images at one place."""
    return tuple(int(step) for step in np.rint(np.array(plane.position_mm) / POSITION_TOLERANCE_MM))


def _thickness_mm(image: ResultImage) -> float | None:
    """SliceThickness of the frame's pixel measures, else of the dataset; None where neither is a positive number."""
    measures = frame_group(image.source, image.frame, "PixelMeasuresSequence")
    for dataset in (measures, image.source):
        element = carried(dataset, "SliceThickness") if isinstance(dataset, Dataset) else None
        if element is not None and 0 < float(element.value) < np.inf:
            return float(element.value)
    return None


def _as_source_has_it(image: ResultImage, group: str, keyword: str, numbers: Sequence[float]) -> list[DSfloat]:
    """The source's own decimal strings of an attribute of its plane, so that tools that compare them find them equal; else `numbers`."""
    own = frame_group(image.source, image.frame, group)
    for dataset in (own, image.source):
        element = carried(dataset, keyword) if isinstance(dataset, Dataset) and keyword in dataset else None
        if element is not None:
            return list(element.value)
    return [_decimal(number) for number in numbers]


def _decimal(number: float) -> DSfloat:
    """A decimal string of at most 16 characters."""
    return DSfloat(float(number), auto_format=True)


def _lossy_history(of: Stack) -> Dataset:
    """LossyImageCompression with ratio and method: 01 where any source was ever compressed with loss, else 00."""
    history = Dataset()
    history.LossyImageCompression = "00"
    for source in {str(image.source.SOPInstanceUID): image.source for image in of.images}.values():
        marks = inherited_marks(source)
        if "LossyImageCompression" in marks:
            for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
                if keyword in marks:
                    history[keyword] = marks[keyword]
            break
    return history
