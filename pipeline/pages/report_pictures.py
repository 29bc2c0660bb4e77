"""Pictures inside a page: a gallery's images and, apart, their heatmaps as data URIs, and the colours' legend.

A gallery of 18 is about 1 MB: images as JPEG, which is for looking, not for measuring; heatmaps as PNG, which keeps what is clear clear.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from pipeline.pages.gallery import ERRORS, OUTCOMES, GalleryItem, Picture
from pipeline.render import overlay
from pipeline.wording import percent_text

JPEG_QUALITIES = (85, 70, 50, 30)
"""Tried in turn until a picture is no larger than `LARGEST_PICTURE`: noise is the only one that needs the last."""
LARGEST_PICTURE = 100_000
HEATMAP_SIDE = 128
"""Pixels: evidence is smooth between the centres of some ten cells a side."""
RAMP = (20, 160)
"""Rows and columns of the legend's colours."""
RAMP_GRAY = 0.35
GROUPS = {
    ERRORS: ("Wrong, and surest", "The errors in which the probability was furthest from the truth."),
    OUTCOMES: (
        "Of every outcome",
        "Cases as they come in predictions.csv, of each pair of actual and predicted in turn.",
    ),
}


def gallery_groups(items: Sequence[GalleryItem]) -> list[dict[str, Any]]:
    """The groups that have items, each item ready to be shown."""
    groups = []
    for name, (title, words) in GROUPS.items():
        ours = [_shown(item) for item in items if item.group == name]
        if ours:
            groups.append({"title": title, "words": words, "items": ours})
    return groups


def _shown(item: GalleryItem) -> dict[str, Any]:
    rows, columns = item.picture.shape[:2]
    said = percent_text(item.probability)
    return {
        "picture": _jpeg(item.picture),
        "heatmap": "" if item.heatmap is None else _png(_smaller(item.heatmap)),
        "rows": rows,
        "columns": columns,
        "width": f"{100 * min(1.0, columns / rows):.1f}",
        "right": item.right,
        "actual": item.actual,
        "predicted": item.predicted,
        "shown": item.shown,
        "probability": said,
        "where": item.where,
        "says": f"Image of a case: actual {item.actual}, predicted {item.predicted}, probability of {item.shown} {said}",
    }


def _smaller(heatmap: Picture) -> Picture:
    picture = Image.fromarray(heatmap)
    picture.thumbnail((HEATMAP_SIDE, HEATMAP_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _jpeg(picture: Picture) -> str:
    content = b""
    for quality in JPEG_QUALITIES:
        content = _encoded(picture, "JPEG", quality=quality)
        if len(content) <= LARGEST_PICTURE:
            break
    return _data_uri(content, "jpeg")


def _png(picture: Picture) -> str:
    return _data_uri(_encoded(picture, "PNG"), "png")


def _encoded(picture: Picture, kind: str, **options: int) -> bytes:
    content = BytesIO()
    Image.fromarray(picture).save(content, kind, optimize=True, **options)
    return content.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def heatmap_ramp() -> str:
    """The heatmap's colours over gray, from no evidence to the full scale."""
    evidence = np.linspace(0.0, 1.0, RAMP[1], dtype=np.float32)[None].repeat(RAMP[0], axis=0)
    return _png(overlay(np.full_like(evidence, RAMP_GRAY), evidence, 1.0))
