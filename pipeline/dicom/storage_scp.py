"""Storage as a provider (PS3.4 annex B): a server that hands each data set it is sent to `Intake.keep`, and answers with its status.

What a peer sends before anybody knows it is bounded: who may connect at all, how many at once, how long a PDU may be and how long it may
take, how large an object may grow (small ones in memory, others in a file), and TLS is spoken in the connection's own thread, so that
nobody can hold up the others. pynetdicom speaks the protocol; what it would log or print of a peer's values goes nowhere.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from pipeline import __version__
from pipeline.dicom.association import PDU_BYTES, VERIFICATION, application_entity
from pipeline.dicom.derived import IMPLEMENTATION_CLASS_UID
from pipeline.peers import Patience

STORED, OUT_OF_RESOURCES, NOT_UNDERSTOOD, WRONG_CLASS = 0x0000, 0xA700, 0xC000, 0xA900
"""Statuses of a C-STORE that we answer with (PS3.4 table B.2-1)."""
IN_MEMORY_BYTES = 4 * 2**20
"""Larger data sets go to the disk while they come."""
MOST_PDU_BYTES = PDU_BYTES + 2**16
"""Of what we announce, with the PDU's own headers; an association request with 128 contexts is smaller, too."""
CONNECTIONS_AN_ASSOCIATION = 4
"""Connections that are open for each association that is allowed: the others are in negotiation, or are refused."""
MOST_WAITING = 4
"""Requests of an association that were not answered yet: asynchronous operations are not negotiated, so one is right."""
REJECTED_PERMANENTLY, BY_SERVICE_USER, UNKNOWN_CALLING_TITLE = 1, 1, 3
PREAMBLE = bytes(128) + b"DICM"


class Intake(Protocol):
    """Who takes what comes."""

    def may_connect(self, host: str) -> bool:
        """Whether an address is on the allow list at all."""

    def may_associate(self, host: str, aet: str) -> bool:
        """Whether this AE title may call from this address."""

    def keep(self, arrived: Arrived) -> int:
        """The status for a C-STORE: `STORED` only when the object is safe."""


@dataclass(frozen=True)
class Arrived:
    """An object that was sent completely: what the command says of it, and the bytes of its data set."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_aet: str
    data: Arriving

    def file_head(self) -> bytes:
        """Preamble and file meta information (PS3.10 7.1) for the data set."""
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = UID(self.sop_class_uid)
        meta.MediaStorageSOPInstanceUID = UID(self.sop_instance_uid)
        meta.TransferSyntaxUID = UID(self.transfer_syntax_uid)
        meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
        meta.ImplementationVersionName = f"radloop {__version__}"[:16]
        head = io.BytesIO()
        write_file_meta_info(head, meta)  # type: ignore[arg-type]  # any binary file
        return PREAMBLE + head.getvalue()


class Arriving(io.BytesIO):
    """A data set on its way: in memory while it is small, else in a file of `folder`, which `discard` removes.

    Nothing raises here: pynetdicom would break off the association, where the peer shall be told. `problem`: why it cannot be kept.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        super().__init__()
        self.size = 0
        self.problem = ""
        self._folder, self._limit = folder, limit_bytes
        self._file: io.BufferedWriter | None = None
        self._path: Path | None = None

    def write(self, piece: Any) -> int:
        """Takes a piece; past the limit it is dropped, past twice the limit the association is broken off."""
        count = len(piece)
        self.size += count
        if self.size > self._limit:
            self.problem = self.problem or f"larger than {self._limit >> 20} MiB"
            self.discard()
            if self.size > 2 * self._limit:
                raise ConnectionAbortedError(self.problem)
        if self.problem:
            return count
        try:
            if self._file is None and self.size > IN_MEMORY_BYTES:
                self._path = self._folder / f"{uuid4().hex}.part"
                self._file = open(self._path, "xb")  # noqa: SIM115  (closed by `discard`)
                self._file.write(self.getbuffer())
                self.seek(0)
                self.truncate()
            if self._file is not None:
                self._file.write(piece)
            else:
                super().write(piece)
        except OSError as error:
            self.problem = error.strerror or type(error).__name__
            self.discard()
        return count

    def open(self) -> io.BufferedIOBase:
        """All of it, from its beginning, to be closed by the caller."""
        if self._file is None or self._path is None:
            return io.BytesIO(self.getbuffer())
        self._file.flush()
        return open(self._path, "rb")

    def discard(self) -> None:
        """Forgets it, also on the disk."""
        file, self._file = self._file, None
        if file is not None and self._path is not None:
            with suppress(OSError):  # what it still held does not fit on the disk
                file.close()
            self._path.unlink(missing_ok=True)


