"""Query and retrieve as a user (PS3.4 annex C, Study Root): what a peer has (C-FIND), sent on this association (C-GET) or to a node of ours
(C-MOVE).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context, build_role

from pipeline.dicom.association import MOST_CONTEXTS, NothingAccepted, associated, broken_off
from pipeline.dicom.statuses import words_of
from pipeline.dicom.storage_scp import NOT_UNDERSTOOD, Arrived, Arriving
from pipeline.errors import PeerError
from pipeline.peers import DimsePeer, Patience

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
"""Study Root Query/Retrieve Information Model."""
SERVICE = {FIND: "C-FIND", MOVE: "C-MOVE", GET: "C-GET"}
PENDING = (0xFF00, 0xFF01)
SUCCESS, SOME_FAILED = 0x0000, 0xB000


def find(
    peer: DimsePeer,
    aet: str,
    level: str,
    keys: Mapping[str, str],
    patience: Patience,
    tls: ssl.SSLContext | None = None,
) -> list[dict[str, str]]:
    """Matches at `level` (STUDY, SERIES, IMAGE), each with the values of `keys`. Raises PeerError."""
    found = []
    with _serving(peer, aet, FIND, [build_context(FIND)], patience, tls) as association:
        for status, match in _answers(association.send_c_find(_identifier(level, keys), FIND), peer, FIND):
            if status in PENDING and match is not None:
                found.append({keyword: _text(match, keyword) for keyword in keys})
    return found


def get(
    peer: DimsePeer,
    aet: str,
    keys: Mapping[str, str],
    sop_classes: Sequence[str],
    keep: Callable[[Arrived], int],
    begin: Callable[[], Arriving],
    patience: Patience,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Has the instances of `keys` (StudyInstanceUID, SeriesInstanceUID, ...) sent on this association, each to `keep`, whose status the
    peer is told. `sop_classes`: which there may be; none: as many as fit into one association. `begin`: what a data set goes into.

    Raises PeerError where the peer fails, NothingAccepted where it offers no C-GET. An instance that it could not send is not there.
    """
    known = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    classes = list(dict.fromkeys(sop_classes or known))[: MOST_CONTEXTS - 1]
    contexts = [build_context(GET), *(build_context(one, ALL_TRANSFER_SYNTAXES) for one in classes)]
    roles = [build_role(one, scp_role=True) for one in classes]

    def store(event: evt.Event) -> int:
        request: Any = event.request
        data = begin()
        try:
            data.write(request.DataSet.getbuffer())
            arrived = Arrived(
                str(request.AffectedSOPClassUID or ""),
                str(request.AffectedSOPInstanceUID or ""),
                str(event.context.transfer_syntax),
                peer.aet,
                data,
            )
            return keep(arrived)
        except Exception:  # its text could quote what was sent
            return NOT_UNDERSTOOD
        finally:
            data.discard()

    handlers = [(evt.EVT_C_STORE, store)]
    with _serving(peer, aet, GET, contexts, patience, tls, roles, handlers) as association:
        _finish(association.send_c_get(_identifier(_level(keys), keys), GET), peer, GET)


def move(
    peer: DimsePeer,
    aet: str,
    keys: Mapping[str, str],
    patience: Patience,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Has the instances of `keys` sent to the node that the peer knows by our title `aet`. Raises PeerError as `get`."""
    with _serving(peer, aet, MOVE, [build_context(MOVE)], patience, tls) as association:
        _finish(association.send_c_move(_identifier(_level(keys), keys), aet, MOVE), peer, MOVE)


@contextmanager
def _serving(
    peer: DimsePeer,
    aet: str,
    model: str,
    contexts: Sequence[PresentationContext],
    patience: Patience,
    tls: ssl.SSLContext | None,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """As `associated`, with a peer that offers the service; else NothingAccepted."""
    refusal = NothingAccepted(f"{peer}: offers no {SERVICE[model]}")
    try:
        with associated(peer, aet, contexts, patience, tls, roles, handlers) as association:
            if not any(context.abstract_syntax == model for context in association.accepted_contexts):
                raise refusal
            yield association
    except NothingAccepted:
        raise refusal from None


def _answers(
    responses: Iterator[tuple[Dataset, Dataset | None]], peer: DimsePeer, model: str
) -> Iterator[tuple[int, Dataset | None]]:
    """(status, identifier) of each response. Raises PeerError where the peer breaks off or refuses."""
    try:
        for status, identifier in responses:
            if "Status" not in status:
                raise broken_off(peer)
            code = int(status.Status)
            if code not in (*PENDING, SUCCESS, SOME_FAILED):
                passing = 0xA700 <= code < 0xA800
                raise PeerError(f"{peer}: answers a {SERVICE[model]} with {words_of(code)}", passing=passing)
            yield code, identifier
    except (RuntimeError, ValueError, AttributeError):
        raise broken_off(peer) from None


def _finish(responses: Iterator[tuple[Dataset, Dataset | None]], peer: DimsePeer, model: str) -> None:
    for _ in _answers(responses, peer, model):
        pass


def _identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value.split("\\") if "\\" in value else value)
    return identifier


def _level(keys: Mapping[str, str]) -> str:
    return "IMAGE" if "SOPInstanceUID" in keys else "SERIES" if "SeriesInstanceUID" in keys else "STUDY"


def _text(match: Dataset, keyword: str) -> str:
    try:
        value = match.get(keyword, "")
    except Exception:  # a value that pydicom cannot take apart
        return ""
    return str(value) if value is not None else ""
