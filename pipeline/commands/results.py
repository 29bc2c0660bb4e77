"""To predictions and DICOM objects, and whether objects are valid."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.parsing import DONE, SOME_FAILED, Commands, add_command, add_engine, add_root


def add(commands: Commands) -> None:
    """Adds this group's commands."""
    infer = add_command(
        commands,
        "infer",
        _infer,
        "predictions and DICOM objects for any source",
        "radloop infer runs/ct export/ --out results/",
    )
    infer.add_argument("run", type=Path, metavar="RUN", help="a run folder of radloop train, or a bundle made of one")
    infer.add_argument(
        "source", metavar="SOURCE", help="an export folder, a DICOMDIR, a file, or a manifest; labelled or not"
    )
    infer.add_argument("--out", type=Path, required=True, metavar="OUT", help="for tables, objects and overlays")
    infer.add_argument(
        "--write",
        metavar="KINDS",
        help="objects to write, e.g. sc,seg,sr; none; by default what the profile says (sc). All: sc (Secondary Capture), sc-multiframe, "
        "overlay (60xx plane), gsps (presentation state), seg (segmentation), pmap (parametric map), sr (structured report), kos (key "
        "objects), pdf",
    )
    infer.add_argument(
        "--profile",
        default="",
        metavar="NAME",
        help="a site's profile, shipped or a YAML file, in place of the run's own",
    )
    infer.add_argument(
        "--strict-scope", action="store_true", help="write no object for a case outside the model's scope"
    )
    infer.add_argument(
        "--replaces",
        type=Path,
        metavar="OLD",
        help="OUT of an earlier inference: its objects that are not made again are retracted by rejection notes",
    )
    add_engine(infer)
    add_root(infer)

    check = add_command(
        commands,
        "check",
        _check,
        "is this valid DICOM? Anybody's files: what is wrong with which",
        "radloop check results/ --out checked/",
    )
    check.add_argument(
        "paths", type=Path, nargs="+", metavar="FILES", help="DICOM files, folders of them, or .zip archives"
    )
    check.add_argument("--out", type=Path, metavar="DIR", help="for check.csv, a row a file")
    check.add_argument(
        "--all", action="store_true", help="a line for every file: also for those that are ok, or no DICOM"
    )


def _infer(options: argparse.Namespace) -> int:
    from pipeline.infer import infer

    kinds = [part.strip() for part in (options.write or "").split(",") if part.strip() not in ("", "none")]
    summary = infer(
        options.run,
        options.source,
        options.out,
        write=None if options.write is None else kinds,
        profile=options.profile,
        strict_scope=options.strict_scope,
        replaces=options.replaces,
        root=options.root,
        engine=options.engine,
    )
    print("\n".join(summary.lines()))
    print(f"tables and objects: {options.out}")
    return SOME_FAILED if summary.failed or not summary.cases else DONE


def _check(options: argparse.Namespace) -> int:
    from pipeline.check import CHECK_FILE, check

    summary = check(options.paths, out=options.out)
    print("\n".join(summary.lines(every=options.all)))
    if options.out:
        print(f"table: {options.out / CHECK_FILE}")
    return SOME_FAILED if summary.failed else DONE
