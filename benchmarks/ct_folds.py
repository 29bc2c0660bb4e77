"""Two recipes on the public CT slices by five folds of blocks, each its test set once, and the paired difference over all of them.

python benchmarks/ct_folds.py --root DATA --out DIR [--recipes ct_slices_report ct_slices] [--folds 0 1 2 3 4] [--set KEY=VALUE ...]
    [--seeds 0 1 2] [--random] [--stress]

DATA holds ct_slices_png/. Blocks are 48 consecutive numbers of a class, standing for patients whom nobody recorded; fold f tests the
blocks b with b mod 5 = f, validates (chooses epoch and threshold) on one block of each class of the fold after it, and trains on the
rest. --random divides the slices at random in place of blocks, as the report did: neighbours of one patient then stand on both sides.
With several seeds each fold is trained as often: a recipe is more than one lucky training. What is there already is not trained again.
--set holds for every recipe, RECIPE:KEY=VALUE for one.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from pipeline.settings import find_shipped

FOLDS, BLOCK = 5, 48
NUMBER = re.compile(r"\((\d+)\)")
FIGURES = ("accuracy", "auroc")


def main() -> int:
    """Trains and evaluates what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["ct_slices_report", "ct_slices"])
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--stress", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("RADLOOP_KEY", "a key for slices without patients")
    options.out.mkdir(parents=True, exist_ok=True)
    for fold in options.folds:
        manifest = write_manifest(options.root, options.out, fold, options.random)
        for seed in options.seeds:
            for recipe in options.recipes:
                run = run_folder(options.out, recipe, fold, seed)
                learn(recipe, manifest, run, seed, options)
                told(run, recipe, fold, seed)
    if len(options.recipes) == 2:
        trainings = [(fold, seed) for fold in options.folds for seed in options.seeds]
        runs = [str(run_folder(options.out, recipe, *one)) for one in trainings for recipe in options.recipes]
        radloop("compare", *runs, "--split", "test", "--out", str(options.out / "compare"))
    return 0


def write_manifest(root: Path, out: Path, fold: int, random: bool) -> Path:
    """The shipped manifest with the split of this fold."""
    slices = sorted((root / "ct_slices_png").glob("*/*"))
    order = np.random.default_rng(0).permutation(len(slices))
    rows = [("path", "split")]
    for place, path in zip(order.tolist(), slices, strict=True):
        found = NUMBER.search(path.name)
        block = place // BLOCK % 10 if random else (int(found[1]) - 1) // BLOCK if found else 0
        rows.append((f"{path.parent.name}/{path.name}", _split(block, fold)))
    with (out / f"split-{fold}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    content = yaml.safe_load(find_shipped("data_manifests", "ct_slices").read_text())
    content |= {"name": f"ct_slices fold {fold}", "split": {"file": f"split-{fold}.csv"}}
    if random:
        content["patients"] = {"source": "path", "pattern": "(.+)"}  # or no block would be let into two splits
    path = out / f"fold-{fold}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _split(block: int, fold: int) -> str:
    if block % FOLDS == fold:
        return "test"
    return "validation" if block == (fold + 1) % FOLDS + FOLDS else "train"


def learn(recipe: str, manifest: Path, run: Path, seed: int, options: argparse.Namespace) -> None:
    """One training and its evaluation."""
    settings = [f"manifest={manifest.resolve()}", f"seed={seed}"]
    for given in options.set:
        key = given.removeprefix(f"{recipe}:")
        settings += [key] if ":" not in key.partition("=")[0] else []
    if not (run / "model.json").is_file():
        began = time.monotonic()
        sets = [part for setting in settings for part in ("--set", setting)]
        radloop("train", recipe, "--root", str(options.root), "--out", str(run), "--resume", *sets)
        (run / "minutes.txt").write_text(f"{(time.monotonic() - began) / 60:.2f}\n")
    if not (run / "evaluation" / "metrics.json").is_file():
        radloop("evaluate", str(run), *(["--stress"] if options.stress else []))


def run_folder(out: Path, recipe: str, fold: int, seed: int) -> Path:
    return out / f"{Path(recipe).stem}-{fold}{f'-seed{seed}' if seed else ''}"


def radloop(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pipeline", *arguments], check=True)


def told(run: Path, recipe: str, fold: int, seed: int) -> None:
    """One line of a training: its figures, and the stress that costs most."""
    record = json.loads((run / "evaluation" / "metrics.json").read_text())
    figures = "  ".join(f"{name} {record['metrics'][name]['value']:.3f}" for name in FIGURES)
    drops = [(row["drop"]["auroc"]["value"], row["name"]) for row in record.get("stress", [])]
    worst = f"  worst stress {max(drops)[1]} -{max(drops)[0]:.3f}" if drops else ""
    minutes = (run / "minutes.txt").read_text().strip() if (run / "minutes.txt").is_file() else "?"
    print(f"{recipe} fold {fold} seed {seed}: {figures}  {minutes} min{worst}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
