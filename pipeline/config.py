"""The configuration of a training: typed, frozen, complete, checked before anything runs.

`load_config` takes a shipped name (`ct_slices`) or a path, and overrides of the form `training.epochs=5`. Unknown keys are
refused with the nearest known one. No code in YAML: `yaml.safe_load` only.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError


class Settings(BaseModel):
    """Base of everything read from YAML: frozen, unknown keys refused, a docstring under every field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CustomWindow(Settings):
    """A window in HU that is not one of the named ones."""

    center: float
    """Centre in HU."""
    width: Annotated[float, Field(gt=1)]
    """Width in HU."""


class CustomNormalization(Settings):
    """Statistics of one's own, one for each input channel."""

    mean: tuple[float, ...]
    """Means of the 0-1 values."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """Standard deviations of the 0-1 values."""


class Enhancement(Settings):
    """Deterministic filters on the resized image; each is off at null. They run in the order of their fields."""

    median: Annotated[int, Field(ge=3, le=15)] | None = None
    """Side of a median filter's window, in pixels of the network's input: an odd number. Against speckle."""
    gaussian: Annotated[float, Field(gt=0, le=20)] | None = None
    """Standard deviation of a Gaussian filter, in pixels of the network's input. Against noise."""
    remove_low: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """Spatial frequencies below this many cycles a pixel are removed (shading); the image's mean stays."""
    remove_high: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """Spatial frequencies above this many cycles a pixel are removed (noise, fine texture)."""
    clahe: Annotated[float, Field(gt=0, le=100)] | None = None
    """Clip limit of contrast-limited adaptive histogram equalization on 8 × 8 tiles; 2 is usual."""

    @field_validator("median")
    @classmethod
    def _odd(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            raise ValueError("expected an odd number, so that the window has a centre")
        return value

    @model_validator(mode="after")
    def _a_band_is_left(self) -> Enhancement:
        if self.remove_low and self.remove_high and self.remove_low >= self.remove_high:
            raise ValueError("remove_low must be below remove_high: no frequency would be left")
        return self


NamedWindow = Literal["lung", "mediastinum", "abdomen", "bone", "brain", "subdural", "wide"]
Window = NamedWindow | CustomWindow
_WINDOW_NAMES: tuple[str, ...] = get_args(NamedWindow)


class Preprocessing(Settings):
    """The deterministic part of the chain, the same in training, evaluation and inference."""

    window: Window | tuple[Window, Window, Window] = "lung"
    """How images in Hounsfield units become 0-1: a named window, one of your own, or three, one for each input channel."""
    voi: Annotated[int, Field(ge=0)] | str = 0
    """Images that go by their own VOI: which of the file's, from 0, or a word of its explanation (WindowCenterWidthExplanation). A file
    without such a one goes by its first."""
    color: Literal["gray", "rgb"] = "gray"
    """gray: colour images by their luma; rgb: in three channels, gray images three times the same."""
    size: Annotated[int, Field(ge=32, le=2048)] = 224
    """Side of the square network input, in pixels."""
    resize: Literal["fit", "stretch", "crop"] = "fit"
    """fit: keep the anatomy's proportions and pad with black; stretch: both sides to size; crop: shorter side to size, then the centre."""
    scaling: Literal["none", "min_max", "percentile", "z_score"] = "none"
    """After the window, by each image's own values, padding left out: min_max: minimum to 0 and maximum to 1; percentile: the same
    by two percentiles; z_score: mean 0 and standard deviation 1 for the network, within 4 standard deviations."""
    percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] = (1.0, 99.0)
    """Lower and upper one, for scaling: percentile."""
    enhancement: Enhancement = Enhancement()
    """Deterministic filters."""
    normalization: Literal["none", "imagenet"] | CustomNormalization = "imagenet"
    """imagenet: ImageNet's mean and standard deviation (their average over the colours where there is one channel)."""

    @field_validator("window", mode="before")
    @classmethod
    def _window_or_three(cls, value: Any) -> Any:
        """One message in place of one for each kind of window that it is not."""
        windows = value if isinstance(value, list | tuple) else [value]
        wrong = [one for one in windows if not isinstance(one, Mapping | CustomWindow) and one not in _WINDOW_NAMES]
        if wrong or (isinstance(value, list | tuple) and len(windows) != 3):
            names = ", ".join(_WINDOW_NAMES)
            nearest = difflib.get_close_matches(str(wrong[0]), _WINDOW_NAMES, n=1) if wrong else []
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(
                f"expected one of {names}, or {{center: ..., width: ...}} in HU, or three of them, found {value!r}{hint}"
            )
        return value

    @field_validator("voi", mode="before")
    @classmethod
    def _number_or_word(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and value < 0):
            raise ValueError(f"expected a number from 0, or a word of the VOI's explanation, found {value!r}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Preprocessing:
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"percentiles: expected the lower one first, found {list(self.percentiles)}")
        if self.scaling == "z_score" and self.normalization != "none":
            raise ValueError("scaling z_score is a normalization: it needs normalization: none")
        if self.color == "rgb" and isinstance(self.window, tuple):
            raise ValueError("color: rgb and three windows both fill the three channels: choose one")
        return self

    @property
    def channels(self) -> int:
        """Of a prepared image: 3 for three windows or colour, else 1."""
        return 3 if self.color == "rgb" or isinstance(self.window, tuple) else 1


