"""Every real file that radloop decodes has the stored values that a decoder not used here gives it, or a reason why not.

dcmtk (its own JPEG, JPEG-LS and RLE decoders) and, where dcmtk has none, GDCM write the file uncompressed; what they wrote is
taken apart here by numpy (PS3.5 8.1.1), not by radloop.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from pipeline.dicom.frames import open_image, read_stored
from pipeline.dicom.syntaxes import LOSSLESS
from pipeline.errors import Rejected

TOOLS = {
    "dcmtk native": ("dcmconv", "+te"),
    "dcmtk JPEG": ("dcmdjpeg", "+te", "+cn"),  # +cn: components as they are coded
    "dcmtk JPEG-LS": ("dcmdjpls", "+te"),
    "dcmtk RLE": ("dcmdrle", "+te"),
    "GDCM": ("gdcmconv", "--raw"),
}
FIRST_CHOICE = {"4.5": "dcmtk JPEG", "4.70": "dcmtk JPEG", "4.8": "dcmtk JPEG-LS", "5": "dcmtk RLE", "4.9": "GDCM"}
"""By the transfer syntax after 1.2.840.10008.1.2; native ones are dcmconv's. Where it fails, GDCM decodes."""

LOSSY_TOLERANCE = 1
"""The inverse DCT and wavelet of a lossy stream may be rounded either way (ISO 10918-2; libjpeg's manual). Observed: 0."""

MOST_FRAMES = 8
"""Of a file with more, the first and the last frame are compared."""


def _same_as(name: str) -> Callable[[Path, list[NDArray[Any]], Path], bool]:
    """The file holds the same image as `name`, by radloop; that one is compared with dcmtk."""
    return lambda path, mine, _: all(map(np.array_equal, mine, _mine(path.parent / name)))


def _same_clipped(path: Path, mine: list[NDArray[Any]], written: Path) -> bool:
    """The decoder's raw words, clipped to BitsStored instead of cut."""
    dataset = dcmread(written)
    words = np.frombuffer(dataset.PixelData, "<u2")[: dataset.Rows * dataset.Columns].reshape(mine[0].shape)
    return bool((np.minimum(words, (1 << dataset.BitsStored) - 1) == mine[0]).all() and words.max() > mine[0].max())


OTHERWISE: dict[str, tuple[str, Callable[[Path, list[NDArray[Any]], Path], bool]]] = {
    "pydicom_test_files/rtdose_expb.dcm": (
        "32-bit words of a big endian file: its writer swapped 4 bytes, dcmtk and GDCM swap 2 (VR OW); doses are smooth by 4",
        _same_as("rtdose.dcm"),
    ),
    "pydicom_test_files/rtdose_expb_1frame.dcm": ("as rtdose_expb.dcm", _same_as("rtdose_1frame.dcm")),
    "wg04/JPLY/RG3_JPLY": (
        "the lossy stream overshoots to 1024 at 10 bits stored: others cut that to 0, radloop clips it to 1023",
        _same_clipped,
    ),
}
"""Files on which the others do not agree: why, and what is checked instead."""


@pytest.mark.real_data
@pytest.mark.skipif(
    not all(shutil.which(tool) for tool, *_ in TOOLS.values()), reason="dcmtk or GDCM's gdcmconv is not installed"
)
def test_every_decoded_file_equals_what_another_decoder_makes_of_it(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "dicom"
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda pair: _outcome(pair[1], root, tmp_path / str(pair[0])), enumerate(files)))
    compared = [outcome for outcome in outcomes if outcome is not None]
    assert [outcome for outcome in compared if outcome != "same"] == []
    assert len(compared) == 194
    assert {path for path in OTHERWISE if not (root / path).is_file()} == set()


def _outcome(path: Path, root: Path, written: Path) -> str | None:
    """`same`, or what differs; None for a file that radloop does not decode."""
    try:
        mine = _mine(path)
        with open_image(path) as image:
            syntax = image.transfer_syntax_uid
    except Rejected:
        return None
    name = path.relative_to(root).as_posix()
    decoders = [_first_choice(syntax), "GDCM"]
    decoder = next((decoder for decoder in decoders if _writes(decoder, path, written)), None)
    if decoder is None:
        return f"{name}: no other decoder reads it"
    if name in OTHERWISE:
        return "same" if OTHERWISE[name][1](path, mine, written) else f"{name}: what was to be checked instead differs"
    tolerance = LOSSY_TOLERANCE if ".4." in syntax and syntax not in LOSSLESS else 0
    theirs = _stored_values(dcmread(written))
    theirs = theirs if len(theirs) <= MOST_FRAMES else theirs[[0, -1]]
    if [frame.shape for frame in mine] != [frame.shape for frame in theirs]:
        return f"{name}: {mine[0].shape} here, {theirs.shape[1:]} by {decoder}"
    worst = max(int(np.abs(a.astype(np.int64) - b).max()) for a, b in zip(mine, theirs, strict=True))
    return "same" if worst <= tolerance else f"{name}: differs by {worst} from {decoder}"


def _mine(path: Path) -> list[NDArray[Any]]:
    with open_image(path) as image:
        frames = range(image.shape.frames)
        return [
            np.asarray(read_stored(image, n).values)
            for n in (frames if len(frames) <= MOST_FRAMES else (0, frames[-1]))
        ]


def _first_choice(syntax: str) -> str:
    end = syntax.removeprefix("1.2.840.10008.1.2").removeprefix(".")
    return next((tool for start, tool in FIRST_CHOICE.items() if end.startswith(start)), "dcmtk native")


def _writes(decoder: str, path: Path, written: Path) -> bool:
    subprocess.run([*TOOLS[decoder], str(path), str(written)], capture_output=True, timeout=60, check=False)
    return written.is_file()


def _stored_values(dataset: Dataset) -> NDArray[Any]:
    """(frames, rows, columns) or (frames, rows, columns, 3) of an uncompressed little endian file (PS3.5 8.1.1)."""
    rows, columns, samples = dataset.Rows, dataset.Columns, dataset.get("SamplesPerPixel", 1)
    frames, bits = int(dataset.get("NumberOfFrames") or 1), dataset.BitsAllocated
    if bits == 1:
        single = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
        return single[: frames * rows * columns].reshape(frames, rows, columns)
    words = np.frombuffer(dataset.PixelData, f"<{'i' if dataset.PixelRepresentation else 'u'}{bits // 8}")
    words = words << (bits - 1 - dataset.HighBit) >> (bits - dataset.BitsStored)
    if dataset.PhotometricInterpretation == "YBR_FULL_422" and len(words) < frames * rows * columns * samples:
        y1, y2, blue, red = words[: frames * rows * columns * 2].reshape(-1, 4).T
        words = np.stack([y1, blue, red, y2, blue, red], axis=1).ravel()
    words = words[: frames * rows * columns * samples]
    if samples == 1:
        return words.reshape(frames, rows, columns)
    if dataset.PlanarConfiguration:
        return np.moveaxis(words.reshape(frames, samples, rows, columns), 1, -1)
    return words.reshape(frames, rows, columns, samples)
