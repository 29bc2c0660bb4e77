"""Instances from a PACS to a folder, again and again with growing pauses until each is there or the peer says why not.

`FOLDER/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm`, as the peer stores them, each whole or not at all; only what was asked
for is kept. Ways: WADO-RS; C-GET; C-MOVE, for which we listen.
"""

from __future__ import annotations

import shutil
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from pipeline.dicom.association import NothingAccepted
from pipeline.dicom.dicom_web import WebClient
from pipeline.dicom.query_scu import get, move
from pipeline.dicom.received import read_received
from pipeline.dicom.storage_scp import NOT_UNDERSTOOD, OUT_OF_RESOURCES, STORED, Arrived, Arriving, StorageServer
from pipeline.errors import ConfigError, PeerError, Rejected
from pipeline.exchange.allow_list import AllowList
from pipeline.exchange.catalog import Instance
from pipeline.files import whole_file
from pipeline.peers import DimsePeer, Patience

PIECE_BYTES = 2**20
MOST_A_REQUEST = 64
"""UIDs of single instances in one C-GET or C-MOVE."""
MOST_OBJECT_BYTES = 4 * 2**30
ARRIVING = ".arriving"

Reasons = dict[str, str]
"""SOPInstanceUID → why it did not come."""


@dataclass
class Shelf:
    """Where instances go. An `Intake` for those that a peer sends to us."""

    folder: Path
    asked: dict[str, Instance]
    allowed: AllowList = field(default_factory=lambda: AllowList.of([]))
    reasons: Reasons = field(default_factory=dict)

    def path(self, instance: Instance) -> Path:
        """Of its file."""
        return self.folder / instance.study / instance.series / f"{instance.instance}.dcm"

    def has(self, instance: Instance) -> bool:
        """Whether it is there, whole."""
        return self.path(instance).is_file()

    def may_connect(self, host: str) -> bool:
        """Only the peer that we asked."""
        return self.allowed.has_host(host)

    def may_associate(self, host: str, aet: str) -> bool:
        """The same: archives call themselves by several titles."""
        return self.allowed.has(host, aet)

    def keep(self, arrived: Arrived) -> int:
        """The status for a C-STORE: of what we asked for, and as what it said that it is."""
        instance = self.asked.get(arrived.sop_instance_uid)
        if instance is None:
            return NOT_UNDERSTOOD
        try:
            if arrived.data.problem:
                raise OSError(None, arrived.data.problem)
            with arrived.data.open() as data:
                header = read_received(data, arrived.transfer_syntax_uid)
            found = (header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
            if found != (instance.study, instance.series, instance.instance):
                self.reasons[instance.instance] = "the peer sent another instance under its name"
                return NOT_UNDERSTOOD
            with whole_file(self.path(instance)) as file, arrived.data.open() as data:
                file.write(arrived.file_head())
                shutil.copyfileobj(data, file, PIECE_BYTES)
        except Rejected as rejected:
            self.reasons[instance.instance] = str(rejected)
            return NOT_UNDERSTOOD
        except OSError as error:
            self.reasons[instance.instance] = error.strerror or type(error).__name__
            return OUT_OF_RESOURCES
        return STORED


class Way:
    """How instances come: one attempt at each of some, reasons to the shelf. Raises PeerError where none comes at all."""

    def once(self, shelf: Shelf, left: Sequence[Instance]) -> None:
        raise NotImplementedError

    def listening(self, shelf: Shelf) -> AbstractContextManager[None]:
        """What has to run meanwhile."""
        return _place_for_large(shelf)


@dataclass
class ByWeb(Way):
    """WADO-RS, several at once."""

    client: WebClient
    connections: int = 2

    def once(self, shelf: Shelf, left: Sequence[Instance]) -> None:
        """Each by a request of its own."""

        def one(instance: Instance) -> None:
            path = f"studies/{instance.study}/series/{instance.series}/instances/{instance.instance}"
            try:
                with whole_file(shelf.path(instance)) as file:
                    self.client.retrieve(path, file)
            except PeerError as error:
                shelf.reasons[instance.instance] = str(error)

        with ThreadPoolExecutor(self.connections) as pool:
            for _ in pool.map(one, left):
                pass


@dataclass
class ByGet(Way):
    """C-GET, a series at a time."""

    peer: DimsePeer
    aet: str
    patience: Patience
    tls: ssl.SSLContext | None = None

    def once(self, shelf: Shelf, left: Sequence[Instance]) -> None:
        """Whole series where all is left, else the instances alone."""

        def begin() -> Arriving:
            return Arriving(shelf.folder / ARRIVING, MOST_OBJECT_BYTES)

        def request(keys: dict[str, str], some: Sequence[Instance]) -> None:
            classes = sorted({one.sop_class for one in some})
            get(self.peer, self.aet, keys, classes if all(classes) else (), shelf.keep, begin, self.patience, self.tls)

        _by_series(shelf, left, request)


@dataclass
class ByMove(Way):
    """C-MOVE to a node of our own at `port`, which the peer has to know by our title."""

    peer: DimsePeer
    aet: str
    port: int
    patience: Patience
    tls: ssl.SSLContext | None = None
    server_tls: ssl.SSLContext | None = None

    def once(self, shelf: Shelf, left: Sequence[Instance]) -> None:
        """As C-GET."""

        def request(keys: dict[str, str], _: Sequence[Instance]) -> None:
            move(self.peer, self.aet, keys, self.patience, self.tls)

        _by_series(shelf, left, request)

    @contextmanager
    def listening(self, shelf: Shelf) -> Iterator[None]:
        """The node; it takes from the peer's address alone."""
        shelf.allowed = AllowList.of([f"*@{self.peer.host}"])
        folder = shelf.folder / ARRIVING
        try:
            server = StorageServer(
                self.aet, "", self.port, shelf, folder, patience=self.patience, tls=self.server_tls,
                most_object_bytes=MOST_OBJECT_BYTES,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"--port {self.port}: cannot listen there ({error.strerror or error})") from None
        server.start()
        try:
            yield
        finally:
            server.stop(1.0)
            shutil.rmtree(folder, ignore_errors=True)


def retrieve(way: Way, shelf: Shelf, patience: Patience) -> Iterator[Instance]:
    """What comes, in no order; what did not come has its reason in `shelf.reasons`. Raises PeerError where the way itself is not there."""
    left = [one for one in shelf.asked.values() if not shelf.has(one)]
    failures, pause = 0, threading.Event()
    with way.listening(shelf):
        while left:
            try:
                way.once(shelf, left)
            except NothingAccepted:
                raise
            except PeerError as error:
                for one in left:
                    shelf.reasons.setdefault(one.instance, str(error))
                if not error.passing:
                    failures = patience.attempts
            came = [one for one in left if shelf.has(one)]
            for one in came:
                shelf.reasons.pop(one.instance, None)
            yield from came
            left = [one for one in left if not shelf.has(one)]
            failures = 0 if came else failures + 1
            if not left or failures >= patience.attempts:
                return
            pause.wait(patience.pause_s(max(failures, 1)))


def _by_series(
    shelf: Shelf, left: Sequence[Instance], request: Callable[[dict[str, str], Sequence[Instance]], None]
) -> None:
    """Asks for what is left of each series; a series that fails is passed over. Raises the last PeerError where all failed."""
    failure: PeerError | None = None
    through = 0
    for (study, series), group in groupby(left, key=lambda one: (one.study, one.series)):
        some = list(group)
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        asked_first = sum(one.series == series for one in shelf.asked.values()) == len(some)
        lists = (
            [some] if asked_first else [some[at : at + MOST_A_REQUEST] for at in range(0, len(some), MOST_A_REQUEST)]
        )
        for part in lists:
            single = {} if asked_first else {"SOPInstanceUID": "\\".join(one.instance for one in part)}
            try:
                request({**keys, **single}, part)
                through += 1
            except NothingAccepted:
                raise
            except PeerError as error:
                failure = error
                for one in part:
                    shelf.reasons[one.instance] = str(error)
    if failure is not None and not through:
        raise failure


@contextmanager
def _place_for_large(shelf: Shelf) -> Iterator[None]:
    """A folder for large instances on their way, gone in the end with what a killed fetch left in it."""
    folder = shelf.folder / ARRIVING
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
