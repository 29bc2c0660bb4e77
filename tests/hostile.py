"""Originals to break, one of each kind that radloop reads, and the files that TOOLS.md says other readers fall for.

All are generated. Each DICOM original holds `CANARIES` where a patient's name, ID, birth date and accession number stand:
a test that finds one of them in a table, a message or an output has found a leak.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence

from pipeline.dicom.phantom_objects import ct_slice, radiograph, save
from pipeline.errors import RejectReason
from pipeline.work import Failure, WorkerPool
from tests.mutants import dissect, header_of, kind_of, nested_sequences

CANARIES = ("CANARY", "CANARYID", "CANARYACC", "19111111")
IDENTITY = {
    "patient_id": "CANARYID",
    "PatientName": "CANARY^NAME",
    "AccessionNumber": "CANARYACC",
    "PatientBirthDate": "19111111",
}
SAVED = (
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian),
    *(uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless),
)
SIZE = 32


def _eight_bit(image: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return (image >> 4).astype(np.uint8)


ENCODERS: dict[str, tuple[int, Callable[[NDArray[Any]], bytes]]] = {
    uid.JPEGBaseline8Bit: (8, lambda image: imagecodecs.jpeg8_encode(image, level=90)),
    uid.JPEGExtended12Bit: (16, lambda image: imagecodecs.jpeg8_encode(image, level=95, bitspersample=12)),
    uid.JPEGLosslessSV1: (16, lambda image: imagecodecs.ljpeg_encode(image, bitspersample=16)),
    uid.JPEGLSNearLossless: (16, lambda image: imagecodecs.jpegls_encode(image, level=2)),
    uid.JPEG2000: (16, lambda image: imagecodecs.jpeg2k_encode(image, level=90, codecformat="j2k")),
    uid.HTJ2KLossless: (16, imagecodecs.htj2k_encode),
}


def dicom_originals(folder: Path) -> dict[str, bytes]:
    """Name → content; `folder` is written to on the way."""
    made = {syntax.name: _saved(ct_slice(SIZE, **IDENTITY), folder, syntax) for syntax in map(uid.UID, SAVED)}
    made |= {uid.UID(syntax).name: _compressed(folder, [[0]], syntax) for syntax in ENCODERS}
    made["several frames"] = _saved(_frames(ct_slice(SIZE, **IDENTITY), 3), folder)
    made["several frames, RLE"] = _saved(_frames(ct_slice(SIZE, **IDENTITY), 3), folder, uid.RLELossless)
    made["frames in fragments"] = _compressed(folder, [[0, 200], [0, 300], [0]], uid.JPEGLSNearLossless)
    made["extended offsets"] = _compressed(folder, [[0], [0]], uid.HTJ2KLossless, extended=True)
    made["signed, padded"] = _saved(
        ct_slice(SIZE, signed=True, padded=np.eye(SIZE, dtype=bool), **IDENTITY), folder, uid.ImplicitVRLittleEndian
    )
    made["palette"] = _saved(_palette(), folder)
    made["RGB"] = _saved(_color("RGB", 3), folder)
    made["YBR_FULL_422"] = _saved(_color("YBR_FULL_422", 2), folder)
    made["RGB in JPEG"] = _compressed(folder, [[0]], uid.JPEGBaseline8Bit, colored=True)
    made["single bits"] = _saved(_bits(), folder)
    made["lookup tables"] = _saved(_with_tables(), folder)
    made["functional groups"] = _saved(_with_groups(), folder, uid.ImplicitVRLittleEndian)
    made["radiograph"] = _saved(radiograph(SIZE, modality="DX", **IDENTITY), folder, uid.JPEGLSLossless)
    made["no preamble"] = made[uid.ImplicitVRLittleEndian.name][dissect(made[uid.ImplicitVRLittleEndian.name]).body :]
    return made


def raster_originals() -> dict[str, bytes]:
    """PNG, JPEG and TIFF of several kinds."""
    gray = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 251).astype(np.uint8)
    color = np.dstack([gray, gray.T, gray[::-1]])
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = [Image.fromarray(gray // (1 + number)) for number in range(3)]
    return {
        "gray PNG": _picture(gray, "PNG"),
        "16-bit PNG": _picture(gray.astype(np.uint16) * 256, "PNG"),
        "color PNG with alpha": _picture(np.dstack([color, gray]), "PNG"),
        "palette PNG": _picture(Image.fromarray(gray).convert("P"), "PNG", transparency=3),
        "gray JPEG": _picture(gray, "JPEG"),
        "color JPEG with EXIF": _picture(color, "JPEG", exif=exif),
        "progressive JPEG": _picture(color, "JPEG", progressive=True),
        "gray TIFF": _picture(gray, "TIFF"),
        "color TIFF, LZW": _picture(color, "TIFF", compression="tiff_lzw"),
        "deflated 16-bit TIFF": _picture(gray.astype(np.uint16) * 256, "TIFF", compression="tiff_adobe_deflate"),
        "pages of TIFF": _picture(pages[0], "TIFF", save_all=True, append_images=pages[1:]),
        "JPEG in TIFF": _picture(color, "TIFF", compression="jpeg"),
    }


def bad_files(folder: Path) -> dict[str, tuple[bytes, tuple[RejectReason, ...]]]:
    """TOOLS.md, "What bad files do to pydicom": name → (content, what it may be refused for, in the index or when decoded)."""
    plain = _saved(ct_slice(SIZE, **IDENTITY), folder)
    anatomy = dissect(plain)
    pixels = anatomy.pixels
    assert pixels is not None
    head, body = plain[: anatomy.body], plain[anatomy.body :]
    deflated = _saved(ct_slice(SIZE, **IDENTITY), folder, uid.DeflatedExplicitVRLittleEndian)
    deflated_head = deflated[: dissect(deflated).body]
    jpeg, rle = (_compressed(folder, [[0]], uid.JPEGBaseline8Bit), _saved(ct_slice(SIZE, **IDENTITY), folder, SAVED[4]))
    bomb = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    zeros = bytes(2**24)
    inflating = b"".join(bomb.compress(zeros) for _ in range(32)) + bomb.flush()
    reason = RejectReason
    unopened = head + nested_sequences(3000) + body
    made: dict[str, tuple[bytes, tuple[RejectReason, ...]]] = {
        "cut in the pixels": (plain[:-900], (reason.TRUNCATED,)),
        "cut in the header": (plain[: anatomy.body + 700], (reason.TRUNCATED,)),
        "DICM and noise": (head[:132] + np.random.default_rng(0).bytes(9000), (reason.MALFORMED,)),
        "pixels of 4 GB": (_patched(plain, pixels.length_at, struct.pack("<I", 0xFFFFFFF0)), (reason.SIZE_MISMATCH,)),
        "a deflated bomb": (deflated_head + inflating, (reason.TOO_LARGE,)),
        "3,000 sequences, never closed": (unopened, (reason.MALFORMED, reason.TRUNCATED)),
        "pixels too long": (plain + bytes(10000), ()),  # what follows the pixels is no part of them
        "pixels twice as long": (_doubled(plain), (reason.SIZE_MISMATCH,)),
        "JPEG without its end marker": (jpeg.replace(b"\xff\xd9", b"\0\0"), (reason.TRUNCATED,)),
        "an unknown VR": (plain.replace(b"\x08\0\x70\0LO", b"\x08\0\x70\0QQ"), ()),
        "a slope that is no number": (_saying(plain, "RescaleSlope", b"none"), ()),
        "frames that are no number": (_inserted(plain, 0x00280008, b"IS", b"many"), (reason.MALFORMED,)),
    }
    for name, content in (("JPEG", jpeg), ("RLE", rle)):
        huge = _saying(_saying(content, "Rows", b"\xff\xff"), "Columns", b"\xff\xff")
        made[f"{name} of 65535 × 65535 pixels"] = (huge, (reason.TOO_LARGE,))
        more = _inserted(content, 0x00280008, b"IS", b"9 ")
        made[f"{name} with more frames than there are"] = (more, (reason.SIZE_MISMATCH,))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        made[f"no {keyword}"] = (_saying(plain, keyword, b""), (reason.MISSING_UID,))
    return made


def _saved(dataset: Dataset, folder: Path, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    return save(dataset, folder / "original", syntax).read_bytes()


def _picture(image: Any, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format_name, **options)
    return buffer.getvalue()


def _frames(dataset: Dataset, count: int) -> Dataset:
    dataset.NumberOfFrames = count
    dataset.PixelData = dataset.PixelData * count
    return dataset


def _compressed(
    folder: Path, cuts: list[list[int]], syntax: str, *, extended: bool = False, colored: bool = False
) -> bytes:
    """A frame for each list of `cuts`, in fragments that begin at those bytes of its stream."""
    dataset = ct_slice(SIZE, **IDENTITY)
    image = np.frombuffer(dataset.PixelData, "<u2").reshape(SIZE, SIZE)
    bits, encode = ENCODERS[syntax]
    image = _eight_bit(image) if bits == 8 else image
    if bits == 8:
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
    if colored:
        image = np.dstack([image] * 3)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    stream = encode(image)
    parts = [[stream[start:end] for start, end in zip(cut, [*cut[1:], None], strict=True)] for cut in cuts]
    dataset.NumberOfFrames = len(cuts)
    if extended:
        data, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(
            [stream] * len(cuts)
        )
    else:
        data = encapsulate([part + b"\0" * (len(part) % 2) for frame in parts for part in frame], has_bot=False)
    dataset.PixelData = data
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return _as_it_is(dataset, folder, syntax)


def _as_it_is(dataset: Dataset, folder: Path, syntax: str) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.save_as(folder / "original", enforce_file_format=True)
    return (folder / "original").read_bytes()


def _palette() -> Dataset:
    values = (np.arange(SIZE * SIZE) % 4).astype(np.uint8)
    dataset = radiograph(SIZE, photometric="PALETTE COLOR", BitsAllocated=8, BitsStored=8, HighBit=7, **IDENTITY)
    dataset.PixelData = values.tobytes()
    for color, entries in (("Red", (0, 65535, 0, 9)), ("Green", (0, 0, 65535, 9)), ("Blue", (0, 0, 65535, 9))):
        setattr(dataset, f"{color}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(dataset, f"{color}PaletteColorLookupTableData", np.array(entries, "<u2").tobytes())
    return dataset


def _color(photometric: str, stored_samples: int) -> Dataset:
    dataset = radiograph(SIZE, photometric=photometric, BitsAllocated=8, BitsStored=8, HighBit=7, **IDENTITY)
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PixelData = bytes(range(256)) * (SIZE * SIZE * stored_samples // 256)
    return dataset


def _bits() -> Dataset:
    dataset = radiograph(SIZE, photometric="MONOCHROME2", BitsAllocated=1, BitsStored=1, HighBit=0, **IDENTITY)
    dataset.NumberOfFrames = 2
    dataset.PixelData = bytes(range(256)) * (SIZE * SIZE * 2 // 8 // 256)
    return dataset


def _with_tables() -> Dataset:
    modality, voi = Dataset(), Dataset()
    for item, bits in ((modality, 16), (voi, 12)):
        item.add_new("LUTDescriptor", "US", [256, 0, bits])
        item.add_new("LUTData", "US", [number * 15 for number in range(256)])
    modality.ModalityLUTType = "HU"
    tables = {"ModalityLUTSequence": Sequence([modality]), "VOILUTSequence": Sequence([voi])}
    return ct_slice(SIZE, RescaleSlope=None, RescaleIntercept=None, RescaleType=None, **tables, **IDENTITY)


def _with_groups() -> Dataset:
    dataset = _frames(ct_slice(SIZE, **IDENTITY), 2)
    dataset.SOPClassUID = uid.EnhancedCTImageStorage
    groups = []
    for number in range(2):
        group, window, rescale = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = 40 + number, 400
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
        group.FrameVOILUTSequence, group.PixelValueTransformationSequence = Sequence([window]), Sequence([rescale])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [0.5, 0.4]
    shared.PixelMeasuresSequence = Sequence([measures])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    return dataset


def _patched(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + len(new) :]


def _saying(content: bytes, keyword: str, value: bytes) -> bytes:
    """With another value of an attribute of explicit VR, and its length."""
    anatomy = dissect(content)
    place = anatomy.find(keyword)
    assert place is not None
    element = header_of("<", True, place.tag, place.vr, len(value)) + value
    return content[: place.start] + element + content[place.end :]


def _inserted(content: bytes, tag: int, vr: bytes, value: bytes) -> bytes:
    """With an element that is not there yet, or instead of the one that is, in its place by tag."""
    anatomy = dissect(content)
    place = next(place for place in anatomy.elements if place.tag >= tag)
    element = header_of("<", True, tag, vr, len(value)) + value
    return content[: place.start] + element + content[place.end if place.tag == tag else place.start :]


def _doubled(content: bytes) -> bytes:
    pixels = dissect(content).pixels
    assert pixels is not None
    return (
        _patched(content, pixels.length_at, struct.pack("<I", 2 * pixels.length)) + content[pixels.value : pixels.end]
    )


def decode_all(folder: str) -> None:
    """For a process of its own: all that its worker, and the codecs in it, print comes out of it."""
    with WorkerPool(1, timeout_s=60) as pool:
        outcomes = [outcome for _, outcome in pool.run_each(_decode, sorted(Path(folder).iterdir()), chunk=8)]
    assert any(isinstance(outcome, Failure) for outcome in outcomes)
    assert None in outcomes


def _decode(path: Path) -> None:
    from pipeline.dicom.pixels import read_pixels  # torch comes with them: in the worker, and only there
    from pipeline.raster import read_raster

    (read_pixels if kind_of(path.read_bytes()) == "dicom" else read_raster)(path)