class Augmentation(Settings):
    """Random transforms of training images; all off at their defaults of zero. Flips, zoom, rotation and shift are one resampling."""

    flip_horizontal: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of a left-right mirror."""
    flip_vertical: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of an upside-down mirror."""
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Magnification is drawn from 1 - zoom to 1 + zoom."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Shift along each axis is drawn from -shift to +shift, as a fraction of the side."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Degrees; the angle is drawn from -rotate to +rotate."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Contrast about the image's mean is multiplied by a factor drawn from 1 - contrast to 1 + contrast."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Gaussian noise whose standard deviation, of values in 0-1, is drawn from 0 to noise."""
    cutout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """A square whose side is drawn from 0 to this fraction of the image's side becomes black, at a random place."""


class Network(Settings):
    """The network and where its weights start."""

    architecture: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    """MONAI's ResNet in torchvision's shape (stride in conv1, torchvision's state dict key for key)."""
    channels: Literal[1, 3] = 1
    """Input channels; with 1, three-channel weights are folded into conv1 together with ImageNet's statistics."""
    weights: str = "none"
    """none (random), imagenet (downloaded once, checksum verified), the path of a weights file, or of an earlier run."""
    trainable: Literal["all", "layer2", "layer3", "layer4", "head"] = "all"
    """Where training begins: head alone (frozen features), a stage and all after it, or everything."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the linear head."""


class Plateau(Settings):
    """ReduceLROnPlateau on the validation loss."""

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The learning rate is multiplied by this."""
    patience: Annotated[int, Field(ge=0)] = 3
    """Epochs without improvement that are let pass: the next one lowers the rate (Keras lowers it one epoch earlier)."""
    minimum: Annotated[float, Field(ge=0)] = 1e-6
    """The learning rate never falls below this."""


class Training(Settings):
    """How the network is trained."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """At most so many passes over the training images."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """No epoch begins after so many minutes (counted over resumed sessions); null: no limit."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Images a step."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """torch.optim's."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """At the start."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty (adam) or decoupled decay (adamw)."""
    plateau: Plateau | None = Plateau()
    """Learning-rate schedule; null: constant."""
    early_stopping: Annotated[int, Field(ge=1)] | None = 10
    """Stop after so many epochs without a better value of `select`; null: never."""
    select: Literal["val_loss", "val_accuracy", "val_auroc"] = "val_loss"
    """What the best epoch, whose weights are kept, is best at. Always on the validation split."""
    class_weights: Literal["none", "balanced"] = "balanced"
    """balanced: the loss counts each class alike, however many images it has."""


