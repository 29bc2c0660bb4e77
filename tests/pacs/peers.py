"""Peers within the test's own process: an archive that does what a test tells it to, and users that send to a node."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
COMMITMENT = "1.2.840.10008.1.20.1"


@dataclass
class Archive:
    """A storage SCP. `answer(dataset)`: the status of each C-STORE, an int or a data set; called in the association's thread."""

    port: int = 0
    answer: Callable[[Dataset], Any] = lambda _: 0x0000
    stored: list[Dataset] = field(default_factory=list)
    attempts: int = 0
    most_at_once: int = 0
    commits: Callable[[str], int] | None = None
    """SOPInstanceUID → 0, or the reason for which it is not committed."""
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return f"ARCHIVE@127.0.0.1:{self.port}"

    @property
    def uids(self) -> set[str]:
        return {str(one.SOPInstanceUID) for one in self.stored}

    def handlers(self) -> list[Any]:
        return [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_ACCEPTED, self._count, [1]),
            (evt.EVT_RELEASED, self._count, [-1]),
            (evt.EVT_ABORTED, self._count, [-1]),
            (evt.EVT_N_ACTION, self._commit),
        ]

    def _count(self, _event: evt.Event, change: int) -> None:
        with self._lock:
            self._open += change
            self.most_at_once = max(self.most_at_once, self._open)

    def _store(self, event: evt.Event) -> Any:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        with self._lock:
            self.attempts += 1
        status = self.answer(dataset) if self.answer.__code__.co_argcount == 1 else self.answer(dataset, event)
        if status in (0x0000, 0xB000):
            with self._lock:
                self.stored.append(dataset)
        return status

    def _commit(self, event: evt.Event) -> tuple[int, None]:
        asked = event.action_information
        assert self.commits is not None

        def report() -> None:
            answer = Dataset()
            answer.TransactionUID = asked.TransactionUID
            answer.ReferencedSOPSequence, answer.FailedSOPSequence = [], []
            for item in asked.ReferencedSOPSequence:
                why = self.commits(str(item.ReferencedSOPInstanceUID))
                if why:
                    item.FailureReason = why
                (answer.FailedSOPSequence if why else answer.ReferencedSOPSequence).append(item)
            event.assoc.send_n_event_report(answer, 2 if answer.FailedSOPSequence else 1, COMMITMENT, f"{COMMITMENT}.1")

        threading.Timer(0.2, report).start()
        return 0x0000, None


@contextmanager
def running_archive(
    archive: Archive | None = None,
    *,
    syntaxes: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    tls: ssl.SSLContext | None = None,
    calling: Sequence[str] = (),
) -> Iterator[Archive]:
    archive = archive or Archive()
    entity = AE("ARCHIVE")
    entity.require_called_aet = True
    entity.require_calling_aet = list(calling)
    for context in AllStoragePresentationContexts:
        if classes is None or context.abstract_syntax in classes:
            entity.add_supported_context(context.abstract_syntax, syntaxes or _every_syntax())
    if archive.commits is not None:
        entity.add_supported_context(COMMITMENT)
    server = entity.start_server(
        ("127.0.0.1", archive.port), block=False, evt_handlers=archive.handlers(), ssl_context=tls
    )
    archive.port = server.server_address[1]
    try:
        yield archive
    finally:
        entity.shutdown()


def _every_syntax() -> list[str]:
    from pynetdicom import ALL_TRANSFER_SYNTAXES

    return list(ALL_TRANSFER_SYNTAXES)


def associate(
    port: int,
    files: Sequence[Path] = (),
    *,
    aet: str = "SENDER",
    called: str = "RADLOOP",
    tls: ssl.SSLContext | None = None,
) -> Association:
    """An association with a node, established or not, with what `files` need."""
    entity = AE(aet)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 20
    wanted = {("1.2.840.10008.1.1", str(ImplicitVRLittleEndian))}
    for path in files:
        meta = read_file_meta_info(path)
        wanted.add((str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)))
    contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in sorted(wanted)]
    return entity.associate("127.0.0.1", port, contexts, ae_title=called, tls_args=(tls, "localhost") if tls else None)


def send_all(port: int, files: Sequence[Path], **how: Any) -> list[int]:
    """The status of each of `files`; -1 from where the association broke off."""
    association = associate(port, files, **how)
    statuses = []
    for path in files:
        status = association.send_c_store(path) if association.is_established else Dataset()
        statuses.append(int(status.get("Status", -1)))
    if association.is_established:
        association.release()
    return statuses
