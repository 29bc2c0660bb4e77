"""Networks: a backbone, an optional convolution block, global average pooling, dropout and one linear layer.

Images are (batch, channels, rows, columns); bags of pooling attention (batch, images, channels, rows, columns). Whatever the backbone,
the head is linear after pooling, so that the logits are the mean of what each cell of the last feature map says: heatmaps are exact.
`Geometry` says where each cell looks. First weights are `pipeline.networks.weights`' affair, volumes `pipeline.networks.volume_network`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pipeline.networks.backbones import RESNET_GEOMETRY as RESNET_GEOMETRY
from pipeline.networks.backbones import RESNETS, build_backbone
from pipeline.networks.cell_geometry import Geometry as Geometry
from pipeline.networks.input_layer import InputStatistics as InputStatistics
from pipeline.networks.stages import StagedNetwork, parameters_of_stages
from pipeline.networks.volume_network import VolumeClassifier
from pipeline.networks.weights import WEIGHTS_FILE as WEIGHTS_FILE
from pipeline.networks.weights import WeightsOrigin as WeightsOrigin
from pipeline.networks.weights import load_first_weights
from pipeline.training_settings import Network

CHUNK = 16
"""Images of a bag whose features are computed at once where nothing learns: a bag of any length fits."""


class Classifier(StagedNetwork):
    """A 2-D network: `backbone`, `block` (head conv; else the identity), `attention` (pooling attention; else None), `head`."""

    def __init__(self, network: Network, classes: int, size: int | None = None) -> None:
        """`size`: side of the images, which some networks (ViT, Swin) must know. ConfigError where it cannot be built."""
        super().__init__()
        backbone = build_backbone(network.architecture, network.channels, size)
        self._features_of = backbone.features
        self.geometry = backbone.geometry
        self.inputs = backbone.inputs
        self.backbone = backbone.module
        width = backbone.channels
        self.block = conv_block(width, network.head_channels) if network.head == "conv" else nn.Identity()
        width = network.head_channels if network.head == "conv" else width
        self.attention = bag_attention(width) if network.pooling == "attention" else None
        self.dropout = nn.Dropout(network.dropout)
        self.head = nn.Linear(width, classes)
        self.fast_trunk: nn.Module | None = None
        """The same as the backbone, of its own layers in a faster form, where one was made (`pipeline.networks.fusing`)."""
        self.set_up_stages(network, parameters_of_stages(self.backbone, backbone.stages))

    def trunk(self, images: torch.Tensor) -> torch.Tensor:
        """(b, channels, rows, columns) to the backbone's last feature map (b, d0, cell rows, cell columns)."""
        if self.fast_trunk is not None:
            features: torch.Tensor = self.fast_trunk(images)
            return features
        return self._features_of(self.backbone, images)

    def after_trunk(self, trunk: torch.Tensor) -> torch.Tensor:
        """The backbone's last feature map to that of the head (b, d, cell rows, cell columns): the conv block, or nothing."""
        return self.block(trunk)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(b, channels, rows, columns) to the map that is pooled (b, d, cell rows, cell columns)."""
        return self.after_trunk(self.trunk(images))

    def pooled(self, features: torch.Tensor) -> torch.Tensor:
        """(b, d, cell rows, cell columns) to (b, d)."""
        return features.mean(dim=(2, 3))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The map that is pooled to logits (b, classes), image by image."""
        return self.head(self.dropout(self.pooled(features)))

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """The map that is pooled to attention (b,), before the softmax over a case's images; 0 where pooling is not attention."""
        pooled = self.pooled(features)
        return pooled.new_zeros(len(pooled)) if self.attention is None else self.attention(pooled).squeeze(1)

    def classify_bags(self, vectors: torch.Tensor) -> torch.Tensor:
        """Pooled vectors (b, n, d) of b cases of n images to logits (b, classes)."""
        if self.attention is None:
            raise ValueError("bags of images need network.pooling attention")
        weights = torch.softmax(self.attention(vectors), dim=1)
        return self.head(self.dropout((weights * vectors).sum(dim=1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, channels, rows, columns), or bags (b, n, channels, rows, columns), to logits (b, classes)."""
        if images.ndim == 4:
            return self.classify(self.features(images))
        flat = images.flatten(0, 1)
        learns = self.training and torch.is_grad_enabled()
        vectors = self.pooled(self.features(flat)) if learns else self._vectors(flat)
        return self.classify_bags(vectors.unflatten(0, images.shape[:2]))

    def _vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled vectors (n, d) by chunks, without gradient; `images` may lie on another device than the network."""
        device = self.head.weight.device
        with torch.no_grad():
            parts = [self.pooled(self.features(chunk.to(device))) for chunk in images.split(CHUNK)]
        return torch.cat(parts)


def conv_block(channels: int, out_channels: int) -> nn.Sequential:
    """3 × 3 convolution, batch norm and ReLU (Elpeltagy and Sallam 2021); symmetric, so cells stay where they are."""
    convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def bag_attention(channels: int) -> nn.Module:
    """The attention of MONAI's MILModel (Ilse 2018): (m, channels) to (m, 1), before the softmax."""
    from monai.networks.nets import MILModel

    return MILModel(1, "att", pretrained=False, backbone=nn.Identity(), backbone_num_features=channels).attention


def new_network(network: Network, classes: int, size: int | None = None) -> Classifier | VolumeClassifier:
    """The network of a configuration with random weights, for images of `size` pixels: what a run's weights are loaded into."""
    if network.pooling == "volume":
        return VolumeClassifier(network, classes)
    return Classifier(network, classes, size)


def blank_network(network: Network, classes: int, size: int | None = None) -> Classifier | VolumeClassifier:
    """`new_network` for weights that are loaded whole: no random ones are drawn, which takes longer than to load. Only timm's networks have
    them, as these are tried when they are built."""
    if network.architecture not in RESNETS:
        return new_network(network, classes, size)
    with _Undrawn():
        return new_network(network, classes, size)


class _Undrawn(TorchFunctionMode):
    """Within the block tensors that are to be filled at random stay as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_DRAWS = (
    *(torch.Tensor.normal_, torch.Tensor.uniform_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
)


def build_classifier(
    network: Network, classes: int, size: int | None = None, statistics: InputStatistics | None = None
) -> tuple[Classifier | VolumeClassifier, WeightsOrigin]:
    """The network with its first weights, and where they came from. WeightsError if they cannot be had or do not fit.

    `statistics`: by what its images are normalised (None: ImageNet's), so that the first convolution can be fitted to them.
    """
    classifier = new_network(network, classes, size)
    return classifier, load_first_weights(classifier, network, statistics)
