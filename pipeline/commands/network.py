"""To and from a PACS."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.parsing import DONE, SOME_FAILED, Commands, add_command


def add(commands: Commands) -> None:
    """Adds this group's commands."""
    _add_send(commands)
    _add_receive(commands)
    _add_fetch(commands)


def _add_send(commands: Commands) -> None:
    send = add_command(
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


def _add_receive(commands: Commands) -> None:
    receive = add_command(
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


def _add_fetch(commands: Commands) -> None:
    fetch = add_command(
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
