"""The keys `preprocessing` and `augmentation` of a configuration: what becomes of an image, always and at random."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.settings import Settings


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
    crop: Literal["none", "body", "lungs"] = "none"
    """Before resizing, the part of the image that counts. body: the patient without table, air, borders and margins; lungs: the
    box of both lungs, of the body where no lungs are found; none: all of it. What is cut off counts in no statistic of `scaling`."""
    size: Annotated[int, Field(ge=32, le=2048)] = 224
    """Side of the square network input, in pixels."""
    resize: Literal["fit", "stretch", "crop"] = "fit"
    """fit: keep the anatomy's proportions and pad with black; stretch: both sides to size; crop: shorter side to size, then the centre."""
    scaling: Literal["none", "min_max", "percentile", "z_score", "tissue"] = "none"
    """After the window, by each image's own values, padding left out: min_max: minimum to 0 and maximum to 1; percentile: the same
    by two percentiles; z_score: mean 0 and standard deviation 1 for the network, within 4 standard deviations; tissue: air-filled lung
    to 0.25 and soft tissue to 0.75, each found in the image, so that the window it was saved with hardly counts."""
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
    """Random transforms of training images; all off at their defaults of zero. What moves pixels (flips, zoom, stretch, shift, rotation) is
    one resampling, which draws out the edges."""

    flip_horizontal: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of a left-right mirror."""
    flip_vertical: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of an upside-down mirror."""
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Magnification is drawn from 1 - zoom to 1 + zoom."""
    stretch: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Height is multiplied by a factor drawn from 1 - stretch to 1 + stretch, width divided by it: images of other proportions."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Shift along each axis is drawn from -shift to +shift, as a fraction of the side."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Degrees; the angle is drawn from -rotate to +rotate."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Contrast about the image's mean is multiplied by a factor drawn from 1 - contrast to 1 + contrast."""
    window: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Black and white points, of values in 0-1, are each moved by a number drawn from -window to +window: other windows."""
    gamma: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Values are raised to a power whose natural logarithm is drawn from -gamma to +gamma: other curves of display."""
    blur: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Gaussian blur whose standard deviation, in pixels of the network's input, is drawn from 0 to blur: softer kernels."""
    sharpen: Annotated[float, Field(ge=0, le=5)] = 0.0
    """The difference to a blurred image is added, times a factor drawn from 0 to sharpen: harder kernels."""
    coarse: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The image is sampled at a fraction of its side drawn from 1 - coarse to 1 and brought back: images of lower resolution."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Gaussian noise whose standard deviation, of values in 0-1, is drawn from 0 to noise."""
    cutout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """A square whose side is drawn from 0 to this fraction of the image's side becomes black, at a random place."""
    plain: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that an image only moves, which softens it a little, and keeps its values. With 0 and blur, sharpen, coarse or noise
    hardly an image of a training is as sharp as those that are predicted."""
