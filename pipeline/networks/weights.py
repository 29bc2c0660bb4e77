"""Where a network's first weights come from: nowhere (random), ImageNet, a file of the user's, or an earlier run.

Published files are downloaded once, whole or not at all, and checked by the sha256 that their publisher names. No file runs code.
How a file's names become the network's own is `pipeline.networks.weight_names`' affair.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import WeightsError
from pipeline.files import file_digest, whole_file
from pipeline.networks.input_layer import IMAGENET_STATISTICS, InputStatistics, radloops_statistics
from pipeline.networks.stages import StagedNetwork
from pipeline.networks.weight_names import fit_weights
from pipeline.training_settings import Network

WEIGHTS_FILE = "model.safetensors"
CACHE_VARIABLE = "RADLOOP_WEIGHTS"
DOWNLOAD_TIMEOUT_S = 30
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm calls a network's file on the Hugging Face hub; the first that is there."""
_CHECKSUM_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
"""torch.hub's habit: the first characters of a file's sha256 end its name."""
_NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Under which training scripts keep the weights beside other things."""


@dataclass(frozen=True)
class Download:
    """A published state dict and how its sha256 begins (empty: its publisher does not say)."""

    url: str
    sha256_prefix: str


IMAGENET = {
    "resnet18": Download("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd"),
    "resnet34": Download("https://download.pytorch.org/models/resnet34-b627a593.pth", "b627a593"),
    "resnet50": Download("https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61"),
    "resnet101": Download("https://download.pytorch.org/models/resnet101-63fe2227.pth", "63fe2227"),
}
"""torchvision's first weights of each: the later ones score higher on ImageNet, by label smoothing and mixing of images, which is
known to make frozen features worse for other tasks (Kornblith 2021)."""


@dataclass(frozen=True)
class WeightsOrigin:
    """Where a network's first weights came from."""

    source: str
    sha256: str


@dataclass(frozen=True)
class _File:
    path: Path
    source: str
    statistics: InputStatistics | None
    """Of the images that they were trained on; None: nobody says."""


def load_first_weights(
    net: StagedNetwork, network: Network, statistics: InputStatistics | None = None
) -> WeightsOrigin:
    """Loads what `network.weights` names into `net`, whose images are normalised by `statistics` (None: by ImageNet's).

    WeightsError where it cannot be had, has another checksum than `network.weights_sha256`, or does not fit.
    """
    if network.weights == "none":
        return WeightsOrigin("random", "")
    file = _published(net, network.architecture) if network.weights == "imagenet" else _local(network.weights)
    digest = file_digest(file.path)
    if not digest.startswith(network.weights_sha256):
        expected = network.weights_sha256
        raise WeightsError(
            f"{file.path}: its sha256 should begin with {expected} (network.weights_sha256), found "
            f"{digest[: len(expected)]}: it is another file, or a damaged copy; get it again, or correct the key"
        )
    own = statistics or radloops_statistics(network.channels)
    fit_weights(net, read_weights(file.path), str(file.path), own, file.statistics)
    return WeightsOrigin(file.source, digest)


