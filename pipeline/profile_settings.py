"""A site's profile: which objects are written, how their series are numbered and called, what is burned in and in which words.

Shipped ones are in `configs/profiles/`; a site copies one and names its path: `radloop infer RUN SOURCE --out OUT --profile my_site.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from pipeline import RESEARCH_ONLY
from pipeline.settings import Settings, digest, find_shipped, parse_settings, read_yaml

Kind = Literal["sc", "sc-multiframe", "overlay", "gsps", "seg", "pmap", "sr", "kos", "pdf"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every kind of object, in the order in which they are made: later ones refer to earlier ones."""
Fraction = Annotated[float, Field(gt=0, le=1)]


class Colors(Settings):
    """How evidence is coloured."""

    colormap: str = "plasma"
    """A name of matplotlib's. plasma's lightness rises evenly and nothing in it rests on red against green: more looks like more to
    colour-blind readers, too."""
    range: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.4, 0.95)
    """The part of the colormap that is used, from no evidence to the full scale. Of plasma magenta to yellow: its dark start would
    blacken lung, its palest end vanish on bone."""
    opacity: Fraction = 0.5
    """Of the strongest evidence: anatomy stays visible under it."""
    outline: tuple[int, int, int] = (255, 190, 60)
    """RGB of outlines, where a kind of object has colours for them."""

    @field_validator("colormap")
    @classmethod
    def _is_known(cls, value: str) -> str:
        from matplotlib import colormaps

        if value not in colormaps:
            raise ValueError("expected a colormap of matplotlib, e.g. plasma, inferno or viridis")
        return value


class BurnedIn(Settings):
    """What stands in the pixels of pictures, below the image."""

    legend: bool = True
    """The colours' meaning, and the size of a feature cell."""
    prediction: bool = True
    """The findings with their probabilities."""
    model: bool = True
    """The model's name and digest, and radloop's version."""


class Words(Settings):
    """Texts with words in braces that are filled in, each only with those that `FILLED_IN` has for it."""

    FILLED_IN: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @field_validator("*")
    @classmethod
    def _can_be_filled_in(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        known = cls.FILLED_IN.get(info.field_name or "", ())
        try:
            parts = list(Formatter().parse(value))
        except ValueError:
            parts = [("", "", "", None)]
        if any(word is not None and (word not in known or how or kind) for _, word, how, kind in parts):
            words = ", ".join(f"{{{word}}}" for word in known) or "none"
            raise ValueError(f"what can be filled in here: {words}")
        return value


class UnitWords(Words):
    """The unit of evidence, in the legend."""

    logit: str = "logit"
    """Several findings at once: each has its own."""
    logit_margin: str = "logit margin"
    """Two classes: of one over the other."""
    centred_logit: str = "centred logit"
    """More classes: over their mean."""
    reweighted: str = "{unit}, reweighted"
    """Grad-CAM++."""
    positive_part: str = "{unit}, its positive part"
    """LayerCAM."""
    own_maximum: str = "share of its own maximum"
    """EigenCAM."""
    activation: str = "weighted activation"
    """Score-CAM."""

    FILLED_IN: ClassVar[Mapping[str, tuple[str, ...]]] = {"reweighted": ("unit",), "positive_part": ("unit",)}


class MethodWords(Words):
    """How evidence is made, on pages. Methods that are not here have their names."""

    weights: str = "the classifier's evidence (Grad-CAM of a linear head)"
    eigencam: str = "EigenCAM (blind to the class, without sign)"
    attention: str = "{method} weighed by attention"

    FILLED_IN: ClassVar[Mapping[str, tuple[str, ...]]] = {"attention": ("method",)}


class ScopeWords(Words):
    """Why an image is not of the kind that the model was trained on."""

    format: str = "out of scope: {found}, trained on {formats} only"
    picture: str = "a PNG, JPEG or TIFF"
    nifti: str = "a NIfTI"
    dicom: str = "a DICOM image"
    attribute: str = "out of scope: {attribute} is {value}, trained on {trained}"
    modality: str = "modality"
    body_part_examined: str = "body_part_examined"
    view_position: str = "view_position"
    not_known: str = "not known"
    """In place of a value."""
    rule: str = "out of scope: the training left such images out ({rule})"

    FILLED_IN: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "format": ("found", "formats"),
        "attribute": ("attribute", "value", "trained"),
        "rule": ("rule",),
    }


