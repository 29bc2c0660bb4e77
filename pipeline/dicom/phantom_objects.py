"""Small valid DICOM objects with generated pixels, in memory: CT slices, radiographs, structured reports.

Every factory takes any DICOM keyword as a further argument: a value sets that attribute, None removes it, so that a test
can spoil exactly one thing. All objects say in their names, descriptions and comments that they are phantoms.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pipeline.dicom.compression import encoded

NOT_A_PATIENT = "PHANTOM - NOT A PATIENT"
STORED_PADDING = -2000  # what scanner A stores outside its field of view
RADIOGRAPH_BITS = 12
_PIXEL_DATA = 0x7FE00010
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)


def phantom_uid(*parts: object) -> UID:
    """A UID under 2.25 (PS3.5 B.2), the same for the same parts: the first 128 bits of their SHA-256."""
    digest = hashlib.sha256("|".join(map(str, ("radloop phantom", *parts))).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def coded(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def ct_slice(
    size: int = 64,
    *,
    hu: NDArray[np.floating[Any]] | None = None,
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
    padded: NDArray[np.bool_] | None = None,
    position_mm: tuple[float, float, float] | None = None,
    spacing_mm: float | None = None,
    orientation: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    thickness_mm: float = 2.0,
    instance_number: int = 1,
    series_number: int = 1,
    window: tuple[float, float] = (-600.0, 1500.0),
    kernel: str = "LUNG",
    patient_id: str = "PH-0001",
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    **attributes: Any,
) -> Dataset:
    """A CT image (PS3.3 A.3) of `hu` (rows, columns), by default `simple_chest(size)`.

    Stored as (hu - intercept) / slope, rounded and clipped to 12 bits unsigned, or to 16 bits where `signed`. `padded`
    pixels get STORED_PADDING, which needs `signed`; else ValueError. UIDs not given follow from patient_id, series_number
    and instance_number; `spacing_mm` not given makes the image 360 mm wide.
    """
    if padded is not None and not signed:
        raise ValueError(f"the padding value {STORED_PADDING} needs signed pixels")
    values = simple_chest(size) if hu is None else hu
    stored = np.rint((values - intercept) / slope)
    pixels = np.clip(stored, -32768, 32767).astype("<i2") if signed else np.clip(stored, 0, 4095).astype("<u2")
    spacing = 360.0 / values.shape[1] if spacing_mm is None else spacing_mm
    corner = -(values.shape[1] - 1) * spacing / 2
    place = (corner, corner, float(-10 * instance_number)) if position_mm is None else position_mm

    dataset = _identity(patient_id, study_instance_uid)
    _series(dataset, CTImageStorage, "CT", series_number, instance_number, series_instance_uid, sop_instance_uid)
    dataset.SeriesDescription = f"{NOT_A_PATIENT}: {kernel}"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.FrameOfReferenceUID = frame_of_reference_uid or phantom_uid("frame", patient_id, dataset.StudyInstanceUID)
    dataset.PositionReferenceIndicator = ""
    dataset.PatientPosition = "HFS"
    dataset.BodyPartExamined = "CHEST"
    dataset.ImagePositionPatient = [f"{value:.4f}" for value in place]
    dataset.ImageOrientationPatient = list(orientation)
    dataset.PixelSpacing = [f"{spacing:.6f}"] * 2
    dataset.SliceThickness = thickness_mm
    dataset.AcquisitionNumber = 1
    dataset.KVP = 120
    dataset.XRayTubeCurrent = 180
    dataset.ExposureTime = 500
    dataset.GantryDetectorTilt = 0
    dataset.ConvolutionKernel = kernel
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "HU"
    dataset.WindowCenter, dataset.WindowWidth = window
    if padded is not None:
        pixels[padded] = STORED_PADDING
    _set_pixels(dataset, pixels, "MONOCHROME2", 16 if signed else 12)
    if padded is not None:
        dataset.PixelPaddingValue = STORED_PADDING
    return _with(dataset, attributes)


def radiograph(
    size: int = 64,
    *,
    white: NDArray[np.floating[Any]] | None = None,
    photometric: str = "MONOCHROME1",
    modality: str = "CR",
    spacing_mm: float | None = None,
    patient_id: str = "PH-0001",
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
    series_number: int = 1,
    instance_number: int = 1,
    **attributes: Any,
) -> Dataset:
    """A frontal chest radiograph: CR (PS3.3 A.2) or DX for presentation (A.26); any other modality is a ValueError.

    `white` (rows, columns) 0-1 is what a reader sees, dense tissue white; it is stored in 12 bits between 300 and 3800,
    inverted for MONOCHROME1, with the window that shows it.
    """
    if modality not in ("CR", "DX"):
        raise ValueError(f"expected modality CR or DX, found {modality!r}")
    values = np.asarray(_simple_radiograph(size) if white is None else white, np.float32)
    shown = 1.0 - values if photometric == "MONOCHROME1" else values
    pixels = np.rint(300.0 + 3500.0 * np.clip(shown, 0.0, 1.0)).astype("<u2")
    spacing = 360.0 / values.shape[1] if spacing_mm is None else spacing_mm

    dataset = _identity(patient_id, study_instance_uid)
    sop_class = ComputedRadiographyImageStorage if modality == "CR" else DigitalXRayImageStorageForPresentation
    _series(dataset, sop_class, modality, series_number, instance_number, series_instance_uid, sop_instance_uid)
    dataset.SeriesDescription = f"{NOT_A_PATIENT}: chest PA"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""] if modality == "DX" else ["ORIGINAL", "PRIMARY"]
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "PA"
    dataset.PatientOrientation = ["L", "F"]
    dataset.ImagerPixelSpacing = [f"{spacing:.6f}"] * 2
    dataset.KVP = 110
    dataset.WindowCenter, dataset.WindowWidth = 2050.0, 3500.0
    _set_pixels(dataset, pixels, photometric, RADIOGRAPH_BITS)
    if modality == "DX":
        _dx_modules(dataset, photometric)
    return _with(dataset, attributes)


def structured_report(
    text: str = f"{NOT_A_PATIENT}. A generated report without a finding.",
    *,
    patient_id: str = "PH-0001",
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
    series_number: int = 90,
    instance_number: int = 1,
    **attributes: Any,
) -> Dataset:
    """A Basic Text SR (PS3.3 A.35.1) of one paragraph: DICOM without pixels."""
    dataset = _identity(patient_id, study_instance_uid)
    _series(dataset, BasicTextSRStorage, "SR", series_number, instance_number, series_instance_uid, sop_instance_uid)
    for keyword in (
        "ImageComments",
        "BurnedInAnnotation",
        "SeriesDate",
        "SeriesTime",
        "AcquisitionDate",
        "AcquisitionTime",
        "Laterality",
    ):
        if keyword in dataset:
            del dataset[keyword]
    dataset.SeriesDescription = f"{NOT_A_PATIENT}: report"
    dataset.ReferencedPerformedProcedureStepSequence = []
    dataset.PerformedProcedureCodeSequence = []
    dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
    dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
    dataset.ConceptNameCodeSequence = [coded("18748-4", "LN", "Diagnostic imaging report")]
    paragraph = Dataset()
    paragraph.RelationshipType, paragraph.ValueType = "CONTAINS", "TEXT"
    paragraph.ConceptNameCodeSequence = [coded("121071", "DCM", "Finding")]
    paragraph.TextValue = text
    dataset.ContentSequence = [paragraph]
    return _with(dataset, attributes)


def save(dataset: Dataset, path: Path, transfer_syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a DICOM file (PS3.10); its pixels, native in the dataset, are encoded losslessly as the syntax has it.

    Native syntaxes, JPEG-LS lossless, JPEG 2000 lossless and RLE. The dataset stays as it is. Folders are made.
    """
    syntax = UID(transfer_syntax)
    written = Dataset()
    written.update(dict(dataset.items()))
    written.file_meta = FileMetaDataset()
    written.file_meta.TransferSyntaxUID = syntax
    if "PixelData" in dataset:
        data = _pixel_data(dataset, syntax)
        written[_PIXEL_DATA] = DataElement(_PIXEL_DATA, "OW" if syntax in _NATIVE else "OB", data)
        written[_PIXEL_DATA].is_undefined_length = syntax not in _NATIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    written.save_as(path, enforce_file_format=True)
    return path


