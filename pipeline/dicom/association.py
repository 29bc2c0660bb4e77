"""Associations that radloop opens (PS3.8): with time limits on everything, TLS where wanted, and one plain reason where there is none.

pynetdicom speaks the protocol. Its log is silent (pipeline.dicom); a file is sent as it lies on the disk, in pieces.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from pipeline import __version__
from pipeline.dicom.derived import IMPLEMENTATION_CLASS_UID
from pipeline.errors import PeerError
from pipeline.peers import DimsePeer, Patience

PDU_BYTES = 2**18
"""Most that we take at once: 16 KiB, pynetdicom's default, costs four times the turns."""
MOST_CONTEXTS = 128
"""Presentation contexts of one association: their IDs are the odd numbers of a byte (PS3.8 9.3.2.2)."""
REJECTIONS = {
    (1, 1): "no reason given",
    (1, 2): "it does not know the application context",
    (1, 3): "it does not know our AE title (--aet)",
    (1, 7): "it does not know the AE title that it was called by",
    (2, 1): "no reason given",
    (2, 2): "it does not support our version of the protocol",
    (3, 1): "it is congested",
    (3, 2): "it has too many associations",
}
"""Source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
PERMANENT = 1
VERIFICATION = "1.2.840.10008.1.1"

_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
_config.STORE_SEND_CHUNKED_DATASET = True


class NothingAccepted(PeerError):
    """The peer takes an association, but none of the presentation contexts that we proposed."""


def application_entity(aet: str, patience: Patience) -> AE:
    """Ourselves, by the title `aet`."""
    entity = AE(aet)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = f"radloop {__version__}"[:16]
    entity.maximum_pdu_size = PDU_BYTES
    entity.connection_timeout = patience.connect_s
    entity.acse_timeout = entity.dimse_timeout = patience.answer_s
    entity.network_timeout = patience.answer_s
    return entity


@contextmanager
def associated(
    peer: DimsePeer,
    aet: str,
    contexts: Sequence[PresentationContext],
    patience: Patience,
    tls: ssl.SSLContext | None = None,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """An association with `peer`, released at the block's end, aborted where the block raises.

    Raises PeerError: `passing` where the peer cannot be reached, breaks off or says that it rejects us for now.
    """
    try:
        association = application_entity(aet, patience).associate(
            peer.host,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.aet,
            max_pdu=PDU_BYTES,
            ext_neg=list(roles) or None,
            tls_args=(tls, peer.host) if tls is not None else None,
            evt_handlers=list(handlers) or None,
        )
    except (OSError, RuntimeError, ValueError) as error:
        what = f"{peer}: cannot be reached ({getattr(error, 'strerror', '') or type(error).__name__})"
        raise PeerError(what, passing=not isinstance(error, socket.gaierror)) from None
    if not association.is_established:
        raise _refusal(peer, association, tls is not None)
    # A peer that does not read any more would hold the sending thread for ever.
    transport = association.dul.socket.socket if association.dul.socket else None
    if transport is not None:
        transport.settimeout(patience.answer_s)
    try:
        yield association
    except BaseException:
        if association.is_established:
            association.abort()
        raise
    if association.is_established:
        association.release()


def broken_off(peer: DimsePeer) -> PeerError:
    """The peer aborted, closed the connection or did not answer in time."""
    return PeerError(f"{peer}: broke off, or did not answer in time", passing=True)


_hook_before = threading.excepthook


def _say_nothing_of_ours(failed: threading.ExceptHookArgs) -> None:
    """pynetdicom's own threads end by an exception where a peer does not keep to the protocol; what that means is told by the association,
    and a traceback could quote what was sent."""
    if not isinstance(failed.thread, Association | DULServiceProvider):
        _hook_before(failed)


threading.excepthook = _say_nothing_of_ours


def _refusal(peer: DimsePeer, association: Association, with_tls: bool) -> PeerError:
    answer = association.acceptor.primitive
    if association.is_rejected and isinstance(answer, A_ASSOCIATE):
        why = REJECTIONS.get((int(answer.result_source or 0), int(answer.diagnostic or 0)), "no known reason")
        return PeerError(f"{peer}: rejects the association: {why}", passing=answer.result != PERMANENT)
    if association.acceptor.primitive is not None and association.is_aborted and not association.accepted_contexts:
        return NothingAccepted(f"{peer}: takes none of the SOP classes proposed")
    doubt = "TLS fails, or it" if with_tls else "it"
    return PeerError(
        f"{peer}: cannot be reached: {doubt} does not answer there, or breaks off (expects TLS?)", passing=True
    )
