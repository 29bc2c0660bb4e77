"""`radloop receive`: a DICOM node. Studies are kept, inferred once they have been quiet for a while, and the results are sent on.

A C-STORE is answered with success only when the file is safely on the disk (pipeline.exchange.spool). Receiving, inferring (a process of
its own) and sending know nothing of each other but the files in the spool and each study's `study.json`; so the node may be killed at any
moment, and goes on where it was. What radloop made is acknowledged, kept apart and never inferred: a PACS that forwards everything makes
no loop.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.dicom.storage_scp import Arrived, StorageServer
from pipeline.errors import ConfigError, PeerError, RadloopError
from pipeline.exchange.allow_list import AllowList
from pipeline.exchange.child import Child, ChildDied, ChildError
from pipeline.exchange.spool import Spool, only_node
from pipeline.exchange.status_page import served_status
from pipeline.exchange.studies import PATIENCE, Record, State, Studies, Study, digest_of
from pipeline.peers import Patience, Tls, checked_aet, parse_peer
from pipeline.progress import say
from pipeline.send import send
from pipeline.wording import counted

POLL_S = 0.2
INFER_LIMIT_S = 3600.0
"""A study's inference; a large one on a processor takes minutes."""
START_LIMIT_S = 600.0
"""Importing torch and loading the model, from a cold disk."""
GRACE_S = 60.0
"""For associations that are open when the node is to stop."""
ON_PAGE = 50
RESULTS_PATIENCE = Patience(attempts=2)
"""Of one sending; the study itself is tried again, with pauses up to ten minutes."""


@dataclass(frozen=True)
class NodeSettings:
    """A node. `allow`: see `AllowList`; `keep_hours`: how long a study stays in the spool after it is done."""

    spool: Path
    aet: str = "RADLOOP"
    host: str = ""
    port: int = 11112
    run: Path | None = None
    to: str = ""
    to_tls: bool = False
    write: tuple[str, ...] | None = None
    profile: str = ""
    strict_scope: bool = False
    allow: tuple[str, ...] = ()
    tls: Tls | None = None
    quiet_s: float = 60.0
    keep_hours: float = 24.0
    most_associations: int = 10
    most_object_bytes: int = 2 * 2**30
    most_spool_bytes: int = 100 * 2**30
    least_free_bytes: int = 2**30
    status_host: str = "127.0.0.1"
    status_port: int = 8104
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class Inferred:
    """What an inference of a study came to."""

    cases: int = 0
    failed: int = 0
    objects: int = 0


