"""Datasets of small pictures and trainings of seconds: a case is a PNG, or a TIFF of some pages where it has several images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SIDE = 40
CASES = 48
SETTINGS = {
    "preprocessing": {"size": 32, "normalization": "none"},
    "network": {"architecture": "resnet18"},
    "training": {"epochs": 2, "batch_size": 16, "early_stopping": None},
    "evaluation": {"resamples": 100},
}


def make_dataset(
    folder: Path,
    *,
    classes: tuple[str, ...] = ("left", "right"),
    several: bool = False,
    pages: int = 1,
    cases: int = CASES,
    split: dict[str, object] | None = None,
    settings: dict[str, dict[str, object]] | None = None,
) -> Path:
    """Pictures with a bright stripe in column i of the columns where class i is; the path of their configuration.

    With `several` each stripe is there or not. Of several pages only one has the stripe.
    """
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = ["case,label"]
    for number in range(cases):
        present = random.random(len(classes)) < 0.5 if several else np.arange(len(classes)) == number % len(classes)
        _write(folder / "images" / f"{number:03d}", present, pages, random)
        label = "|".join(name for name, found in zip(classes, present, strict=True) if found) or "(none)"
        rows.append(f"{number:03d}{_suffix(pages)},{label}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    manifest = {
        "name": "small",
        "classes": list(classes),
        "sources": [{"path": "images"}],
        "sheet": {"path": "labels.csv", "join": "file_name", "column": "case"},
        "labels": {"source": "sheet", "column": "label", "several": several},
        "patients": {"source": "path", "pattern": r"(\d+)\."},
        "unit": "image" if pages == 1 else "series",
        "split": split or {},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    config = {"name": "small", "manifest": "manifest.yaml"}
    for group in sorted({*SETTINGS, *(settings or {})}):
        config[group] = {**SETTINGS.get(group, {}), **(settings or {}).get(group, {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def _suffix(pages: int) -> str:
    return ".png" if pages == 1 else ".tiff"


def _write(path: Path, present: np.ndarray, pages: int, random: np.random.Generator) -> None:
    pictures = random.integers(0, 60, (pages, SIDE, SIDE), dtype=np.uint8)
    width = SIDE // len(present)
    for place in np.flatnonzero(present):
        pictures[random.integers(pages), :, place * width : (place + 1) * width] += 150
    first, *others = map(Image.fromarray, pictures)
    first.save(path.with_suffix(_suffix(pages)), **({"save_all": True, "append_images": others} if others else {}))
