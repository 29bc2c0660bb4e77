"""Transfer between the two real sets: a network that learnt one is the start for a small part of the other, against random weights.

python benchmarks/transfer.py --root DATA --out DIR [--ct-run RUN] [--xray 50 100] [--ct 50 200] [--folds 3] [--set KEY=VALUE ...]

DATA holds ct_slices_png/ and chest_xray/. The recipe is that of ct_slices (which finds lungs in radiographs, too) for both sets, at the
same epochs from either start. Test parts are disjoint: a fifth of the X-rays' patients each, and the blocks of one fold of CT slices
(`ct_folds`); what is learnt from is drawn from the rest, and never of a patient or block that is tested. --ct-run: a run on CT slices to
start from, in place of one trained here. What is there already is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from pipeline.settings import find_shipped

BLOCK, FOLDS, VALIDATION = 48, 5, 20
NUMBER = re.compile(r"\((\d+)\)")
ASIDE = "unused"


def main() -> int:
    """Trains what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ct-run", type=Path)
    parser.add_argument("--xray", nargs="*", type=int, default=[50, 100])
    parser.add_argument("--ct", nargs="*", type=int, default=[50, 200])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    os.environ.setdefault("RADLOOP_KEY", "a key for images without patients")
    options.out.mkdir(parents=True, exist_ok=True)
    images = {"ct_slices": ct_slices(options.root), "chest_xray": radiographs(options.root)}
    starts = {
        "ct_slices": learn(options, "chest_xray", images["chest_xray"], "all X-rays", whole(images["chest_xray"])),
        "chest_xray": options.ct_run
        or learn(options, "ct_slices", images["ct_slices"], "all slices", whole(images["ct_slices"])),
    }
    for dataset, counts in (("chest_xray", options.xray), ("ct_slices", options.ct)):
        for count in counts:
            compared(options, dataset, images[dataset], count, starts[dataset])
    return 0


def ct_slices(root: Path) -> list[tuple[str, str, str]]:
    """(path, label, block) of each slice."""
    found = sorted((root / "ct_slices_png").glob("*/*"))
    numbers = [int(match[1]) if (match := NUMBER.search(path.name)) else 1 for path in found]
    return [
        (f"{path.parent.name}/{path.name}", path.parent.name, f"{(number - 1) // BLOCK}")
        for path, number in zip(found, numbers, strict=True)
    ]


def radiographs(root: Path) -> list[tuple[str, str, str]]:
    """(path, label, patient) of each X-ray."""
    with (root / "chest_xray" / "labels.csv").open(newline="") as file:
        return [(row["filename"], row["label"], row["patientid"]) for row in csv.DictReader(file)]


def whole(images: list[tuple[str, str, str]]) -> list[str]:
    """Splits of a first training: of each class's patients or blocks an eighth validates, and an eighth is tested, as must be."""
    order = np.random.default_rng(0).permutation(sorted({group for _, _, group in images})).tolist()
    aside: dict[str, str] = {}
    for label in sorted({label for _, label, _ in images}):
        of_class = {group for _, one, group in images if one == label}
        left = [name for name in order if name in of_class and name not in aside]
        few = max(1, len(left) // 8)
        aside |= dict.fromkeys(left[:few], "validation") | dict.fromkeys(left[few : 2 * few], "test")
    return [aside.get(group, "train") for _, _, group in images]


def small(images: list[tuple[str, str, str]], dataset: str, fold: int, count: int) -> list[str]:
    """Splits with `count` images to learn from and VALIDATION to validate on, the classes by turns; a fifth of the groups is tested."""
    names = sorted({group for _, _, group in images})
    order = np.random.default_rng(1).permutation(len(names)).tolist()
    place = {name: int(name) if dataset == "ct_slices" else order[number] for number, name in enumerate(names)}
    splits = ["test" if place[group] % FOLDS == fold else ASIDE for _, _, group in images]
    rest = [name for name in names if place[name] % FOLDS != fold]
    np.random.default_rng(fold).shuffle(rest)
    aside: set[str] = set()
    for name in rest:
        if sum(group in aside for _, _, group in images) < VALIDATION:
            aside.add(name)
    left = {"validation": VALIDATION, "train": count}
    for number in alternating(images, fold):
        split = "validation" if images[number][2] in aside else "train"
        if splits[number] == ASIDE and left[split]:
            splits[number] = split
            left[split] -= 1
    return splits


def alternating(images: list[tuple[str, str, str]], seed: int) -> Iterator[int]:
    """Places of images in a random order in which the classes take turns."""
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    classes = sorted({label for _, label, _ in images})
    queues = [[place for place in order if images[place][1] == label] for label in classes]
    while any(queues):
        yield from (queue.pop() for queue in queues if queue)


def compared(
    options: argparse.Namespace, dataset: str, images: list[tuple[str, str, str]], count: int, start: Path
) -> None:
    """Both starts on every fold, and the paired difference over all of them."""
    runs = []
    for fold in range(options.folds):
        splits = small(images, dataset, fold, count)
        for name, weights in (("random", "none"), ("transfer", str(start))):
            run = learn(options, dataset, images, f"{count} {name} {fold}", splits, weights)
            record = json.loads((run / "evaluation" / "metrics.json").read_text())
            figures = "  ".join(f"{key} {record['metrics'][key]['value']:.3f}" for key in ("accuracy", "auroc"))
            print(f"{dataset}, {splits.count('train')} images, fold {fold}, {name}: {figures}", flush=True)
            runs.append(str(run))
    radloop("compare", *runs, "--split", "test", "--out", str(options.out / f"{dataset}-{count}"))


def learn(
    options: argparse.Namespace,
    dataset: str,
    images: list[tuple[str, str, str]],
    what: str,
    splits: list[str],
    weights: str = "none",
) -> Path:
    """One training, and its evaluation where something is tested."""
    name = f"{dataset}-{what.replace(' ', '-')}"
    rows = [("path" if dataset == "ct_slices" else "file_name", "split")]
    rows += [(path, split) for (path, _, _), split in zip(images, splits, strict=True) if split != ASIDE]
    with (options.out / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    content = yaml.safe_load(find_shipped("data_manifests", dataset).read_text())
    content |= {"name": name, "split": {"file": f"{name}.csv", "others": "leave_out"}}
    content["patients"] = {"source": "path", "pattern": "(.+)"}  # the file keeps patients and blocks apart
    manifest = options.out / f"{name}.yaml"
    manifest.write_text(yaml.safe_dump(content, sort_keys=False))
    run = options.out / name
    settings = [f"manifest={manifest.resolve()}", f"network.weights={weights}", *options.set]
    if not (run / "model.json").is_file():
        sets = [part for setting in settings for part in ("--set", setting)]
        radloop("train", "ct_slices", "--root", str(options.root), "--out", str(run), "--resume", *sets)
    if "test" in splits and not (run / "evaluation" / "metrics.json").is_file():
        radloop("evaluate", str(run))
    return run


def radloop(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pipeline", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
