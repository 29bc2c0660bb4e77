"""What a prepared image is known by: the file it was made of, the chain that made it, and the code that the chain is.

A change of any of them is another key, so that an old image is never taken for a new one. Keys are digests: no name and no path stands
in the cache. Normalization is no part of them, because it comes after the cache.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Preprocessing
from pipeline.prepared.cache_block import KEY_BYTES

if TYPE_CHECKING:
    from pipeline.prepared.dataset import ImageFile

START = "pipeline.prepared.dataset"
EXEMPT = frozenset(
    {
        *(
            "pipeline",
            "pipeline.archive",
            "pipeline.files",
            "pipeline.errors",
            "pipeline.work",
        ),  # a file's bytes, and where it is done
        *(
            "pipeline.config",
            "pipeline.settings",
            "pipeline.image_settings",
            "pipeline.training_settings",
            "pipeline.columns",
            "pipeline.identity",
        ),  # values, which are in the key themselves, and tables
        *("transforms", "transforms.augment", "transforms.batch", "transforms.drawing"),  # what comes after the cache
        "transforms.stress",  # what is prepared under a stress is not kept
    }
)
"""What `START` imports that decides no pixel."""
PACKAGES = ("imagecodecs", "monai", "nibabel", "numpy", "pillow", "pydicom", "scipy", "torch")
"""Whose versions decide it with them."""

_UNIT = "\x1f"
_IMPORT = re.compile(r"^\s*from ((?:pipeline|transforms)[\w.]*) import (\([^)]*\)|.*)$", re.MULTILINE)


@lru_cache(maxsize=1)
def code_version() -> str:
    """A digest of the sources that decide what a prepared image is and the versions of `PACKAGES`, 16 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=8)
    for module, source in sorted(code().items()):
        state.update(f"{module}{_UNIT}{len(source)}{_UNIT}".encode() + source)
    for package in PACKAGES:
        state.update(f"{package}{_UNIT}{metadata.version(package)}{_UNIT}".encode())
    return state.hexdigest()


def code() -> dict[str, bytes]:
    """`START` and every module of ours that it imports in turn, but for `EXEMPT`, with their sources."""
    # Not importlib.resources, which would import the packages, and torch with them.
    specs = {name: find_spec(name) for name in ("pipeline", "transforms")}
    roots = {name: Path((spec.submodule_search_locations or [""])[0]) for name, spec in specs.items() if spec}
    found: dict[str, bytes] = {}
    todo = [START]
    while todo:
        module = todo.pop()
        package, _, path = module.partition(".")
        if module in found or module in EXEMPT or not path:
            continue
        file = roots[package] / (path.replace(".", "/") + ".py")
        if file.is_file():
            found[module] = file.read_bytes()
            for imported, names in _IMPORT.findall(found[module].decode()):
                todo += [imported, *(f"{imported}.{name}" for name in re.findall(r"\w+", names))]
    return found


def chain_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """What of the configuration decides a prepared image."""
    return preprocessing.model_dump(mode="json", exclude={"normalization"})


def chain_name(preprocessing: Preprocessing) -> str:
    """Names chain and code, 32 hexadecimal digits."""
    told = json.dumps([chain_settings(preprocessing), code_version()], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def file_keys(files: Sequence[ImageFile]) -> NDArray[np.bytes_]:
    """(n,) keys of `KEY_BYTES`: the first byte by the file alone, so that the frames of one file are decoded one after the other."""
    resolved = lru_cache(maxsize=4096)(_resolved)
    keys = bytearray()
    for file in files:
        modality = file.modality if file.format == "nifti" else ""  # says what the numbers of a NIfTI count
        where = f"{resolved(file.location.parent)}/{file.location.name}"
        identity = _UNIT.join((where, str(file.bytes), str(file.mtime_ns), file.format, modality))
        of_file = _digest(identity)
        keys += of_file[:1] + _digest(f"{identity}{_UNIT}{file.frame}")[1:]
    return np.frombuffer(bytes(keys), dtype=f"S{KEY_BYTES}")


def _resolved(folder: Path) -> str:
    return str(folder.resolve())


def _digest(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=KEY_BYTES).digest()
