"""What this installation can do: versions, the device, what decodes each transfer syntax, optional tools."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata

import torch

from pipeline import __version__
from pipeline.dicom.codecs import decoders
from pipeline.dicom.syntaxes import UNDECODED

PACKAGES = (
    "torch",
    "monai",
    "pydicom",
    "highdicom",
    "pynetdicom",
    "imagecodecs",
    "SimpleITK",
    "nibabel",
    "scikit-learn",
    "grad-cam",
    "pandas",
    "pyarrow",
)
TOOLS = {
    "dciodvfy": "checks objects against their IOD (dicom3tools)",
    "dcm2pnm": "a second decoder and renderer (dcmtk), for the tests",
    "gdcmconv": "a third decoder (GDCM), for the tests",
    "dcm2niix": "a second way from series to volumes, for the tests",
}


def report() -> list[str]:
    """The lines that `radloop doctor` prints."""
    lines = [f"radloop {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"]
    lines += [f"  {name} {_version(name)}" for name in PACKAGES]
    if torch.cuda.is_available():
        lines.append(f"device: {torch.cuda.get_device_name()} (bf16 autocast, channels-last)")
    else:
        lines.append(f"device: CPU, {torch.get_num_threads()} threads (fp32); no CUDA device is visible")
    lines.append("transfer syntaxes:")
    for uid, name, decoder, available in decoders():
        if uid not in UNDECODED:
            lines.append(f"  {'yes' if available else 'NO '} {name} ({uid}): {decoder}")
    lines.append("transfer syntaxes that no file is decoded of (files are rejected with the reason):")
    for reason in dict.fromkeys(UNDECODED.values()):
        uids = [uid for uid, why in UNDECODED.items() if why == reason]
        lines.append(f"  {reason}: {uids[0]}{f' and {len(uids) - 1} more' if len(uids) > 1 else ''}")
    lines.append("optional tools:")
    lines += [f"  {'yes' if shutil.which(tool) else 'no '} {tool}: {purpose}" for tool, purpose in TOOLS.items()]
    return lines


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "NOT INSTALLED: pip install radloop brings it"