class Evaluation(Settings):
    """How numbers are made."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Two classes: a case is called positive from this probability on."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of patients for the 95 % intervals."""


class Output(Settings):
    """What inference writes."""

    series_number: Annotated[int, Field(ge=1, le=2**31 - 1)] = 9000
    """SeriesNumber of radloop's series in the source's study."""
    key_images: Annotated[int, Field(ge=1)] = 3
    """Objects a case of many images: those images with the highest probability of the class shown."""


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
        if self.network.weights == "none" and self.network.trainable != "all":
            raise ValueError("network.weights none needs network.trainable all: frozen random features say nothing")
        return self


AnySettings = TypeVar("AnySettings", bound=Settings)


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


def find_shipped(kind: Literal["configs", "data_manifests"], name_or_path: str) -> Path:
    """The file that a name or a path means. Shipped files are inside the package, or beside it in a source tree."""
    given = Path(name_or_path)
    if given.suffix in (".yaml", ".yml"):
        if given.is_file():
            return given
        raise ConfigError(
            f"{given}: no such file; give a path, or one of the shipped {kind}: {', '.join(shipped_names(kind))}"
        )
    for folder in _shipped_folders(kind):
        if (folder / f"{name_or_path}.yaml").is_file():
            return folder / f"{name_or_path}.yaml"
    names = shipped_names(kind)
    nearest = difflib.get_close_matches(name_or_path, names, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise ConfigError(f"{name_or_path}: expected a .yaml file or one of the shipped {kind} ({', '.join(names)}).{hint}")


def shipped_names(kind: Literal["configs", "data_manifests"]) -> list[str]:
    """Names of the YAML files that came with radloop."""
    return sorted({path.stem for folder in _shipped_folders(kind) for path in folder.glob("*.yaml")})


def is_shipped(path: Path) -> bool:
    """Whether a file came with radloop, so that its folder is no place for anything of the user's."""
    return any(
        path.resolve().parent == folder.resolve()
        for kind in ("configs", "data_manifests")
        for folder in _shipped_folders(kind)
    )


def _shipped_folders(kind: str) -> Iterator[Path]:
    package = Path(__file__).parent
    yield from (folder for folder in (package / kind, package.parent / kind) if folder.is_dir())


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; ConfigError with the line where it does not parse."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def parse_settings(kind: type[AnySettings], content: Mapping[str, Any], where: str) -> AnySettings:
    """`content` checked against `kind`; every problem in one ConfigError, each with its key and, if unknown, the nearest known."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = [_explain(kind, problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(dict.fromkeys(problems))) from None


def dump_yaml(settings: Settings) -> str:
    """Complete YAML of the settings, every default written out, keys in their documented order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def digest(settings: Settings) -> str:
    """sha256 of the settings' values, whatever their order or formatting was."""
    return hashlib.sha256(json.dumps(settings.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _explain(kind: type[Settings], problem: Any) -> str:
    location = [part for part in problem["loc"] if not (isinstance(part, str) and ("[" in part or part[:1].isupper()))]
    key = ".".join(str(part) for part in location)
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        found = f" (found {problem['input']!r})" if key and problem["type"] not in ("missing", "value_error") else ""
        return f"{key}: {message}{found}" if key else message
    known = _known_keys(kind, location[:-1])
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"{key}: unknown key; " + (f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(known)}")


def _known_keys(kind: type[Settings], location: Sequence[str | int]) -> list[str]:
    """Keys that the settings at `location` inside `kind` may have."""
    here: list[type[Settings]] = [kind]
    for part in location:
        if isinstance(part, int):
            continue
        annotations = [model.model_fields[part].annotation for model in here if part in model.model_fields]
        here = [found for annotation in annotations for found in _settings_in(annotation)]
    return sorted({name for model in here for name in model.model_fields})


def _settings_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _settings_in(argument)]


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
