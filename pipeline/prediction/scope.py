"""A model's scope: of which kind the images were that it was trained on, and why another image is not of it."""

from __future__ import annotations

from functools import partial

import pandas as pd

from pipeline.columns import text
from pipeline.profile_settings import ScopeWords

PICTURE_FORMATS = ("png", "jpeg", "tiff")
RASTER_FORMATS = (*PICTURE_FORMATS, "nifti")
"""Formats without a DICOM header: rules and scope have nothing to ask, and results become overlays."""
SCOPE_COLUMNS = ("modality", "body_part_examined", "view_position")
USUAL_WORDS = ScopeWords()


def scope_of(images: pd.DataFrame) -> dict[str, list[str]]:
    """What a model trained on `images` has seen: file formats, and the values of the columns that headers (or the manifest's facts)
    tell; '' among them where some were not known.
    """
    seen = {column: sorted(text(images[column]).unique().tolist()) for column in ("format", *SCOPE_COLUMNS)}
    return {column: values for column, values in seen.items() if values != [""]}


def scope_reason(images: pd.DataFrame, scope: dict[str, list[str]], words: ScopeWords = USUAL_WORDS) -> pd.Series:
    """For each image why it is not of the kind that the model was trained on, or ''.

    A PNG, JPEG or TIFF has no header to ask: it is in scope if such files were trained on. A NIfTI is if NIfTI was, and its modality,
    which decides what its values count, is one that the training saw. A DICOM image is if DICOM was, it has for each column that the
    training knew one of the values that it saw, and it breaks none of the training's rules (column `rule`).
    """
    formats = scope.get("format", [])
    found = text(images["format"])
    picture, volume = found.isin(PICTURE_FORMATS), found.eq("nifti")
    dicom = ~picture & ~volume
    only = partial(words.format.format, formats=", ".join(formats))
    reason = pd.Series("", index=images.index, dtype=object)
    if not set(formats) & set(PICTURE_FORMATS):
        reason.loc[picture] = only(found=words.picture)
    if "nifti" not in formats:
        reason.loc[volume] = only(found=words.nifti)
    if "dicom" not in formats:
        reason.loc[dicom] = only(found=words.dicom)
    for column in [name for name in SCOPE_COLUMNS if name in scope]:
        value = text(images[column])
        asked = dicom | volume if column == "modality" else dicom
        outside = asked & ~value.isin(scope[column]) & (reason == "")
        trained = ", ".join(value or words.not_known for value in scope[column])
        told = partial(words.attribute.format, attribute=getattr(words, column), trained=trained)
        reason.loc[outside] = value[outside].map(lambda one, told=told: told(value=one or words.not_known))
    rule = text(images["rule"])
    broken = dicom & (rule != "") & (reason == "")
    reason.loc[broken] = rule[broken].map(lambda one: words.rule.format(rule=one))
    return reason


def marked_formats(unit: str) -> tuple[str, ...]:
    """Of which files inference predicts those, too, that the training's rules would have left out, and marks them: single images, and files
    without a header to ask; of a series or study the rules choose the images."""
    return (*RASTER_FORMATS, "dicom") if unit == "image" else tuple(RASTER_FORMATS)
