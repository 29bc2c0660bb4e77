"""To a model, what it is worth, and its way to others."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.commands.parsing import DONE, SOME_FAILED, WRONG_USE, Commands, add_command, add_root
from pipeline.errors import ConfigError


def add(commands: Commands) -> None:
    """Adds this group's commands."""
    train = add_command(
        commands, "train", _train, "train a model", "radloop train ct_slices --root data/ --out runs/ct"
    )
    train.add_argument("config", metavar="CONFIG", help="a shipped configuration's name, or a YAML file")
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run folder to make")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. training.epochs=5"
    )
    train.add_argument("--resume", action="store_true", help="go on with a training that was interrupted")
    add_root(train)

    evaluate = add_command(
        commands, "evaluate", _evaluate, "figures with intervals, and pictures", "radloop evaluate runs/ct"
    )
    evaluate.add_argument("run", type=Path, metavar="RUN", help="a run folder of radloop train")
    evaluate.add_argument("--split", default="test", help="train, validation or test (the default)")
    evaluate.add_argument("--data", metavar="MANIFEST", help="evaluate on all of another dataset")
    evaluate.add_argument(
        "--stress",
        action="store_true",
        help="again under other windows, borders, crops, scales, noise, ...: what the model leans on",
    )
    evaluate.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where the run's data lie now, if they were moved; with --data: where its relative paths begin (or set RADLOOP_DATA)",
    )

    explain = add_command(
        commands,
        "explain",
        _explain,
        "tests of the heatmaps: do they follow the network, stay put, and name what it goes by",
        "radloop explain runs/ct",
    )
    explain.add_argument("run", type=Path, metavar="RUN", help="a run folder of radloop train")
    explain.add_argument("--split", default="test", help="train, validation or test (the default)")
    explain.add_argument("--images", type=int, default=24, metavar="N", help="at most so many images (24)")
    explain.add_argument("--root", type=Path, metavar="DIR", help="where the data lie now, if they were moved")

    compare = add_command(
        commands,
        "compare",
        _compare,
        "two runs on the same cases: paired differences with intervals",
        "radloop compare runs/a runs/b",
    )
    compare.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="two runs, or several pairs (A1 B1 A2 B2 ...), whose cases are pooled (folds, or the same trained again with another seed); "
        "figures are the second's minus the first's",
    )
    compare.add_argument(
        "--split",
        default="",
        help="train, validation, test or cross-validation; where not given: test, or for folds cross-validation",
    )
    compare.add_argument("--out", type=Path, metavar="DIR", help="for compare.json")

    bundle = add_command(
        commands, "bundle", _bundle, "a run as a MONAI bundle, for others to load", "radloop bundle runs/ct ct_bundle/"
    )
    bundle.add_argument("run", type=Path, metavar="RUN", help="a run folder of radloop train")
    bundle.add_argument("out", type=Path, metavar="OUT", help="the bundle: a folder that is empty or not there yet")
    bundle.add_argument(
        "--onnx", action="store_true", help="the whole model as ONNX, too (pip install 'radloop[onnx]')"
    )


def _train(options: argparse.Namespace) -> int:
    from pipeline.config import load_config

    config = load_config(
        options.config, options.set
    )  # a wrong value is said before torch is imported, which takes seconds
    from pipeline.train import train
    from pipeline.training.distributed import MainEnded

    try:
        facts = train(config, options.out, root=options.root, resume=options.resume)
    except MainEnded:
        return WRONG_USE  # of torchrun's processes, the first one says why
    if os.environ.get("RANK", "0") != "0":
        return DONE
    print(f"trained {facts.name}: weights of epoch {facts.best_epoch} in {options.out}")
    print(f"next: radloop evaluate {options.out}")
    return DONE


def _evaluate(options: argparse.Namespace) -> int:
    from pipeline.evaluate import evaluate, summary_lines

    record = evaluate(options.run, split=options.split, data=options.data, root=options.root, stress=options.stress)
    print("\n".join(summary_lines(record)))
    print(f"figures and pictures: {record['folder']}")
    return SOME_FAILED if record["failed"] else DONE


def _explain(options: argparse.Namespace) -> int:
    from pipeline.explain import PAGE_FILE, explain, summary_lines

    record = explain(options.run, split=options.split, images=options.images, root=options.root)
    print("\n".join(summary_lines(record)))
    print(f"page: {Path(record['folder']) / PAGE_FILE}")
    return DONE


def _compare(options: argparse.Namespace) -> int:
    runs = options.runs
    if len(runs) % 2:
        raise ConfigError(f"expected two runs, or pairs of them, found {len(runs)}")
    from pipeline.compare import compare, compare_lines

    first, *also = zip(runs[::2], runs[1::2], strict=True)
    record = compare(*first, also=also, split=options.split, out=options.out)
    print("\n".join(compare_lines(record)))
    return DONE


def _bundle(options: argparse.Namespace) -> int:
    from pipeline.bundle import bundle

    print("\n".join(bundle(options.run, options.out, onnx=options.onnx)))
    return DONE
