"""`radloop fetch`: studies from a PACS to a folder, by QIDO-RS and WADO-RS, or C-FIND with C-GET or C-MOVE.

Every instance that the PACS says it has of what is asked for is afterwards a file, or a row of `fetched.csv` with the reason. Called again
it asks for what is not there.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.dicom.dicom_web import WebClient
from pipeline.errors import ConfigError
from pipeline.exchange.catalog import Instance, Search, Wanted, by_dimse, by_web, instances
from pipeline.exchange.journal import Journal
from pipeline.exchange.retrieval import ByGet, ByMove, ByWeb, Shelf, Way, retrieve
from pipeline.files import alone
from pipeline.peers import DimsePeer, Patience, Peer, Tls, WebPeer, checked_aet, credentials, parse_peer
from pipeline.progress import track
from pipeline.wording import counted

FETCHED_FILE = "fetched.csv"
COLUMNS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "path", "status", "reason")
KEY = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")
THERE, MISSING = "there", "missing"
DID_NOT_COME = "the peer did not send it"


@dataclass
class FetchSummary:
    """What was asked for, and what came of it."""

    peer: str
    asked: int = 0
    before: int = 0
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Instances that are not there."""
        return self.statuses[MISSING]

    def lines(self) -> list[str]:
        """For the terminal."""
        if not self.asked:
            return [f"{self.peer}: has nothing of what was asked for"]
        came = self.statuses[THERE] - self.before
        lines = [f"{self.peer}: {counted(came, 'instance')} fetched, {self.before:,} there before"]
        if self.failed:
            lines.append(f"missing: {self.failed:,} ({FETCHED_FILE} says why)")
        return lines


def fetch(
    source: str,
    to: Path,
    wanted: Wanted,
    *,
    aet: str = "RADLOOP",
    by_move: bool = False,
    port: int = 11112,
    associations: int = 2,
    with_tls: bool = False,
    tls: Tls | None = None,
    patience: Patience | None = None,
    progress: bool = True,
) -> FetchSummary:
    """Fetches from `source` (as `parse_peer`) what is `wanted` to the folder `to`.

    `by_move`: C-MOVE to ourselves at `port`, in place of C-GET. Raises ConfigError; PeerError where the PACS cannot be asked.
    """
    peer, patience = parse_peer(source), patience or Patience()
    if associations < 1:
        raise ConfigError(f"--associations {associations}: expected 1 or more")
    with ExitStack() as stack:
        search, way = _ways(peer, checked_aet(aet), by_move, port, associations, with_tls, tls, patience, stack)
        stack.enter_context(alone(to, "fetches into"))
        journal = stack.enter_context(Journal(to / FETCHED_FILE, COLUMNS, KEY))
        shelf = Shelf(to, {one.instance: one for one in instances(search, wanted)})
        summary = FetchSummary(str(peer), len(shelf.asked), sum(map(shelf.has, shelf.asked.values())))
        coming = retrieve(way, shelf, patience)
        for one in track(coming, "fetching", summary.asked - summary.before, show=progress):
            _book(journal, shelf, one)
        for one in shelf.asked.values():
            summary.statuses[_book(journal, shelf, one)] += 1
    return summary


def _ways(
    peer: Peer,
    aet: str,
    by_move: bool,
    port: int,
    connections: int,
    with_tls: bool,
    tls: Tls | None,
    patience: Patience,
    stack: ExitStack,
) -> tuple[Search, Way]:
    """How the peer is searched, and how its instances come."""
    secure = with_tls or (isinstance(peer, WebPeer) and peer.url.startswith("https://"))
    if tls is not None and tls != Tls() and not secure:
        raise ConfigError(f"{peer}: certificates are given, but no TLS is asked for (--tls, or https://)")
    context = (tls or Tls()).client_context() if secure else None
    if isinstance(peer, WebPeer):
        if by_move:
            raise ConfigError(f"{peer}: C-MOVE is for DIMSE peers; DICOMweb has WADO-RS")
        client = WebClient(peer, patience, context, credentials())
        stack.callback(client.close)
        return by_web(client), ByWeb(client, connections)
    search = by_dimse(peer, aet, patience, context)
    return search, _by_dimse(peer, aet, by_move, port, patience, secure, tls, context)


def _by_dimse(
    peer: DimsePeer,
    aet: str,
    by_move: bool,
    port: int,
    patience: Patience,
    secure: bool,
    tls: Tls | None,
    context: object,
) -> Way:
    if not by_move:
        return ByGet(peer, aet, patience, context)  # type: ignore[arg-type]
    server_tls = tls.server_context() if secure and tls is not None and tls.certificate is not None else None
    return ByMove(peer, aet, port, patience, context, server_tls)  # type: ignore[arg-type]


def _book(journal: Journal, shelf: Shelf, one: Instance) -> str:
    there = shelf.has(one)
    status = THERE if there else MISSING
    journal.put(
        {
            "study_instance_uid": one.study,
            "series_instance_uid": one.series,
            "sop_instance_uid": one.instance,
            "path": shelf.path(one).relative_to(shelf.folder).as_posix() if there else "",
            "status": status,
            "reason": "" if there else shelf.reasons.get(one.instance, DID_NOT_COME),
        }
    )
    return status
