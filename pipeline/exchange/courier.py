"""Files to a peer over several associations (or connections) at once, again and again with growing pauses until each has its answer.

In: files. Out: a stream of (file, outcome, why); a file that is `left` may come several times. A round sends all that are left; after
`Patience.attempts` rounds in a row in which nothing got through, what is left stays so.
"""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.dicom.dicom_web import WebClient
from pipeline.dicom.sendable import Sendable
from pipeline.dicom.statuses import Outcome
from pipeline.dicom.storage_scu import Answer, batches, store
from pipeline.errors import PeerError
from pipeline.peers import Credentials, DimsePeer, Patience, Peer

MOST_A_ROUND = 500
"""Files of one association: some peers close those that last long."""


@dataclass(frozen=True)
class Courier:
    """How files get to `peer`. `stop`: set when no further one shall begin."""

    peer: Peer
    aet: str = "RADLOOP"
    associations: int = 2
    patience: Patience = field(default_factory=Patience)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    credentials: Credentials | None = field(default=None, repr=False)
    stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def send(self, files: Sequence[Sendable]) -> Iterator[Answer]:
        """Each of `files`, as said above. Raises PeerError where the peer refuses us, so that trying again is in vain."""
        left, failures = list(files), 0
        while left and not self.stop.is_set():
            again: list[Sendable] = []
            through = 0
            for file, outcome, why in self._round(left):
                again += [file] if outcome is Outcome.LEFT else []
                through += outcome is not Outcome.LEFT
                yield file, outcome, why
            left = again
            failures = 0 if through else failures + 1
            if failures >= self.patience.attempts or not left:
                return
            self.stop.wait(self.patience.pause_s(max(failures, 1)))

    def _round(self, files: Sequence[Sendable]) -> Iterator[Answer]:
        """Each of `files` once."""
        count = max(1, min(self.associations, len(files)))
        answers: queue.SimpleQueue[Answer | PeerError | BaseException | None] = queue.SimpleQueue()
        shares = [files[place::count] for place in range(count)]
        threads = [
            threading.Thread(target=self._share, args=(share, answers.put), name="courier", daemon=True)
            for share in shares
        ]
        for thread in threads:
            thread.start()
        ended, failure = 0, None
        while ended < count:
            answer = answers.get()
            if answer is None:
                ended += 1
            elif isinstance(answer, BaseException):
                failure = failure or answer
            else:
                yield answer
        if failure is not None:
            raise failure

    def _share(self, files: Sequence[Sendable], put: Callable[[Answer | BaseException | None], None]) -> None:
        """One thread's files."""
        try:
            for batch in batches(files, MOST_A_ROUND):
                self._batch(batch, put)
        except BaseException as error:
            put(error)
        finally:
            put(None)

    def _batch(self, files: Sequence[Sendable], put: Callable[[Answer | BaseException | None], None]) -> None:
        done = 0
        try:
            if self.stop.is_set():
                raise PeerError("stopped", passing=True)
            for answer in self._answers(files):
                put(answer)
                done += 1
                if self.stop.is_set():
                    raise PeerError("stopped", passing=True)
        except PeerError as error:
            if not error.passing:
                raise
            for file in files[done:]:
                put((file, Outcome.LEFT, str(error)))

    def _answers(self, files: Sequence[Sendable]) -> Iterator[Answer]:
        if isinstance(self.peer, DimsePeer):
            yield from store(files, self.peer, self.aet, self.patience, self.tls)
            return
        client = WebClient(self.peer, self.patience, self.tls, self.credentials)
        try:
            yield from client.store(files)
        finally:
            client.close()
