"""The Segmentation of a case: where the evidence for the class shown reaches the threshold, or its share of the scale (PS3.3 A.51, C.8.20).

In: a `CaseResult` and all its predicted images of one `voxel_objects.group_key`. Out: a dataset ready for `derived.write_object`, with one
segment and a frame for each image where there is anything; ask `has_region` first, as a Segmentation without frames is none.

Binary: one bit a pixel, set where `CaseResult.region` is; never compressed, as dcmtk and pydicom decode no syntax that could hold single
bits, and 8 pixels a byte is small. Fractional: 8 bits, evidence as a share of the run's scale, 0 to 1 as 0 to 255, compressed as the
profile has it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import SegmentationStorage

from pipeline.dicom import voxel_objects
from pipeline.dicom.begin import LO_CHARACTERS, LT_CHARACTERS, ST_CHARACTERS, finish_object
from pipeline.dicom.body_region import body_region, region_item
from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.compression import compress
from pipeline.dicom.derived import MANUFACTURER, ascii_text, code_item, uid_from
from pipeline.dicom.voxel_objects import Stack, begin_voxels, evidence, frame_groups, shared_group, stack
from pipeline.errors import ObjectError

FULL = 255  # MaximumFractionalValue: a share of 1
SEGMENT = 1  # the only one
DERIVATION = Code("113076", "DCM", "Segmentation")
CATEGORY = Code("309825002", "SCT", "Spatial and Relational Concept")
PROPERTY = Code("111099", "DCM", "Selected region")
"""What is segmented: where the model looked. That the tissue there is abnormal, no heatmap can say."""
FAMILY = Code("123110", "DCM", "Artificial Intelligence")
DIMENSIONS = (("SegmentIdentificationSequence", "ReferencedSegmentNumber"), voxel_objects.PLANE_POSITION)

Pixels = NDArray[np.uint8]  # (rows, columns): 0 or 1 in a binary segmentation, 0 to FULL in a fractional one


def why_not(source: Dataset) -> str:
    """Why the source can have no Segmentation; '' where it can."""
    return voxel_objects.why_not(source)


def has_region(result: CaseResult, images: Sequence[ResultImage]) -> bool:
    """Whether a Segmentation of the images would have any frame. Stops at the first image that has anything."""
    return any(_pixels(result, image).any() for image in images)


def segmentation(result: CaseResult, images: Sequence[ResultImage]) -> Dataset:
    """Segmentation Storage of the images, in one segment, by the profile binary or fractional.

    Raises ObjectError where nothing is to be segmented (`has_region`), or where the images cannot stand in one object.
    """
    of = stack(images)
    kept, pixel_data = _kept_pixels(result, of)
    if not kept:
        raise ObjectError("segmentation: expected a region on one image at least, found none")
    is_binary = result.profile.segmentation == "binary"
    dataset = begin_voxels(result, "seg", "SEG", of, _what(result))
    dataset.SOPClassUID = SegmentationStorage
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ContentLabel = "MODEL_REGION" if is_binary else "MODEL_EVIDENCE"
    dataset.BitsAllocated = dataset.BitsStored = 1 if is_binary else 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.SegmentationType = "BINARY" if is_binary else "FRACTIONAL"
    if not is_binary:
        dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = "PROBABILITY", FULL
    dataset.SegmentsOverlap = "NO"
    dataset.SegmentSequence = [_segment(result, of, dataset)]
    voxel_objects.set_dimensions(dataset, DIMENSIONS)
    dataset.SharedFunctionalGroupsSequence = [_shared(of)]
    dataset.PerFrameFunctionalGroupsSequence = [
        frame_groups(of, index, DERIVATION, [SEGMENT, place]) for place, index in enumerate(kept, start=1)
    ]
    dataset.NumberOfFrames = len(kept)
    dataset.ReferencedSeriesSequence = voxel_objects.referenced_series([of.images[index] for index in kept])
    dataset.add_new("PixelData", "OB", pixel_data)
    return finish_object(compress(dataset, result.profile.compression), of.source)


def _pixels(result: CaseResult, image: ResultImage) -> Pixels:
    if result.profile.segmentation == "binary":
        return np.asarray(result.region(image), np.uint8)
    if not (np.isfinite(result.scale) and result.scale > 0):
        raise ObjectError(f"scale: expected a number above 0, found {result.scale}")
    share = np.clip(evidence(image) / np.float32(result.scale), 0, 1)
    return np.rint(share * FULL).astype(np.uint8)


def _kept_pixels(result: CaseResult, of: Stack) -> tuple[list[int], bytes]:
    """Which images of the stack have a frame, and the frames' pixels; one image's evidence at a time."""
    kept: list[int] = []

    def frames() -> Iterator[Pixels]:
        for index, image in enumerate(of.images):
            pixels = _pixels(result, image)
            if pixels.any():
                kept.append(index)
                yield pixels

    data = packed_bits(frames()) if result.profile.segmentation == "binary" else _joined(frames())
    return kept, data + b"\0" * (len(data) % 2)


def packed_bits(frames: Iterator[Pixels]) -> bytes:
    """Frames of 0 and 1 as one run of bits, the first pixel in the lowest (PS3.5 8.1.1, D): no frame begins with a byte of its own."""
    buffer, rest = io.BytesIO(), np.empty(0, np.uint8)
    for frame in frames:
        bits = np.concatenate([rest, frame.ravel()])
        whole = len(bits) // 8 * 8
        buffer.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        rest = bits[whole:]
    buffer.write(np.packbits(rest, bitorder="little").tobytes())
    return buffer.getvalue()


def _joined(frames: Iterator[Pixels]) -> bytes:
    buffer = io.BytesIO()
    for frame in frames:
        buffer.write(np.ascontiguousarray(frame).tobytes())
    return buffer.getvalue()


def _shared(of: Stack) -> Dataset:
    shared = shared_group(of)
    identification = Dataset()
    identification.ReferencedSegmentNumber = SEGMENT
    shared.SegmentIdentificationSequence = [identification]
    return shared


def _segment(result: CaseResult, of: Stack, dataset: Dataset) -> Dataset:
    """The item of SegmentSequence (PS3.3 C.8.20.2, C.8.20.4)."""
    segment = Dataset()
    segment.SegmentNumber = SEGMENT
    segment.SegmentLabel = ascii_text(result.shown, LO_CHARACTERS)
    segment.SegmentDescription = ascii_text(
        " ".join(filter(None, (_what(result), of.caveat, *result.notes))), ST_CHARACTERS
    )
    segment.SegmentAlgorithmType = "AUTOMATIC"
    segment.SegmentAlgorithmName = ascii_text(result.algorithm.model_name, LO_CHARACTERS)
    segment.SegmentationAlgorithmIdentificationSequence = [_algorithm(result)]
    segment.SegmentedPropertyCategoryCodeSequence = [code_item(CATEGORY)]
    segment.SegmentedPropertyTypeCodeSequence = [code_item(PROPERTY)]
    first = of.images[0]
    segment.AnatomicRegionSequence = [region_item(body_region(first.source, first.frame))]
    segment.TrackingID = ascii_text(f"radloop {result.algorithm.model_name} {result.shown}", LO_CHARACTERS)
    segment.TrackingUID = uid_from("tracking", str(dataset.SOPInstanceUID), result.shown)
    segment.RecommendedDisplayCIELabValue = _cielab(result.profile.colors.outline)
    return segment


def _algorithm(result: CaseResult) -> Dataset:
    """An item of Algorithm Identification (PS3.3 10.16)."""
    algorithm = result.algorithm
    item = Dataset()
    item.AlgorithmFamilyCodeSequence = [code_item(FAMILY)]
    item.AlgorithmName = ascii_text(algorithm.model_name, LO_CHARACTERS)
    item.AlgorithmVersion = ascii_text(
        f"{algorithm.name} {algorithm.version}, {algorithm.model_digest[:12]}", LO_CHARACTERS
    )
    item.AlgorithmSource = MANUFACTURER
    item.AlgorithmParameters = ascii_text(
        f"model digest {algorithm.model_digest}, configuration {result.configuration_digest}, {result.method}, "
        f"scale {result.scale:g} {result.unit}, region from {result.region_threshold:g} {result.unit}",
        LT_CHARACTERS,
    )
    return item


def _what(result: CaseResult) -> str:
    """What a voxel means, in words."""
    evidence_of = f"{result.method} for {result.shown}"
    if result.profile.segmentation == "binary":
        return f"Region where {evidence_of} is {result.region_threshold:g} ({result.unit}) or more."
    return f"{evidence_of}, as a share of {result.scale:g} ({result.unit}); not a probability."


def _cielab(rgb: tuple[int, int, int]) -> list[int]:
    """RecommendedDisplayCIELabValue (PS3.3 C.10.7.1.1)."""
    from highdicom.color import CIELabColor

    return [int(value) for value in CIELabColor.from_rgb(*rgb).value]
