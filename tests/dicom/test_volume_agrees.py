"""Volumes against two readers that are not ours: dcm2niix (Debian, v1.0.20220720) and SimpleITK's series reader (GDCM).

Both are compared in the patient's space: where a voxel of theirs lies, there is one of ours, with the same value. On series that are
even and upright, classic or enhanced, both agree with us to the rounding of positions. On the tilted, unevenly spaced GE series they
agree neither with the file's own geometry nor with each other; the tests say by how much, and where they are right.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from pipeline.dicom.assembly import OUTSIDE_HU, DecodedSlice, assemble, plan_volume
from pipeline.dicom.geometry import LPS_FROM_RAS, Matrix, column_first
from pipeline.dicom.pixels import read_pixels
from pipeline.dicom.series import read_volume
from pipeline.dicom.slices import Slice, read_slices
from pipeline.dicom.volume import Finding, Volume
from tests.series_files import AXIAL, CORONAL, DOUBLE_OBLIQUE, SAGITTAL, positions, write_enhanced, write_series
from transforms.intensity import PixelUnit

NEAR_MM = 5e-4
"""NIfTI's affine is float32, a quaternion's too, and dcm2niix takes the slice axis from the cosines, which have 6 decimals; over 500 mm."""
HU_FLOAT32 = 1e-4
ROUNDED_TWICE_HU = 1.01
"""dcm2niix rounds to whole HU after it has sheared, and again after it has interpolated slices; we do neither."""

dcm2niix = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")


def _by_dcm2niix(folder: Path, out: Path) -> dict[str, nibabel.Nifti1Image]:
    """What it writes, by the end of the name: '' is the volume, _Tilt_Eq_1 what it corrected."""
    out.mkdir()
    subprocess.run(["dcm2niix", "-z", "n", "-b", "n", "-f", "v", "-o", out, folder], check=True, capture_output=True)
    return {path.stem.removeprefix("v"): nibabel.load(path) for path in sorted(out.glob("*.nii"))}


def _by_sitk(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def _lps(image: nibabel.Nifti1Image | SimpleITK.Image) -> tuple[NDArray[np.float64], Matrix]:
    """(column, row, slice) values in float64 and the affine from those indices to LPS."""
    if isinstance(image, nibabel.Nifti1Image):
        return np.asarray(image.get_fdata()), LPS_FROM_RAS @ image.affine
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).astype(float).transpose(2, 1, 0), affine


def _differences(theirs: nibabel.Nifti1Image | SimpleITK.Image, ours: Volume) -> tuple[float, float]:
    """(mm, value): the largest distance between a voxel of theirs and the one of ours that is nearest, and between their values.

    Raises AssertionError where their grid is not ours, turned and flipped.
    """
    values, affine = _lps(theirs)
    own = column_first(ours.affine_lps)
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in values.shape], [1], indexing="ij"), -1).reshape(-1, 4)
    there = np.linalg.solve(own, affine @ corners.T)
    off_mm = np.linalg.norm((own @ (np.rint(there) - there))[:3], axis=0).max()
    to_own = np.rint(np.linalg.solve(own, affine))
    assert np.array_equal(np.abs(to_own[:3, :3]), np.eye(3)), "their voxel axes are not ours"
    flips = tuple(slice(None, None, int(sign)) for sign in np.diag(to_own)[:3])
    assert values.shape == ours.voxels.shape[::-1]
    return float(off_mm), float(np.abs(values[flips] - ours.voxels.transpose(2, 1, 0)).max())


CASES = {
    "axial": {"orientation": AXIAL},
    "from head to feet": {"orientation": AXIAL, "places": -np.arange(6) * 2.5},
    "coronal": {"orientation": CORONAL},
    "sagittal": {"orientation": SAGITTAL},
    "double oblique": {"orientation": DOUBLE_OBLIQUE},
    "double oblique, reversed": {"orientation": DOUBLE_OBLIQUE, "places": -np.arange(6) * 1.25},
    "pixels not square": {"orientation": DOUBLE_OBLIQUE, "spacing_mm": (0.7, 1.3)},
    "signed": {"orientation": CORONAL, "signed": True, "intercept": 0.0},
    "rescaled": {"orientation": SAGITTAL, "slope": 0.5, "intercept": -1100.25},
    "big endian": {"orientation": AXIAL, "syntax": ExplicitVRBigEndian},
    "implicit": {"orientation": AXIAL, "syntax": ImplicitVRLittleEndian},
    "RLE": {"orientation": DOUBLE_OBLIQUE, "syntax": RLELossless},
    "big": {"orientation": DOUBLE_OBLIQUE, "shape": (256, 320), "places": np.arange(24) * 1.5},
}


@pytest.fixture(params=CASES)
def series(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Volume]:
    case = dict(CASES[request.param])
    orientation, places = case.pop("orientation"), case.pop("places", np.arange(6) * 2.5)
    paths = write_series(
        tmp_path / "in", positions(orientation, places), orientation, **{"spacing_mm": (0.8, 0.8)} | case
    )
    return tmp_path / "in", read_volume(paths, workers=0)


@dcm2niix
def test_dcm2niix_has_the_same_voxels_at_the_same_places(series, tmp_path: Path):
    folder, ours = series
    converted = _by_dcm2niix(folder, tmp_path / "out")
    assert list(converted) == [""]
    off_mm, off = _differences(converted[""], ours)
    assert off_mm < NEAR_MM
    assert off <= HU_FLOAT32


def test_sitk_has_the_same_voxels_at_the_same_places(series):
    folder, ours = series
    off_mm, off = _differences(_by_sitk(folder), ours)
    assert off_mm < NEAR_MM
    assert off <= HU_FLOAT32


@dcm2niix
def test_an_enhanced_file_is_read_as_dcm2niix_reads_it(tmp_path: Path):
    (tmp_path / "in").mkdir()
    path = write_enhanced(tmp_path / "in" / "e", positions(DOUBLE_OBLIQUE, np.arange(5) * 2.5), DOUBLE_OBLIQUE)
    converted = _by_dcm2niix(tmp_path / "in", tmp_path / "out")
    off_mm, off = _differences(converted[""], read_volume([path], workers=0))
    assert off_mm < NEAR_MM
    assert off <= HU_FLOAT32


@pytest.mark.parametrize("direction", [1, -1])
def test_an_enhanced_file_is_read_as_sitk_reads_it(tmp_path: Path, direction: int):
    """Where its frames are in the order of their positions: of others SimpleITK knows no spacing (it says 1 mm) and no order."""
    path = write_enhanced(tmp_path / "e", positions(DOUBLE_OBLIQUE, np.arange(5) * 2.5 * direction), DOUBLE_OBLIQUE)
    off_mm, off = _differences(SimpleITK.ReadImage(str(path)), read_volume([path], workers=0))
    assert off_mm < NEAR_MM
    assert off == 0


# --- real series


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["dcmqi/24x38x3/image", "dcmqi/24x38x3/multiframe", "dcmqi/ct-3slice"])
def test_the_dcmqi_series_agree_with_both(name: str, real_data: Path, tmp_path: Path):
    """SimpleITK's series reader takes no multi-frame file; it reads that as one image."""
    folder = real_data / "dicom" / name
    paths = sorted(folder.iterdir())
    ours = read_volume(paths, workers=0)
    others = [_by_sitk(folder) if len(paths) > 1 else SimpleITK.ReadImage(str(paths[0]))]
    others += [_by_dcm2niix(folder, tmp_path / "out")[""]] if shutil.which("dcm2niix") else []
    for theirs in others:
        off_mm, off = _differences(theirs, ours)
        assert off_mm < NEAR_MM
        assert off == 0


