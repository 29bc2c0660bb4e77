"""What a file shows is what dcmtk shows of it, in 16 bits; its modality values are SimpleITK's (GDCM's).

dcmtk renders with dcm2pnm and its siblings for JPEG and JPEG-LS; of JPEG 2000 it gets what gdcmconv decodes. It truncates to whole
output levels where radloop does not round at all, so that both agree within one level. Of a LUT of n bits it takes 2^n for white, which
no entry is (2^n - 1 here, by PS3.3 C.11.2.1.1): LUTs are compared where n is 16 and the two are one level apart.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.pixels import convert_color_space
from pydicom.sequence import Sequence

from pipeline.dicom.frames import open_image
from pipeline.dicom.pixels import frame_count, read_pixels
from pipeline.errors import Rejected
from tests.dicom.test_pixels import ct, lut, write
from transforms.intensity import WINDOWS, Pixels, PixelUnit, Voi, VoiFunction, choose_voi, to_unit_range

LEVEL = 1 / 65535
ONE_LEVEL = 1.05 * LEVEL
"""Truncated against exact: below one, and a little for float32."""
ROUNDED_COLOR = 0.5 / 255 + ONE_LEVEL
"""dcmtk and GDCM round what they make of YBR to whole samples of 8 bits."""
TRUNCATED_COLOR = 2 / 255
"""Of native YBR dcmtk truncates each product of its matrix to whole samples of 8 bits; GDCM and pydicom agree within a half."""
OVERSHOOT_PIXELS = 1e-4
"""Share of RG3_JPLY's pixels that the lossy codec puts above white."""

TOOLS = ("dcm2pnm", "dcmj2pnm", "dcml2pnm", "gdcmconv")
needs_dcmtk = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"{', '.join(TOOLS)}: not all installed")
needs_data = pytest.mark.skipif("RADLOOP_DATA" not in os.environ, reason="RADLOOP_DATA is not set")

CUT_BY_DCMTK = {
    *(f"CTImage.dcm_JPEGProcess{name}.dcm" for name in (
        "10_12TransferSyntax_1.2.840.10008.1.2.4.55",
        "1TransferSyntax_1.2.840.10008.1.2.4.50",
        "2_4TransferSyntax_1.2.840.10008.1.2.4.51",
        "6_8TransferSyntax_1.2.840.10008.1.2.4.53",
    )),
    *("6154", "6247", "6278"),
}  # fmt: skip
"""A RescaleSlope that is no whole number: dcmtk cuts modality values to whole numbers before its window."""
CLIPPED_HERE = {"RG3_JPLY"}
"""A lossy stream that overshoots BitsStored: white here, black in dcmtk, which cuts the bits off."""
NOT_BY_DCMTK = {
    "SC_rgb_jpeg.dcm": "dcmtk cannot parse its header; SimpleITK's colour agrees (below)",
    "rtdose_expb.dcm": "dcmtk and GDCM swap the two halves of 32-bit big-endian words; equals its little-endian twin (below)",
    "rtdose_expb_1frame.dcm": "the same",
}
NOT_BY_SIMPLEITK = {
    "rtdose_expb.dcm": "as for dcmtk",
    "rtdose_expb_1frame.dcm": "GDCM stops; as for dcmtk",
    "rtdose_1frame.dcm": "GDCM stops; dcmtk renders it",
    "rtdose_rle_1frame.dcm": "GDCM stops; dcmtk renders it",
    "seg_image_sm_control.dcm": "GDCM stops; dcmtk renders it",
    "seg_image_sm_control_labelmap.dcm": "GDCM stops; dcmtk renders it",
    "seg_image_sm_control_labelmap_palette_color.dcm": "GDCM stops; dcmtk renders it",
    "seg_image_sm_dots.dcm": "GDCM stops; dcmtk renders it",
    "seg_image_sm_dots_tiled_full.dcm": "GDCM stops; dcmtk renders it",
    "seg_image_sm_numbers.dcm": "GDCM stops; dcmtk renders it",
    "SC_rgb_rle_16bit.dcm": "GDCM takes the planes of 16-bit colour for each other; dcmtk renders it",
    "SC_rgb_rle_16bit_2frame.dcm": "the same",
    "SC_rgb_rle_32bit.dcm": "the same",
    "SC_rgb_rle_32bit_2frame.dcm": "the same",
    "examples_palette.dcm": "GDCM keeps 8 of a palette's 16 bits; dcmtk renders it",
    "RG3_JPLY": "GDCM cuts the overshoot off, as dcmtk",
}


