"""NIfTI-1 and NIfTI-2 in one file (.nii, .nii.gz): what the header says, and slices as radiology shows them.

A volume is presented by its closest anatomical axes, whatever order it is stored in, as the same axial DICOM slices would appear:
rows from anterior to posterior, columns from the patient's right to left, slices from feet to head, one volume (dimensions 4 to 7)
after the other. A volume of a single coronal or sagittal slice is shown in its own plane, rows from head to feet.
Affines are NIfTI's, RAS+ in mm: the sform where it has a code, else the qform, else the voxel sizes alone, with x to the left.
The index reads headers only, by struct and without nibabel; pixels come through nibabel.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Rejected, RejectReason
from pipeline.files import open_regular, status_of

if TYPE_CHECKING:
    from transforms.intensity import Pixels

MAX_SLICE_BYTES = 256 * 2**20
"""Of one presented slice: the budget of a DICOM frame."""
MAX_VOLUME_BYTES = 2**30
"""Of a compressed file, which must be inflated as a whole to read any slice of it."""
MAX_FRAMES = 2**17
"""More than any scan has (functional MRI: some 100,000 slices); each is a row of tables."""
DEFLATE_RATIO = 1032
"""No deflate stream grows more (258 bytes for two bits)."""

_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 2**16  # compressed bytes in which the header must begin and end
_SIZE_1, _SIZE_2 = 348, 540
_SINGLE_1, _PAIR_1, _SINGLE_2, _PAIR_2 = b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0"
_FIRST_VOXEL = {_SIZE_1: 352, _SIZE_2: 544}  # at least: header and the 4 bytes that announce extensions
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_MEANINGLESS = {
    1: "single bits",
    32: "complex",
    128: "RGB",
    1536: "128 bit",
    1792: "complex",
    2048: "complex",
    2304: "RGBA",
}
"""Data types (nifti1.h, DT_*): those of one real number a voxel, and those that have no meaning here."""
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # of xyzt_units: unknown, metre, millimetre, micrometre
_SMALLEST_QUATERNION = 1e-7  # as in nifti1_io.c: below, the rotation is by 180 degrees
_ORTHOGONAL = (
    1e-3  # rounding of an sform in float32 is far below; ImageOrientationPatient needs unit vectors at right angles
)

Affine = NDArray[np.float64]  # (3, 3) from voxel axes to RAS+, in mm


@dataclass(frozen=True)
class _View:
    """How a volume is presented: its voxel axes that become rows, columns and slices, and which of them are turned round."""

    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]


@dataclass(frozen=True)
class _Header:
    """`shape`: all of dim[1..7], 1 where a dimension is not there. Values are stored * `slope` + `intercept`."""

    shape: tuple[int, ...]
    stored: np.dtype[Any]
    first_voxel: int
    slope: float
    intercept: float
    affine: Affine

    @cached_property
    def view(self) -> _View:
        return _view(self.affine, self.shape)

    @property
    def slices(self) -> int:
        """Presented slices of one volume."""
        return self.shape[self.view.axes[2]]

    @property
    def frames(self) -> int:
        """Presented slices of all volumes."""
        return self.slices * math.prod(self.shape[3:])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Between rows, columns and slices as presented."""
        lengths = np.linalg.norm(self.affine, axis=0)
        rows, columns, slices = (float(lengths[axis]) for axis in self.view.axes)
        return rows, columns, slices

    @property
    def end(self) -> int:
        """Where the voxels end, in bytes of the inflated file."""
        return self.first_voxel + math.prod(self.shape) * self.stored.itemsize


def read_nifti_header(path: Path) -> dict[str, Any] | None:
    """Fields of the index: format, frames, rows, columns, pixel type, and geometry as DICOM words it; None for no NIfTI.

    frames: presented slices of all volumes. pixel_spacing, slice_thickness (here the distance of slices; mm) and
    image_orientation_patient (LPS; None where the axes are sheared) are of the presented slice. Raises Rejected: as `open_regular`;
    NOT_AN_IMAGE (one file of a pair), MALFORMED, TRUNCATED, UNSUPPORTED_PIXELS, TOO_LARGE, DECODE_FAILED.
    """
    with open_regular(path) as file:
        header = _read_header(file)
    if header is None:
        return None
    rows, columns, _ = header.view.axes
    return {
        "format": "nifti",
        "frames": header.frames,
        "rows": header.shape[rows],
        "columns": header.shape[columns],
        "samples_per_pixel": 1,
        "bits_allocated": 8 * header.stored.itemsize,
        "photometric_interpretation": "MONOCHROME2",
        **_geometry(header),
    }


