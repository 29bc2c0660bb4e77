"""pipeline.dicom.pixels: stored values get the meaning that PS3.3 gives them."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut
from pydicom.sequence import Sequence

from pipeline.dicom import bounded
from pipeline.dicom.pixels import frame_count, read_frames, read_pixels
from pipeline.errors import Rejected, RejectReason
from transforms.intensity import WINDOWS, PixelUnit, VoiFunction, to_unit_range

HU_RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 40


def write(path: Path, values: NDArray[Any], syntax: str = uid.ExplicitVRLittleEndian, **attributes: Any) -> Path:
    """A file of (rows, columns), (frames, rows, columns) or, where SamplesPerPixel is 3, (rows, columns, 3) native values."""
    dataset = Dataset()
    colored = attributes.get("SamplesPerPixel", 1) == 3
    bits = values.dtype.itemsize * 8
    defaults: dict[str, Any] = {
        "SOPClassUID": uid.SecondaryCaptureImageStorage,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "RGB" if colored else "MONOCHROME2",
        "Rows": values.shape[-3] if colored else values.shape[-2],
        "Columns": values.shape[-2] if colored else values.shape[-1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": int(values.dtype.kind == "i"),
    }
    if colored:
        defaults["PlanarConfiguration"] = 0
    if not colored and values.ndim == 3:
        defaults["NumberOfFrames"] = len(values)
    for keyword, value in (defaults | attributes).items():
        setattr(dataset, keyword, value)
    if "HighBit" not in dataset:
        dataset.HighBit = dataset.BitsStored - 1
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if values.dtype.kind == "f":
        dataset.FloatPixelData = data
        del dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    else:
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.save_as(path, enforce_file_format=True)
    return path


def ct(path: Path, values: NDArray[Any] = HU_RAMP, **attributes: Any) -> Path:
    defaults: dict[str, Any] = {
        "SOPClassUID": uid.CTImageStorage,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    }
    return write(path, values, **(defaults | {"RescaleSlope": 2, "RescaleIntercept": -1024} | attributes))


def lut(first: int, entries: list[int], bits: int = 16, **attributes: Any) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first % 65536, bits])
    item.add_new("LUTData", "US", entries)
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image"


def test_ct_is_rescaled_to_hu(path: Path) -> None:
    pixels = read_pixels(ct(path, PixelSpacing=[0.7, 0.6], WindowCenter=[-600, 40], WindowWidth=[1500, 400]))
    np.testing.assert_array_equal(pixels.values, HU_RAMP * 2.0 - 1024)
    assert (pixels.values.dtype, pixels.unit, pixels.spacing_mm) == (np.float32, PixelUnit.HU, (0.7, 0.6))
    assert [(voi.center, voi.width) for voi in pixels.voi] == [(-600, 1500), (40, 400)]
    assert not pixels.inverted
    assert pixels.padding is None


@pytest.mark.parametrize(
    ("attributes", "unit"),
    [
        ({}, PixelUnit.HU),
        ({"RescaleType": "HU"}, PixelUnit.HU),
        ({"RescaleType": "US"}, PixelUnit.HU),
        ({"RescaleType": "US", "ImageType": ["DERIVED", "SECONDARY"]}, PixelUnit.MODALITY),
        ({"RescaleType": "HU", "SOPClassUID": uid.SecondaryCaptureImageStorage}, PixelUnit.HU),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, PixelUnit.MODALITY),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "RescaleType": "HU"}, PixelUnit.MODALITY),
        ({"RescaleType": "ED"}, PixelUnit.MODALITY),
        ({"RescaleSlope": None, "RescaleIntercept": None}, PixelUnit.MODALITY),
        ({"Modality": "PT", "SOPClassUID": uid.PositronEmissionTomographyImageStorage}, PixelUnit.MODALITY),
    ],
)
def test_unit_rule(path: Path, attributes: dict[str, Any], unit: PixelUnit) -> None:
    assert read_pixels(ct(path, **attributes)).unit is unit


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4"])
def test_native_transfer_syntaxes_agree(path: Path, syntax: str, dtype: str) -> None:
    values = (np.arange(35).reshape(5, 7) * 7 - (100 if dtype == "i2" else 0)).astype(dtype)
    np.testing.assert_array_equal(read_pixels(write(path, values, syntax)).values, values)


def test_big_endian_words_of_8_bit_samples_are_swapped_for_every_frame(path: Path) -> None:
    values = np.arange(45, dtype=np.uint8).reshape(3, 3, 5)
    data = write(path, values, uid.ExplicitVRBigEndian).read_bytes()
    words = np.frombuffer(values.tobytes() + b"\0", ">u2").astype("<u2").tobytes()
    path.write_bytes(data.replace(b"OB" + data[data.index(b"\x7f\xe0\x00\x10") + 6 :], b"OW\0\0\0\0\0\x2e" + words))
    for frame in range(3):
        np.testing.assert_array_equal(read_pixels(path, frame).values, values[frame])


@given(
    allocated=st.sampled_from([8, 16, 32]),
    stored=st.integers(2, 32),
    high=st.integers(0, 31),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_unused_bits_never_count(
    tmp_path_factory: Any, allocated: int, stored: int, high: int, signed: bool, seed: int
) -> None:
    stored = min(stored, allocated, 24)  # more do not fit float32
    high = min(max(high, stored - 1), allocated - 1)
    rng = np.random.default_rng(seed)
    low = -(1 << (stored - 1)) if signed else 0
    values = rng.integers(low, low + (1 << stored), (4, 6))
    noise = rng.integers(0, 1 << allocated, (4, 6), dtype=np.uint64)
    used = ((1 << stored) - 1) << (high - stored + 1)
    words = (noise & np.uint64(~used & ((1 << allocated) - 1))) | (
        (values.astype(np.uint64) & np.uint64((1 << stored) - 1)) << np.uint64(high - stored + 1)
    )
    file = tmp_path_factory.mktemp("bits") / "image"
    write(file, words.astype(f"u{allocated // 8}"), BitsStored=stored, HighBit=high, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(read_pixels(file).values, values)


def test_single_frames_of_a_file_without_preamble(path: Path) -> None:
    values = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    data = write(path, values, uid.ImplicitVRLittleEndian).read_bytes()
    path.write_bytes(data[data.index(b"\x08\x00\x16\x00") :])
    assert frame_count(path) == 3
    np.testing.assert_array_equal(read_pixels(path, 2).values, values[2])
    np.testing.assert_array_equal([pixels.values for pixels in read_frames(path)], values)
    with pytest.raises(ValueError, match="frames 0 to 2"):
        read_pixels(path, 3)


def test_modality_lut_goes_before_rescale(path: Path) -> None:
    sequence = Sequence([lut(2, [10, 20, 40], ModalityLUTType="US")])
    values = np.array([[0, 2, 3, 4, 9]], np.uint16)
    pixels = read_pixels(write(path, values, ModalityLUTSequence=sequence, RescaleSlope=5, RescaleIntercept=0))
    np.testing.assert_array_equal(pixels.values, [[10, 10, 20, 40, 40]])
    assert pixels.unit is PixelUnit.MODALITY


def test_voi_lut_goes_first_and_its_signed_first_value_counts(path: Path) -> None:
    sequence = Sequence([lut(-2, [0, 255, 1023, 4095], bits=12)])
    values = np.array([[-5, -2, -1, 0, 1, 7]], np.int16)
    pixels = read_pixels(write(path, values, VOILUTSequence=sequence, WindowCenter=1, WindowWidth=2))
    assert [voi.function for voi in pixels.voi] == [VoiFunction.LUT, VoiFunction.LINEAR]
    expected = np.array([[0, 0, 255, 1023, 4095, 4095]]) / 4095
    np.testing.assert_allclose(to_unit_range(pixels, WINDOWS["lung"]), expected, atol=1e-6)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_lut_of_8_bit_entries_packed_or_not(path: Path, syntax: str) -> None:
    packed, words = Dataset(), Dataset()
    for item in (packed, words):
        item.add_new("LUTDescriptor", "US", [4, 0, 8])
    order = "big" if syntax == uid.ExplicitVRBigEndian else "little"
    packed.add_new(
        "LUTData", "OW", b"".join((first | second << 8).to_bytes(2, order) for first, second in ((0, 51), (102, 255)))
    )
    words.add_new("LUTData", "OW", b"".join(value.to_bytes(2, order) for value in (0, 51, 102, 255)))
    values = np.array([[0, 1, 2, 3]], np.uint16)
    for item in (packed, words):
        voi = read_pixels(write(path, values, syntax, VOILUTSequence=Sequence([item]))).voi[0]
        assert voi.lut is not None
        np.testing.assert_allclose(voi.lut, [0, 0.2, 0.4, 1], atol=1e-6)


def test_lut_shorter_than_it_says_is_malformed(path: Path) -> None:
    item = lut(0, [1, 2, 3])
    item.LUTDescriptor = [300, 0, 16]
    with pytest.raises(Rejected) as caught:
        read_pixels(write(path, HU_RAMP, VOILUTSequence=Sequence([item])))
    assert caught.value.reason is RejectReason.MALFORMED


@pytest.mark.parametrize(
    ("name", "width", "function"),
    [
        ("SIGMOID", 0.5, VoiFunction.SIGMOID),
        ("LINEAR_EXACT", 0.5, VoiFunction.LINEAR_EXACT),
        ("", 1, VoiFunction.LINEAR),
    ],
)
def test_voi_functions(path: Path, name: str, width: float, function: VoiFunction) -> None:
    pixels = read_pixels(write(path, HU_RAMP, WindowCenter=[5, 5], WindowWidth=[0, width], VOILUTFunction=name))
    assert [(voi.function, voi.width) for voi in pixels.voi] == [(function, width)]


@pytest.mark.parametrize(
    ("shape", "photometric"), [("INVERSE", "MONOCHROME1"), ("IDENTITY", "MONOCHROME2"), (None, "MONOCHROME1")]
)
def test_monochrome1_is_inverted_once(path: Path, shape: str | None, photometric: str) -> None:
    attributes = {"PresentationLUTShape": shape} if shape else {}
    pixels = read_pixels(write(path, HU_RAMP, PhotometricInterpretation=photometric, **attributes))
    assert pixels.inverted is (photometric == "MONOCHROME1")
    np.testing.assert_array_equal(pixels.values, HU_RAMP)


@pytest.mark.parametrize(
    ("dtype", "vr", "value", "limit"),
    [
        ("i2", "SS", -2000, None),
        ("i2", "US", 63536, None),
        ("u2", "SS", -2000, None),
        ("i2", "SS", -2000, -1990),
        ("i2", "SS", -1990, -2000),
    ],
)
def test_padding_is_compared_in_stored_values(path: Path, dtype: str, vr: str, value: int, limit: int | None) -> None:
    values = np.array([[-2000, -1999, 5]], np.int16).view(dtype)
    write(path, values, RescaleSlope=3, RescaleIntercept=7)
    extra = Dataset()
    extra.add_new("PixelPaddingValue", vr, value)
    elements = {"PixelPaddingValue": extra["PixelPaddingValue"]}
    if limit is not None:
        extra.add_new("PixelPaddingRangeLimit", vr, limit)
        elements["PixelPaddingRangeLimit"] = extra["PixelPaddingRangeLimit"]
    dataset = dcmread(path)
    for element in elements.values():
        dataset.add(element)
    dataset.save_as(path)
    padding = read_pixels(path).padding
    assert padding is not None
    assert padding.tolist() == [[True, limit is not None, False]]


def test_words_of_each_window_and_lut_go_with_it(path: Path) -> None:
    """Explanations pair with the centres, those of windows that cannot be used included."""
    words = {"WindowCenterWidthExplanation": ["LUNG", "none", "Bone "]}
    windows = {"WindowCenter": [-600, 0, 400, 7], "WindowWidth": [1500, 0, 1800, 9], **words}
    table = lut(0, [0, 1], LUTExplanation="SHARP")
    found = read_pixels(write(path, HU_RAMP, VOILUTSequence=Sequence([table]), **windows)).voi
    assert [voi.explanation for voi in found] == ["SHARP", "LUNG", "Bone", ""]
    assert [voi.center for voi in found[1:]] == [-600, 400, 7]


@pytest.mark.parametrize(
    ("attributes", "aspect"),
    [
        ({}, 1),
        ({"PixelAspectRatio": [4, 3]}, 4 / 3),
        ({"PixelSpacing": [0.6, 0.3]}, 2),
        ({"ImagerPixelSpacing": [0.2, 0.4]}, 0.5),
        ({"PixelAspectRatio": [3, 1], "PixelSpacing": [1, 1]}, 1),
        ({"PixelAspectRatio": [0, 1], "PixelSpacing": [1, 2]}, 0.5),
        ({"PixelAspectRatio": 7}, 1),
    ],
)
def test_aspect_is_height_over_width(path: Path, attributes: dict[str, Any], aspect: float) -> None:
    assert read_pixels(write(path, HU_RAMP, **attributes)).aspect == pytest.approx(aspect)


def test_aspect_of_colour_and_single_bits(path: Path) -> None:
    colored = write(path, np.zeros((4, 6, 3), np.uint8), SamplesPerPixel=3, PixelAspectRatio=[1, 2])
    assert read_pixels(colored).aspect == 0.5
    bits = {"BitsAllocated": 1, "BitsStored": 1, "Rows": 4, "Columns": 4, "PixelAspectRatio": [1, 2]}
    assert read_pixels(write(path, np.zeros((1, 2), np.uint8), **bits)).aspect == 0.5


def test_spacing_falls_back_to_the_detector_and_the_frame(path: Path) -> None:
    assert read_pixels(write(path, HU_RAMP, ImagerPixelSpacing=[0.1, 0.2])).spacing_mm == (0.1, 0.2)
    assert read_pixels(write(path, HU_RAMP, PixelSpacing=[0, 0.3])).spacing_mm is None
    assert read_pixels(write(path, HU_RAMP)).spacing_mm is None


def test_enhanced_ct_takes_each_frames_own_functional_groups(path: Path) -> None:
    def group(**macros: dict[str, Any]) -> Dataset:
        outer = Dataset()
        for keyword, attributes in macros.items():
            inner = Dataset()
            for name, value in attributes.items():
                setattr(inner, name, value)
            setattr(outer, keyword, Sequence([inner]))
        return outer

    frames = np.stack([HU_RAMP, HU_RAMP])
    shared = group(
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.4]},
        PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"},
    )
    own = [
        group(FrameVOILUTSequence={"WindowCenter": 40 + n, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"})
        for n in range(2)
    ]
    own[1].PixelValueTransformationSequence = group(
        PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": 0, "RescaleType": "US"}
    ).PixelValueTransformationSequence
    write(
        path,
        frames,
        SOPClassUID=uid.EnhancedCTImageStorage,
        Modality="CT",
        ImageType=["DERIVED", "PRIMARY", "VOLUME", "NONE"],
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(own),
    )
    first, second = read_frames(path)
    assert (first.aspect, second.aspect) == (1.25, 1.25)
    np.testing.assert_array_equal(first.values, HU_RAMP - 1024.0)
    np.testing.assert_array_equal(second.values, HU_RAMP * 2.0)
    assert (first.unit, second.unit) == (PixelUnit.HU, PixelUnit.MODALITY)
    assert (first.voi[0].center, second.voi[0].center) == (40, 41)
    assert first.voi[0].function is VoiFunction.LINEAR_EXACT
    assert first.spacing_mm == (0.5, 0.4)


def test_each_frame_of_an_enhanced_ct_is_a_localizer_or_not(path: Path) -> None:
    """ImageType may be MIXED: FrameType tells; and what real-world values map to changes no value."""
    own = []
    for kind in ("LOCALIZER", "AXIAL"):
        frame, frame_type, world, measures = Dataset(), Dataset(), Dataset(), Dataset()
        frame_type.FrameType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
        world.RealWorldValueSlope, world.RealWorldValueIntercept = 7.0, 3.0
        measures.PixelSpacing = [0.5, 1.0 if kind == "AXIAL" else 0.5]
        frame.CTImageFrameTypeSequence = Sequence([frame_type])
        frame.RealWorldValueMappingSequence = Sequence([world])
        frame.PixelMeasuresSequence = Sequence([measures])
        own.append(frame)
    attributes = {"SOPClassUID": uid.EnhancedCTImageStorage, "PerFrameFunctionalGroupsSequence": Sequence(own)}
    mixed = {"ImageType": ["ORIGINAL", "PRIMARY", "MIXED", "NONE"], "RescaleType": "HU"}
    localizer, axial = read_frames(ct(path, np.stack([HU_RAMP, HU_RAMP]), **attributes, **mixed))
    assert (localizer.unit, axial.unit) == (PixelUnit.MODALITY, PixelUnit.HU)
    assert (localizer.aspect, axial.aspect) == (1.0, 0.5)
    np.testing.assert_array_equal(axial.values, HU_RAMP * 2.0 - 1024)


RANDOM_RGB = np.random.default_rng(7).integers(0, 256, (12, 16, 3), dtype=np.uint8)
PRIMARIES = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)], np.uint8)
SAMPLE = 1 / 255
YBR_ROUNDING = 2.0 * SAMPLE
"""What rounding CB and CR to whole samples makes of R, G and B (1.772 times a half, and a half of Y)."""


def to_ybr(rgb: NDArray[Any], bits: int = 8, *, partial: bool = False) -> NDArray[Any]:
    """The forward matrices of PS3.3 C.7.6.3.1.2, with its own digits."""
    if partial:
        matrix = [[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]]
    else:
        matrix = [[0.2990, 0.5870, 0.1140], [-0.1687, -0.3313, 0.5000], [0.5000, -0.4187, -0.0813]]
    zero = np.array([16 if partial else 0, 128, 128]) * 2.0 ** (bits - 8)
    return np.clip(np.rint(rgb @ np.array(matrix).T + zero), 0, 2**bits - 1).astype(rgb.dtype)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize(("dtype", "scale"), [("u1", 1), ("u2", 257), ("u4", 257)])
def test_rgb_where_it_is_asked_for(path: Path, planar: int, dtype: str, scale: int) -> None:
    rgb = (RANDOM_RGB.astype(dtype) * scale).astype(dtype)
    stored = np.moveaxis(rgb, -1, 0).reshape(rgb.shape) if planar else rgb
    bits = {"u1": 8, "u2": 16, "u4": 16}[dtype]
    write(path, stored, SamplesPerPixel=3, PlanarConfiguration=planar, BitsStored=bits)
    pixels = read_pixels(path, color=True)
    assert (pixels.unit, pixels.values.shape, pixels.values.dtype) == (PixelUnit.FRACTION, (12, 16, 3), np.float32)
    np.testing.assert_allclose(pixels.values, RANDOM_RGB / 255, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_ybr_becomes_rgb(path: Path, bits: int) -> None:
    kind = np.uint8 if bits == 8 else np.uint16
    rgb = np.concatenate([RANDOM_RGB.reshape(-1, 3), PRIMARIES])[None].astype(kind) * kind(1 if bits == 8 else 257)
    write(path, to_ybr(rgb, bits), SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL")
    found = read_pixels(path, color=True).values
    # in 16 bits what is left is the standard's own digits, four after the point
    np.testing.assert_allclose(found, rgb / (2**bits - 1), atol=YBR_ROUNDING if bits == 8 else 0.001)


def test_subsampled_chroma_is_shared_by_two_pixels(path: Path) -> None:
    ybr = np.repeat(to_ybr(RANDOM_RGB)[:, ::2], 2, axis=1)
    ybr[..., 0] = to_ybr(RANDOM_RGB)[..., 0]
    whole = read_pixels(write(path, ybr, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL"), color=True).values
    packed = np.concatenate([ybr[:, ::2, :1], ybr[:, 1::2, :1], ybr[:, ::2, 1:]], axis=-1)
    dataset = dcmread(path)
    dataset.PhotometricInterpretation, dataset.PixelData = "YBR_FULL_422", packed.tobytes()
    dataset.save_as(path)
    np.testing.assert_array_equal(read_pixels(path, color=True).values, whole)
    np.testing.assert_allclose(read_pixels(path).values, ybr[..., 0] / 255, atol=1e-6)


def test_partial_range_goes_from_16_to_235(path: Path) -> None:
    rgb = np.repeat(PRIMARIES, 2, axis=0)[None]
    ybr = to_ybr(rgb, partial=True)
    packed = np.concatenate([ybr[:, ::2, :1], ybr[:, 1::2, :1], ybr[:, ::2, 1:]], axis=-1)
    write(path, ybr, SamplesPerPixel=3, PhotometricInterpretation="YBR_PARTIAL_422")
    dataset = dcmread(path)
    dataset.PixelData = packed.tobytes()
    dataset.save_as(path)
    np.testing.assert_allclose(read_pixels(path, color=True).values, rgb / 255, atol=1.5 * YBR_ROUNDING)
    np.testing.assert_allclose(read_pixels(path).values[0, 6:10:2], [1, 0], atol=1e-6)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_luma_of_the_rgb_is_the_gray(path: Path, photometric: str) -> None:
    """Within what a YBR of whole samples can tell (its Y is that of the RGB it was made of, before CB and CR were rounded)."""
    if photometric == "PALETTE COLOR":
        tables = {
            f"{color}PaletteColorLookupTable{name}": value
            for number, color in enumerate(("Red", "Green", "Blue"))
            for name, value in (
                ("Descriptor", [256, 0, 16]),
                ("Data", np.roll(np.arange(256) * 257, 50 * number).astype("<u2").tobytes()),
            )
        }
        write(path, RANDOM_RGB[..., 0], PhotometricInterpretation=photometric, **tables)
    else:
        stored = to_ybr(RANDOM_RGB) if photometric == "YBR_FULL" else RANDOM_RGB
        write(path, stored, SamplesPerPixel=3, PhotometricInterpretation=photometric)
    gray, rgb = read_pixels(path).values, read_pixels(path, color=True).values
    assert np.ptp(rgb, axis=-1).max() > 0.5
    np.testing.assert_allclose(rgb @ [0.299, 0.587, 0.114], gray, atol=SAMPLE if photometric == "YBR_FULL" else 1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_gray_stays_gray_where_colour_is_asked_for(path: Path, photometric: str) -> None:
    write(path, np.stack([HU_RAMP, HU_RAMP + 1]), PhotometricInterpretation=photometric, WindowCenter=9, WindowWidth=9)
    for gray, asked in zip(read_frames(path), read_frames(path, color=True), strict=True):
        np.testing.assert_array_equal(gray.values, asked.values)
        assert (gray.unit, gray.inverted, gray.voi) == (asked.unit, asked.inverted, asked.voi)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_signed_colour_is_not_guessed_at(path: Path, photometric: str, color: bool) -> None:
    samples = 1 if photometric == "PALETTE COLOR" else 3
    values = np.zeros((4, 4, 3), np.int8) if samples == 3 else np.zeros((4, 4), np.int8)
    write(path, values, SamplesPerPixel=samples, PhotometricInterpretation=photometric)
    with pytest.raises(Rejected) as caught:
        read_pixels(path, color=color)
    assert caught.value.reason is RejectReason.UNSUPPORTED_PIXELS


def test_color_becomes_luma(path: Path) -> None:
    rgb = np.zeros((2, 4, 3), np.uint8)
    rgb[:, 0], rgb[:, 1], rgb[:, 2], rgb[:, 3] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    pixels = read_pixels(write(path, rgb, SamplesPerPixel=3))
    assert pixels.unit is PixelUnit.FRACTION
    np.testing.assert_allclose(pixels.values, np.tile([0.299, 0.587, 0.114, 1.0], (2, 1)), atol=1e-6)
    planes = np.moveaxis(rgb, -1, 0).reshape(2, 4, 3)
    by_plane = read_pixels(write(path, planes, SamplesPerPixel=3, PlanarConfiguration=1))
    np.testing.assert_allclose(by_plane.values, pixels.values)
    ybr = read_pixels(write(path, rgb, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_allclose(ybr.values, rgb[..., 0] / 255, atol=1e-6)


def test_palette_color_becomes_luma(path: Path) -> None:
    palette: dict[str, Any] = {}
    for color, entries in (("Red", (0, 65535, 0)), ("Green", (0, 0, 65535)), ("Blue", (0, 0, 65535))):
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        palette[f"{color}PaletteColorLookupTableData"] = np.array(entries, "<u2").tobytes()
    values = np.array([[0, 1, 2, 9]], np.uint8)
    pixels = read_pixels(write(path, values, PhotometricInterpretation="PALETTE COLOR", **palette))
    np.testing.assert_allclose(pixels.values, [[0, 0.299, 0.701, 0.701]], atol=1e-5)


def test_single_bits_are_unpacked_across_bytes(path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, 3, 5), dtype=np.uint8)
    packed = np.packbits(bits.reshape(-1), bitorder="little")
    write(path, packed.reshape(1, -1), BitsAllocated=1, BitsStored=1, Rows=3, Columns=5, NumberOfFrames=3)
    for frame, pixels in enumerate(read_frames(path)):
        assert pixels.unit is PixelUnit.FRACTION
        np.testing.assert_array_equal(pixels.values, bits[frame])


def test_float_pixels_without_a_number_are_padding(path: Path) -> None:
    values = np.array([[0.5, np.nan, np.inf, -3]], np.float32)
    pixels = read_pixels(write(path, values))
    np.testing.assert_array_equal(pixels.values, np.array([[0.5, 0, 0, -3]], np.float32))
    assert pixels.padding is not None
    assert pixels.padding.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Rows": 7}, RejectReason.SIZE_MISMATCH),
        ({"Columns": 9}, RejectReason.SIZE_MISMATCH),
        ({"NumberOfFrames": 2}, RejectReason.SIZE_MISMATCH),
        ({"Rows": 0}, RejectReason.MALFORMED),
        ({"BitsAllocated": 12}, RejectReason.SIZE_MISMATCH),
        ({"BitsStored": 17}, RejectReason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "CIELAB"}, RejectReason.UNSUPPORTED_PIXELS),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, RejectReason.UNSUPPORTED_PIXELS),
    ],
)
def test_headers_that_cannot_be_right(path: Path, attributes: dict[str, Any], reason: RejectReason) -> None:
    with pytest.raises(Rejected) as caught:
        read_pixels(write(path, HU_RAMP + 1, **attributes))
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("photometric", "bits", "columns", "stored"),
    [("YBR_FULL_422", 8, 3, 30), ("YBR_FULL_422", 1, 32, 40), ("RGB", 1, 32, 60)],
)
def test_colour_that_cannot_lie_in_such_pixels(
    path: Path, photometric: str, bits: int, columns: int, stored: int
) -> None:
    """The sizes add up, and still no array of that shape can be made of the bytes."""
    attributes = {"Rows": 5, "Columns": columns, "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    values = np.zeros((1, stored, 3), np.uint8)
    write(path, values, SamplesPerPixel=3, PhotometricInterpretation=photometric, **attributes, PixelData=bytes(stored))
    cut = dcmread(path)
    cut.PixelData = bytes(stored)
    cut.save_as(path)
    with pytest.raises(Rejected) as caught:
        read_pixels(path)
    assert caught.value.reason is RejectReason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize(
    ("vr", "value"),
    [(b"DS", b"1e400 "), (b"DS", b"8.7 "), (b"FD", struct.pack("<d", np.inf)), (b"FL", struct.pack("<f", np.nan))],
)
def test_rows_that_are_no_whole_number(path: Path, vr: bytes, value: bytes) -> None:
    data = write(path, HU_RAMP).read_bytes()
    rows = b"\x28\0\x10\0"
    path.write_bytes(data.replace(rows + b"US\2\0\x08\0", rows + vr + struct.pack("<H", len(value)) + value))
    with pytest.raises(Rejected) as caught:
        read_pixels(path)
    assert caught.value.reason is RejectReason.MALFORMED


@pytest.mark.parametrize("keyword", ["WindowCenter", "RescaleType", "ImageType"])
def test_a_value_of_millions_of_parts_is_not_taken_apart(path: Path, keyword: str) -> None:
    """Of implicit VR, where lengths have 32 bits: 64 MiB of numbers took minutes and 12 GB."""
    data = write(path, HU_RAMP, uid.ImplicitVRLittleEndian, **{keyword: "1"}).read_bytes()
    tag = int(tag_for_keyword(keyword) or 0)
    short = struct.pack("<HHI", tag >> 16, tag & 0xFFFF, 2) + b"1 "
    assert data.count(short) == 1
    path.write_bytes(data.replace(short, struct.pack("<HHI", tag >> 16, tag & 0xFFFF, 100_000) + b"1\\" * 50_000))
    with pytest.raises(Rejected) as caught:
        read_pixels(path)
    assert (caught.value.reason, caught.value.detail) == (RejectReason.MALFORMED, f"{keyword} is 100000 bytes long")


def segmented(path: Path, segments: list[int]) -> Path:
    palette: dict[str, Any] = {}
    for color in ("Red", "Green", "Blue"):
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"Segmented{color}PaletteColorLookupTableData"] = np.array(segments, "<u2").tobytes()
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return write(path, values, PhotometricInterpretation="PALETTE COLOR", **palette)


def test_segmented_palette_is_pydicoms(path: Path) -> None:
    segmented(path, [0, 3, 5, 9, 7, 1, 100, 60000, 1, 50, 60000, 0, 3, 1, 2, 3, 1, 100, 0])
    expected = apply_color_lut(np.arange(256, dtype=np.uint8).reshape(16, 16), dcmread(path))[..., 0] / 65535
    np.testing.assert_allclose(read_pixels(path).values, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        (
            [0, 1, 5, 1, 100, 9] + [word for number in range(60) for word in (2, 2 + number, 0, 0)],
            "unsupported_pixels",
        ),
        ([1, 10, 7], "malformed"),
        ([0, 1, 5, 1, 0, 7], "malformed"),
        ([0, 3, 1, 2, 3], "malformed"),
        ([9, 9, 9, 9], "malformed"),
        ([], "malformed"),
    ],
    ids=["each doubles all before it", "no start of a line", "a line of no length", "short", "no such segment", "none"],
)
def test_segmented_palettes_that_cannot_be_expanded(path: Path, segments: list[int], reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_pixels(segmented(path, segments))
    assert caught.value.reason == reason


def test_8_bit_palette_in_words_is_over_its_own_range(path: Path) -> None:
    palette: dict[str, Any] = {}
    for color in ("Red", "Green", "Blue"):
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [3, 0, 8]
        palette[f"{color}PaletteColorLookupTableData"] = np.array([0, 51, 255], "<u2").tobytes()
    pixels = read_pixels(
        write(path, np.array([[0, 1, 2, 9]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **palette)
    )
    np.testing.assert_allclose(pixels.values, [[0, 0.2, 1, 1]], atol=1e-6)


def test_a_header_of_too_many_elements(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that pydicom reads; the walk through ordinary ones has a limit of bytes."""
    write(path, HU_RAMP, uid.ExplicitVRBigEndian)
    read_pixels(path)
    monkeypatch.setattr(bounded, "HEADER_READS", 20)
    with pytest.raises(Rejected) as caught:
        read_pixels(path)
    assert caught.value.reason is RejectReason.TOO_LARGE


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    cases = {"text": RejectReason.NOT_AN_IMAGE, "empty": RejectReason.EMPTY, "fifo": RejectReason.NOT_REGULAR}
    (tmp_path / "text").write_text("no image, and long enough to hold a preamble " * 8)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (cases | {"gone": RejectReason.CHANGED}).items():
        with pytest.raises(Rejected) as caught:
            read_pixels(tmp_path / name)
        assert caught.value.reason is reason


def test_native_file_that_is_cut_anywhere_never_yields_pixels(path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    for syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian):
        data = write(path, HU_RAMP + 1, syntax).read_bytes()
        for end in range(1, len(data), 7):
            cut.write_bytes(data[:end])
            with pytest.raises(Rejected):
                read_pixels(cut)


def test_nothing_of_the_patient_in_messages_or_warnings(path: Path) -> None:
    write(path, HU_RAMP, PatientName="Doe^Jane", PatientID="SECRET-1", PixelSpacing=[1, 1])
    data = path.read_bytes().replace(b"1\\1 ", b"DOE ").replace(b"MONOCHROME2", b"DOEDOEDOE  ")
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Rejected) as error:
            read_pixels(path)
    assert not caught
    assert "DOE" not in str(error.value).upper()
    assert "SECRET" not in str(error.value)