def rendered(path: Path, frame: int, folder: Path, *options: str) -> NDArray[np.float64]:
    """dcmtk's picture, 0-1, (rows, columns[, 3]), without overlays, at the file's own matrix."""
    syntax = str(getattr(dcmread(path, force=True, stop_before_pixels=True).file_meta, "TransferSyntaxUID", ""))
    family = syntax.removeprefix("1.2.840.10008.1.2.4.")[:1] if "1.2.840.10008.1.2.4." in syntax else ""
    tool = {"5": "dcmj2pnm", "6": "dcmj2pnm", "7": "dcmj2pnm", "8": "dcml2pnm"}.get(family, "dcm2pnm")
    picture, raw = folder / "picture.png", folder / "raw.dcm"
    for file in (picture, raw):
        file.unlink(missing_ok=True)
    if family in ("9", "2"):
        subprocess.run(["gdcmconv", "--raw", path, raw], capture_output=True, check=True, timeout=60)
    command = [tool, "-O", "-S", "-il", "+on2", "+F", str(frame + 1), *options, raw if raw.exists() else path, picture]
    found = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert picture.exists(), f"{path.name}: {tool} {' '.join(options)}: {found.stderr.decode(errors='replace')[-300:]}"
    image = imagecodecs.png_decode(picture.read_bytes())
    return image / np.float64(np.iinfo(image.dtype).max)


def options_for(pixels: Pixels, window: Voi, chosen: int = 0) -> list[str]:
    """dcmtk's options for what `to_unit_range` does."""
    if pixels.values.ndim == 3:
        return []
    if pixels.unit is PixelUnit.FRACTION:
        return ["+Ww", "1", "2", "+Wfl"]  # from 0 to 1: without a window dcmtk takes 2 for white
    if pixels.unit is PixelUnit.HU:
        return ["+Ww", f"{window.center}", f"{window.width}", "+Wfl"]
    voi = choose_voi(pixels, chosen)
    if not pixels.voi:  # LINEAR_EXACT, which dcmtk 3.6.7 does not know, as the LINEAR that equals it
        return ["+Ww", f"{voi.center + 0.5!r}", f"{voi.width + 1!r}", "+Wfl"]
    luts = sum(own.function is VoiFunction.LUT for own in pixels.voi)
    return ["+Wl", str(chosen + 1)] if voi.function is VoiFunction.LUT else ["+Wi", str(chosen - luts + 1)]


def difference(shown: NDArray[Any], other: NDArray[np.float64], pixels: Pixels) -> NDArray[np.float64]:
    """Of two pictures, where there is no padding: dcmtk shows it by its value."""
    assert shown.shape == other.shape
    apart = np.abs(shown - other)
    return apart if pixels.padding is None else apart[~pixels.padding]


def real_images() -> Iterator[Path]:
    """Every real file that has an image; not to be had before the test runs."""
    for path in sorted(Path(os.environ["RADLOOP_DATA"], "dicom").rglob("*")):
        if path.is_file():
            try:
                read_pixels(path)
            except Rejected:
                continue
            yield path


def ends(path: Path) -> list[int]:
    """The first and the last frame."""
    return sorted({0, frame_count(path) - 1})