def read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """A state dict from safetensors or from a torch file, without running code from it; its names as they are."""
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a weights file that can be read: {type(error).__name__}") from error
    except Exception as error:  # pickle.UnpicklingError, and whatever a hostile pickle makes the safe loader raise
        raise WeightsError(
            f"{path}: refused: it holds more than tensors ({type(error).__name__}); save a plain state dict"
        ) from error
    if isinstance(state, Mapping):
        state = next((state[name] for name in _NESTED if isinstance(state.get(name), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: expected a state dict (names and tensors); found {type(state).__name__}")
    return {str(name): value for name, value in state.items()}


def _local(given: str) -> _File:
    path = Path(given).expanduser()
    if path.is_dir():
        if (path / "fold-0").is_dir() and not (path / WEIGHTS_FILE).is_file():
            raise WeightsError(f"{path}: a run of folds; give one of them, such as {path / 'fold-0'}")
        path = path / WEIGHTS_FILE
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weights file; give none, imagenet, a .safetensors or .pth file, or a run's folder"
        )
    return _File(path, f"{path.parent.name}/{path.name}" if path.name == WEIGHTS_FILE else path.name, None)


def _published(net: StagedNetwork, architecture: str) -> _File:
    """The ImageNet weights of a MONAI ResNet, or what timm names as a network's weights."""
    if architecture in IMAGENET:
        download = IMAGENET[architecture]
        return _File(fetch(download), download.url.rsplit("/", 1)[-1], IMAGENET_STATISTICS)
    facts: Any = net.backbone.pretrained_cfg
    statistics = InputStatistics(tuple(facts["mean"]), tuple(facts["std"]))
    if facts.get("hf_hub_id"):
        path, source = hub_file(facts["hf_hub_id"], facts.get("hf_hub_filename") or "")
        return _File(path, source, statistics)
    url = facts.get("url") or ""
    if not url or facts.get("custom_load"):
        raise WeightsError(
            f"network.weights imagenet: timm has no weights for {architecture.partition(':')[2]}; "
            "give none, a file, or a network of timm.list_models(pretrained=True)"
        )
    checksum = _CHECKSUM_IN_NAME.search(url)
    return _File(fetch(Download(url, checksum[1] if checksum else "")), url.rsplit("/", 1)[-1], statistics)


def hub_file(hub_id: str, filename: str = "") -> tuple[Path, str]:
    """A network's weights from the Hugging Face hub, or from its cache on this machine; and what they are called there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    names = (filename,) if filename else HUB_FILES
    for name in names:
        kept = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(kept, str):  # without asking the hub, which without a network takes half a minute to give up
            return Path(kept), f"{repository}/{name}"
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None)), f"{repository}/{name}"
        except Exception as error:  # httpx's, requests', the hub's own and OSError: it depends on the hub's version
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            raise WeightsError(
                f"{repository}/{name}: cannot be downloaded from the Hugging Face hub ({_reason(error)}); "
                "download it elsewhere and give its path as network.weights"
            ) from error
    raise WeightsError(f"{repository}: has none of {', '.join(names)} on the Hugging Face hub; give a file")


def fetch(download: Download) -> Path:
    """The file of `download`, from the weights folder if it is there with the right checksum, else downloaded to it whole."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "radloop" / "weights")
    target = folder / download.url.rsplit("/", 1)[-1]
    if target.is_file() and file_digest(target).startswith(download.sha256_prefix):
        return target
    advice = f"download it elsewhere and put it at {target}, or give its path as network.weights"
    try:
        with whole_file(target) as aside, urllib.request.urlopen(download.url, timeout=DOWNLOAD_TIMEOUT_S) as answer:
            shutil.copyfileobj(answer, aside)
            aside.flush()
            _check_download(download, Path(aside.name), answer.headers.get("Content-Length"), advice)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise WeightsError(f"{download.url}: cannot be downloaded ({_reason(error)}); {advice}") from error
    return target


def _check_download(download: Download, path: Path, promised: str | None, advice: str) -> None:
    """Python's own reading in pieces takes a connection that breaks off for the end of the file."""
    bytes_found = path.stat().st_size
    if promised and promised.isdigit() and bytes_found != int(promised):
        raise WeightsError(
            f"{download.url}: the download broke off after {bytes_found:,} of {int(promised):,} bytes; try again, or {advice}"
        )
    found = file_digest(path)
    if not found.startswith(download.sha256_prefix):
        raise WeightsError(
            f"{download.url}: its sha256 should begin with {download.sha256_prefix}, found {found[:8]}; "
            f"a proxy may have changed it: {advice}"
        )


def _reason(error: BaseException) -> str:
    """What went wrong, on one line: the innermost cause says it (connection refused, name not known)."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    inner = getattr(error, "reason", None)
    text = str(inner if isinstance(inner, OSError) else error).strip()
    return text.splitlines()[0] if text else type(error).__name__
