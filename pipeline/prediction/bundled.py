"""What `configs/inference.json` of a bundle names beside MONAI's own: a bundle's images, how they are read, and its network.

`radloop bundle` writes that configuration (`pipeline.bundle`); `python -m monai.bundle run` builds it. Images are read in this process,
without the budgets of `radloop infer`: a bundle is for files that one trusts. Shapes are (channels, rows, columns), batches in front.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import nn

from pipeline.cohort.cases import group_images
from pipeline.cohort.rules import collisions_inferred_without
from pipeline.indexing.sources import open_source
from pipeline.networks.model import Classifier
from pipeline.prediction.predict import MIRRORS
from pipeline.prediction.scope import marked_formats
from pipeline.prepared.dataset import ImageFile, image_files, read_image
from pipeline.run import ModelFacts, read_model, run_folder
from transforms.chains import KEY
from transforms.intensity import to_metatensor
from transforms.levels import from_levels, to_levels

SCRIPT_FILE = "model.ts"
META_KEY = f"{KEY}_meta_dict"


class WholeModel(nn.Module):
    """Prepared images (b, channels, size, size) in 0-1 to probabilities (b, classes), calibrated, the mean over the views."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: Classifier, facts: ModelFacts) -> None:
        super().__init__()
        self.network = network
        self.mirrors = MIRRORS[facts.views]
        self.temperature, self.several = facts.temperature, facts.several
        self.register_buffer("mean", torch.tensor(facts.input_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(facts.input_std)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = (images.expand(-1, len(self.mean), -1, -1) - self.mean) / self.std
        views = [self._view(seen.flip(axes) if axes else seen) for axes in self.mirrors]
        return torch.stack(views).mean(dim=0)

    def _view(self, seen: torch.Tensor) -> torch.Tensor:
        logits = self.network.classify(self.network.features(seen)) / self.temperature
        return logits.sigmoid() if self.several else logits.softmax(dim=1)


def network_of(bundle_root: str, device: str = "cpu") -> nn.Module:
    """The bundle's network as TorchScript: prepared images in 0-1 to probabilities."""
    module: nn.Module = torch.jit.load(run_folder(Path(bundle_root)) / SCRIPT_FILE, map_location=device)
    return module.eval()


def images_of(bundle_root: str, dataset_dir: str) -> list[dict[Hashable, Any]]:
    """The images below `dataset_dir` that `radloop infer` predicts, each frame of a file, in its order."""
    facts = read_model(run_folder(Path(bundle_root)))
    index = open_source(dataset_dir).index(workers=0)
    mark = marked_formats(facts.unit)
    images = group_images(
        index, facts.unit, facts.rules, collisions=collisions_inferred_without(facts.unit), mark=mark
    ).images
    return [{KEY: file} for file in image_files(images, index.roots)]


class ReadImaged(MapTransform):
    """An `ImageFile` of `images_of` to what `transforms.chains.prepare_chain` takes; its path, with the frame's number (from 1) where it is
    not the first, goes where MONAI's savers look for it. Rejected where it cannot be decoded."""

    def __init__(self, keys: KeysCollection = KEY, color: bool = False) -> None:
        super().__init__(keys)
        self.color = color

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            file: ImageFile = result[key]
            result[key] = to_metatensor(read_image(file, color=self.color))
            name = f"{file.path}#{file.frame + 1}" if file.frame else file.path
            result[f"{key}_meta_dict"] = {"filename_or_obj": name}
        return result


class Leveled(MapTransform):
    """A prepared image rounded as radloop's cache does, in as many channels as the network is given; a plain tensor in 0-1."""

    def __init__(self, keys: KeysCollection = KEY, channels: int = 1) -> None:
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            levels = to_levels(np.asarray(result[key].as_tensor().numpy()))
            image = torch.from_numpy(from_levels(levels))
            result[key] = image.expand(self.channels, -1, -1).contiguous()
        return result