def simple_chest(size: int) -> NDArray[np.float32]:
    """(size, size) HU: lungs of -850 in an ellipse of 40 in air of -1000. The patient's left lung is the smaller."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size * 2.0 - 1.0
    x, y = line[None, :], line[:, None]
    hu = np.where((x / 0.9) ** 2 + (y / 0.65) ** 2 < 1, 40.0, -1000.0)
    for centre, width in ((-0.42, 0.33), (0.44, 0.27)):
        hu = np.where(((x - centre) / width) ** 2 + (y / 0.45) ** 2 < 1, -850.0, hu)
    return hu.astype(np.float32)


def _simple_radiograph(size: int) -> NDArray[np.float32]:
    return np.clip((simple_chest(size) + 1000.0) / 1100.0, 0.0, 1.0).astype(np.float32)


def _pixel_data(dataset: Dataset, syntax: UID) -> bytes:
    """The value of Pixel Data in a transfer syntax (PS3.5 A), from native little-endian pixels."""
    native: bytes = dataset.PixelData
    if syntax == ExplicitVRBigEndian and dataset.BitsAllocated == 16:
        return np.frombuffer(native, "<u2").byteswap().tobytes()
    if syntax in _NATIVE:
        return native
    shape = [int(dataset.get("NumberOfFrames") or 1), dataset.Rows, dataset.Columns]
    shape += [dataset.SamplesPerPixel] if dataset.SamplesPerPixel > 1 else []
    frames = np.frombuffer(native, np.uint8 if dataset.BitsAllocated == 8 else "<u2").reshape(shape)
    return encapsulate([encoded(frame, syntax) for frame in frames], has_bot=True)


def _identity(patient_id: str, study_instance_uid: str | None) -> Dataset:
    """Patient, study and equipment modules (PS3.3 C.7.1, C.7.2, C.7.5)."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName, dataset.PatientID = "PHANTOM^Ada", patient_id
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19600501", "F", "063Y"
    dataset.PatientComments = NOT_A_PATIENT
    dataset.StudyInstanceUID = study_instance_uid or phantom_uid("study", patient_id)
    dataset.StudyDate, dataset.StudyTime = "20240102", "101500"
    dataset.StudyID, dataset.AccessionNumber = "1", "ACC0001"
    dataset.StudyDescription = f"{NOT_A_PATIENT}: chest"
    dataset.ReferringPhysicianName = ""
    dataset.Manufacturer, dataset.ManufacturerModelName = "Phantom Scanners A", "A-16"
    dataset.InstitutionName, dataset.StationName = "radloop phantoms", "PHANTOM1"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "0001", "1.0"
    return dataset


