"""DICOMweb (PS3.18) as a user: STOW-RS, QIDO-RS, WADO-RS.

Files go and come byte for byte, in pieces, and a refusal is read where it stands: in the body of a 202 or 409. dicomweb-client would parse
and encode every instance anew, hold it in memory, and throw that body away; so this is plain `requests`.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import requests
from requests.adapters import HTTPAdapter

from pipeline.dicom.sendable import Sendable, identifying_values
from pipeline.dicom.statuses import Outcome, harmless, outcome_of, words_of
from pipeline.dicom.storage_scu import Answer
from pipeline.errors import ConfigError, PeerError
from pipeline.peers import LOOPBACK, TOKEN_VARIABLE, USER_VARIABLE, Credentials, Patience, WebPeer

JSON = "application/dicom+json"
DICOM = "application/dicom"
PIECE_BYTES = 2**18
MOST_BYTES_A_REQUEST = 16 * 2**20
MOST_FILES_A_REQUEST = 32
"""Small objects go together; a request that fails costs little."""
MOST_JSON_BYTES = 64 * 2**20
PAGE = 500
"""Matches that are asked for at once."""
STORED_SEQUENCE, FAILED_SEQUENCE, WARNING_REASON = "00081199", "00081198", "00081196"
SOP_INSTANCE, FAILURE_REASON, ERROR_COMMENT = "00081155", "00081197", "00000902"
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504, 507))
_MULTIPART_HEADER_BYTES = 2**16


class WebClient:
    """A session with a server. `credentials` go over TLS, or to this machine itself, alone. Raises ConfigError where they would not."""

    def __init__(
        self,
        peer: WebPeer,
        patience: Patience,
        tls: ssl.SSLContext | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.peer, self._timeout = peer, (patience.connect_s, patience.answer_s)
        self._session = requests.Session()
        self._session.trust_env = False  # no proxies, and no .netrc that sends a password nobody asked for
        if tls is not None:
            self._session.mount("https://", _TlsAdapter(tls))
        if credentials:
            host = re.sub(r"^https?://(\[[^\]]*\]|[^/:]*).*$", r"\1", peer.url).strip("[]")
            if not peer.url.startswith("https://") and host not in LOOPBACK:
                raise ConfigError(f"{peer}: {TOKEN_VARIABLE} and {USER_VARIABLE} are sent over https:// alone")
            if credentials.token:
                self._session.headers["Authorization"] = f"Bearer {credentials.token}"
            else:
                pair = f"{credentials.user}:{credentials.password}".encode()
                self._session.headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"

    def close(self) -> None:
        """Ends its connections."""
        self._session.close()

    def store(self, files: Sequence[Sendable]) -> Iterator[Answer]:
        """Each of `files` with what the server said of it. Raises PeerError where it does not answer, or does not let us in."""
        for batch in _batches(files):
            yield from self._store(batch)

    def search(self, path: str, parameters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """QIDO-RS: matches at `path` (studies, studies/UID/series, ...), in the DICOM JSON model, page by page."""
        offset, seen = 0, set[str]()
        while True:
            page = {"limit": str(PAGE), "offset": str(offset)}
            with self._answer("GET", path, {"Accept": JSON}, params={**parameters, **page}) as answer:
                if answer.status_code == 204:
                    return
                self._expect(answer, path)
                found = self._json(answer)
            if not isinstance(found, list):
                raise PeerError(f"{self.peer}: answers a search with what is no list of matches")
            new = [
                match for match in found if isinstance(match, dict) and json.dumps(match, sort_keys=True) not in seen
            ]
            seen = {json.dumps(match, sort_keys=True) for match in found}  # of a server that knows no pages
            yield from new
            if len(found) < PAGE or not new:
                return
            offset += len(found)

    def retrieve(self, path: str, file: BinaryIO) -> int:
        """WADO-RS: writes the instance at `path`, as it is stored, to `file`; the bytes. Raises PeerError, also for a 404."""
        accepted = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
        with self._answer("GET", path, {"Accept": accepted}) as answer:
            self._expect(answer, path)
            boundary = re.search(r'boundary="?([^";,]+)', answer.headers.get("Content-Type", ""))
            try:
                pieces = answer.iter_content(PIECE_BYTES)
                if boundary is None:
                    return sum(file.write(piece) for piece in pieces)
                return _first_part(pieces, boundary[1].encode(), file, str(self.peer))
            except requests.RequestException as error:
                raise self._silent(error) from None

    def _store(self, batch: Sequence[Sendable]) -> Iterator[Answer]:
        body = _Multipart([file.path for file in batch])
        with closing(body):
            kind = f'multipart/related; type="{DICOM}"; boundary={body.boundary}'
            headers = {"Content-Type": kind, "Accept": JSON}
            with self._answer("POST", "studies", headers, data=body) as answer:
                status, reason = answer.status_code, harmless(answer.reason or "")
                told = self._told(answer)
        if status in (401, 403):
            raise PeerError(f"{self.peer}: does not let us in (HTTP {status}): set {TOKEN_VARIABLE} or {USER_VARIABLE}")
        if status in (404, 405) and told is None:
            raise PeerError(f"{self.peer}: offers no STOW-RS (HTTP {status} at /studies)")
        if told is None and not 200 <= status < 300 and len(batch) > 1 and status not in _PASSING:
            for file in batch:  # one of them is the reason
                yield from self._store([file])
            return
        for file in batch:
            yield file, *_outcome(file, told or {}, status, reason)

    def _told(self, answer: requests.Response) -> dict[str, tuple[Outcome, str]] | None:
        """SOPInstanceUID → outcome of those that the body names; None where there is no such body."""
        try:
            said = self._json(answer)
        except PeerError:
            return None
        if isinstance(said, list) and len(said) == 1:
            (said,) = said
        if not isinstance(said, dict) or not said.keys() & {STORED_SEQUENCE, FAILED_SEQUENCE}:
            return None
        told: dict[str, tuple[Outcome, str]] = {}
        for item in _items(said, STORED_SEQUENCE):
            warning = _number(item, WARNING_REASON)
            told[_text(item, SOP_INSTANCE)] = (Outcome.STORED, words_of(warning) if warning else "")
        for item in _items(said, FAILED_SEQUENCE):
            code = _number(item, FAILURE_REASON) or 0x0110
            told[_text(item, SOP_INSTANCE)] = (outcome_of(code), words_of(code))
        return told

    @contextmanager
    def _answer(self, method: str, path: str, headers: Mapping[str, str], **more: Any) -> Iterator[requests.Response]:
        url = f"{self.peer.url}/{path}"
        try:
            answer = self._session.request(
                method, url, headers=dict(headers), timeout=self._timeout, stream=True, allow_redirects=False, **more
            )
        except (requests.RequestException, OSError) as error:
            raise self._silent(error) from None
        with closing(answer):
            yield answer

    def _expect(self, answer: requests.Response, path: str) -> None:
        if answer.status_code in (401, 403):
            raise PeerError(
                f"{self.peer}: does not let us in (HTTP {answer.status_code}): set {TOKEN_VARIABLE} or {USER_VARIABLE}"
            )
        if answer.status_code not in (200, 206):
            passing = answer.status_code in _PASSING
            raise PeerError(f"{self.peer}: answers HTTP {answer.status_code} to {path.split('?')[0]}", passing=passing)

    def _json(self, answer: requests.Response) -> Any:
        try:
            body = bytearray()
            for piece in answer.iter_content(PIECE_BYTES):
                body += piece
                if len(body) > MOST_JSON_BYTES:
                    raise PeerError(f"{self.peer}: answers with more than {MOST_JSON_BYTES >> 20} MiB of JSON")
            return json.loads(body) if body else None
        except requests.RequestException as error:
            raise self._silent(error) from None
        except (ValueError, RecursionError):
            raise PeerError(f"{self.peer}: answers with what is no JSON") from None

    def _silent(self, error: Exception) -> PeerError:
        """Of an exception, whose text quotes URLs and headers."""
        if isinstance(error, requests.exceptions.SSLError):
            return PeerError(
                f"{self.peer}: its certificate is not trusted, or it refuses ours (--tls-ca, --tls-certificate)"
            )
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
            return PeerError(f"{self.peer}: is no URL that can be reached")
        what = "does not answer in time" if isinstance(error, requests.Timeout) else "cannot be reached, or breaks off"
        return PeerError(f"{self.peer}: {what}", passing=True)


class _TlsAdapter(HTTPAdapter):
    """With our own context: CA, client certificate, oldest version."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **options)

    def cert_verify(self, connection: Any, url: str, verify: Any, certificate: Any) -> None:
        """Nothing: the context has it all, where `requests` would add its own CAs."""