class StorageServer:
    """Listens from `__enter__` on; `stop` lets those who are associated finish, for a while."""

    def __init__(
        self,
        aet: str,
        host: str,
        port: int,
        intake: Intake,
        folder: Path,
        *,
        patience: Patience | None = None,
        most_associations: int = 10,
        most_object_bytes: int = 2**31,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`folder`: for large objects on their way; whatever lies there is removed. Raises OSError where it cannot listen."""
        patience = patience or Patience()
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob("*.part"):
            rest.unlink()
        self._entity = application_entity(aet, patience)
        self._entity.require_called_aet = True
        self._entity.maximum_associations = most_associations
        self._intake = intake
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_CONN_CLOSE, _forget),
        ]
        self._server: _Server = self._entity.make_server(  # type: ignore[assignment]
            (host, port),
            aet,
            supported(),
            evt_handlers=handlers,
            server_class=_Server,
            request_handler=_Handler,
        )
        self._entity._servers.append(self._server)
        self._server.begin(intake, folder, most_object_bytes, most_associations, patience.answer_s, tls)
        self._ending, self._ended = threading.Lock(), False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="storage", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Takes connections from now on."""
        self._thread.start()

    def associations(self) -> int:
        """How many are open."""
        return len(self._server.active_associations)

    def stop(self, grace_s: float) -> None:
        """No new connection from now on; associations may end by themselves for `grace_s`, then they are aborted."""
        with self._ending:
            if not self._ended and self._thread.is_alive():
                self._server.shutdown()
            elif not self._ended:
                self._server.server_close()
            self._ended = True
        pause = threading.Event()
        waited = 0.0
        while self._server.active_associations and waited < grace_s:
            pause.wait(0.1)
            waited += 0.1
        for association in self._server.active_associations:
            association.abort()

    def _requested(self, event: evt.Event) -> None:
        """Of whom the title and the address do not fit together: rejected as one whose title is not known."""
        association: Any = event.assoc
        aet = str(association.requestor.primitive.calling_ae_title or "").strip()
        if not self._intake.may_associate(association.requestor.address, aet):
            association.acse.send_reject(REJECTED_PERMANENTLY, BY_SERVICE_USER, UNKNOWN_CALLING_TITLE)
            association.kill()

    def _store(self, event: evt.Event) -> int:
        request: Any = event.request
        data = request.DataSet
        if not isinstance(data, Arriving):
            return NOT_UNDERSTOOD
        try:
            return self._intake.keep(
                Arrived(
                    str(request.AffectedSOPClassUID or ""),
                    str(request.AffectedSOPInstanceUID or ""),
                    str(event.context.transfer_syntax),
                    str(event.assoc.requestor.ae_title or "").strip(),
                    data,
                )
            )
        except Exception:  # its text could quote what was sent
            return NOT_UNDERSTOOD
        finally:
            data.discard()


class _Server(ThreadedAssociationServer):
    """One thread a connection, as many as are allowed, of those who are on the allow list."""

    daemon_threads = True
    request_queue_size = 64

    def begin(
        self,
        intake: Intake,
        folder: Path,
        most_bytes: int,
        most_associations: int,
        timeout_s: float,
        tls: ssl.SSLContext | None,
    ) -> None:
        """What pynetdicom's constructor does not take."""
        self.intake, self.folder, self.most_bytes, self.timeout_s, self.tls = intake, folder, most_bytes, timeout_s, tls
        self._most_connections = CONNECTIONS_AN_ASSOCIATION * most_associations
        self._greeting = threading.BoundedSemaphore(self._most_connections)

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection as it is: TLS is the handler's, in a thread of its own."""
        connection, address = self.socket.accept()  # type: ignore[union-attr]
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whoever is not on the list, or one too many, is hung up on."""
        return len(self.active_associations) < self._most_connections and self.intake.may_connect(client_address[0])

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, if not too many are at it already."""
        if self._greeting.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Up to where the association begins, which has its own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._greeting.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing, where socketserver prints a traceback: a peer that hangs up, or speaks no TLS."""


class _Handler(RequestHandler):
    """A connection: its TLS handshake, and an association whose data sets go to `Arriving`."""

    server: _Server

    def setup(self) -> None:
        connection = self.request
        connection.settimeout(self.server.timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(connection, server_side=True)

    def _create_association(self) -> Association:
        association = super()._create_association()
        server = self.server
        association.dimse = _Intake(association, lambda: Arriving(server.folder, server.most_bytes))
        if association.dul.socket is not None:
            association.dul.socket.__class__ = (
                _BoundedSocket  # a second one would announce the connection a second time
            )
        return association


class _BoundedSocket(AssociationSocket):
    """Of which no PDU is read that is longer than we said; and in one piece, which is several times as fast."""

    def recv(self, nr_bytes: int) -> bytearray:
        if nr_bytes > MOST_PDU_BYTES:
            raise OSError("a PDU longer than was agreed on")
        held = bytearray(nr_bytes)
        view, count = memoryview(held), 0
        while count < nr_bytes:
            more = self.socket.recv_into(view[count:])  # type: ignore[union-attr]
            if not more:
                break
            count += more
        view.release()
        del held[count:]
        return held


class _Intake(DIMSEServiceProvider):
    """Receives a message's data set into `Arriving` instead of memory alone."""

    def __init__(self, association: Association, begin: Callable[[], Arriving]) -> None:
        super().__init__(association)
        self._begin = begin

    def receive_primitive(self, primitive: P_DATA) -> None:
        if self.message is None:
            if self.msg_queue.qsize() > MOST_WAITING:
                raise ConnectionAbortedError("requests without waiting for answers")
            self.message = DIMSEMessage()
            self.message.data_set = self._begin()
        super().receive_primitive(primitive)


def _forget(event: evt.Event) -> None:
    """What a peer that has hung up did not send to its end."""
    message = event.assoc.dimse.message
    if message is not None and isinstance(message.data_set, Arriving):
        message.data_set.discard()


@lru_cache(maxsize=1)
def supported() -> list[PresentationContext]:
    """Every storage SOP class in every transfer syntax but the deflated one, which may grow without limit; the explicit one first."""
    first = [str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)]
    others = [one for one in ALL_TRANSFER_SYNTAXES if one not in (*first, str(DeflatedExplicitVRLittleEndian))]
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    return [build_context(VERIFICATION, first), *(build_context(one, first + others) for one in classes)]
