"""Sources that the tests of Segmentations and Parametric Maps share, and what another reader makes of an object."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage

from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.geometry import frame_plane
from pipeline.dicom.phantom import ct_slice, save
from pipeline.dicom.source import TYPE_2, read_source
from tests.case_results import case_result, result_image
from tests.series_files import (
    AXIAL,
    CORONAL,
    DOUBLE_OBLIQUE,
    GANTRY_TILT,
    SAGITTAL,
    positions,
    write_enhanced,
    write_series,
)

SHAPE = (22, 30)  # no multiple of 8 pixels, so that packed frames share bytes
SPACING_MM = (0.7, 0.9)
EVERY_MM = (0.0, 2.5, 5.0, 7.5, 10.0)
SAME_PLACE_MM = 1e-3
"""How far a voxel may lie off its place in another reader's file: NRRD has 6 digits of a direction, over some 30 pixels."""

NAMES = {
    "latin 1": ("Buc^Jérôme", "ISO_IR 100"),
    "greek": ("Διονυσιος", "ISO_IR 126"),
    "japanese": ("Yamada^Tarou=山田^太郎=やまだ^たろう", ["", "ISO 2022 IR 87"]),
    "korean": ("Hong^Gildong=洪^吉洞=홍^길동", ["", "ISO 2022 IR 149"]),
    "chinese": ("Wang^XiaoDong=王^小东", "GB18030"),
}


def series(
    orientation: Sequence[float], along: Sequence[float] | None = None, **attributes: object
) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        at = positions(orientation, EVERY_MM, along)
        with disable_value_validation():
            return write_series(folder, at, orientation, shape=SHAPE, spacing_mm=SPACING_MM, **attributes)  # type: ignore[arg-type]

    return write


def enhanced(orientation: Sequence[float], **attributes: object) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        at = positions(orientation, EVERY_MM)
        return [write_enhanced(folder / "enhanced", at, orientation, shape=SHAPE, spacing_mm=SPACING_MM, **attributes)]  # type: ignore[arg-type]

    return write


def single(make: Callable[[], Dataset]) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        with disable_value_validation():
            return [save(make(), folder / "IM0000")]

    return write


def bare_slice() -> Dataset:
    """Without any Type 2 attribute of patient and study, without equipment, body part and thickness."""
    dataset = ct_slice(16)
    for keyword in (*TYPE_2, "Manufacturer", "BodyPartExamined", "SliceThickness", "PositionReferenceIndicator"):
        if keyword in dataset:
            delattr(dataset, keyword)
    return dataset


SOURCES: dict[str, Callable[[Path], list[Path]]] = {
    "axial": series(AXIAL),
    "coronal": series(CORONAL),
    "sagittal": series(SAGITTAL),
    "oblique": series(DOUBLE_OBLIQUE),
    "tilted gantry": series(GANTRY_TILT, along=(0.0, 0.0, 1.0)),
    "enhanced CT": enhanced(AXIAL),
    "enhanced CT, oblique": enhanced(DOUBLE_OBLIQUE),
    "enhanced MR": enhanced(SAGITTAL, SOPClassUID=EnhancedMRImageStorage, Modality="MR", BodyPartExamined="BRAIN"),
    "8 bits": series(AXIAL, BitsStored=8, HighBit=7),
    "one slice": single(lambda: ct_slice(16)),
    "no type 2": single(bare_slice),
    "lossy": series(
        AXIAL, LossyImageCompression="01", LossyImageCompressionRatio=12, LossyImageCompressionMethod="ISO_10918_1"
    ),
    "a knee": series(AXIAL, BodyPartExamined="KNEE", Laterality="L"),
    "a knee of a side unknown": series(AXIAL, BodyPartExamined="KNEE"),
    "time zone": series(AXIAL, TimezoneOffsetFromUTC="+0100"),
    **{
        name: series(AXIAL, SpecificCharacterSet=character_set, PatientName=patient)
        for name, (patient, character_set) in NAMES.items()
    },
}


def result_of(paths: Sequence[Path], silent: Sequence[int] = (), **changes: object) -> CaseResult:
    """A result of all frames of `paths`; images `silent`, by their place along the normal, have no evidence."""
    result = case_result([read_source(path) for path in paths], **changes)  # type: ignore[arg-type]
    ascending = in_place(result.images)
    without = [(str(one.source.SOPInstanceUID), one.frame) for place, one in enumerate(ascending) if place in silent]
    images = tuple(
        result_image(one.source, one.frame, peak=0, key=one.key)
        if (str(one.source.SOPInstanceUID), one.frame) in without
        else one
        for one in result.images
    )
    return dataclasses.replace(result, images=images)


def in_place(images: Sequence[ResultImage]) -> list[ResultImage]:
    """Images of one orientation in ascending order along its normal."""

    def along(image: ResultImage) -> float:
        plane = frame_plane(image.source, image.frame)
        return float(np.dot(plane.position_mm, plane.normal))

    return sorted(images, key=along)


def read_by_dcmqi(tool: str, path: Path, folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(slices, rows, columns) values and (4, 4) affine from (column, row, slice) to LPS mm, as dcmqi's `tool` converts the object."""
    program = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip(f"{tool} (dcmqi) is not installed")
    import SimpleITK as sitk

    folder.mkdir()
    call = [program, "--inputDICOM", str(path), "--outputDirectory", str(folder), "--prefix", "x", "-t", "nrrd"]
    subprocess.run(call, check=True, capture_output=True)
    image = sitk.ReadImage(str(next(folder.glob("*.nrrd"))))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).astype(np.float64), affine


def assert_same_voxels(
    expected: Sequence[tuple[ResultImage, NDArray]],
    values: NDArray[np.float64],
    affine: NDArray[np.float64],
    *,
    may_omit_zeros: bool,
) -> None:
    """Every image's pixels stand in `values` at the LPS place where the image's own header has them; images of zeros may be left out."""
    found = 0
    rows, columns = (places.ravel() for places in np.indices(values.shape[1:]))
    for image, pixels in expected:
        corners = frame_plane(image.source, image.frame).to_lps_mm(np.stack([rows, columns], axis=1).astype(float))
        indices = (corners - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
        slices = np.rint(indices[:, 2]).astype(int)
        if not 0 <= slices[0] < len(values):
            assert may_omit_zeros
            assert not pixels.any()
            continue
        there = np.stack([columns, rows, slices], axis=1) @ affine[:3, :3].T + affine[:3, 3]
        assert np.abs(there - corners).max() < SAME_PLACE_MM
        assert np.array_equal(values[slices, rows, columns].reshape(pixels.shape), pixels)
        found += 1
    assert found > 0


def dciodvfy_errors(path: Path) -> list[str]:
    called = subprocess.run(
        ["dciodvfy", "-new", str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    errors = [line for line in (called.stdout + called.stderr).splitlines() if line.startswith("Error")]
    return errors or ([f"exit status {called.returncode}"] if called.returncode else [])