@pytest.fixture(scope="module")
def ge(real_data: Path) -> tuple[Path, tuple[Slice, ...]]:
    """The head CT with a gantry tilted by 18.5 degrees: 14 slices 4.0 mm apart, then 14 that are 7.0 mm apart, and 1.1 between."""
    folder = real_data / "dicom" / "ct_series_ge_tilt"
    slices = [one for path in folder.iterdir() for one in read_slices(path)]
    return folder, plan_volume(slices, uneven="resample").slices


def _worst_mm(slices: tuple[Slice, ...], affine: Matrix) -> float:
    """How far an affine from (column, row, slice) puts a corner of a slice from where its header says."""
    worst = 0.0
    for k, one in enumerate(slices):
        corners = np.array([(r, c) for r in (0, one.rows - 1) for c in (0, one.columns - 1)], float)
        told = affine @ np.array([(c, r, k, 1) for r, c in corners]).T
        worst = max(worst, np.linalg.norm(told[:3].T - one.plane.to_lps_mm(corners), axis=1).max())
    return float(worst)


@pytest.mark.real_data
def test_the_ge_series_is_refused_as_it_is_and_its_findings_are_right(ge):
    folder, _ = ge
    volume = read_volume(folder.iterdir(), uneven="resample", workers=0)
    assert [str(found) for found in volume.findings] == [
        "uneven (least_mm 1.081, most_mm 6.999, median_mm 4.002)",
        "resampled (spacing_mm 4.002, interpolated 21, over_gaps 0)",
        "tilt (degrees 18.5)",
        "padding (pixels 1741040)",
    ]
    assert volume.voxels.shape == (37, 512, 512)
    for k, number in enumerate(range(14)):  # the first 14 slices stand on the grid: exact, and where their header says
        pixels = read_pixels(ge[1][number].path)
        assert pixels.padding is not None
        assert np.array_equal(volume.voxels[k], np.where(pixels.padding, OUTSIDE_HU, pixels.values))
    assert _worst_mm(ge[1][:14], column_first(volume.affine_lps)) < 0.01


