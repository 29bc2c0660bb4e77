"""The pictures of a series in one object: Multi-frame True Color Secondary Capture (PS3.3 A.8.5).

In: a case's result, and images of one study whose pictures have one width. Out: a dataset ready for `derived.write_object`, a frame for
each image in the order given; SourceImageSequence names the sources, FrameLabelVector and PageNumberVector the frames. What of body
part, orientation and spacing is not the same for all frames is left out: the object has one of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, MultiFrameTrueColorSecondaryCaptureImageStorage

from pipeline.dicom.begin import begin_object, finish_object
from pipeline.dicom.case_result import CaseResult, Picture, ResultImage
from pipeline.dicom.compression import compress
from pipeline.dicom.derived import ascii_text
from pipeline.dicom.secondary_capture import (
    MODALITY,
    add_capture,
    add_pixels,
    body_part,
    check_picture,
    picture_geometry,
    why_not,
)
from pipeline.errors import ObjectError

__all__ = ["multiframe_capture", "why_not"]

MAX_PIXEL_BYTES = 2**32 - 2  # PS3.5 7.1: the largest even length that an element can tell
SH_CHARACTERS = 16  # PS3.5 6.2
MAX_FRAMES = 65534 // (SH_CHARACTERS + 1)
"""The length of an explicit SH has 16 bits (PS3.5 7.1.2), in which the labels of all frames must fit."""
_PAGES, _LABELS = Tag("PageNumberVector"), Tag("FrameLabelVector")


def multiframe_capture(result: CaseResult, images: Sequence[ResultImage]) -> Dataset:
    """A Multi-frame True Color Secondary Capture of the pictures of `images`, compressed as the profile says.

    Raises ObjectError where the pictures differ in width, are too many for
    one object, or cannot be such frames; also where the sources are of several studies.
    """
    if not 0 < len(images) <= MAX_FRAMES:
        raise ObjectError(f"images: expected 1 to {MAX_FRAMES} in one object, found {len(images)}; write sc instead")
    geometry = _common_geometry(images)
    capture = begin_object(result, "sc-multiframe", MODALITY, images, series=body_part(geometry))
    capture.SOPClassUID = UID(MultiFrameTrueColorSecondaryCaptureImageStorage)
    add_capture(capture, result, images)
    capture.update(geometry)
    _add_frames(capture, images)
    capture.add_new("PixelData", "OB", _pixels(capture, images))
    finish_object(capture, images[0].source)
    return compress(capture, result.profile.compression)


def _common_geometry(images: Sequence[ResultImage]) -> Dataset:
    """What `picture_geometry` says of all images alike; an attribute that must be there is empty where they differ."""
    each = [picture_geometry(image.source, image.frame) for image in images]
    common = Dataset()
    for element in each[0]:
        if all(element.tag in other and other[element.tag] == element for other in each):
            common.add(element)
    if "PixelSpacingCalibrationType" in common and "PixelSpacing" not in common:
        del common.PixelSpacingCalibrationType, common.PixelSpacingCalibrationDescription
    for keyword in ("PatientOrientation", "Laterality"):
        if keyword not in common and any(keyword in other for other in each):
            setattr(common, keyword, "")
    return common


def _add_frames(capture: Dataset, images: Sequence[ResultImage]) -> None:
    """Multi-frame (PS3.3 C.7.6.6) and SC Multi-frame Vector (C.8.6.4): pages from 1, and what each shows."""
    capture.NumberOfFrames = len(images)
    if len(images) == 1:
        return  # no increment, so no pointer to it
    capture.PageNumberVector = list(range(1, len(images) + 1))
    capture.FrameLabelVector = [_label(image) for image in images]
    capture.FrameIncrementPointer = [_PAGES, _LABELS]


def _label(image: ResultImage) -> str:
    """'12', '12 frame 3', '12 key 1': the source's InstanceNumber, its frame where it has several, its place among key images."""
    number = str(image.source.get("InstanceNumber") or "").strip() or "image"
    frame = f" frame {image.frame + 1}" if image.source.get("NumberOfFrames") else ""
    return ascii_text(f"{number}{frame}{f' key {image.key}' if image.key else ''}", SH_CHARACTERS)


def _pixels(capture: Dataset, images: Sequence[ResultImage]) -> bytes:
    """The pixels of all frames, and what describes them in `capture`. Texts below the images may take more lines on one than on another:
    the shorter pictures get black rows at their foot."""
    pictures: deque[Picture] = deque()
    rows = columns = 0
    for image in images:
        picture = image.picture_of()
        check_picture(picture)
        rows, columns = max(rows, picture.shape[0]), columns or picture.shape[1]
        if picture.shape[1] != columns:
            raise ObjectError(f"pictures: expected all of one width, found {columns} and {picture.shape[1]} columns")
        total = rows * columns * 3 * len(images)
        if total > MAX_PIXEL_BYTES:
            raise ObjectError(
                f"pixels: expected at most {MAX_PIXEL_BYTES} bytes in one object, found {total}; write sc instead"
            )
        pictures.append(picture)
    add_pixels(capture, _lengthened(pictures[0], rows))
    pixels = BytesIO()  # grows in place while the pictures go, and gives its bytes without a copy
    while pictures:
        pixels.write(_lengthened(pictures.popleft(), rows).tobytes())
    pixels.write(bytes(total % 2))
    return pixels.getvalue()


def _lengthened(picture: Picture, rows: int) -> Picture:
    return np.pad(picture, ((0, rows - len(picture)), (0, 0), (0, 0))) if len(picture) < rows else picture
