"""The keys `network` and `training` of a configuration: what is trained, from which weights, and how."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.settings import Settings

MONAI_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
TIMM = "timm:"
"""Before a name of timm's."""


class Network(Settings):
    """The network and where its weights start."""

    architecture: str = "resnet50"
    """MONAI's resnet18, resnet34, resnet50 or resnet101 in torchvision's shape (stride in conv1, torchvision's state dict key for key), or
    timm: and a name of timm's, such as timm:vgg16, timm:inception_v3, timm:densenet121, timm:efficientnet_b0, timm:convnext_tiny."""
    channels: Literal[1, 3] = 1
    """Input channels; with 1, three-channel weights are folded into the first convolution together with ImageNet's statistics."""
    pooling: Literal["mean", "attention", "volume"] = "mean"
    """How the images of a case become one prediction. mean: each image has the case's label, and probabilities are averaged; attention: one
    label a case, the network learns which images matter (Ilse 2018, MONAI's MILModel); volume: a 3D ResNet over all of them in order."""
    bag_size: Annotated[int, Field(ge=2)] = 24
    """pooling attention: images a case that a training step samples; volume: slices that each case is resampled to, 64 at
    least for a heatmap that tells slices apart (the network's stride is 32). Inference takes all."""
    head: Literal["linear", "conv"] = "linear"
    """linear: one linear layer after global average pooling; conv: a convolution, batch norm and ReLU before that (Elpeltagy and Sallam
    2021)."""
    head_channels: Annotated[int, Field(ge=8)] = 512
    """head conv: channels of its convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the linear layer."""
    weights: str = "none"
    """none (random), imagenet (downloaded once, checksum verified), the path of a weights file, or of an earlier run."""
    weights_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{8,64})?$")] = ""
    """The first characters (8 at least) of the sha256 that the weights file must have; empty: not checked, but recorded."""
    trainable: Literal["all", "layer2", "layer3", "layer4", "head"] | Annotated[int, Field(ge=1)] = "all"
    """Where training begins: head alone (frozen features), a ResNet's stage and all after it, the last so many stages of any network (1 is
    the head), or everything."""
    batch_norm: Literal["train", "keep"] = "train"
    """Batch norm of what is trained. train: by each batch, with new running statistics; keep: with those that the weights came with. Frozen
    stages always keep theirs."""

    @field_validator("architecture")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in MONAI_RESNETS or (value.startswith(TIMM) and value != TIMM):
            return value  # timm's names are looked up when the network is built: to import timm takes seconds
        nearest = difflib.get_close_matches(value, MONAI_RESNETS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; did you mean {TIMM}{value}?"
        raise ValueError(f"expected one of {', '.join(MONAI_RESNETS)}, or {TIMM}NAME, found {value}{hint}")

    @model_validator(mode="after")
    def _fits_together(self) -> Network:
        resnet = self.architecture in MONAI_RESNETS
        if self.pooling == "volume" and not resnet:
            raise ValueError(f"pooling volume needs one of {', '.join(MONAI_RESNETS)}")
        if self.pooling == "volume" and self.weights == "imagenet":
            raise ValueError("pooling volume: ImageNet has no volumes; give a file (MedicalNet's) or none")
        if self.pooling == "volume" and self.head == "conv":
            raise ValueError("pooling volume has the linear head only")
        if not resnet and isinstance(self.trainable, str) and self.trainable.startswith("layer"):
            raise ValueError(
                f"trainable {self.trainable} names a stage of a ResNet; give all, head, or a number of stages"
            )
        return self


class Plateau(Settings):
    """ReduceLROnPlateau on the validation loss."""

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The learning rate is multiplied by this."""
    patience: Annotated[int, Field(ge=0)] = 3
    """Epochs without improvement that are let pass: the next one lowers the rate (Keras lowers it one epoch earlier)."""
    minimum: Annotated[float, Field(ge=0)] = 1e-6
    """The learning rate never falls below this."""


class Cosine(Settings):
    """A learning rate that rises linearly, then falls along half a cosine to the last epoch, step by step (Loshchilov 2017)."""

    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    """So long it rises."""
    minimum: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """What it falls to, as a fraction of the learning rate."""


class Training(Settings):
    """How the network is trained."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """At most so many passes over the training images."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """No epoch begins after so many minutes (counted over resumed sessions); null: no limit."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Images (with pooling attention or volume: cases) a step, over all processes and accumulated parts."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Each step is done in so many parts, whose gradients are added up: less memory, the same step (but for batch norm)."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """torch.optim's; sgd with Nesterov momentum."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """At the start; with cosine, at its top."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The head learns at the learning rate, each stage before it at this fraction of the next one's; 1: all alike."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty (adam, sgd) or decoupled decay (adamw)."""
    plateau: Plateau | None = Plateau()
    """Learning-rate schedule; null: none."""
    cosine: Cosine | None = None
    """Learning-rate schedule; null: none. It needs plateau: null."""
    clip_gradient: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of a step's gradient; null: any."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, step by step, which is validated and kept in place of them; null: off."""
    plain_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """In this share of the epochs, the last ones, images are at most mirrored: weights and the statistics of batch norm settle on images as
    sharp as those that are predicted (one that is moved is softer, as it is interpolated). Not reached where training ends early."""
    unfreeze_every: Annotated[int, Field(ge=1)] | None = None
    """Gradual unfreezing (Howard and Ruder 2018): training begins with the head, and after every so many epochs one more stage joins, down
    to `network.trainable`; null: all of it from the start."""
    feature_copies: Annotated[int, Field(ge=0, le=100)] = 0
    """network.trainable head: features are computed once and kept; so many randomly varied copies of each image besides, of which each
    epoch takes one. 0: the images as they are."""
    early_stopping: Annotated[int, Field(ge=1)] | None = 10
    """Stop after so many epochs without a better value of `select`; null: never."""
    select: Literal["val_loss", "val_accuracy", "val_auroc", "last"] = "val_loss"
    """What the best epoch, whose weights are kept, is best at, on the validation split; last: the last epoch's weights are kept."""
    class_weights: Literal["none", "balanced"] = "balanced"
    """balanced: the loss counts each class alike, however many images it has."""
    sampling: Literal["natural", "balanced"] = "natural"
    """balanced: each epoch draws as many images of each class, with replacement; needs class_weights: none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """This share of each label is spread over all classes."""
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Focal loss (Lin 2017): what is right already counts less, by this power; 0: cross-entropy."""
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Images and labels of a batch are mixed in pairs by shares drawn from Beta(mixup, mixup) (Zhang 2018); 0: off."""
    compile: bool = False
    """torch.compile, on a GPU; on the CPU it gains nothing and is passed over."""

    @property
    def plain_epochs(self) -> int:
        """How many epochs `plain_share` means."""
        return round(self.plain_share * self.epochs)

    @model_validator(mode="after")
    def _fits_together(self) -> Training:
        if self.plateau and self.cosine:
            raise ValueError("plateau and cosine: give one of them, and null for the other")
        if self.sampling == "balanced" and self.class_weights == "balanced":
            raise ValueError(
                "sampling balanced and class_weights balanced: both would count rare classes twice; give one"
            )
        if self.batch_size < self.accumulate * 2:
            raise ValueError("accumulate: each part of a step needs two images at least")
        if self.select == "last" and self.early_stopping:
            raise ValueError("select last keeps the last epoch: it needs early_stopping: null")
        return self