def _series(
    dataset: Dataset,
    sop_class: str,
    modality: str,
    series_number: int,
    instance_number: int,
    series_uid: str | None,
    sop_uid: str | None,
) -> None:
    """General Series and General Image, with the times of the study."""
    key = (dataset.PatientID, dataset.StudyInstanceUID, modality, series_number)
    dataset.SOPClassUID = UID(sop_class)
    dataset.SeriesInstanceUID = series_uid or phantom_uid("series", *key)
    dataset.SOPInstanceUID = sop_uid or phantom_uid("instance", *key, dataset.SeriesInstanceUID, instance_number)
    dataset.Modality = modality
    dataset.SeriesNumber, dataset.InstanceNumber = series_number, instance_number
    for name in ("Series", "Acquisition", "Content"):
        setattr(dataset, f"{name}Date", dataset.StudyDate)
        setattr(dataset, f"{name}Time", dataset.StudyTime)
    dataset.ImageComments = NOT_A_PATIENT
    dataset.BurnedInAnnotation = "NO"


def _set_pixels(dataset: Dataset, pixels: NDArray[Any], photometric: str, bits: int) -> None:
    """Image Pixel module (PS3.3 C.7.6.3) of a gray image in 16 bits allocated."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 1 if pixels.dtype.kind == "i" else 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"


def _dx_modules(dataset: Dataset, photometric: str) -> None:
    """What a DX image for presentation needs beside a CR (PS3.3 C.8.11)."""
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = (
        "LOG",
        -1 if photometric == "MONOCHROME2" else 1,
    )
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "US"
    dataset.PresentationLUTShape = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    dataset.LossyImageCompression = "00"
    dataset.DetectorType, dataset.PositionerType = "DIRECT", "NONE"
    dataset.ImageLaterality = "U"
    dataset.AnatomicRegionSequence = [coded("51185008", "SCT", "Chest")]
    view = coded("399348003", "SCT", "postero-anterior")
    view.ViewModifierCodeSequence = []
    dataset.ViewCodeSequence = [view]
    dataset.AcquisitionContextSequence = []


def _with(dataset: Dataset, attributes: dict[str, Any]) -> Dataset:
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset
