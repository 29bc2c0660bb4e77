"""The whole loop on a generated export: index, train, evaluate, infer; and, because the phantoms' opacities are known, whether the
heatmaps point at them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.cohort.cases import group_images
from pipeline.cohort.rules import COLLISIONS
from pipeline.config import Config, find_shipped, load_config
from pipeline.dicom.phantom import make_export
from pipeline.errors import ConfigError
from pipeline.evaluate import evaluate, summary_lines
from pipeline.explaining.pointing import Pointing, pointing
from pipeline.files import write_whole
from pipeline.identity import KEY_FILE
from pipeline.indexing.index import read_index
from pipeline.indexing.inventory import take_inventory
from pipeline.indexing.sources import open_source
from pipeline.indexing.summary import summary_text
from pipeline.infer import infer
from pipeline.pages.run_report import REPORT_FILE
from pipeline.prediction.predict import load_model
from pipeline.progress import say
from pipeline.run import EVALUATION_FOLDER, INDEX_FOLDER, MANIFEST_FILE, read_table
from pipeline.train import train

DEMO_KEY = "phantoms have no identity to protect"
"""A fixed key, so that every demo splits its phantoms alike; no patient is ever hashed with it."""
PHANTOM_NOTICE = "Phantoms, not patients"
PATIENTS, SLICES, SIZE = 40, 8, 512


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
    pointed = point_at_lesions(run, export.lesions)
    summary = infer(run, str(export.folder), results, progress=progress)
    picture = example_picture(run, results, out / "overlay.png")

    write_whole(out / "summary.json", json.dumps(_record(record, pointed), indent=2) + "\n")
    return [
        f"{PHANTOM_NOTICE}. Research use only - not for diagnosis.",
        *summary_lines(record),
        pointed.line(),
        *summary.lines(),
        f"figures:       {run / EVALUATION_FOLDER / REPORT_FILE} (of the test split; what was inferred is the whole export)",
        f"DICOM objects: {results}",
        f"an overlay:    {picture}",
    ]


def point_at_lesions(run: Path, lesions: Path) -> Pointing:
    """How often the heatmap's peak lies within one feature cell of an opacity, over the images of true-positive test cases."""
    model = load_model(run)
    images = read_table(run / EVALUATION_FOLDER / "image_predictions.csv")
    cases = read_table(run / EVALUATION_FOLDER / "predictions.csv")
    index = read_index(run / INDEX_FOLDER)
    grouped = group_images(index, model.facts.unit, model.facts.rules, collisions=COLLISIONS)
    return pointing(model, cases, images, grouped.images, index.roots, lesions)


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


def _record(record: dict[str, Any], pointed: Pointing) -> dict[str, Any]:
    localisation = {
        "true_positive_images": pointed.images,
        "share_within_one_cell": pointed.share,
        "share_by_chance": pointed.by_chance,
    }
    return {"notice": PHANTOM_NOTICE, "evaluation": record, "localisation": localisation}
