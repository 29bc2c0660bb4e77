"""Runs for tests of evaluation: tiny pictures with a sheet of patients, sexes, ages and sites, and a tiny network trained for an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.config import load_config
from pipeline.train import train

PATIENTS, IMAGES_EACH, SIDE = 60, 2, 40
TINY = (
    *("preprocessing.size=32", "network.architecture=resnet18", "training.epochs=1", "training.batch_size=16"),
    *("evaluation.resamples=100", "augmentation={}"),
)
FINDINGS = ("effusion", "nodule", "fracture")


def make_pictures(folder: Path, *, several: bool = False, seed: int = 0, split: str = "{}", first: int = 0) -> Path:
    """PNGs with a sheet, and the manifest of them: two classes shown by a bright square, or findings by one square each."""
    random = np.random.default_rng(seed)
    rows = []
    for patient in range(first, first + PATIENTS):
        present = random.random(len(FINDINGS)) < 0.4
        label = (
            "|".join(np.array(FINDINGS)[present]) or "(none)" if several else ("opacity" if patient % 2 else "normal")
        )
        for number in range(IMAGES_EACH):
            picture = random.integers(0, 100, (SIDE, SIDE), dtype=np.uint8)
            for place in np.flatnonzero(present) if several else range(patient % 2):
                picture[4:16, 13 * place : 13 * place + 12] += 120
            path = folder / "images" / f"p{patient:03d}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            who = {
                "patient": f"person {patient}",
                "sex": "FM"[patient % 3 == 0],
                "age": 10 + patient,
                "site": f"s{patient % 2}",
            }
            rows.append({"file": path.name, "label": label, **who})
    pd.DataFrame(rows).to_csv(folder / "sheet.csv", index=False)
    classes = ", ".join(FINDINGS) if several else "normal, opacity"
    (folder / "manifest.yaml").write_text(
        f"name: {folder.name}\nclasses: [{classes}]\nsources: [{{path: images}}]\n"
        "sheet: {path: sheet.csv, join: file_name, column: file, "
        "facts: {patient_sex: sex, patient_age: age, institution_name: site}}\n"
        f"labels: {{source: sheet, column: label, several: {str(several).lower()}}}\n"
        f"patients: {{source: column, column: patient}}\nsplit: {split}\n"
    )
    (folder / "config.yaml").write_text("name: tiny\nmanifest: manifest.yaml\n")
    return folder


def train_tiny(folder: Path, run: Path, overrides: Sequence[str] = ()) -> Path:
    """A run on `make_pictures`' folder."""
    train(load_config(str(folder / "config.yaml"), [*TINY, *overrides]), run, progress=False)
    return run
