"""The Parametric Map of a case: the evidence for the class shown, raw and in float32, one frame for each image (PS3.3 A.75, C.8.32).

In: a `CaseResult` and all its predicted images of one `voxel_objects.group_key`. Out: a dataset ready for `derived.write_object`. Stored
values are the evidence itself; the Real World Value Mapping is the identity, with the quantity and 'no units' as codes. The window goes
from 0 to the run's scale, so that the maps of a run look alike. Whatever the profile's compression is, float pixels stay native: RLE,
JPEG-LS and JPEG 2000 hold none (PS3.5 8.2).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ParametricMapStorage
from pydicom.valuerep import DSfloat

from pipeline.dicom import voxel_objects
from pipeline.dicom.begin import LO_CHARACTERS, finish_object
from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.derived import ascii_text, code_item
from pipeline.dicom.voxel_objects import Stack, begin_voxels, evidence, frame_groups, shared_group, stack

SH_CHARACTERS = 16  # PS3.5 6.2
IMAGE_TYPE = ("DERIVED", "PRIMARY", "VOLUME", "QUANTITY")
QUANTITY = Code("246205007", "SCT", "Quantity")
SALIENCY = Code("130404", "DCM", "Saliency")
"""What is mapped, and how it was derived: of PS3.16 CID 7180 (and 217, ways to explain a result by a picture) the concept that is true of
every method of making evidence. Which method it was stands beside it in words."""
METHOD = Code("370129005", "SCT", "Measurement Method")
NO_UNITS = Code("1", "UCUM", "no units")
DIMENSIONS = (voxel_objects.PLANE_POSITION,)


def why_not(source: Dataset) -> str:
    """Why the source can have no Parametric Map; '' where it can."""
    return voxel_objects.why_not(source)


def parametric_map(result: CaseResult, images: Sequence[ResultImage]) -> Dataset:
    """Parametric Map Storage of the images, a frame for each, in ascending order along their normal.

    Raises ObjectError where the images cannot stand in one object.
    """
    of = stack(images)
    pixel_data, lowest, highest = _joined_evidence(of)
    dataset = begin_voxels(result, "pmap", "OT", of, _what(result))
    dataset.SOPClassUID = ParametricMapStorage
    dataset.ImageType = list(IMAGE_TYPE)
    dataset.ContentLabel = "MODEL_EVIDENCE"
    dataset.ContentQualification = "RESEARCH"
    dataset.BurnedInAnnotation, dataset.RecognizableVisualFeatures = "NO", "NO"  # evidence shows no letter and no face
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.PixelPresentation = "MONOCHROME"
    dataset.BitsAllocated = 32
    dataset.AcquisitionContextSequence = []
    voxel_objects.set_dimensions(dataset, DIMENSIONS)
    if of.is_block:
        dataset.DimensionOrganizationType = "3D"
    shared = shared_group(of)
    _set_meaning(shared, result, lowest, highest)
    per_frame = [frame_groups(of, index, SALIENCY, [index + 1]) for index in range(len(of.images))]
    voxel_objects.set_frame_anatomy(of.images, shared, per_frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], per_frame
    dataset.NumberOfFrames = len(per_frame)
    dataset.ReferencedSeriesSequence = voxel_objects.referenced_series(of.images)
    dataset.FloatPixelData = pixel_data
    return finish_object(dataset, of.source)


def _joined_evidence(of: Stack) -> tuple[bytes, float, float]:
    """All frames' values, little-endian, with the lowest and the highest; one image's evidence at a time beside them."""
    buffer, lowest, highest = io.BytesIO(), np.inf, -np.inf
    for image in of.images:
        values = evidence(image)
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
        buffer.write(values.astype("<f4").tobytes())
    return buffer.getvalue(), lowest, highest


def _set_meaning(shared: Dataset, result: CaseResult, lowest: float, highest: float) -> None:
    """What a value means and how it is shown: frame type, identity transformation, window, Real World Value Mapping (PS3.3 C.7.6.16.2)."""
    frame_type, transformation, window = Dataset(), Dataset(), Dataset()
    frame_type.FrameType = list(IMAGE_TYPE)
    transformation.RescaleIntercept, transformation.RescaleSlope, transformation.RescaleType = 0, 1, "US"
    window.WindowCenter, window.WindowWidth = (
        DSfloat(size, auto_format=True) for size in (result.scale / 2, result.scale)
    )
    window.VOILUTFunction = "LINEAR_EXACT"
    window.WindowCenterWidthExplanation = ascii_text("From no evidence to the full scale of the run", LO_CHARACTERS)
    shared.ParametricMapFrameTypeSequence = [frame_type]
    shared.PixelValueTransformationSequence = [transformation]
    shared.FrameVOILUTSequence = [window]
    shared.RealWorldValueMappingSequence = [_mapping(result, lowest, highest)]


def _mapping(result: CaseResult, lowest: float, highest: float) -> Dataset:
    """An item of RealWorldValueMappingSequence (PS3.3 C.7.6.16.2.11): a stored value is the evidence."""
    quantity, method, mapping = Dataset(), Dataset(), Dataset()
    quantity.ValueType = "CODE"
    quantity.ConceptNameCodeSequence, quantity.ConceptCodeSequence = [code_item(QUANTITY)], [code_item(SALIENCY)]
    method.ValueType = "TEXT"
    method.ConceptNameCodeSequence, method.TextValue = (
        [code_item(METHOD)],
        ascii_text(_what(result), LO_CHARACTERS * 16),
    )
    mapping.LUTLabel = ascii_text("Evidence", SH_CHARACTERS)
    mapping.LUTExplanation = ascii_text(f"Evidence for {result.shown}, {result.unit}", LO_CHARACTERS)
    mapping.RealWorldValueIntercept, mapping.RealWorldValueSlope = 0.0, 1.0
    mapping.DoubleFloatRealWorldValueFirstValueMapped = lowest
    mapping.DoubleFloatRealWorldValueLastValueMapped = highest
    mapping.MeasurementUnitsCodeSequence = [code_item(NO_UNITS)]
    mapping.QuantityDefinitionSequence = [quantity, method]
    return mapping


def _what(result: CaseResult) -> str:
    """What a value means, in words."""
    return f"{result.method} for {result.shown} ({result.unit}); above 0 it speaks for it."
