"""What a source holds, what a dataset is worth, and series as volumes."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cluster import LOCAL
from pipeline.commands.parsing import DONE, SOME_FAILED, Commands, add_command, add_engine, add_root


def add(commands: Commands) -> None:
    """Adds this group's commands."""
    index = add_command(
        commands, "index", _index, "account for every file of a source", "radloop index export/ --out index/"
    )
    index.add_argument("source", metavar="SOURCE", help="an export folder or .zip, a DICOMDIR, a file, or a manifest")
    index.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="for index.parquet, rejects.csv, stacks.csv, summary.json",
    )
    add_engine(index)
    add_root(index)

    audit = add_command(
        commands, "audit", _audit, "what a reviewer of the dataset would ask", "radloop audit data.yaml --out audit/"
    )
    audit.add_argument("manifest", metavar="MANIFEST", help="a dataset: a shipped manifest's name, or a YAML file")
    audit.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for audit.json, audit.html, exclusions.csv and index/"
    )
    add_root(audit)

    volume = add_command(
        commands,
        "volume",
        _volume,
        "each series as a NIfTI volume, and why some are none",
        "radloop volume export/ --out volumes/",
    )
    volume.add_argument("source", metavar="SOURCE", help="an export folder or .zip, a DICOMDIR, a file, or a manifest")
    volume.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="for .nii.gz files, volumes.csv, volume_images.csv and rejects.csv",
    )
    volume.add_argument(
        "--uneven",
        choices=("resample", "refuse"),
        default="resample",
        help="slices missing or unevenly spaced: interpolate onto an even grid, which is said (the default), or refuse the series",
    )
    volume.add_argument(
        "--tilt",
        choices=("keep", "deskew"),
        default="keep",
        help="gantry tilt: keep the exact, sheared affine (the default; ITK cannot read such a NIfTI), or shift the slices "
        "so that the axes are at right angles",
    )
    add_root(volume)


def _index(options: argparse.Namespace) -> int:
    from pipeline.work import start_server

    if options.engine == LOCAL:
        start_server(
            ("pipeline.indexing.header_jobs", "pipeline.indexing.entries")
        )  # while this process imports the rest
    from pipeline.indexing.inventory import take_inventory
    from pipeline.indexing.sources import open_source
    from pipeline.indexing.summary import summary_text

    opened = open_source(options.source, options.root)
    opened.refuse_output(options.out)
    summary = take_inventory(opened.places, options.out, key=opened.key(), engine=options.engine, progress=True)
    print(summary_text(summary))
    print(f"tables: {options.out}")
    return DONE


def _audit(options: argparse.Namespace) -> int:
    from pipeline.audit import PAGE_FILE, audit, summary_lines

    record = audit(options.manifest, options.out, root=options.root)
    print("\n".join(summary_lines(record)))
    print(f"page: {options.out / PAGE_FILE}")
    return DONE


def _volume(options: argparse.Namespace) -> int:
    from pipeline.volumes import write_volumes

    summary = write_volumes(options.source, options.out, root=options.root, uneven=options.uneven, tilt=options.tilt)
    print("\n".join(summary.lines()))
    print(f"volumes and tables: {options.out}")
    return SOME_FAILED if summary.failed or not summary.volumes else DONE
