"""The configuration of a training: one complete YAML an experiment.

`load_config` takes a shipped name (`ct_slices`) or a path, and overrides of the form `training.epochs=5`. The keys of `preprocessing` and
`augmentation` are in `image_settings`, those of `network` and `training` in `training_settings`; `settings` has what all of them share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, field_validator, model_validator

from pipeline.errors import ConfigError
from pipeline.image_settings import Augmentation as Augmentation
from pipeline.image_settings import CustomNormalization as CustomNormalization
from pipeline.image_settings import CustomWindow as CustomWindow
from pipeline.image_settings import Enhancement as Enhancement
from pipeline.image_settings import Preprocessing as Preprocessing
from pipeline.image_settings import Window as Window
from pipeline.settings import Settings as Settings
from pipeline.settings import digest as digest
from pipeline.settings import dump_yaml as dump_yaml
from pipeline.settings import find_shipped as find_shipped
from pipeline.settings import is_shipped as is_shipped
from pipeline.settings import parse_settings as parse_settings
from pipeline.settings import read_yaml as read_yaml
from pipeline.settings import shipped_names as shipped_names
from pipeline.training_settings import Cosine as Cosine
from pipeline.training_settings import Network as Network
from pipeline.training_settings import Plateau as Plateau
from pipeline.training_settings import Training as Training

Heatmap = Literal["weights", "gradcam", "gradcam++", "hirescam", "layercam", "eigencam", "scorecam"]
HEATMAPS: tuple[Heatmap, ...] = get_args(Heatmap)
"""Ways to make a heatmap."""


class Wanted(Settings):
    """An operating point that the validation split must reach: one of the two."""

    sensitivity: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The highest threshold with at least this sensitivity."""
    specificity: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The lowest threshold with at least this specificity."""

    @model_validator(mode="after")
    def _one(self) -> Wanted:
        if (self.sensitivity is None) == (self.specificity is None):
            raise ValueError("expected one of sensitivity and specificity")
        return self


class Evaluation(Settings):
    """How numbers are made."""

    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["youden"] | Wanted = 0.5
    """From which probability on a finding is called: a number; youden: the one with the largest sensitivity + specificity; or
    {sensitivity: 0.95}, {specificity: 0.9}. What is not a number is chosen on the validation split, one for each finding."""
    calibration: Literal["none", "temperature"] = "temperature"
    """temperature: logits are divided by one number, chosen on the validation split (Guo 2017)."""
    views: Literal["none", "flip_horizontal", "flips"] = "none"
    """Test-time augmentation: probabilities and heatmaps are means over the image and its mirror image, or its four mirror images."""
    heatmap: Heatmap = "weights"
    """How the model's heatmaps are made. weights: the classifier's own weights over the last feature map, in the one forward pass; the
    others by the grad-cam package (docs/heatmaps.md says what each means and costs)."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of patients for the 95 % intervals."""
    subgroups: list[str] = ["patient_sex", "patient_age", "manufacturer", "institution_name", "view_position"]
    """Columns of the index by which figures are also given, ages in bands; those that the data do not have are passed over."""

    @field_validator("threshold", mode="before")
    @classmethod
    def _one_message(cls, value: Any) -> Any:
        number = isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < 1
        if number or value == "youden" or isinstance(value, Wanted) or (isinstance(value, dict) and len(value) == 1):
            return value
        raise ValueError(
            f"expected a number between 0 and 1, youden, {{sensitivity: 0.95}} or {{specificity: 0.9}}, found {value!r}"
        )


class Output(Settings):
    """What inference writes."""

    profile: str = "standard"
    """The site's profile, which says what objects are written and how: a shipped one's name, or a path (`pipeline.profile_settings`)."""
    key_images: Annotated[int, Field(ge=1)] = 3
    """Key images of a case of many: those with the highest probability of the class shown."""


class Config(Settings):
    """One experiment, complete."""

    name: str
    """What the model is called, on its objects too."""
    manifest: str
    """A shipped manifest's name, or a path (relative to this file's folder, or to where the command runs)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of weights, order of images and augmentation."""
    preprocessing: Preprocessing = Preprocessing()
    """The deterministic chain."""
    augmentation: Augmentation = Augmentation()
    """The random chain."""
    network: Network = Network()
    """The network."""
    training: Training = Training()
    """The training."""
    evaluation: Evaluation = Evaluation()
    """The numbers."""
    output: Output = Output()
    """The objects."""
    notice: str = ""
    """Said on every output beside "research use only" (the demo: that these are phantoms)."""

    @model_validator(mode="after")
    def _normalization_fits_channels(self) -> Config:
        normalization = self.preprocessing.normalization
        if isinstance(normalization, CustomNormalization):
            for values in (normalization.mean, normalization.std):
                if len(values) != self.network.channels:
                    raise ValueError(
                        f"normalization needs {self.network.channels} value(s) of mean and std, found {len(values)}"
                    )
        return self

    @model_validator(mode="after")
    def _channels_fit(self) -> Config:
        if self.preprocessing.channels > self.network.channels:
            raise ValueError("three windows, or color: rgb, need network.channels 3")
        return self

    @model_validator(mode="after")
    def _weights_fit_their_use(self) -> Config:
        if self.network.weights == "imagenet" and self.preprocessing.normalization != "imagenet":
            raise ValueError(
                "network.weights imagenet needs preprocessing.normalization imagenet: the statistics they were trained with"
            )
        if self.network.weights == "none" and (self.network.trainable != "all" or self.training.unfreeze_every):
            raise ValueError("network.weights none needs network.trainable all: frozen random features say nothing")
        if self.training.unfreeze_every and self.network.trainable in ("head", 1):
            raise ValueError("training.unfreeze_every needs stages to unfreeze: network.trainable is the head alone")
        if self.training.plain_share and self.features_are_kept:
            raise ValueError("training.plain_share needs features that are not computed once and for all; set it to 0")
        if self.training.feature_copies and not self.features_are_kept:
            raise ValueError("training.feature_copies needs network.trainable head and network.pooling mean")
        return self

    @model_validator(mode="after")
    def _heatmap_can_be_made(self) -> Config:
        if self.network.pooling == "volume" and self.evaluation.heatmap == "scorecam":
            raise ValueError(
                "evaluation.heatmap scorecam: the grad-cam package makes it of images only; with network.pooling volume give one of "
                + ", ".join(name for name in HEATMAPS if name != "scorecam")
            )
        return self

    @property
    def features_are_kept(self) -> bool:
        """Whether nothing before the head is trained, so that its features are computed once."""
        network = self.network
        return network.trainable in ("head", 1) and network.pooling == "mean" and network.weights != "none"


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a shipped name or a file, with `key=value` overrides applied before the check."""
    path = find_shipped("configs", name_or_path)
    content = read_yaml(path)
    for override in overrides:
        _apply_override(content, override)
    config = parse_settings(Config, content, f"{path} with --set {' '.join(overrides)}" if overrides else str(path))
    beside = path.parent / config.manifest
    if beside.suffix in (".yaml", ".yml") and beside.is_file():
        return config.model_copy(update={"manifest": str(beside.resolve())})
    return config


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: expected key=value, e.g. training.epochs=5")
    *parents, last = key.strip().split(".")
    here = content
    for parent in parents:
        here = here.setdefault(parent, {})
        if not isinstance(here, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a group of keys")
    try:
        here[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from error
