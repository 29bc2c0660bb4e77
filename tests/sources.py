"""Kinds of sources that a hospital has, each a function that writes a small study to a folder and returns its files.

All are valid DICOM (dciodvfy without an error; tests/test_sources.py) but `no_type_2`, which is what exports often are. `SOURCES` has those
that are DICOM by name; `png` writes what is none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    JPEGBaseline8Bit,
    UltrasoundImageStorage,
)

from pipeline.dicom.phantom import ct_slice, phantom_uid, radiograph, save
from pipeline.dicom.phantom_objects import coded, simple_chest
from pipeline.dicom.source import TYPE_2

SIZE = 80
SLICES = 3
Source = Callable[[Path], list[Path]]


def ct(folder: Path, **attributes: Any) -> list[Path]:
    """An axial series, 12 bits unsigned."""
    slices = (ct_slice(SIZE, instance_number=number, **attributes) for number in range(1, SLICES + 1))
    return [save(one, folder / f"IM{number}") for number, one in enumerate(slices)]


def ct_signed(folder: Path) -> list[Path]:
    """16 bits signed, with a slope."""
    return ct(folder, signed=True, slope=0.5, intercept=0.0, RescaleType="HU")


def ct_not_square(folder: Path) -> list[Path]:
    """Pixels higher than wide."""
    return ct(folder, PixelSpacing=["3.0", "2.0"])


def ct_of_no_axis(folder: Path) -> list[Path]:
    """A double oblique series."""
    turned = (0.951251, 0.254887, -0.173648, -0.163683, 0.89442, 0.416198)
    normal = np.cross(turned[:3], turned[3:])
    at = [[f"{value:.6f}" for value in -60.0 + 5.0 * place * normal] for place in range(SLICES)]
    slices = [
        ct_slice(SIZE, instance_number=number + 1, orientation=turned, ImagePositionPatient=at[number])
        for number in range(SLICES)
    ]
    return [save(one, folder / f"IM{number}") for number, one in enumerate(slices)]


def cr_monochrome1(folder: Path) -> list[Path]:
    return [save(radiograph(SIZE), folder / "IM0")]


def cr_monochrome2(folder: Path) -> list[Path]:
    return [save(radiograph(SIZE, photometric="MONOCHROME2"), folder / "IM0")]


def dx_monochrome1(folder: Path) -> list[Path]:
    return [save(radiograph(SIZE, modality="DX", KVP=None), folder / "IM0")]


def dx_monochrome2(folder: Path) -> list[Path]:
    return [save(radiograph(SIZE, modality="DX", photometric="MONOCHROME2", KVP=None), folder / "IM0")]


def cr_8_bits(folder: Path) -> list[Path]:
    """A byte a pixel."""
    dataset = radiograph(SIZE, photometric="MONOCHROME2", WindowCenter=128, WindowWidth=256)
    _set_bits(dataset, (_stored(dataset) >> 4).astype(np.uint8), 8)
    return [save(dataset, folder / "IM0")]


def cr_10_bits(folder: Path) -> list[Path]:
    dataset = radiograph(SIZE, photometric="MONOCHROME2", WindowCenter=512, WindowWidth=1024)
    _set_bits(dataset, _stored(dataset) >> 2, 10)
    return [save(dataset, folder / "IM0")]


def cr_16_bits(folder: Path) -> list[Path]:
    dataset = radiograph(SIZE, photometric="MONOCHROME2", WindowCenter=32768, WindowWidth=65536)
    _set_bits(dataset, _stored(dataset) << 4, 16)
    return [save(dataset, folder / "IM0")]


def cr_not_square(folder: Path) -> list[Path]:
    """Without spacing, pixels twice as high as wide."""
    return [save(radiograph(SIZE, ImagerPixelSpacing=None, PixelAspectRatio=["2", "1"]), folder / "IM0")]


def cr_lossy(folder: Path) -> list[Path]:
    """JPEG baseline, as some departments keep them."""
    dataset = dcmread(cr_8_bits(folder)[0])
    frame = imagecodecs.jpeg8_encode(dataset.pixel_array, level=90)
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.LossyImageCompressionRatio = f"{dataset.Rows * dataset.Columns / len(frame):.2f}"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.save_as(folder / "IM0")
    return [folder / "IM0"]


def burned_in(folder: Path) -> list[Path]:
    """Somebody's name stands in the pixels, the header says."""
    return [save(radiograph(SIZE, BurnedInAnnotation="YES"), folder / "IM0")]


