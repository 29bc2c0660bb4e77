"""Lossless compression of pixels that radloop writes: RLE, JPEG-LS and JPEG 2000 (PS3.5 A.4).

In: a dataset with native little-endian pixels. Out: the same dataset, its pixels encapsulated, a fragment a frame, with a basic offset
table where it holds them. The samples come back to the last bit, so that nothing is said of lossy compression that the source does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from pipeline.errors import ObjectError

Compression = Literal["none", "rle", "jpeg-ls", "jpeg2000"]
SYNTAXES: Mapping[Compression, UID] = {
    "none": ExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg-ls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
}
MAX_OFFSET = 2**32 - 1
"""Of a basic offset table: beyond it the table is left empty (PS3.5 A.4), and readers count the fragments."""
_PIXEL_DATA = 0x7FE00010
_RLE_HEADER_BYTES = 64
_RLE_SEGMENTS = 15


def compress(dataset: Dataset, how: Compression) -> Dataset:
    """`dataset`, its native PixelData of 8 or 16 bits encapsulated as `how` has it, with file meta information that tells so.

    PhotometricInterpretation RGB becomes YBR_RCT in JPEG 2000, whose colour transform is reversible; JPEG-LS and RLE keep RGB. Pixels that
    these syntaxes do not hold, single bits and floating point (PS3.5 8.2), stay native. Raises ObjectError for any other pixels.
    """
    kept_native = "PixelData" not in dataset or dataset.BitsAllocated == 1
    syntax = ExplicitVRLittleEndian if kept_native else SYNTAXES[how]
    if syntax != ExplicitVRLittleEndian:
        fragments = [encoded(frame, syntax) for frame in _frames(dataset)]
        with_table = sum(len(fragment) + 9 for fragment in fragments) <= MAX_OFFSET  # 8 bytes before, 1 of padding
        element = DataElement(_PIXEL_DATA, "OB", encapsulate(fragments, has_bot=with_table))
        element.is_undefined_length = True
        dataset[_PIXEL_DATA] = element
        if syntax == JPEG2000Lossless and dataset.PhotometricInterpretation == "RGB":
            dataset.PhotometricInterpretation = "YBR_RCT"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    return dataset


def encoded(frame: NDArray[Any], syntax: UID) -> bytes:
    """One frame, (rows, columns) or (rows, columns, 3), of unsigned integers; of signed ones the bits as if unsigned, which is what a
    decoder of DICOM's pixels expects. Raises ValueError for another syntax."""
    if syntax == JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(frame, level=0))
    if syntax == JPEG2000Lossless:
        return bytes(imagecodecs.jpeg2k_encode(frame, level=0, codecformat="j2k", reversible=True, verbose=0))
    if syntax == RLELossless:
        return _rle(frame)
    raise ValueError(f"expected RLE, JPEG-LS or JPEG 2000 lossless, found {UID(syntax).name}")


def _frames(dataset: Dataset) -> NDArray[Any]:
    """(frames, rows, columns) or (frames, rows, columns, 3), a view of the native pixels."""
    bits, samples = int(dataset.BitsAllocated), int(dataset.SamplesPerPixel)
    planar = int(dataset.get("PlanarConfiguration") or 0)
    if bits not in (8, 16) or samples not in (1, 3) or planar:
        raise ObjectError(
            f"pixels: expected 8 or 16 bits, 1 or 3 samples, by pixel, to compress; found {bits} bits, {samples} samples"
        )
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
    values = np.frombuffer(dataset.PixelData, np.uint8 if bits == 8 else "<u2", count=int(np.prod(shape)) * samples)
    return values.reshape(shape if samples == 1 else (*shape, samples))


def _rle(frame: NDArray[Any]) -> bytes:
    """PS3.5 G: a header of offsets, then each byte of the pixels as a segment of its own, the most significant first."""
    planes = frame.reshape(frame.shape[0], frame.shape[1], -1)
    significant_first = planes.astype(planes.dtype.newbyteorder(">")).view(np.uint8)
    if significant_first.shape[2] > _RLE_SEGMENTS:
        raise ValueError(f"expected at most {_RLE_SEGMENTS} bytes a pixel, found {significant_first.shape[2]}")
    segments = []
    for plane in np.ascontiguousarray(np.moveaxis(significant_first, 2, 0)):
        segment = b"".join(
            [imagecodecs.packbits_encode(row.tobytes()) for row in plane]
        )  # a run ends with its row (G.3.1)
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = np.cumsum([_RLE_HEADER_BYTES, *map(len, segments)])[: len(segments)]
    header = np.zeros(_RLE_HEADER_BYTES // 4, "<u4")
    header[0], header[1 : 1 + len(segments)] = len(segments), offsets
    return header.tobytes() + b"".join(segments)