def read_nifti(path: Path, frame: int = 0, *, hounsfield: bool = False) -> Pixels:
    """Slice `frame` (from 0) as presented, scaled by slope and intercept; only this slice is read of an uncompressed file.

    `hounsfield`: the values are HU, which no NIfTI header can say. Raises ValueError for a slice that there is not; Rejected as
    `read_nifti_header`.
    """
    from transforms.intensity import Pixels, PixelUnit  # brings torch, which the index must not need

    with open_regular(path) as file:
        header = _read_header(file)
        if header is None:
            raise Rejected(RejectReason.NOT_AN_IMAGE, "no NIfTI")
        if not 0 <= frame < header.frames:
            raise ValueError(f"frame {frame} asked for, the image has frames 0 to {header.frames - 1}")
        file.seek(0)
        compressed = file.read(2) == _GZIP_MAGIC
        values = _slice(BytesIO(_volume(path, *status_of(path))) if compressed else file, header, frame)
    missing = ~np.isfinite(values)
    return Pixels(
        values=np.where(missing, np.float32(0), values),
        unit=PixelUnit.HU if hounsfield else PixelUnit.MODALITY,
        padding=missing if missing.any() else None,
        spacing_mm=header.spacing_mm[:2],
        aspect=header.spacing_mm[0] / header.spacing_mm[1],
    )


def _read_header(file: BinaryIO) -> _Header | None:
    """The header, checked against the file's size; None where it is no NIfTI."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_SIZE_2)
    compressed = head.startswith(_GZIP_MAGIC)
    if compressed:
        head = _inflated_head(head + file.read(_HEAD_BYTES))
    order = _byte_order(head)
    if order is None:
        return None
    header = _parse_2(head, order) if head[4:8] == _SINGLE_2 else _parse_1(head, order)
    _check_budget(header)
    if compressed:
        _check_compressed(file, size, header)
    elif size < header.end:
        raise Rejected(RejectReason.TRUNCATED, f"the file has {size} bytes, its header promises {header.end}")
    return header


def _inflated_head(start: bytes) -> bytes:
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(start, _SIZE_2)
    except zlib.error:
        return b""


def _byte_order(head: bytes) -> str | None:
    """< or > by the header's own size, None where no magic of NIfTI stands there."""
    magic = head[4:8] if head[4:8] in (_SINGLE_2, _PAIR_2) else head[344:348]
    if magic not in (_SINGLE_1, _PAIR_1, _SINGLE_2, _PAIR_2):
        return None
    if magic in (_PAIR_1, _PAIR_2):
        raise Rejected(RejectReason.NOT_AN_IMAGE, "a NIfTI header of a pair; convert to one .nii")
    size = _SIZE_1 if magic == _SINGLE_1 else _SIZE_2
    if len(head) < size:
        raise Rejected(RejectReason.TRUNCATED, "the file ends within its NIfTI header")
    for order in "<>":
        if struct.unpack_from(f"{order}i", head)[0] == size:
            return order
    raise Rejected(RejectReason.MALFORMED, "its NIfTI header has not the size that it should say")


def _parse_1(head: bytes, order: str) -> _Header:
    """nifti1.h"""
    dims = struct.unpack_from(f"{order}8h", head, 40)
    (datatype,) = struct.unpack_from(f"{order}h", head, 70)
    pixdim = struct.unpack_from(f"{order}8f", head, 76)
    first_voxel, slope, intercept = struct.unpack_from(f"{order}3f", head, 108)
    qform_code, sform_code = struct.unpack_from(f"{order}2h", head, 252)
    quaternion = struct.unpack_from(f"{order}3f", head, 256)
    sform = struct.unpack_from(f"{order}12f", head, 280)
    affine = _affine(sform_code, sform, qform_code, quaternion, pixdim) * _MM.get(head[123] & 7, 1.0)
    _check_offset(first_voxel, _SIZE_1)
    return _header(dims, datatype, order, int(first_voxel), (slope, intercept), affine)


def _parse_2(head: bytes, order: str) -> _Header:
    """nifti2.h"""
    (datatype,) = struct.unpack_from(f"{order}h", head, 12)
    dims = struct.unpack_from(f"{order}8q", head, 16)
    pixdim = struct.unpack_from(f"{order}8d", head, 104)
    (first_voxel,) = struct.unpack_from(f"{order}q", head, 168)
    scaling = struct.unpack_from(f"{order}2d", head, 176)
    qform_code, sform_code = struct.unpack_from(f"{order}2i", head, 344)
    quaternion = struct.unpack_from(f"{order}3d", head, 352)
    sform = struct.unpack_from(f"{order}12d", head, 400)
    (units,) = struct.unpack_from(f"{order}i", head, 500)
    affine = _affine(sform_code, sform, qform_code, quaternion, pixdim) * _MM.get(units & 7, 1.0)
    _check_offset(first_voxel, _SIZE_2)
    return _header(dims, datatype, order, first_voxel, scaling, affine)