@pytest.mark.real_data
def test_sitk_misplaces_the_tilted_uneven_series_by_49_mm(ge):
    """Its spacing is the mean distance of positions (5.63 mm along the table, where slices are 4.22 or 7.38 mm apart) and its slice axis
    the normal, not the table. It warns of the non-uniform sampling; the values of each slice are right."""
    folder, slices = ge
    image = _by_sitk(folder)
    values, affine = _lps(image)
    assert image.GetSpacing()[2] == pytest.approx(5.6274, abs=1e-4)
    assert _worst_mm(slices, affine) == pytest.approx(48.85, abs=0.01)
    assert all(np.array_equal(values[:, :, k].T, read_pixels(one.path).values) for k, one in enumerate(slices))


@pytest.mark.real_data
@dcm2niix
def test_dcm2niix_misplaces_the_tilted_uneven_series_by_56_mm(ge, tmp_path: Path):
    """Its uncorrected volume has even slices, and columns that it stretches by 1 / cos 18.5° (0.538 for 0.488 mm); dcm2niix says itself
    that such a series is no NIfTI and writes a corrected one beside it. The values of each slice are right."""
    folder, slices = ge
    values, affine = _lps(_by_dcm2niix(folder, tmp_path / "out")[""])
    upside = np.eye(4)
    upside[1, 1:] = -1, 0, 511  # it stores rows from below
    upside[:3, 3] = 0, 511, 0
    assert _worst_mm(slices, affine @ upside) == pytest.approx(56.12, abs=0.01)
    assert np.linalg.norm(affine[:3, 1]) == pytest.approx(0.5377, abs=1e-4)
    assert all(np.array_equal(values[:, ::-1, k].T, read_pixels(one.path).values) for k, one in enumerate(slices))


@pytest.mark.real_data
@dcm2niix
def test_dcm2niix_deskews_and_evens_as_we_do(ge, tmp_path: Path):
    """Its `_Tilt_Eq` on the same grid (2.62 mm, its choice) has our voxels within 1.01 HU, which its two roundings explain, and its
    qform is our affine. Three differences: its sform still holds the tilt and is up to 41 mm off (readers that prefer the sform, as
    nibabel does, misplace it); what comes from outside is the smallest value (-1500), with us air; and beside padding (-1500) it takes
    the neighbour that is none, where we interpolate as everywhere, so voxels that touch padding are left out here (37 %)."""
    folder, slices = ge
    theirs = _by_dcm2niix(folder, tmp_path / "out")["_Tilt_Eq_1"]
    spacing = float(theirs.header.get_zooms()[2])
    plan = plan_volume(slices, uneven="resample", tilt="deskew", slice_spacing_mm=spacing)
    ours = assemble(plan, (_decoded(read_pixels(one.path).values) for one in plan.slices))
    touched = assemble(plan, (_decoded(read_pixels(one.path).values == -1500) for one in plan.slices)).voxels != 0
    assert spacing == pytest.approx(2.6198, abs=1e-4)
    assert ours.found(Finding.DESKEWED) is not None
    own = column_first(ours.affine_lps)
    upside = np.eye(4)
    upside[1, 1], upside[1, 3] = -1, ours.voxels.shape[1] - 1
    assert LPS_FROM_RAS @ theirs.get_qform() @ upside == pytest.approx(own, abs=1e-3)
    corner = np.array([0, 0, ours.voxels.shape[0] - 1, 1])
    misplaced = (LPS_FROM_RAS @ theirs.get_sform() @ upside - own) @ corner
    assert np.linalg.norm(misplaced) == pytest.approx(40.59, abs=0.01)
    off = np.abs(theirs.get_fdata()[:, ::-1].transpose(2, 1, 0) - ours.voxels)
    assert 0.36 < touched.mean() < 0.38
    assert off[~touched].max() < ROUNDED_TWICE_HU


def _decoded(values: NDArray) -> DecodedSlice:
    return DecodedSlice(values.astype(np.float32), PixelUnit.HU, False, None)
