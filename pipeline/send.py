"""`radloop send`: the DICOM files of a folder to a PACS, by C-STORE or STOW-RS; what is stored there is not sent again.

`sent.csv` in the folder says of each object and peer what became of it, and why. A refused object is listed with the peer's reason while
the others go on; what could not be delivered goes the next time.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.dicom.commitment import commit
from pipeline.dicom.sendable import Sendable, read_sendable
from pipeline.dicom.statuses import Outcome
from pipeline.errors import ConfigError, PeerError, Rejected, RejectReason, SourceError
from pipeline.exchange.courier import Courier
from pipeline.exchange.journal import Journal
from pipeline.files import alone, file_digest
from pipeline.indexing.listing import walk
from pipeline.peers import DimsePeer, Patience, Tls, WebPeer, checked_aet, credentials, parse_peer
from pipeline.progress import track
from pipeline.wording import counted

SENT_FILE = "sent.csv"
COLUMNS = ("peer", "sop_instance_uid", "path", "sha256", "status", "reason", "attempts", "committed")
KEY = ("peer", "sop_instance_uid", "path")
COMMITTED, NOT_COMMITTED, NO_ANSWER = "yes", "no", "no answer"
UNSENDABLE = "unsendable"
HARMLESS = frozenset({RejectReason.NOT_AN_IMAGE, RejectReason.DICOMDIR, RejectReason.EMPTY})


@dataclass(frozen=True)
class Commitment:
    """That the peer shall say that it keeps the objects. `port`: where it may tell us, 0: on our association."""

    port: int = 0
    wait_s: float = 60.0


@dataclass
class SendSummary:
    """What became of a folder's objects with one peer."""

    peer: str
    statuses: Counter[str] = field(default_factory=Counter)
    before: int = 0
    uncommitted: int = 0
    asked_to_commit: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Objects that the peer does not have, or did not commit itself to."""
        return sum(count for status, count in self.statuses.items() if status != Outcome.STORED) + self.uncommitted

    @property
    def left(self) -> int:
        """Those that a later call may bring there."""
        return self.statuses[Outcome.LEFT]

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"{self.peer}: {counted(self.statuses[Outcome.STORED], 'object')} stored"]
        if self.before:
            lines[0] += f", {self.before:,} stored there before"
        for status, what in (
            (Outcome.REFUSED, "refused"),
            (Outcome.LEFT, "left for the next time"),
            (UNSENDABLE, "no DICOM that can be sent"),
        ):
            if self.statuses[status]:
                lines.append(f"{what}: {self.statuses[status]:,} ({SENT_FILE} says why)")
        if self.asked_to_commit:
            lines.append(
                f"not committed: {self.uncommitted:,}" if self.uncommitted else "the peer committed itself to all"
            )
        return [*lines, *self.notes]


def send(
    out: Path,
    to: str,
    *,
    aet: str = "RADLOOP",
    associations: int = 2,
    with_tls: bool = False,
    tls: Tls | None = None,
    commitment: Commitment | None = None,
    patience: Patience | None = None,
    stop: threading.Event | None = None,
    progress: bool = True,
) -> SendSummary:
    """Sends the DICOM files below `out` that `to` has not stored yet.

    `with_tls`: DIMSE over TLS (https:// says it itself). `tls`: files for it. Raises ConfigError and SourceError; PeerError where the peer
    refuses us altogether.
    """
    peer = parse_peer(to)
    if not out.is_dir():
        raise SourceError(f"{out}: expected a folder with DICOM files, such as radloop infer's --out; it is not there")
    if associations < 1:
        raise ConfigError(f"--associations {associations}: expected 1 or more")
    secure = with_tls or (isinstance(peer, WebPeer) and peer.url.startswith("https://"))
    if tls is not None and tls != Tls() and not secure:
        raise ConfigError(f"{peer}: certificates are given, but no TLS is asked for (--tls, or https://)")
    tls_context = (tls or Tls()).client_context() if secure else None
    patience = patience or Patience()
    courier = Courier(
        peer,
        checked_aet(aet),
        associations,
        patience,
        tls_context,
        credentials() if isinstance(peer, WebPeer) else None,
        stop or threading.Event(),
    )
    summary = SendSummary(str(peer))
    with alone(out, "sends from"), Journal(out / SENT_FILE, COLUMNS, KEY) as journal:
        due = list(_due(out, journal, summary))
        digests = {file.path: digest for file, digest in due}
        answers = courier.send([file for file, _ in due])
        for file, outcome, why in track(answers, "sending", len(due), show=progress):
            _book(journal, summary.peer, file, digests[file.path], out, outcome, why)
        for file, _ in due:
            row = journal.get(summary.peer, file.sop_instance_uid, file.path.relative_to(out).as_posix())
            summary.statuses[row["status"] if row else Outcome.LEFT] += 1
        if commitment is not None:
            server_tls = tls.server_context() if tls is not None and secure and tls.certificate else None
            _commit(journal, summary, out, courier, commitment, server_tls)
    if not due and not summary.before and not summary.statuses:
        raise SourceError(f"{out}: expected DICOM files to send, found none")
    return summary


def _due(out: Path, journal: Journal, summary: SendSummary) -> Iterator[tuple[Sendable, str]]:
    """What is not stored at the peer yet, with its digest; counts what is, and books what is no DICOM though it says so."""
    for entry in walk(out):
        path = out / entry.path
        if entry.refusal is not None or any(part.startswith(".") for part in Path(entry.path).parts):
            continue
        try:
            file = read_sendable(path)
            digest = file_digest(path)
        except Rejected as rejected:
            if rejected.reason not in HARMLESS:
                row = {"peer": summary.peer, "path": entry.path, "status": UNSENDABLE, "reason": str(rejected)}
                journal.put(row)
                summary.statuses[UNSENDABLE] += 1
            continue
        booked = journal.get(summary.peer, file.sop_instance_uid, entry.path)
        if booked is not None and booked["status"] == Outcome.STORED and booked["sha256"] == digest:
            summary.before += 1
        else:
            yield file, digest


def _book(journal: Journal, peer: str, file: Sendable, digest: str, out: Path, outcome: Outcome, why: str) -> None:
    path = file.path.relative_to(out).as_posix()
    before = journal.get(peer, file.sop_instance_uid, path)
    journal.put(
        {
            "peer": peer,
            "sop_instance_uid": file.sop_instance_uid,
            "path": path,
            "sha256": digest,
            "status": outcome,
            "reason": why,
            "attempts": str(int(before["attempts"] or 0) + 1 if before else 1),
        }
    )


def _commit(
    journal: Journal,
    summary: SendSummary,
    out: Path,
    courier: Courier,
    commitment: Commitment,
    server_tls: object,
) -> None:
    """Asks for all that is stored there and not committed yet."""
    if not isinstance(courier.peer, DimsePeer):
        raise ConfigError(f"{courier.peer}: storage commitment is for DIMSE peers; STOW-RS has none")
    rows = [
        row
        for row in journal
        if (row["peer"], row["status"]) == (summary.peer, Outcome.STORED) and row["committed"] != COMMITTED
    ]
    summary.asked_to_commit = True
    if not rows:
        return
    instances = [(read_sendable(out / row["path"]).sop_class_uid, row["sop_instance_uid"]) for row in rows]
    try:
        committed, failed = commit(
            instances,
            courier.peer,
            courier.aet,
            courier.patience,
            wait_s=commitment.wait_s,
            listen_port=commitment.port,
            tls=courier.tls,
            server_tls=server_tls,  # type: ignore[arg-type]
        )
    except PeerError as error:
        summary.asked_to_commit = False
        summary.notes.append(str(error))
        return
    for row in rows:
        uid = row["sop_instance_uid"]
        answer = COMMITTED if uid in committed else NOT_COMMITTED if uid in failed else NO_ANSWER
        summary.uncommitted += answer != COMMITTED
        reason = {"reason": f"commitment: {failed[uid]}"} if uid in failed else {}
        journal.put({**row, **reason, "committed": answer})
