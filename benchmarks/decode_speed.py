"""How fast one frame is decoded, by transfer syntax: radloop against pydicom with gdcm and with pylibjpeg, on the same files.

python benchmarks/decode_speed.py DATA [--rounds 15]

DATA is the folder `dicom` of the real images (`cornerstone_ct_syntaxes`, `wg04`). The others are no dependencies: install what is to be
compared beside radloop (`pip install python-gdcm`, `pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg pylibjpeg-rle`); what is
absent, or cannot read a syntax, has no figure. One thread, files in the page cache, the file's opening and header included on both sides
(`dcmread` and `pixel_array` there). A row is one CT slice, or all files of a folder of `wg04`; a figure the sum over its files of
each file's median time in ms, the contenders taking turns. The values of all contenders are compared first.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from pipeline.dicom.frames import open_image, read_stored
from pipeline.dicom.pixels import read_pixels

NAMES = ("read_stored", "read_pixels", "gdcm", "pylibjpeg")
PLUGIN_MODULES = {"gdcm": "gdcm", "pylibjpeg": "pylibjpeg"}


def main() -> int:
    """Prints a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    rows = {path.name: [path] for path in sorted((given.data / "cornerstone_ct_syntaxes").glob("*.dcm"))}
    for folder in sorted(path for path in (given.data / "wg04").iterdir() if path.is_dir()):
        rows[f"wg04/{folder.name}"] = sorted(path for path in folder.iterdir() if path.is_file())
    absent = [name for name, module in PLUGIN_MODULES.items() if importlib.util.find_spec(module) is None]
    if absent:
        print(f"not installed, not compared: {', '.join(absent)}", file=sys.stderr)
    print("| files | syntax | " + " | ".join(f"{name} ms" for name in NAMES) + " | fastest other / read_stored |")
    print("|---" * (len(NAMES) + 3) + "|")
    for name, paths in rows.items():
        print(_row(name, paths, given.rounds), flush=True)
    return 0


def _row(name: str, paths: list[Path], rounds: int) -> str:
    totals: dict[str, float | None] = dict.fromkeys(NAMES, 0.0)
    for path in paths:
        times = _times(path, rounds)
        totals = {
            key: None if total is None or key not in times else total + times[key] for key, total in totals.items()
        }
    with open_image(paths[0]) as image:
        syntax = image.transfer_syntax_uid
    others = [total for key in PLUGIN_MODULES if (total := totals[key]) is not None]
    own = totals["read_stored"]
    ratio = f"**{min(others) / own:.1f}**" if others and own else "none reads it"
    shown = " | ".join("—" if total is None else f"{total:.2f}" for total in totals.values())
    label = name.split("_")[1] if name.startswith("CTImage.dcm_") else name
    return f"| {label} ({len(paths)}) | {syntax.removeprefix('1.2.840.10008.')} | {shown} | {ratio} |"


def _times(path: Path, rounds: int) -> dict[str, float]:
    """Median ms of each contender that reads the file, and reads the same as radloop."""
    contenders: dict[str, Callable[[], Any]] = {
        "read_stored": lambda: _stored(path),
        "read_pixels": lambda: read_pixels(path),
    }
    expected = _stored(path)
    for plugin in PLUGIN_MODULES:
        with suppress(Exception):  # a plugin that is absent, or does not know the syntax
            if np.abs(_by_pydicom(path, plugin).astype(np.int64) - expected).max() <= 1:
                contenders[plugin] = lambda plugin=plugin: _by_pydicom(path, plugin)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def _stored(path: Path) -> NDArray[Any]:
    with open_image(path) as image:
        return np.asarray(read_stored(image, 0).values)


def _by_pydicom(path: Path, plugin: str) -> NDArray[Any]:
    dataset = dcmread(path)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset.pixel_array_options(decoding_plugin=plugin)
    return dataset.pixel_array


if __name__ == "__main__":
    sys.exit(main())
