"""Images without their patients, and results back to them."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.parsing import DONE, SOME_FAILED, Commands, add_command, add_root


def add(commands: Commands) -> None:
    """Adds this group's commands."""
    deidentify = add_command(
        commands,
        "deidentify",
        _deidentify,
        "a source's DICOM images without their patients, by PS3.15 annex E",
        "radloop deidentify export/ --out clean/ --keep shifted-dates,patient",
    )
    deidentify.add_argument(
        "source", metavar="SOURCE", help="an export folder or .zip, a DICOMDIR, a file, or a manifest"
    )
    deidentify.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="for the objects, deidentified.csv, held_back.csv and rejects.csv; nothing in it identifies anybody",
    )
    deidentify.add_argument(
        "--keep",
        default="",
        metavar="OPTIONS",
        help="beyond the Basic Profile: uids, device, institution, patient (age, sex, size, ...), dates or shifted-dates, safe-private, "
        "overlays",
    )
    deidentify.add_argument(
        "--settings", type=Path, metavar="FILE", help="a YAML: options, descriptions that may stay, regions to blacken"
    )
    deidentify.add_argument(
        "--crosswalk",
        type=Path,
        metavar="FILE",
        help="where to write which new UID and pseudonym stands for whom; outside DIR, readable by its owner only",
    )
    add_root(deidentify)

    reidentify = add_command(
        commands,
        "reidentify",
        _reidentify,
        "results of de-identified studies become objects of the original ones",
        "radloop reidentify results/ --crosswalk ~/private/crosswalk.csv --out identified/",
    )
    reidentify.add_argument("results", type=Path, metavar="OUT", help="what radloop infer wrote of de-identified files")
    reidentify.add_argument(
        "--crosswalk", type=Path, required=True, metavar="FILE", help="what radloop deidentify --crosswalk wrote"
    )
    reidentify.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="for the objects, objects.csv, references.csv and not_reidentified.csv; the objects name their patients",
    )


def _deidentify(options: argparse.Namespace) -> int:
    from pipeline.deidentify import deidentify

    summary = deidentify(
        options.source,
        options.out,
        settings=options.settings,
        keep=[part.strip() for part in options.keep.split(",") if part.strip()],
        crosswalk=options.crosswalk,
        root=options.root,
    )
    print("\n".join(summary.lines()))
    print(f"objects and tables: {options.out}")
    return SOME_FAILED if summary.failed or not summary.deidentified else DONE


def _reidentify(options: argparse.Namespace) -> int:
    from pipeline.reidentify import reidentify

    summary = reidentify(options.results, options.out, crosswalk=options.crosswalk)
    print("\n".join(summary.lines()))
    print(f"objects and tables: {options.out}")
    return SOME_FAILED if summary.left or not summary.objects else DONE
