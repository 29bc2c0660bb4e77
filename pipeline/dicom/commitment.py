"""Storage commitment (PS3.4 annex J): the peer is asked to say that it keeps what it was sent.

N-ACTION asks; the answer is an N-EVENT-REPORT, on the same association or on one that the peer opens to us: for the latter we listen,
for as long as we wait.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import evt
from pynetdicom.presentation import build_context

from pipeline.dicom.association import VERIFICATION, NothingAccepted, application_entity, associated, broken_off
from pipeline.dicom.statuses import words_of
from pipeline.errors import ConfigError, PeerError
from pipeline.peers import DimsePeer, Patience

PUSH_MODEL, ITS_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
"""Of the Storage Commitment Push Model: SOP class, and the one instance that all know."""
REQUEST = 1
"""The action type, the only one."""


@dataclass
class _Answer:
    """What the peer reported of one transaction, and whether it did."""

    transaction_uid: str
    came: threading.Event = field(default_factory=threading.Event)
    committed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def hear(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Handles an N-EVENT-REPORT: those of other transactions are taken, and are none of our business."""
        information = event.event_information
        if str(information.get("TransactionUID", "")) == self.transaction_uid:
            self.committed |= {
                str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence", [])
            }
            self.failed |= {
                str(item.ReferencedSOPInstanceUID): words_of(int(item.get("FailureReason", 0x0110)))
                for item in information.get("FailedSOPSequence", [])
            }
            self.came.set()
        return 0x0000, None


def commit(
    instances: Sequence[tuple[str, str]],
    peer: DimsePeer,
    aet: str,
    patience: Patience,
    *,
    wait_s: float,
    listen_port: int = 0,
    tls: ssl.SSLContext | None = None,
    server_tls: ssl.SSLContext | None = None,
) -> tuple[set[str], dict[str, str]]:
    """SOPInstanceUIDs that the peer committed itself to, of `instances` (class, instance), and those it did not, with its reason.

    Those in neither it had not answered within `wait_s`. `listen_port`: where the peer may open an association to us; 0: it may not.
    Raises PeerError where it cannot be asked, or offers no storage commitment.
    """
    answer = _Answer(str(generate_uid(prefix=None)))
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, answer.hear)]
    context = [build_context(PUSH_MODEL)]
    with _listening(aet, listen_port, patience, handlers, server_tls):
        try:
            with associated(peer, aet, context, patience, tls, handlers=handlers) as association:
                try:
                    status, _ = association.send_n_action(
                        _request(instances, answer.transaction_uid),
                        REQUEST,
                        PUSH_MODEL,
                        ITS_INSTANCE,
                    )
                except (RuntimeError, ValueError):
                    raise broken_off(peer) from None
                if "Status" not in status:
                    raise broken_off(peer)
                if int(status.Status) != 0:
                    raise PeerError(f"{peer}: refuses to commit itself: {words_of(int(status.Status))}")
                if not listen_port:
                    answer.came.wait(wait_s)
        except NothingAccepted:
            raise PeerError(f"{peer}: offers no storage commitment") from None
        if listen_port:
            answer.came.wait(wait_s)
    return answer.committed, answer.failed


def _request(instances: Sequence[tuple[str, str]], transaction_uid: str) -> Dataset:
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = []
    for sop_class, sop_instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
        request.ReferencedSOPSequence.append(item)
    return request


@contextmanager
def _listening(
    aet: str, port: int, patience: Patience, handlers: list[Any], tls: ssl.SSLContext | None
) -> Iterator[None]:
    if not port:
        yield
        return
    entity = application_entity(aet, patience)
    entity.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
    entity.add_supported_context(VERIFICATION)
    try:
        server = entity.start_server(("", port), block=False, evt_handlers=handlers, ssl_context=tls)
    except OSError as error:
        raise ConfigError(f"port {port}: cannot listen there for the peer's commitment ({error.strerror})") from None
    try:
        yield
    finally:
        if server is not None:
            entity.shutdown()