class _Multipart:
    """A multipart/related body (PS3.18 8.6.1.2.1) of files, read in pieces; its length is known before."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.boundary = secrets.token_hex(16)
        head = f"\r\n--{self.boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        self._parts: list[bytes | Path] = [piece for path in paths for piece in (head, path)]
        self._parts.append(f"\r\n--{self.boundary}--\r\n".encode())
        self._length = sum(len(part) if isinstance(part, bytes) else part.stat().st_size for part in self._parts)
        self._pieces = self._read()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        """Closes the file that is being read."""
        self._pieces.close()  # type: ignore[attr-defined]

    def _read(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            with open(part, "rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece


def _batches(files: Sequence[Sendable]) -> Iterator[list[Sendable]]:
    batch: list[Sendable] = []
    for file in files:
        full = len(batch) == MOST_FILES_A_REQUEST or sum(one.bytes for one in batch) + file.bytes > MOST_BYTES_A_REQUEST
        if batch and full:
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _outcome(file: Sendable, told: Mapping[str, tuple[Outcome, str]], status: int, reason: str) -> tuple[Outcome, str]:
    if file.sop_instance_uid in told:
        return told[file.sop_instance_uid]
    if 200 <= status < 300 and not told:
        return Outcome.STORED, ""
    if status in _PASSING:
        return Outcome.LEFT, f"HTTP {status} {harmless(reason, identifying_values(file))}".strip()
    if 200 <= status < 300:
        return Outcome.REFUSED, "the server's answer does not name it"
    return Outcome.REFUSED, f"HTTP {status} {harmless(reason, identifying_values(file))}".strip()


def _items(said: Mapping[str, Any], tag: str) -> list[dict[str, Any]]:
    values = said.get(tag, {}).get("Value", []) if isinstance(said.get(tag, {}), dict) else []
    return [item for item in values if isinstance(item, dict)] if isinstance(values, list) else []


def first_value(item: Mapping[str, Any], tag: str) -> Any:
    """The first value of an attribute in the DICOM JSON model (PS3.18 annex F), None where there is none."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _text(item: Mapping[str, Any], tag: str) -> str:
    return str(first_value(item, tag) or "")


