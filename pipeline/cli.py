"""The command line: parse, call a stage, print what it returns. Exit codes: 0 done, 1 some cases failed, 2 wrong use or input.

Stages are imported when their command runs, so that `radloop index` needs no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from pipeline import __version__
from pipeline.cluster import ENGINES, LOCAL
from pipeline.errors import ConfigError, RadloopError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, SOME_FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except RadloopError as error:
        print(f"radloop: {error}", file=sys.stderr)
        return WRONG_USE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has enough
        return DONE
    except OSError as error:
        print(f"radloop: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("radloop: interrupted; what was finished is kept", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="radloop",
        description="From a PACS export to a trained model and back: DICOM in, DICOM out. Research use only - not for diagnosis.",
    )
    parser.add_argument("--version", action="version", version=f"radloop {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_data_commands(commands)
    _add_model_commands(commands)
    _add_network_commands(commands)
    _add_other_commands(commands)
    return parser


def _add_data_commands(commands: Commands) -> None:
    """What a source holds, and what a dataset is worth."""
    index = _command(
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
    _add_engine(index)
    _add_root(index)

    audit = _command(
        commands, "audit", _audit, "what a reviewer of the dataset would ask", "radloop audit data.yaml --out audit/"
    )
    audit.add_argument("manifest", metavar="MANIFEST", help="a dataset: a shipped manifest's name, or a YAML file")
    audit.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for audit.json, audit.html, exclusions.csv and index/"
    )
    _add_root(audit)


def _add_model_commands(commands: Commands) -> None:
    """To a model, its figures, and its predictions."""
    train = _command(commands, "train", _train, "train a model", "radloop train ct_slices --root data/ --out runs/ct")
    train.add_argument("config", metavar="CONFIG", help="a shipped configuration's name, or a YAML file")
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run folder to make")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. training.epochs=5"
    )
    train.add_argument("--resume", action="store_true", help="go on with a training that was interrupted")
    _add_root(train)

    evaluate = _command(
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
    _add_root(evaluate)

    explain = _command(
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

    compare = _command(
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
        help="two runs, or several pairs (A1 B1 A2 B2 ...), whose cases are pooled; figures are the second's minus the first's",
    )
    compare.add_argument(
        "--split",
        default="",
        help="train, validation, test or cross-validation; where not given: test, or for folds cross-validation",
    )
    compare.add_argument("--out", type=Path, metavar="DIR", help="for compare.json")

    infer = _command(
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
    _add_engine(infer)
    _add_root(infer)

    bundle = _command(
        commands, "bundle", _bundle, "a run as a MONAI bundle, for others to load", "radloop bundle runs/ct ct_bundle/"
    )
    bundle.add_argument("run", type=Path, metavar="RUN", help="a run folder of radloop train")
    bundle.add_argument("out", type=Path, metavar="OUT", help="the bundle: a folder that is empty or not there yet")
    bundle.add_argument(
        "--onnx", action="store_true", help="the whole model as ONNX, too (pip install 'radloop[onnx]')"
    )


def _add_network_commands(commands: Commands) -> None:
    """To and from a PACS."""
    send = _command(
        commands,
        "send",
        _send,
        "objects to a PACS, by C-STORE or STOW-RS; what is there already is not sent again",
        "radloop send results/ --to PACS@10.1.0.5:104",
    )
    send.add_argument(
        "out", type=Path, metavar="OUT", help="a folder with DICOM files; sent.csv in it keeps what became of each"
    )
    send.add_argument("--to", required=True, metavar="PEER", help="AET@host:port, or https://host/dicom-web")
    send.add_argument("--associations", type=int, default=2, metavar="N", help="at once (2)")
    send.add_argument(
        "--commit", action="store_true", help="ask for storage commitment, and count what is not committed as failed"
    )
    send.add_argument(
        "--commit-port",
        type=int,
        default=0,
        metavar="PORT",
        help="where the PACS answers to that; by default on our own association",
    )
    send.add_argument("--commit-wait", type=float, default=60.0, metavar="SECONDS", help="for that answer (60)")
    _add_network_options(send)

    receive = _command(
        commands,
        "receive",
        _receive,
        "a DICOM node: studies come in, are inferred once they are quiet, and results are sent on",
        "radloop receive --run runs/ct --spool spool/ --to PACS@10.1.0.5:104 --allow PACS@10.1.0.5",
    )
    receive.add_argument("--run", type=Path, metavar="RUN", help="a run folder; without it studies are only collected")
    receive.add_argument(
        "--spool", type=Path, required=True, metavar="DIR", help="for what is received, and its results"
    )
    receive.add_argument(
        "--host", default="", metavar="ADDRESS", help="where to listen; every address of this machine where not given"
    )
    receive.add_argument("--port", type=int, default=11112, help="where to listen (11112)")
    receive.add_argument(
        "--to", default="", metavar="PEER", help="where results go: AET@host:port, or https://host/dicom-web"
    )
    receive.add_argument("--write", metavar="KINDS", help="objects to write, as radloop infer has it")
    receive.add_argument("--profile", default="", metavar="NAME", help="as radloop infer has it")
    receive.add_argument("--strict-scope", action="store_true", help="as radloop infer has it")
    receive.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="AET@HOST",
        help="who may send, again for each: host, address or network, * for any; by default any AE title of this machine",
    )
    receive.add_argument(
        "--quiet", type=float, default=60.0, metavar="SECONDS", help="without a new image, and a study is inferred (60)"
    )
    receive.add_argument(
        "--keep", type=float, default=24.0, metavar="HOURS", help="before a study that is done leaves the spool (24)"
    )
    receive.add_argument("--max-associations", type=int, default=10, metavar="N", help="at once (10)")
    receive.add_argument("--max-object", type=float, default=2.0, metavar="GIB", help="largest object (2)")
    receive.add_argument(
        "--max-spool", type=float, default=100.0, metavar="GIB", help="received objects in the spool (100)"
    )
    receive.add_argument("--min-free", type=float, default=1.0, metavar="GIB", help="of the disk that stay free (1)")
    receive.add_argument("--status-host", default="127.0.0.1", metavar="ADDRESS", help="of the status page (127.0.0.1)")
    receive.add_argument(
        "--status-port", type=int, default=8104, metavar="PORT", help="of the status page (8104), -1 for none"
    )
    _add_network_options(receive)

    fetch = _command(
        commands,
        "fetch",
        _fetch,
        "studies from a PACS, by DICOMweb, C-GET or C-MOVE; what is there already is not fetched again",
        "radloop fetch --from PACS@10.1.0.5:104 --date 20260101-20260131 --modality CT --to export/",
    )
    fetch.add_argument(
        "--from", dest="source", required=True, metavar="PEER", help="AET@host:port, or https://host/dicom-web"
    )
    fetch.add_argument("--to", type=Path, required=True, metavar="DIR", help="for the files, and fetched.csv")
    fetch.add_argument("--study", action="append", default=[], metavar="UID", help="a StudyInstanceUID; again for each")
    fetch.add_argument("--date", default="", metavar="DATE", help="of studies: YYYYMMDD, or YYYYMMDD-YYYYMMDD")
    fetch.add_argument("--modality", action="append", default=[], metavar="CT", help="of series; again for each")
    fetch.add_argument("--associations", type=int, default=2, metavar="N", help="connections at once, of DICOMweb (2)")
    fetch.add_argument("--by-move", action="store_true", help="C-MOVE to ourselves in place of C-GET")
    fetch.add_argument("--port", type=int, default=11112, help="where we listen for it (11112)")
    _add_network_options(fetch)


def _add_network_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--aet", default="RADLOOP", metavar="TITLE", help="our own AE title (RADLOOP)")
    command.add_argument("--tls", action="store_true", help="TLS to a DIMSE peer; https:// says it itself")
    command.add_argument("--tls-ca", type=Path, metavar="FILE", help="who signs the other side's certificate (PEM)")
    command.add_argument("--tls-certificate", type=Path, metavar="FILE", help="our own (PEM)")
    command.add_argument(
        "--tls-key", type=Path, metavar="FILE", help="its key; a password for it in RADLOOP_TLS_PASSWORD"
    )
    command.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="for an answer of the other side (60)"
    )


def _add_other_commands(commands: Commands) -> None:
    """Beside the way from export to model and back."""
    volume = _command(
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
    _add_root(volume)

    check = _command(
        commands,
        "check",
        _check,
        "is this valid DICOM? Anybody's files, one line each",
        "radloop check results/ --out checked/",
    )
    check.add_argument(
        "paths", type=Path, nargs="+", metavar="FILES", help="DICOM files, folders of them, or .zip archives"
    )
    check.add_argument("--out", type=Path, metavar="DIR", help="for check.csv")

    deidentify = _command(
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
    _add_root(deidentify)

    reidentify = _command(
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

    cache = _command(
        commands, "cache", _cache, "show or remove prepared images", "radloop cache --clear --older-than 30"
    )
    cache.add_argument("--clear", action="store_true", help="remove them, but for those that a process uses")
    cache.add_argument(
        "--older-than", type=float, metavar="DAYS", help="with --clear: only what was not used for so long"
    )

    demo = _command(commands, "demo", _demo, "the whole loop on a generated export, offline", "radloop demo --out demo")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="made anew; demo where not given")

    _command(commands, "doctor", _doctor, "versions, devices and decoders", "radloop doctor")


def _command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    what: str,
    example: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=what, description=what, epilog=f"example: {example}")
    command.set_defaults(command=run)
    return command


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engine",
        choices=ENGINES,
        default=LOCAL,
        help="local: processes of this machine (the default); ray: a Ray cluster with shared storage, that of RAY_ADDRESS",
    )


def _add_root(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--root", type=Path, metavar="DIR", help="where a manifest's relative paths begin (or set RADLOOP_DATA)"
    )


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


def _bundle(options: argparse.Namespace) -> int:
    from pipeline.bundle import bundle

    print("\n".join(bundle(options.run, options.out, onnx=options.onnx)))
    return DONE


def _send(options: argparse.Namespace) -> int:
    from pipeline.peers import Patience, Tls
    from pipeline.send import Commitment, send

    summary = send(
        options.out,
        options.to,
        aet=options.aet,
        associations=options.associations,
        with_tls=options.tls,
        tls=Tls(options.tls_ca, options.tls_certificate, options.tls_key),
        commitment=Commitment(options.commit_port, options.commit_wait) if options.commit else None,
        patience=Patience(answer_s=options.timeout),
    )
    print("\n".join(summary.lines()))
    return SOME_FAILED if summary.failed else DONE


def _fetch(options: argparse.Namespace) -> int:
    from pipeline.exchange.catalog import Wanted
    from pipeline.fetch import fetch
    from pipeline.peers import Patience, Tls

    summary = fetch(
        options.source,
        options.to,
        Wanted(tuple(options.study), options.date, tuple(options.modality)),
        aet=options.aet,
        by_move=options.by_move,
        port=options.port,
        associations=options.associations,
        with_tls=options.tls,
        tls=Tls(options.tls_ca, options.tls_certificate, options.tls_key),
        patience=Patience(answer_s=options.timeout),
    )
    print("\n".join(summary.lines()))
    return SOME_FAILED if summary.failed or not summary.asked else DONE


def _receive(options: argparse.Namespace) -> int:
    from pipeline.peers import Patience, Tls
    from pipeline.receive import NodeSettings, receive

    gib = 2**30
    kinds = [part.strip() for part in (options.write or "").split(",") if part.strip() not in ("", "none")]
    lines = receive(
        NodeSettings(
            spool=options.spool,
            aet=options.aet,
            host=options.host,
            port=options.port,
            run=options.run,
            to=options.to,
            to_tls=options.tls,
            write=None if options.write is None else tuple(kinds),
            profile=options.profile,
            strict_scope=options.strict_scope,
            allow=tuple(options.allow),
            tls=Tls(options.tls_ca, options.tls_certificate, options.tls_key),
            quiet_s=options.quiet,
            keep_hours=options.keep,
            most_associations=options.max_associations,
            most_object_bytes=int(options.max_object * gib),
            most_spool_bytes=int(options.max_spool * gib),
            least_free_bytes=int(options.min_free * gib),
            status_host=options.status_host,
            status_port=options.status_port,
            patience=Patience(answer_s=options.timeout),
        )
    )
    print("\n".join(lines))
    return DONE


def _volume(options: argparse.Namespace) -> int:
    from pipeline.volumes import write_volumes

    summary = write_volumes(options.source, options.out, root=options.root, uneven=options.uneven, tilt=options.tilt)
    print("\n".join(summary.lines()))
    print(f"volumes and tables: {options.out}")
    return SOME_FAILED if summary.failed or not summary.volumes else DONE


def _check(options: argparse.Namespace) -> int:
    from pipeline.check import CHECK_FILE, check

    summary = check(options.paths, out=options.out)
    print("\n".join(summary.lines()))
    if options.out:
        print(f"table: {options.out / CHECK_FILE}")
    return SOME_FAILED if summary.failed else DONE


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


def _cache(options: argparse.Namespace) -> int:
    from pipeline.prepared.cache_folder import cache_root, clear, cleared_lines, listing

    days = options.older_than
    if days is not None and not options.clear:
        raise ConfigError("--older-than says what --clear removes: radloop cache --clear --older-than 30")
    if days is not None and not 0 <= days < float("inf"):
        raise ConfigError(f"--older-than {days:g}: expected days, from 0 on")
    root = cache_root()
    print("\n".join(cleared_lines(root, *clear(root, older_than_days=days or 0.0)) if options.clear else listing(root)))
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from pipeline.demo import demo

    print("\n".join(demo(options.out)))
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    from pipeline.doctor import report

    print("\n".join(report()))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
