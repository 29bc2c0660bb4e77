"""Networks and where their weights come from.

MONAI's ResNet in torchvision's shape: with `conv1_t_stride=2, bias_downsample=False` it takes torchvision's ImageNet state
dict key for key. Images are (batch, channels, rows, columns). `Geometry` says where each cell of the last feature map looks.
"""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.networks.nets import resnet18, resnet34, resnet50, resnet101
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.config import Network
from pipeline.errors import WeightsError
from pipeline.files import file_digest, whole_file
from transforms.chains import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD

ARCHITECTURES = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}
STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
WEIGHTS_FILE = "model.safetensors"
CACHE_VARIABLE = "RADLOOP_WEIGHTS"
DOWNLOAD_TIMEOUT_S = 30


@dataclass(frozen=True)
class Geometry:
    """Cell i of the last feature map is centred on input pixel `cell_offset + cell_stride * i`, along both axes."""

    cell_stride: float
    cell_offset: float


RESNET_GEOMETRY = Geometry(cell_stride=32.0, cell_offset=0.0)
"""Every strided layer of a ResNet has an odd kernel padded by half of it, so cell 0 stays on pixel 0 (tested by impulses)."""


@dataclass(frozen=True)
class Download:
    """A published state dict and the sha256 that its file must have (its first characters are also in torchvision's file name)."""

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


class Classifier(nn.Module):
    """A ResNet whose head is dropout and one linear layer after global average pooling."""

    def __init__(self, network: Network, classes: int) -> None:
        super().__init__()
        self.backbone = ARCHITECTURES[network.architecture](
            spatial_dims=2,
            n_input_channels=network.channels,
            num_classes=classes,
            conv1_t_stride=2,
            bias_downsample=False,
        )
        self.dropout = nn.Dropout(network.dropout)
        self.geometry = RESNET_GEOMETRY
        self.frozen = _frozen_stages(network.trainable)
        for stage in self.frozen:
            self.backbone.get_submodule(stage).requires_grad_(False)

    @property
    def head(self) -> nn.Linear:
        """(classes, channels) weight and (classes,) bias."""
        head = self.backbone.fc
        assert isinstance(head, nn.Linear)
        return head

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, channels, rows, columns) in, the last feature map (batch, feature channels, cell rows, cell columns) out."""
        net = self.backbone
        x = net.maxpool(net.act(net.bn1(net.conv1(images))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Last feature map to logits (batch, classes)."""
        return self.head(self.dropout(features.mean(dim=(2, 3))))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(images))

    def train(self, mode: bool = True) -> Classifier:
        """Training mode; batch norm of frozen stages stays with the statistics that its weights came with."""
        super().train(mode)
        for stage in self.frozen:
            self.backbone.get_submodule(stage).eval()
        return self


def _frozen_stages(trainable: str) -> tuple[str, ...]:
    first = {"all": "conv1", "head": "fc"}.get(trainable, trainable)
    return STAGES[: STAGES.index(first)]


def build_classifier(network: Network, classes: int) -> tuple[Classifier, WeightsOrigin]:
    """The network with its first weights, and where they came from. WeightsError if they cannot be had or do not fit."""
    classifier = Classifier(network, classes)
    if network.weights == "none":
        return classifier, WeightsOrigin("random", "")
    if network.weights == "imagenet":
        path = fetch(IMAGENET[network.architecture])
        origin = IMAGENET[network.architecture].url.rsplit("/", 1)[-1]
    else:
        path = Path(network.weights)
        path = path / WEIGHTS_FILE if path.is_dir() else path
        origin = path.name if path.name != WEIGHTS_FILE else f"{path.parent.name}/{path.name}"
    load_backbone(classifier, read_weights(path), str(path))
    return classifier, WeightsOrigin(origin, file_digest(path))


def read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """A state dict from safetensors or from a torch file, without running code from it."""
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weights file; give none, imagenet, a .safetensors or .pth file, or a run's folder"
        )
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
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: expected a state dict (names and tensors); found {type(state).__name__}")
    return {str(name).removeprefix("module.").removeprefix("backbone."): value for name, value in state.items()}


def load_backbone(classifier: Classifier, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Loads `state` into the backbone; a head of other classes stays as it is, everything else must fit."""
    state = dict(state)
    own = classifier.backbone.state_dict()
    for name in ("fc.weight", "fc.bias"):
        if name in state and state[name].shape != own[name].shape:
            del state[name]
    conv = state.get("conv1.weight")
    if conv is not None and conv.shape[1] == 3 and own["conv1.weight"].shape[1] == 1:
        state = fold_to_gray(state)
    missing = sorted(
        name for name in own if name not in state and not name.startswith("fc.") and "num_batches" not in name
    )
    unknown = sorted(name for name in state if name not in own)
    misshaped = sorted(name for name in state if name in own and state[name].shape != own[name].shape)
    if missing or unknown or misshaped:
        facts = [
            f"{len(names)} {kind} (first: {names[0]})"
            for kind, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshaped))
            if names
        ]
        raise WeightsError(f"{where}: does not fit this network: {'; '.join(facts)}; is it for another architecture?")
    classifier.backbone.load_state_dict(state, strict=False)


def fold_to_gray(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Three-channel ImageNet weights for one gray channel normalised by `GRAY_MEAN` and `GRAY_STD`.

    For a gray value x the three-channel network computes sum_c W_c (x - mean_c) / std_c. With z = (x - m) / s that is
    (sum_c W_c s / std_c) z + sum W_c (m - mean_c) / std_c: the factor goes into the weights, the constant into the running mean
    of the batch norm that follows. Equal to three equal channels wherever the kernel does not reach over the image's edge.
    """
    folded = dict(state)
    weight = state["conv1.weight"]
    mean, std = (torch.tensor(values, dtype=weight.dtype).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    folded["conv1.weight"] = (weight * (GRAY_STD[0] / std)).sum(dim=1, keepdim=True)
    folded["bn1.running_mean"] = state["bn1.running_mean"] - (weight * (GRAY_MEAN[0] - mean) / std).sum(dim=(1, 2, 3))
    return folded


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
            found = file_digest(Path(aside.name))
            if not found.startswith(download.sha256_prefix):
                raise WeightsError(
                    f"{download.url}: its sha256 should begin with {download.sha256_prefix}, found {found[:8]}; "
                    f"a proxy may have changed it: {advice}"
                )
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise WeightsError(
            f"{download.url}: cannot be downloaded ({getattr(error, 'reason', error)}); {advice}"
        ) from error
    return target