def us_color(folder: Path) -> list[Path]:
    """An ultrasound picture in RGB."""
    dataset = radiograph(SIZE, photometric="MONOCHROME2")
    gray = _stored(dataset) >> 4
    picture = np.stack([gray, gray // 2, 255 - gray], axis=-1).astype(np.uint8)
    for keyword in ("ViewPosition", "ImagerPixelSpacing", "KVP", "WindowCenter", "WindowWidth", "SeriesDescription"):
        delattr(dataset, keyword)
    _set_identity(dataset, UltrasoundImageStorage, "US")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"]
    dataset.LossyImageCompression = "00"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    _set_bits(dataset, picture, 8)
    dataset.UltrasoundColorDataPresent = 1
    return [save(dataset, folder / "IM0")]


def enhanced_ct(folder: Path) -> list[Path]:
    """Enhanced multi-frame CT (PS3.3 A.38.1)."""
    dataset = _enhanced(EnhancedCTImageStorage, "CT", intercept=-1024)
    dataset.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    dataset.AcquisitionDateTime, dataset.AcquisitionDuration = "20240102101500", 1.0
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.CTImageFrameTypeSequence = [_frame_type(dataset)]
    shared.IrradiationEventIdentificationSequence = [_item(IrradiationEventUID=phantom_uid("irradiation"))]
    return [save(dataset, folder / "IM0")]


def enhanced_mr(folder: Path) -> list[Path]:
    """Enhanced multi-frame MR (PS3.3 A.36.2)."""
    dataset = _enhanced(EnhancedMRImageStorage, "MR", intercept=0)
    dataset.ImageType = ["DERIVED", "PRIMARY", "ANATOMY", "NONE"]
    dataset.ComplexImageComponent, dataset.AcquisitionContrast = "MAGNITUDE", "T1"
    dataset.ResonantNucleus, dataset.KSpaceFiltering, dataset.MagneticFieldStrength = "1H", "NONE", 1.5
    dataset.ApplicableSafetyStandardAgency = "IEC"
    frame_type = _frame_type(dataset)
    frame_type.ComplexImageComponent, frame_type.AcquisitionContrast = "MAGNITUDE", "T1"
    dataset.SharedFunctionalGroupsSequence[0].MRImageFrameTypeSequence = [frame_type]
    return [save(dataset, folder / "IM0")]


def no_type_2(folder: Path) -> list[Path]:
    """Nothing of patient and study but what files need to be told apart."""
    gone: dict[str, Any] = dict.fromkeys(keyword for keyword in TYPE_2)
    return ct(folder, **gone, Manufacturer=None, SeriesNumber=None, PositionReferenceIndicator=None, PatientAge=None)


NAMES = {
    "latin_1": ("ISO_IR 100", "Buc^Jérôme"),
    "greek": ("ISO_IR 126", "Διονυσιος"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "utf_8": ("ISO_IR 192", "Wang^XiaoDong=王^小東=Δίον^Jérôme"),
}
"""SpecificCharacterSet and PatientName, most of them of PS3.5 annexes H to K."""


def _named(term: str | list[str], name: str) -> Source:
    return lambda folder: ct(folder, SpecificCharacterSet=term, PatientName=name)


SOURCES: dict[str, Source] = {
    source.__name__: source
    for source in (
        ct,
        ct_signed,
        ct_not_square,
        ct_of_no_axis,
        cr_monochrome1,
        cr_monochrome2,
        dx_monochrome1,
        dx_monochrome2,
        cr_8_bits,
        cr_10_bits,
        cr_16_bits,
        cr_not_square,
        cr_lossy,
        burned_in,
        us_color,
        enhanced_ct,
        enhanced_mr,
        no_type_2,
    )
} | {name: _named(*of) for name, of in NAMES.items()}

INVALID = frozenset({"no_type_2"})
"""Sources that break PS3.3 themselves; what is made from them must not."""


def png(folder: Path) -> list[Path]:
    """A picture of a CT slice without any header."""
    folder.mkdir(parents=True, exist_ok=True)
    gray = np.clip((simple_chest(SIZE) + 1350) / 1500 * 255, 0, 255).astype(np.uint8)
    Image.fromarray(gray).save(folder / "IM0.png")
    return [folder / "IM0.png"]


def _stored(dataset: Dataset) -> NDArray[np.uint16]:
    return np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)


def _set_bits(dataset: Dataset, pixels: NDArray[Any], bits: int) -> None:
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"


def _set_identity(dataset: Dataset, sop_class_uid: str, modality: str) -> None:
    dataset.SOPClassUID, dataset.Modality = sop_class_uid, modality
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, phantom_uid(keyword, modality, sop_class_uid))


def _enhanced(sop_class_uid: str, modality: str, *, intercept: float) -> Dataset:
    """What enhanced CT and MR share: pixels of the phantom's slices, in a frame of reference, with a stack as their dimension."""
    slices = [ct_slice(SIZE, instance_number=number) for number in range(1, SLICES + 1)]
    at = [list(one.ImagePositionPatient) for one in slices]
    dataset = slices[0]
    of_frames = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleType")
    of_ct = ("KVP", "XRayTubeCurrent", "ExposureTime", "GantryDetectorTilt", "ConvolutionKernel", "AcquisitionNumber")
    of_all = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "AcquisitionDate", "AcquisitionTime")
    for keyword in (*of_frames, *of_ct, *of_all):
        delattr(dataset, keyword)
    _set_identity(dataset, sop_class_uid, modality)
    dataset.FrameOfReferenceUID = phantom_uid("frame", modality)
    dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
    dataset.VolumeBasedCalculationTechnique, dataset.PresentationLUTShape = "NONE", "IDENTITY"
    dataset.ContentQualification, dataset.LossyImageCompression = "RESEARCH", "00"
    dataset.AcquisitionContextSequence = []
    dataset.NumberOfFrames = SLICES
    dataset.PixelData = b"".join(one.PixelData for one in slices)
    dataset["PixelData"].VR = "OW"
    organization = phantom_uid("dimensions", modality)
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    dataset.DimensionIndexSequence = [
        _item(DimensionOrganizationUID=organization, DimensionIndexPointer=pointer, FunctionalGroupPointer=0x00209111)
        for pointer in (0x00209056, 0x00209057)  # stack, position in it
    ]
    anatomy = _item(FrameLaterality="U", AnatomicRegionSequence=[coded("51185008", "SCT", "Chest")])
    values = _item(RescaleSlope=1, RescaleIntercept=intercept, RescaleType="HU" if modality == "CT" else "US")
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PlaneOrientationSequence=[_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[_item(PixelSpacing=[4.5, 4.5], SliceThickness=2.5)],
            FrameAnatomySequence=[anatomy],
            PixelValueTransformationSequence=[values],
            FrameVOILUTSequence=[_item(WindowCenter=-600, WindowWidth=1500)],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [_frame(number, position) for number, position in enumerate(at, start=1)]
    return dataset


def _frame(number: int, position: list[Any]) -> Dataset:
    content = _item(
        StackID="1", InStackPositionNumber=number, DimensionIndexValues=[1, number], FrameAcquisitionNumber=1
    )
    return _item(PlanePositionSequence=[_item(ImagePositionPatient=position)], FrameContentSequence=[content])


def _frame_type(dataset: Dataset) -> Dataset:
    return _item(
        FrameType=list(dataset.ImageType),
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
    )


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item
