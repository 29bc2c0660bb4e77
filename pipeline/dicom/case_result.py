"""What the objects of a case are made of: its images with what the model says of each, the case's findings, and who says so.

In: what inference found. Every module that writes a kind of object takes a `CaseResult`, and one or more of its images. Evidence and
regions are (rows, columns) of the source's own pixels, and are made when asked for, so that a series of any length fits.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.dicom.derived import Algorithm
from pipeline.profile_settings import Profile

FloatImage = NDArray[np.float32]  # (rows, columns) of the source
Region = NDArray[np.bool_]  # (rows, columns) of the source
Picture = NDArray[np.uint8]  # (rows, columns, 3) RGB


@dataclass(frozen=True)
class Finding:
    """A class that the model knows: its probability (calibrated, 0 to 1), and whether it is called."""

    name: str
    probability: float
    called: bool


@dataclass(frozen=True)
class ResultImage:
    """One frame of a source, and what the model says of it."""

    source: Dataset
    """Its header, as `source.read_source` gives it; the frames of one file share it."""
    frame: int
    """From 0."""
    evidence_of: Callable[[], FloatImage]
    """Makes the evidence for the class shown: above 0 it speaks for it; 0 where the network saw nothing."""
    picture_of: Callable[[], Picture]
    """Makes the picture that people see: the frame with its heatmap at the top left, pixel for pixel, below it legend and texts."""
    probability: float
    """Of the class shown, from this image alone."""
    key: int = 0
    """Its place among the case's key images, from 1; 0 where it is none."""


@dataclass(frozen=True)
class CaseResult:
    """A case as its objects tell of it."""

    findings: tuple[Finding, ...]
    """What the model can say, in its order: of two classes the finding and its absence, else all."""
    shown: str
    """The class whose evidence is drawn."""
    said: str
    """The result in one line: 'COVID, probability 0.932'."""
    content: str
    """Digest of all the case's files and frames: what a result depends on."""
    method: str
    """How evidence is made, in words: 'the classifier's evidence (Grad-CAM of a linear head)'."""
    unit: str
    """Of evidence: 'logit margin', ..."""
    scale: float
    """The evidence that has the full colour, for the whole run."""
    notes: tuple[str, ...]
    """What must be said beside it, in the site's words: out of the model's scope, why; the model's own notice."""
    cell: str
    """How much of the source one feature cell covers, in words."""
    made_how: tuple[str, ...]
    """How evidence is made, and what a cell is, as people read it on a page; `method`, `unit` and `cell` are for attributes, whatever the
    site's words are."""
    algorithm: Algorithm
    configuration_digest: str
    """Of everything else that the objects depend on: profile and output settings."""
    profile: Profile
    created: datetime.datetime
    images: tuple[ResultImage, ...]
    """All images that were predicted, in the case's order."""

    @property
    def key_images(self) -> tuple[ResultImage, ...]:
        """Those that decided, the first first."""
        return tuple(sorted((image for image in self.images if image.key), key=lambda image: image.key))

    @property
    def region_threshold(self) -> float:
        """From which evidence on a pixel belongs to the region: the profile's share of the scale."""
        return self.profile.region * self.scale

    def region(self, image: ResultImage) -> Region:
        """Where the evidence of `image` reaches the threshold: what is outlined, segmented and measured."""
        return np.asarray(image.evidence_of() >= self.region_threshold)