def _header(
    dims: tuple[int, ...],
    datatype: int,
    order: str,
    first_voxel: int,
    scaling: tuple[float, ...],
    affine: Affine,
) -> _Header:
    count = dims[0]
    if not 1 <= count <= 7 or min(dims[1 : count + 1]) < 1:
        raise Rejected(RejectReason.MALFORMED, "its dimensions (dim) are not 1 to 7 positive numbers")
    if datatype in _MEANINGLESS:
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, f"voxels of {_MEANINGLESS[datatype]} numbers")
    if datatype not in _TYPES:
        raise Rejected(RejectReason.MALFORMED, f"its data type ({datatype}) is none of NIfTI's")
    slope, intercept = scaling
    if slope == 0 or not math.isfinite(slope):
        slope, intercept = 1.0, 0.0  # nifti1.h: the values are as stored
    if not math.isfinite(intercept):
        raise Rejected(RejectReason.MALFORMED, "its values have a slope, but an intercept that is no number")
    if not np.isfinite(affine).all() or abs(np.linalg.det(_unit_columns(affine))) < 1e-6:
        raise Rejected(RejectReason.MALFORMED, "its affine is no map from voxels to space: orientation is unknown")
    shape = (*dims[1 : count + 1], *(1,) * (7 - count))
    return _Header(shape, np.dtype(order + _TYPES[datatype]), first_voxel, slope, intercept, affine)


def _check_offset(first_voxel: float, size: int) -> None:
    if not _FIRST_VOXEL[size] <= first_voxel < 2**62 or first_voxel != int(first_voxel):
        raise Rejected(RejectReason.MALFORMED, "its voxels begin within its header, or nowhere (vox_offset)")


def _affine(
    sform_code: int,
    sform: tuple[float, ...],
    qform_code: int,
    quaternion: tuple[float, ...],
    pixdim: tuple[float, ...],
) -> Affine:
    """(3, 3) from voxel axes to RAS+, in the header's unit of space."""
    if sform_code > 0:
        return np.array(sform, np.float64).reshape(3, 4)[:, :3]
    zooms = np.array([abs(size) or 1.0 for size in pixdim[1:4]], np.float64)
    if qform_code > 0:
        return _rotation(*quaternion) * zooms * [1.0, 1.0, -1.0 if pixdim[0] < 0 else 1.0]
    return np.diag(zooms * [-1.0, 1.0, 1.0])  # as nibabel and SPM have it where nothing is said


def _rotation(b: float, c: float, d: float) -> Affine:
    """(3, 3) of the unit quaternion a, b, c, d with a >= 0 (nifti1.h, METHOD 2)."""
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest > _SMALLEST_QUATERNION:  # a half turn, or rounding has made it too long
        length = math.sqrt(b * b + c * c + d * d) or 1.0
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(rest)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _unit_columns(affine: Affine) -> Affine:
    lengths = np.linalg.norm(affine, axis=0)
    return affine / np.where(lengths > 0, lengths, 1.0)


def _view(affine: Affine, shape: tuple[int, ...]) -> _View:
    """The presented axes: each voxel axis goes to the anatomical axis that it is closest to, as nibabel's io_orientation does."""
    left, _, right = np.linalg.svd(_unit_columns(affine))
    closest = left @ right  # the rotation nearest to the affine
    axis_of, forward = [0, 0, 0], [True, True, True]  # by anatomical axis: R, A, S
    for axis in np.argsort(-np.abs(closest).max(axis=0), kind="stable").tolist():  # the clearest first
        anatomical = int(np.argmax(np.abs(closest[:, axis])))
        axis_of[anatomical], forward[anatomical] = axis, bool(closest[anatomical, axis] > 0)
        closest[anatomical] = 0.0
    single = [place for place in range(3) if shape[axis_of[place]] == 1]
    normal = single[0] if len(single) == 1 else 2
    columns, rows = (place for place in range(3) if place != normal)
    return _View(
        (axis_of[rows], axis_of[columns], axis_of[normal]),
        (forward[rows], forward[columns], not forward[normal]),  # rows and columns run to P, I and L: against RAS+
    )


