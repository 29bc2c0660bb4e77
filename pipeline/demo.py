"""The whole loop on a generated export: index, train, evaluate, infer; and, because the phantoms' opacities are known, whether the
heatmaps point at them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from pipeline.cohort.cases import group_images
from pipeline.config import Config, find_shipped, load_config
from pipeline.dicom.phantom import make_export
from pipeline.errors import ConfigError
from pipeline.evaluate import evaluate, summary_lines
from pipeline.files import write_whole
from pipeline.identity import KEY_FILE
from pipeline.indexing.index import read_index
from pipeline.indexing.inventory import take_inventory
from pipeline.indexing.sources import open_source
from pipeline.indexing.summary import summary_text
from pipeline.infer import infer
from pipeline.prediction.explain import cell_size, evidence_in_source
from pipeline.prediction.predict import load_model, predict_files
from pipeline.prepared.dataset import image_files
from pipeline.progress import say
from pipeline.run import EVALUATION_FOLDER, INDEX_FOLDER, MANIFEST_FILE, read_table
from pipeline.train import train

DEMO_KEY = "phantoms have no identity to protect"
"""A fixed key, so that every demo splits its phantoms alike; no patient is ever hashed with it."""
PHANTOM_NOTICE = "Phantoms, not patients"
PATIENTS, SLICES, SIZE = 40, 8, 512


@dataclass(frozen=True)
class Pointing:
    """Of `images` true positives, the `share` whose heatmap peaks within one feature cell of an opacity, and the share by chance."""

    images: int
    share: float
    by_chance: float

    def line(self) -> str:
        """For the terminal."""
        if not self.images:
            return "  no opacity was found in the test images, so no heatmap can be judged"
        return (
            f"  heatmap's peak within one feature cell of an opacity: {self.share:.0%} of {self.images} true-positive test images "
            f"({self.by_chance:.0%} by chance)"
        )


def demo(
    out: Path,
    *,
    patients: int = PATIENTS,
    slices: int = SLICES,
    size: int = SIZE,
    config: Config | None = None,
    progress: bool = True,
) -> list[str]:
    """Runs the loop in `out` (made anew) and returns the lines of its summary, which is in `out/summary.json` too."""
    _make_room(out)
    say(f"generating an export of {patients} phantom patients in {out / 'export'}")
    export = make_export(out, patients=patients, slices=slices, size=size)
    run, results = out / "run", out / "out"
    opened = open_source(str(out / MANIFEST_FILE))
    found = take_inventory(opened.places, out / "index", key=opened.key(), progress=progress)
    if progress:
        say(summary_text(found))
    config = (config or load_config("demo")).model_copy(update={"manifest": str(out / MANIFEST_FILE)})
    train(config, run, progress=progress)
    record = evaluate(run, progress=progress)
    pointing = point_at_lesions(run, export.lesions)
    summary = infer(run, str(export.folder), results, progress=progress)
    picture = example_picture(run, results, out / "overlay.png")

    write_whole(out / "summary.json", json.dumps(_record(record, pointing), indent=2) + "\n")
    return [
        f"{PHANTOM_NOTICE}. Research use only - not for diagnosis.",
        *summary_lines(record),
        pointing.line(),
        *summary.lines(),
        f"figures:       {run / EVALUATION_FOLDER}",
        f"DICOM objects: {results}",
        f"an overlay:    {picture}",
    ]


def point_at_lesions(run: Path, lesions: Path) -> Pointing:
    """How often the heatmap's peak lies within one feature cell of an opacity, over the images of true-positive test cases."""
    model = load_model(run)
    predictions = read_table(run / EVALUATION_FOLDER / "image_predictions.csv")
    cases = read_table(run / EVALUATION_FOLDER / "predictions.csv")
    positive = model.facts.positive
    found = cases.loc[(cases["label"] == positive) & (cases["predicted"] == positive), "case_id"]
    wanted = predictions.loc[
        predictions["case_id"].isin(found) & (predictions["predicted"] == positive), "sop_instance_uid"
    ]
    ellipses = pd.read_csv(lesions).groupby("sop_instance_uid")
    index = read_index(run / INDEX_FOLDER)
    grouped = group_images(index, model.facts.unit, model.facts.rules, drop_collisions=True)
    images = grouped.images[grouped.images["sop_instance_uid"].isin(wanted)].reset_index(drop=True)
    hits, chances = [], []
    results = predict_files(model, image_files(images, index.roots))
    for uid, result in zip(images["sop_instance_uid"], results, strict=True):
        if result.prepared is None or result.evidence is None or uid not in ellipses.groups:
            continue
        evidence = evidence_in_source(
            result.evidence[result.shown],
            model.geometry,
            result.prepared.affine,
            result.prepared.source_shape,
            model.facts.preprocessing.size,
        )
        near = distance_transform_edt(~lesion_mask(ellipses.get_group(uid), evidence.shape)) <= cell_size(
            model.geometry, result.prepared.affine
        )
        hits.append(bool(near[np.unravel_index(evidence.argmax(), evidence.shape)]))
        chances.append(float(near.mean()))
    return Pointing(len(hits), float(np.mean(hits)) if hits else 0.0, float(np.mean(chances)) if chances else 0.0)


def lesion_mask(ellipses: pd.DataFrame, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(rows, columns): inside any of the ellipses of `lesions.csv`."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, dtype=bool)
    for ellipse in ellipses.to_dict("records"):
        vertical = (rows - ellipse["row"]) / ellipse["radius_rows"]
        horizontal = (columns - ellipse["column"]) / ellipse["radius_columns"]
        inside |= vertical**2 + horizontal**2 <= 1.0
    return inside


def example_picture(run: Path, results: Path, target: Path) -> Path:
    """The object of the surest true positive of the test split, as a PNG."""
    from PIL import Image

    from pipeline.dicom.secondary_capture import read_picture

    cases = read_table(run / EVALUATION_FOLDER / "predictions.csv")
    facts = load_model(run).facts
    true = cases[(cases["label"] == facts.positive) & (cases["predicted"] == facts.positive)]
    surest = (true if len(true) else cases).astype({f"p_{facts.positive}": float}).nlargest(1, f"p_{facts.positive}")
    objects = read_table(results / "objects.csv")
    uid = objects.loc[objects["case_id"] == surest["case_id"].iloc[0], "sop_instance_uid"].iloc[0]
    Image.fromarray(read_picture(next(results.glob(f"*/*/{uid}.dcm")))).save(target)
    return target


def _make_room(out: Path) -> None:
    """An empty folder for the demo; only what an earlier demo left is removed."""
    key = out / KEY_FILE
    own = key.is_file() and key.read_text().strip() == DEMO_KEY
    if out.exists() and any(out.iterdir()) and not own:
        raise ConfigError(f"{out}: not empty and not from an earlier demo; give another --out")
    for name in ("export", "index", "run", "out"):
        shutil.rmtree(out / name, ignore_errors=True)
    for split in out.glob(".radloop-split-*"):
        split.unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_whole(key, DEMO_KEY + "\n")
    write_whole(out / MANIFEST_FILE, find_shipped("data_manifests", "demo").read_text())


def _record(record: dict[str, Any], pointing: Pointing) -> dict[str, Any]:
    localisation = {
        "true_positive_images": pointing.images,
        "share_within_one_cell": pointing.share,
        "share_by_chance": pointing.by_chance,
    }
    return {"notice": PHANTOM_NOTICE, "evaluation": record, "localisation": localisation}
