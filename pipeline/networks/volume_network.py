"""A 3-D network over all slices of a case in order: MONAI's 3-D ResNet in MedicalNet's shape (Chen 2019).

Volumes are (batch, channels, depth, rows, columns), depth being the slices. The head is linear after global average pooling, as it is
for images, so that the heatmap is exact and falls back on every slice.
"""

from __future__ import annotations

import torch
from monai.networks.nets import resnet18, resnet34, resnet50, resnet101
from torch import nn
from torch.nn import functional

from pipeline.networks.backbones import RESNET_GEOMETRY, RESNET_STAGES, resnet_features
from pipeline.networks.input_layer import RESNET_INPUT
from pipeline.networks.stages import StagedNetwork, parameters_of_stages
from pipeline.training_settings import Network

_RESNETS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}
_PARAMETER_FREE = ("resnet18", "resnet34")
"""MedicalNet's networks of these depths have shortcuts without parameters (type A), the deeper ones convolutions (type B)."""


class VolumeClassifier(StagedNetwork):
    """A 3-D ResNet whose head is dropout and one linear layer after global average pooling."""

    attention = None

    def __init__(self, network: Network, classes: int) -> None:
        super().__init__()
        free = network.architecture in _PARAMETER_FREE
        backbone = _RESNETS[network.architecture](
            spatial_dims=3,
            n_input_channels=network.channels,
            feed_forward=False,
            conv1_t_stride=2,
            bias_downsample=False,
            shortcut_type="A" if free else "B",
        )
        if free:
            _let_gradients_through(backbone)
        width: int = backbone.in_planes
        self.backbone = backbone
        self.inputs = RESNET_INPUT
        self.dropout = nn.Dropout(network.dropout)
        self.head = nn.Linear(width, classes)
        self.geometry = RESNET_GEOMETRY
        """Along rows and columns."""
        self.depth_geometry = RESNET_GEOMETRY
        """Along the slices: cell i is centred on slice cell_offset + cell_stride * i of those that the network is given."""
        self.set_up_stages(network, parameters_of_stages(self.backbone, RESNET_STAGES))

    def features(self, volumes: torch.Tensor) -> torch.Tensor:
        """(b, channels, depth, rows, columns) to the last feature map (b, d, cell slices, cell rows, cell columns)."""
        return resnet_features(self.backbone, volumes)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The last feature map to logits (b, classes)."""
        return self.head(self.dropout(features.mean(dim=(2, 3, 4))))

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(volumes))


class _Shortcut(nn.Module):
    """Every `stride`-th voxel, with channels of zeros added: MONAI's own gives the same, but cuts the gradient off."""

    def __init__(self, stride: int, channels: int) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]))


def _let_gradients_through(backbone: nn.Module) -> None:
    for stage in ("layer2", "layer3", "layer4"):
        block = backbone.get_submodule(f"{stage}.0")
        norm = block.get_submodule("bn2")
        block.downsample = _Shortcut(2, norm.num_features)  # type: ignore[arg-type]