class Texts(Words):
    """What people read, in the site's language. `{...}` are filled in. Attributes of objects take these in ASCII."""

    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    """Which one these texts are in, a tag of RFC 5646: documents state it."""
    research_only: str = RESEARCH_ONLY
    """Always said, on everything."""
    prediction: str = "{name}, probability {probability}"
    """One finding that is called."""
    no_finding: str = "no finding reaches its threshold"
    """Of several possible findings none is called."""
    finding_called: str = "{name}: probability {probability}, called"
    """Each finding, in the structured report."""
    finding_not_called: str = "{name}: probability {probability}, not called"
    evidence: str = "evidence for {name}"
    """The legend's title."""
    no_evidence: str = "no evidence above 0"
    """In place of the legend's bar."""
    or_more: str = "or more"
    """Behind the scale's end."""
    cell: str = "one feature cell is {size}; finer detail is interpolation"
    """The legend's last line."""
    cell_square: str = "{columns} pixels wide"
    """The cell's size; its mm follow where pixels have a size."""
    cell_oblong: str = "{rows} rows high and {columns} columns wide"
    images: str = "mean of {count} images"
    """How several images became one result."""
    images_attention: str = "{count} images, weighed by attention"
    images_volume: str = "{count} images as one volume"
    key_image: str = "this one is key image {place} of {count}"
    warning: str = "Warning: "
    """Before what must not be overlooked."""
    model: str = "model {name}, radloop {version}, {digest}"
    units: UnitWords = UnitWords()
    methods: MethodWords = MethodWords()
    scope: ScopeWords = ScopeWords()
    notices: dict[str, str] = {}
    """For a model's notice (`notice` of its configuration) what this site reads instead of it."""

    FILLED_IN: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction": ("name", "probability"),
        "finding_called": ("name", "probability"),
        "finding_not_called": ("name", "probability"),
        "evidence": ("name",),
        "cell": ("size",),
        "cell_square": ("columns",),
        "cell_oblong": ("rows", "columns"),
        "images": ("count",),
        "images_attention": ("count",),
        "images_volume": ("count",),
        "key_image": ("place", "count"),
        "model": ("name", "version", "digest"),
    }


class Profile(Settings):
    """What a site wants of the objects."""

    name: str = "standard"
    write: list[Kind] = ["sc"]
    """Kinds of objects, where the command line names none."""
    series_number: Annotated[int, Field(ge=1, le=2**31 - 100)] = 9000
    """Of the first kind's series; each other kind has its own, counted on from it in the order of `KINDS`."""
    series_numbers: dict[Kind, Annotated[int, Field(ge=1, le=2**31 - 1)]] = {}
    """For single kinds another one."""
    series_descriptions: dict[Kind, str] = {}
    """For single kinds another one than radloop's own; `{model}` is filled in."""
    region: Fraction = 0.5
    """From which share of the run's scale on evidence is outlined and segmented."""
    segmentation: Literal["binary", "fractional"] = "binary"
    """What `seg` holds: the region, or evidence as a share of the scale, 0 to 1."""
    compression: Literal["none", "rle", "jpeg-ls", "jpeg2000"] = "none"
    """Of pixels that are written, always lossless."""
    timezone: Annotated[str, Field(pattern=r"^([+-](0\d|1[0-4])[0-5]\d)?$")] = ""
    """TimezoneOffsetFromUTC where the source declares none, e.g. "+0100"; '' leaves it out."""
    colors: Colors = Colors()
    burned_in: BurnedIn = BurnedIn()
    texts: Texts = Texts()

    @field_validator("write")
    @classmethod
    def _once(cls, value: list[Kind]) -> list[Kind]:
        return [kind for kind in KINDS if kind in value]

    def series_number_of(self, kind: Kind) -> int:
        """SeriesNumber of the series that `kind` has in a study."""
        return self.series_numbers.get(kind, self.series_number + KINDS.index(kind))

    @property
    def content_digest(self) -> str:
        """Of what changes an object: not the profile's name, nor which kinds are written beside it."""
        return digest(self.model_copy(update={"name": "", "write": []}))


def load_profile(name_or_path: str) -> Profile:
    """The profile of a shipped name or a file; ConfigError where it is none."""
    path = find_shipped("configs/profiles", name_or_path)
    return parse_settings(Profile, read_yaml(path), str(path))
