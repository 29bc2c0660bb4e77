"""What a de-identification keeps beyond PS3.15's Basic Profile, and which pixels it blackens: `radloop deidentify --settings FILE`.

Nothing is kept that is not named here. `--keep` on the command line names options too; both are joined.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.errors import ConfigError
from pipeline.settings import Settings, parse_settings, read_yaml

KEEP = ("uids", "device", "institution", "patient", "dates", "shifted-dates", "safe-private", "overlays")
Keep = Literal["uids", "device", "institution", "patient", "dates", "shifted-dates", "safe-private", "overlays"]
Pixels = Annotated[int, Field(ge=0, le=2**32)]
Text = Annotated[str, Field(min_length=1, max_length=1024)]


class Mask(Settings):
    """Images of one size, and the rectangles in them that are blackened. What is not said of an image fits any."""

    rows: Annotated[int, Field(ge=1)]
    """Of the images: a rectangle means something at one size only."""
    columns: Annotated[int, Field(ge=1)]
    modality: Text | None = None
    manufacturer: Text | None = None
    model: Text | None = None
    """ManufacturerModelName."""
    regions: list[tuple[Pixels, Pixels, Pixels, Pixels]]
    """Left, top, width and height in pixels, from the upper left corner, in every frame. None at all says: looked at, there is no text."""

    @model_validator(mode="after")
    def _lie_inside(self) -> Mask:
        for left, top, width, height in self.regions:
            if not width or not height or left + width > self.columns or top + height > self.rows:
                raise ValueError(
                    f"masks: the region [{left}, {top}, {width}, {height}] does not lie in {self.columns} columns x {self.rows} rows"
                )
        return self

    def fits(self, rows: int, columns: int, modality: str, manufacturer: str, model: str) -> bool:
        """Whether an image is meant; words in any case."""
        asked = ((self.modality, modality), (self.manufacturer, manufacturer), (self.model, model))
        same = all(wanted is None or wanted.casefold() == found.casefold() for wanted, found in asked)
        return same and (self.rows, self.columns) == (rows, columns)


class Deidentification(Settings):
    """A profile of options."""

    keep: list[Keep] = []
    """Options of PS3.15 annex E.3. uids: Retain UIDs; device: Retain Device Identity; institution: Retain Institution Identity; patient:
    Retain Patient Characteristics (age, sex, size, weight, ...); dates: Full Dates; shifted-dates: Modified Dates, each patient's moved by
    days of its own; safe-private: the private attributes that are known to be numbers. overlays: the planes of group 60xx, no option of
    the standard's, as text may be drawn in them."""
    descriptors: list[Text] = []
    """Texts that may stay, word for word but for case and spaces: descriptions, comments, labels, protocol names (Clean Descriptors)."""
    masks: list[Mask] = []
    """The first that fits an image is applied, and the image is no longer held back for text in its pixels (Clean Pixel Data)."""

    @field_validator("keep")
    @classmethod
    def _in_order(cls, value: list[Keep]) -> list[Keep]:
        return [name for name in KEEP if name in value]

    @field_validator("descriptors")
    @classmethod
    def _folded(cls, value: list[str]) -> list[str]:
        return sorted({folded(text) for text in value})

    @model_validator(mode="after")
    def _one_kind_of_dates(self) -> Deidentification:
        if "dates" in self.keep and "shifted-dates" in self.keep:
            raise ValueError("keep: dates or shifted-dates, not both")
        return self


def folded(text: str) -> str:
    """As descriptors are compared."""
    return " ".join(text.casefold().split())


def load_deidentification(path: Path | None, keep: list[str]) -> Deidentification:
    """The settings of a file (None: no options), with the options of the command line. ConfigError where they are none."""
    content = {} if path is None else read_yaml(path)
    there = content.get("keep", [])
    if not isinstance(there, list):
        raise ConfigError(f"{path}: keep: expected a list of {', '.join(KEEP)}")
    where = str(path) if path is not None else f"--keep {','.join(keep)}"
    return parse_settings(Deidentification, {**content, "keep": [*there, *keep]}, where)