@dataclass
class Node:
    """A running node: who may send (an `Intake`), what it holds, and what it does next."""

    settings: NodeSettings
    allowed: AllowList
    spool: Spool
    studies: Studies
    child: Child
    started: float = field(default_factory=time.time)
    stopping: threading.Event = field(default_factory=threading.Event)
    sent: int = 0

    def may_connect(self, host: str) -> bool:
        """Whether an address is on the allow list at all."""
        return self.allowed.has_host(host)

    def may_associate(self, host: str, aet: str) -> bool:
        """Whether this AE title may call from this address."""
        return self.allowed.has(host, aet)

    def keep(self, arrived: Arrived) -> int:
        """The status for a C-STORE."""
        return self.spool.keep(arrived)

    def work(self) -> None:
        """Studies that are due, one after the other, until the node is to stop."""
        while not self.stopping.is_set():
            study = self.studies.due() if self.settings.run is not None else None
            if study is not None:
                self._treat(study)
            else:
                self._tidy()
                self.stopping.wait(POLL_S)

    def status(self) -> dict[str, Any]:
        """For the status page."""
        counts, spool = self.spool.counts, self.spool
        latest = [
            {"study": uid, "state": state, "failures": failures, "problem": problem, "changed": when}
            for uid, state, failures, problem, when in self.studies.listed(ON_PAGE)
        ]
        return {
            "aet": self.settings.aet,
            "state": "stopping" if self.stopping.is_set() else "running",
            "up_seconds": round(time.time() - self.started),
            "studies": self.studies.counts(),
            "instances": {
                "stored": counts.stored,
                "of radloop's own": counts.own,
                "sent again": counts.again,
                "refused": counts.refused,
            },
            "objects_sent": self.sent,
            "spool_bytes": spool.bytes,
            "spool_limit_bytes": spool.most_bytes,
            "disk_free_bytes": shutil.disk_usage(spool.root).free,
            "last_refusal": counts.last_problem,
            "last_error": next((one["problem"] for one in latest if one["problem"]), ""),
            "latest": latest,
        }

    def _treat(self, study: Study) -> None:
        """One study, as far as it gets; what stopped it is kept with it."""
        record = _begun(study)
        try:
            if not record.inferred:
                study.active = State.INFERRING
                result = self._infer(study, record)
                record = replace(record, inferred=True, failures=0, note=_words(result))
                self.studies.keep(study, record)
            refused = ""
            if self.settings.to:
                study.active = State.SENDING
                refused = self._send(study, record)
            self._done(study, replace(record, problem="; ".join(filter(None, (record.note, refused)))))
        except (RadloopError, OSError) as error:
            self._failed(study, record, error)
        finally:
            study.active = None

    def _infer(self, study: Study, record: Record) -> Inferred:
        say(f"{study.uid}: inferring")
        settings = self.settings
        previous = study.results(record.previous) if record.previous else None
        result: Inferred = self.child.call(
            settings.run,
            study.images,
            study.results(record.images),
            settings.write,
            settings.profile,
            settings.strict_scope,
            previous if previous is not None and (previous / "objects.csv").is_file() else None,
            limit_s=INFER_LIMIT_S,
        )
        return result

    def _send(self, study: Study, record: Record) -> str:
        """Sends the objects; what is to be said of those that were refused. Raises PeerError where some are left."""
        out = study.results(record.images)
        if not any(out.glob("*/*/*.dcm")):
            return ""
        settings = self.settings
        tls = settings.tls if settings.to_tls or settings.to.startswith("https://") else None
        summary = send(
            out,
            settings.to,
            aet=settings.aet,
            with_tls=settings.to_tls,
            tls=tls,
            patience=replace(settings.patience, attempts=RESULTS_PATIENCE.attempts),
            progress=False,
        )
        self.sent += summary.statuses["stored"]
        if summary.left:
            raise PeerError(f"{counted(summary.left, 'object')} could not be sent yet; sent.csv says why", passing=True)
        return f"{counted(summary.failed, 'object')} refused by the peer; sent.csv says why" if summary.failed else ""

    def _done(self, study: Study, record: Record) -> None:
        self.studies.keep(study, replace(record, state=State.DONE, failures=0, finished=time.time()))
        for old in study.results("").glob("*"):
            if old.name != record.images:
                shutil.rmtree(old, ignore_errors=True)
        say(f"{study.uid}: done" + (f" ({record.problem})" if record.problem else ""))

    def _failed(self, study: Study, record: Record, error: Exception) -> None:
        """To be tried again after a pause; a study that cannot be inferred is given up in the end, an unreachable PACS never."""
        what = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
        failures = record.failures + 1
        given_up = isinstance(error, ChildError | ChildDied) and failures >= PATIENCE.attempts
        pause_s = PATIENCE.pause_s(failures)
        study.not_before = time.time() + pause_s
        say(f"{study.uid}: {what}; " + ("given up" if given_up else f"again in {pause_s:g} s"))
        record = replace(
            record,
            state=State.FAILED if given_up else State.WAITING,
            failures=failures,
            problem=what,
            finished=time.time() if given_up else 0.0,
        )
        try:
            self.studies.keep(study, record)
        except OSError:
            study.record = record  # the disk is full: it stays in memory

    def _tidy(self) -> None:
        """Studies that were done long ago leave the spool."""
        for uid in self.studies.old(self.settings.keep_hours * 3600):
            try:
                if self.spool.remove(uid):
                    self.studies.forget(uid)
            except OSError:
                pass  # next time