GRAY = (np.arange(40 * 30).reshape(40, 30) * 3 + 11).astype(np.uint16)
SIGNED = (np.arange(40 * 30).reshape(40, 30) * 3 - 1500).astype(np.int16)
COLOR = np.stack([GRAY % 256, GRAY // 7 % 256, GRAY // 3 % 256], axis=-1).astype(np.uint8)
YBR = np.repeat(COLOR[:, ::2], 2, axis=1)
SUBSAMPLED = np.concatenate([YBR[:, ::2, :1], YBR[:, 1::2, :1], YBR[:, ::2, 1:]], axis=-1).reshape(-1)
PALETTE = {
    f"{color}PaletteColorLookupTable{name}": value
    for number, color in enumerate(("Red", "Green", "Blue"))
    for name, value in (
        ("Descriptor", [256, 0, 16]),
        ("Data", (np.arange(256) * (number + 1) * 85).astype("<u2").tobytes()),
    )
}
MADE: dict[str, tuple[NDArray[Any], dict[str, Any], int]] = {
    "window": (GRAY, {"WindowCenter": 900, "WindowWidth": 700}, 0),
    "narrow window": (GRAY, {"WindowCenter": 900, "WindowWidth": 2}, 0),
    "step": (GRAY, {"WindowCenter": 900, "WindowWidth": 1}, 0),
    "sigmoid": (GRAY, {"WindowCenter": 900, "WindowWidth": 700, "VOILUTFunction": "SIGMOID"}, 0),
    "inverted": (GRAY, {"WindowCenter": 900, "WindowWidth": 700, "PhotometricInterpretation": "MONOCHROME1"}, 0),
    "third window": (GRAY, {"WindowCenter": [1, 2, 900], "WindowWidth": [10, 10, 700]}, 2),
    "signed": (SIGNED, {"WindowCenter": -100, "WindowWidth": 900}, 0),
    "12 of 16 bits": (GRAY, {"BitsStored": 12, "WindowCenter": 900, "WindowWidth": 700}, 0),
    "rescaled": (GRAY, {"RescaleSlope": 2, "RescaleIntercept": -900, "WindowCenter": 50, "WindowWidth": 999}, 0),
    "modality LUT": (
        GRAY,
        {
            "ModalityLUTSequence": Sequence([lut(100, [7 * n for n in range(2000)], 16, ModalityLUTType="US")]),
            "WindowCenter": 5000,
            "WindowWidth": 7000,
        },
        0,
    ),
    "VOI LUT": (GRAY, {"VOILUTSequence": Sequence([lut(100, [n * n // 62 for n in range(2000)])])}, 0),
    "signed VOI LUT": (SIGNED, {"VOILUTSequence": Sequence([lut(-500, [60 * n for n in range(1000)])])}, 0),
    "second VOI LUT": (
        GRAY,
        {"VOILUTSequence": Sequence([lut(0, [5, 6]), lut(100, [65535 - 30 * n for n in range(2000)])])},
        1,
    ),
    "RGB": (COLOR, {"SamplesPerPixel": 3}, 0),
    "RGB of 16 bits": (COLOR.astype(np.uint16) * 251, {"SamplesPerPixel": 3}, 0),
    "palette": (COLOR[..., 0], {"PhotometricInterpretation": "PALETTE COLOR", **PALETTE}, 0),
}


@needs_dcmtk
@pytest.mark.parametrize("name", MADE)
def test_made_file_looks_as_in_dcmtk(tmp_path: Path, name: str) -> None:
    values, attributes, chosen = MADE[name]
    path = write(tmp_path / "image.dcm", values, **attributes)
    pixels = read_pixels(path, color=True)
    shown = to_unit_range(pixels, WINDOWS["lung"], voi=chosen)
    other = rendered(path, 0, tmp_path, *options_for(pixels, WINDOWS["lung"], chosen))
    assert np.ptp(shown) > 0.4
    assert difference(shown, other, pixels).max() <= ONE_LEVEL


@needs_dcmtk
@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_named_windows_of_hu_are_dcmtks(tmp_path: Path, name: str) -> None:
    path = ct(tmp_path / "image.dcm", GRAY)
    pixels = read_pixels(path)
    other = rendered(path, 0, tmp_path, *options_for(pixels, WINDOWS[name]))
    assert difference(to_unit_range(pixels, WINDOWS[name]), other, pixels).max() <= ONE_LEVEL


@needs_dcmtk
@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_colour_of_ybr_is_dcmtks(tmp_path: Path, photometric: str) -> None:
    path = write(tmp_path / "image.dcm", YBR, SamplesPerPixel=3, PhotometricInterpretation=photometric)
    if photometric == "YBR_FULL_422":
        dataset = dcmread(path)
        dataset.PixelData = SUBSAMPLED.tobytes()
        dataset.save_as(path)
    pixels = read_pixels(path, color=True)
    assert difference(pixels.values, rendered(path, 0, tmp_path), pixels).max() <= TRUNCATED_COLOR
    exact = convert_color_space(YBR, "YBR_FULL", "RGB") / 255
    assert difference(pixels.values, exact, pixels).max() <= ROUNDED_COLOR


@needs_dcmtk
@needs_data
@pytest.mark.real_data
def test_every_real_file_looks_as_in_dcmtk(tmp_path: Path) -> None:
    """Each file that decodes, its first and last frame: compared, or in the list above with the reason."""
    work = [(path, frame) for path in real_images() if path.name not in NOT_BY_DCMTK for frame in ends(path)]

    def worst(job: tuple[int, tuple[Path, int]]) -> str:
        number, (path, frame) = job
        folder = tmp_path / str(number)
        folder.mkdir()
        pixels = read_pixels(path, frame, color=True)
        shown = to_unit_range(pixels, WINDOWS["lung"])
        if path.name in CUT_BY_DCMTK:
            cut = Pixels(np.trunc(pixels.values), pixels.unit, pixels.voi, pixels.inverted)
            shown = to_unit_range(cut, WINDOWS["lung"])
        apart = difference(shown, rendered(path, frame, folder, *options_for(pixels, WINDOWS["lung"])), pixels)
        if path.name in CLIPPED_HERE:
            assert 0 < np.mean(apart > ONE_LEVEL) < OVERSHOOT_PIXELS
            apart = apart[apart <= ONE_LEVEL]
        allowed = _allowed(path)
        return "" if apart.max() <= allowed else f"{path.name} frame {frame}: {apart.max() / LEVEL:.1f} levels"

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(worst, enumerate(work)))
    assert len(outcomes) > 200
    assert not [outcome for outcome in outcomes if outcome]


@needs_data
@pytest.mark.real_data
def test_every_real_files_values_are_simpleitks() -> None:
    """Modality values; GDCM has turned MONOCHROME1 round before it rescales, single bits are 0 and 255 there, colour is whole samples."""
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    different = []
    for path in real_images():
        if path.name in NOT_BY_SIMPLEITK:
            continue
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        image = reader.Execute()
        volume = sitk.GetArrayFromImage(image)
        if volume.ndim == (2 if image.GetNumberOfComponentsPerPixel() == 1 else 3):
            volume = volume[None]
        assert len(volume) == frame_count(path)
        different += [
            f"{path.name} frame {frame}"
            for frame in ends(path)
            if not _same_values(read_pixels(path, frame, color=True), volume[frame])
        ]
    assert not different


@needs_data
@pytest.mark.real_data
def test_big_endian_words_of_32_bits_equal_their_little_endian_twin() -> None:
    folder = Path(os.environ["RADLOOP_DATA"], "dicom", "pydicom_test_files")
    for big, little in (("rtdose_expb.dcm", "rtdose.dcm"), ("rtdose_expb_1frame.dcm", "rtdose_1frame.dcm")):
        for frame in ends(folder / big):
            values = read_pixels(folder / big, frame).values
            np.testing.assert_array_equal(values, read_pixels(folder / little, frame).values)
            assert np.ptp(values) > 0


def _allowed(path: Path) -> float:
    """Colour in DCT is YBR by the JPEG's own markers, whatever the header says (SC_rgb_small_odd_jpeg.dcm)."""
    with open_image(path) as image:
        ybr = image.shape.photometric_interpretation.startswith("YBR_FULL")
        if ybr and image.fragments is None:
            return TRUNCATED_COLOR
        dct = image.shape.samples_per_pixel == 3 and image.transfer_syntax_uid == uid.JPEGBaseline8Bit
        return ROUNDED_COLOR if ybr or dct else ONE_LEVEL


def _same_values(pixels: Pixels, other: NDArray[Any]) -> bool:
    values = pixels.values.astype(np.float64)
    if values.ndim == 3:
        return bool(np.abs(values - other / np.iinfo(other.dtype).max).max() <= ROUNDED_COLOR)
    if pixels.unit is PixelUnit.FRACTION:
        values = values * 255
    if pixels.inverted:  # then both add up to the same everywhere
        total = values + other
        return bool(np.ptp(total) <= 1e-6 * np.abs(total).max())
    return bool(np.abs(values - other).max() <= 1e-6 * max(np.abs(values).max(), 1.0))