def _geometry(header: _Header) -> dict[str, Any]:
    """pixel_spacing, slice_thickness, image_orientation_patient (PS3.3 C.7.6.2) of the presented slices."""
    rows, columns, slices = header.spacing_mm
    view = header.view
    directions = _unit_columns(header.affine) * np.array([[-1.0], [-1.0], [1.0]])  # RAS+ to LPS+
    row_axis, column_axis = (
        directions[:, axis] * (-1.0 if against else 1.0)
        for axis, against in zip(view.axes[:2], view.reversed[:2], strict=True)
    )
    upright = abs(float(row_axis @ column_axis)) < _ORTHOGONAL
    cosines = [f"{value + 0.0:.6g}" for value in np.round(np.concatenate([column_axis, row_axis]), 6)]
    return {
        "pixel_spacing": f"{rows:.6g}\\{columns:.6g}",
        "slice_thickness": float(f"{slices:.6g}"),
        "image_orientation_patient": "\\".join(cosines) if upright else None,
    }


def _check_budget(header: _Header) -> None:
    rows, columns, _ = (header.shape[axis] for axis in header.view.axes)
    if rows * columns * header.stored.itemsize > MAX_SLICE_BYTES:
        raise Rejected(
            RejectReason.TOO_LARGE, f"a slice of {rows} × {columns} voxels; the budget is {MAX_SLICE_BYTES} bytes"
        )
    if header.frames > MAX_FRAMES:
        raise Rejected(RejectReason.TOO_LARGE, f"{header.frames} slices; the budget is {MAX_FRAMES}")


def _check_compressed(file: BinaryIO, size: int, header: _Header) -> None:
    """The inflated size is as promised: by the stream's own word, else by inflating it."""
    if header.end > MAX_VOLUME_BYTES:
        raise Rejected(
            RejectReason.TOO_LARGE,
            f"it inflates to {header.end} bytes; the budget is {MAX_VOLUME_BYTES}: store it as .nii",
        )
    if header.end > DEFLATE_RATIO * size:
        raise Rejected(
            RejectReason.TRUNCATED, f"{size} compressed bytes cannot hold the {header.end} that its header promises"
        )
    if _inflated_size(file) != header.end:  # cut off, or of several streams, or with something behind
        _inflate(file, header.end)


def _inflated_size(file: BinaryIO) -> int:
    """What the last four bytes say (ISIZE, RFC 1952 2.3.1): the size, where this is one stream of less than 4 GiB."""
    file.seek(-4, os.SEEK_END)
    return int.from_bytes(file.read(4), "little")


def _inflate(file: BinaryIO, needed: int) -> bytes:
    """The first `needed` bytes of a gzip file of one or more streams; where it ends there, its checksum is verified."""
    size = _inflated_size(file)
    file.seek(0)
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            content = stream.read(needed)
            more = len(content) == needed and stream.read(1)
    except EOFError:
        raise Rejected(RejectReason.TRUNCATED, "its compressed stream lacks its end") from None
    except (gzip.BadGzipFile, zlib.error):
        raise Rejected(RejectReason.DECODE_FAILED, "its compressed stream is broken") from None
    if more and size == needed:
        raise Rejected(RejectReason.DECODE_FAILED, "its compressed stream is broken: it becomes more than it says")
    if len(content) < needed:
        raise Rejected(RejectReason.TRUNCATED, f"it inflates to {len(content)} bytes, its header promises {needed}")
    return content


@lru_cache(maxsize=1)
def _volume(path: Path, size: int, mtime_ns: int) -> bytes:
    """A compressed file inflated. The last one is kept: its slices follow each other. `size`, `mtime_ns`: of the file."""
    with open_regular(path) as file:
        header = _read_header(file)
        if header is None:
            raise Rejected(RejectReason.CHANGED, "it is no NIfTI any more")
        return _inflate(file, header.end)


def _slice(stream: BinaryIO, header: _Header, frame: int) -> NDArray[np.float32]:
    """(rows, columns) of slice `frame`, through nibabel, which reads this slice alone and scales it."""
    from nibabel.arrayproxy import ArrayProxy

    axis = header.view.axes[2]
    volume, place = divmod(frame, header.slices)
    if header.view.reversed[2]:
        place = header.slices - 1 - place
    index: list[Any] = [slice(None), slice(None), slice(None), *np.unravel_index(volume, header.shape[3:], order="F")]
    index[axis] = slice(place, place + 1)
    kind = (header.shape, header.stored, header.first_voxel, header.slope, header.intercept)
    stored = ArrayProxy(stream, kind, mmap=False)  # a mapped file that shrinks ends the process with a bus error
    try:
        with np.errstate(over="ignore"):  # of float64: becomes infinite, and so padding
            values = np.asarray(stored[tuple(index)], dtype=np.float32)
    except ValueError:
        raise Rejected(RejectReason.TRUNCATED, "the file ends within the slice") from None
    seen = np.squeeze(values.transpose(header.view.axes), axis=2)
    steps = [-1 if turned else 1 for turned in header.view.reversed]
    return np.ascontiguousarray(seen[:: steps[0], :: steps[1]])