def receive(settings: NodeSettings) -> list[str]:
    """Runs a node until SIGTERM or SIGINT; then what it had begun is finished. Lines for the terminal.

    Raises ConfigError and RadloopError where it cannot begin: the run, the port, the certificates, the peer.
    """
    checked_aet(settings.aet)
    _check(settings)
    with ExitStack() as stack:
        stack.enter_context(only_node(settings.spool))
        studies = Studies(settings.spool / "studies", settings.quiet_s)
        spool = Spool(
            settings.spool,
            settings.most_spool_bytes,
            settings.least_free_bytes,
            studies.image_arrived,
            studies.note_own,
        )
        child = Child(infer_study)
        stack.callback(child.close)
        node = Node(settings, AllowList.of(settings.allow), spool, studies, child)
        if settings.run is not None:
            child.call(settings.run, None, None, settings.write, settings.profile, False, None, limit_s=START_LIMIT_S)
        server = _listening(settings, node)
        stack.callback(server.stop, 0.0)
        page = ""
        if settings.status_port >= 0 and settings.status_host:
            page = stack.enter_context(served_status(settings.status_host, settings.status_port, node.status))
        stack.enter_context(_stopped_by_signals(node.stopping))
        server.start()
        threading.Thread(target=_close_when, args=(node.stopping, server), daemon=True).start()
        say(f"listening as {settings.aet} on port {server.port}" + (f"; status: {page}" if page else ""))
        node.work()
        server.stop(GRACE_S)
        counts = studies.counts()
        return [
            f"stopped: {counted(spool.counts.stored, 'instance')} stored, {counted(node.sent, 'object')} sent on",
            f"studies: {', '.join(f'{count} {state}' for state, count in counts.items() if count) or 'none'}",
        ]


def infer_study(
    run: Path,
    images: Path | None,
    out: Path | None,
    write: Sequence[str] | None,
    profile: str,
    strict_scope: bool,
    replaces: Path | None,
) -> Inferred:
    """In the child: a study's inference; without images, whether the run can be used at all."""
    from pipeline.infer import infer
    from pipeline.prediction.predict import load_model
    from pipeline.profile_settings import load_profile
    from pipeline.run import read_config

    if images is None or out is None:
        load_profile(profile or read_config(run).output.profile)
        load_model(run)
        return Inferred()
    summary = infer(
        run,
        str(images),
        out,
        write=write,
        profile=profile,
        strict_scope=strict_scope,
        replaces=replaces,
        progress=False,
    )
    return Inferred(summary.cases, summary.failed, summary.objects)


def _check(settings: NodeSettings) -> None:
    if settings.run is not None and not settings.run.is_dir():
        raise ConfigError(f"--run {settings.run}: expected a run folder of radloop train; it is not there")
    if settings.to:
        parse_peer(settings.to)
        if settings.run is None:
            raise ConfigError("--to says where results go: expected --run, the model that makes them")
    tls = settings.tls or Tls()
    outgoing = bool(settings.to) and (settings.to_tls or settings.to.startswith("https://"))
    if tls.certificate is None and not outgoing and (settings.to_tls or tls != Tls()):
        raise ConfigError(
            "--tls is for what is sent --to a peer; to listen with TLS give --tls-certificate and --tls-key"
        )
    for value, option in (
        (settings.most_associations, "--max-associations"),
        (settings.most_object_bytes, "--max-object"),
        (settings.most_spool_bytes, "--max-spool"),
    ):
        if value <= 0:
            raise ConfigError(f"{option}: expected more than 0")
    if settings.quiet_s < 0 or settings.keep_hours < 0 or settings.least_free_bytes < 0:
        raise ConfigError("--quiet, --keep and --min-free: expected 0 or more")
    if not 0 <= settings.port < 65536 or settings.status_port >= 65536:
        raise ConfigError("--port and --status-port: expected 0 to 65535")


def _listening(settings: NodeSettings, node: Node) -> StorageServer:
    tls = settings.tls if settings.tls is not None and settings.tls.certificate is not None else None
    try:
        return StorageServer(
            settings.aet,
            settings.host,
            settings.port,
            node,
            node.spool.arriving,
            patience=settings.patience,
            most_associations=settings.most_associations,
            most_object_bytes=settings.most_object_bytes,
            tls=tls.server_context() if tls is not None else None,
        )
    except OSError as error:
        raise ConfigError(f"--port {settings.port}: cannot listen there ({error.strerror or error})") from None


@contextmanager
def _stopped_by_signals(stopping: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stopping`; a second one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close_when(stopping: threading.Event, server: StorageServer) -> None:
    """No association begins any more, also while a study is still being finished."""
    stopping.wait()
    server.stop(GRACE_S)


def _begun(study: Study) -> Record:
    """The record of the images that are there now; results of others are to be replaced."""
    images, record = digest_of(study.images), study.record
    if record.images == images:
        return record
    previous = record.images if record.inferred else record.previous
    return Record(images=images, previous=previous, failures=record.failures)


def _words(result: Inferred) -> str:
    if not result.cases:
        return "nothing to predict; rejects.csv and exclusions.csv say why"
    return f"{counted(result.failed, 'case')} failed; predictions.csv says why" if result.failed else ""