def _number(item: Mapping[str, Any], tag: str) -> int:
    value = first_value(item, tag)
    return int(value) if isinstance(value, int | float) else 0


def _first_part(pieces: Iterator[bytes], boundary: bytes, file: BinaryIO, peer: str) -> int:
    """Writes the first part's content to `file` while it comes; the bytes. Raises PeerError where it does not come to its end."""
    delimiter = b"\r\n--" + boundary
    held = b"\r\n"  # the first delimiter may stand at the very beginning
    for piece in pieces:
        held += piece
        start, end = held.find(delimiter), held.find(b"\r\n\r\n")
        if start >= 0 and (end := held.find(b"\r\n\r\n", start + len(delimiter))) >= 0:
            held = held[end + 4 :]
            break
        if len(held) > _MULTIPART_HEADER_BYTES + PIECE_BYTES:
            raise PeerError(f"{peer}: answers with what is no multipart message")
    else:
        raise PeerError(f"{peer}: breaks off", passing=True)
    written = 0
    for piece in _and_then(pieces):
        held += piece
        at = held.find(delimiter)
        if at >= 0:
            file.write(held[:at])
            for _ in pieces:
                pass  # the rest, so that the connection can be used again
            return written + at
        ready = len(held) - len(delimiter)
        if ready > 0:
            file.write(held[:ready])
            held = held[ready:]
            written += ready
    raise PeerError(f"{peer}: breaks off", passing=True)


def _and_then(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Nothing first: what is held already may be all."""
    yield b""
    yield from pieces
