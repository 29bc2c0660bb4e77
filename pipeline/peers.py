"""Other machines on the network: how they are named, what proves who is who, and how patient one is with them.

In: what a user says: `AET@host:port` for DIMSE, `https://host/dicom-web` for DICOMweb; files of certificates; environment variables.
Passwords and tokens come from the environment alone: a command line is seen by everybody on the machine.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import ConfigError

USER_VARIABLE, PASSWORD_VARIABLE, TOKEN_VARIABLE = "RADLOOP_PACS_USER", "RADLOOP_PACS_PASSWORD", "RADLOOP_PACS_TOKEN"
KEY_PASSWORD_VARIABLE = "RADLOOP_TLS_PASSWORD"
AET_CHARACTERS = 16
EXPECTED = "AET@host:port (DIMSE) or https://host/dicom-web (DICOMweb)"
LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_PEER = re.compile(r"(?P<aet>[^@]+)@(?P<host>\[[0-9A-Fa-f:.]+\]|[^:@\[\]/]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class DimsePeer:
    """An application entity: its title (PS3.8 9.3.2) and where it listens."""

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.aet}@{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True)
class WebPeer:
    """A DICOMweb server (PS3.18): the URL to which /studies is added."""

    url: str

    def __str__(self) -> str:
        return self.url


Peer = DimsePeer | WebPeer


@dataclass(frozen=True)
class Tls:
    """Files in PEM. `ca`: who signs the other side, by default whoever the system trusts; `certificate`, `key`: our own."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def client_context(self) -> ssl.SSLContext:
        """For connections that we open: the other side's certificate and name are always checked."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        self._load(context)
        return context

    def server_context(self) -> ssl.SSLContext:
        """For connections that we take: with a CA, from clients whose certificate it signed alone."""
        if self.certificate is None:
            raise ConfigError("--tls-certificate: expected our own certificate (PEM) to listen with TLS, found none")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(context)
        if self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        shown = self.ca
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            if self.certificate is not None:
                shown = self.certificate
                context.load_cert_chain(self.certificate, self.key, os.environ.get(KEY_PASSWORD_VARIABLE, ""))
        except (OSError, ssl.SSLError) as error:  # SSLError is one, and its text is about the file
            what = error.strerror or getattr(error, "reason", "") or type(error).__name__
            raise ConfigError(
                f"{shown}: expected certificates in PEM, and with our own its key (--tls-key; a key's password in "
                f"{KEY_PASSWORD_VARIABLE}), found: {what}"
            ) from None


@dataclass(frozen=True)
class Credentials:
    """What proves to a DICOMweb server who we are; `repr` does not show it."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.token or self.user)


@dataclass(frozen=True)
class Patience:
    """Seconds and attempts. `attempts` count those in a row in which nothing went through."""

    attempts: int = 5
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    connect_s: float = 10.0
    answer_s: float = 60.0

    def pause_s(self, failures: int) -> float:
        """Before the next attempt, after `failures` in a row: twice as long each time."""
        return float(min(self.longest_pause_s, self.first_pause_s * 2 ** max(0, min(failures, 30) - 1)))


def parse_peer(text: str) -> Peer:
    """The machine that `text` names. Raises ConfigError."""
    if text.startswith(("http://", "https://")):
        return _web_peer(text)
    found = _PEER.fullmatch(text.strip())
    if found is None or not 0 < int(found["port"]) < 65536:
        shown = "" if "://" in text else f"{text!r}: "  # another kind of URL may hold a password
        raise ConfigError(f"{shown}expected a peer as {EXPECTED}")
    return DimsePeer(checked_aet(found["aet"]), found["host"].strip("[]"), int(found["port"]))


def checked_aet(text: str) -> str:
    """An application entity title: 1 to 16 printable ASCII characters, no backslash (PS3.5 6.2). Raises ConfigError."""
    title = text.strip()
    if not (0 < len(title) <= AET_CHARACTERS and title.isascii() and title.isprintable() and "\\" not in title):
        raise ConfigError(
            f"{text!r}: expected an AE title of 1 to {AET_CHARACTERS} ASCII characters without a backslash"
        )
    return title


def credentials(environment: Mapping[str, str] = os.environ) -> Credentials:
    """Of a bearer token, or a user with a password. Raises ConfigError where both are there, or a user alone."""
    token, user = environment.get(TOKEN_VARIABLE, ""), environment.get(USER_VARIABLE, "")
    if token and user:
        raise ConfigError(f"expected {TOKEN_VARIABLE} or {USER_VARIABLE} in the environment, found both")
    if user and PASSWORD_VARIABLE not in environment:
        raise ConfigError(f"{USER_VARIABLE} is set: expected {PASSWORD_VARIABLE}, too")
    return Credentials(user, environment.get(PASSWORD_VARIABLE, "") if user else "", token)


def _web_peer(text: str) -> WebPeer:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError(
            "expected a DICOMweb URL such as https://host/dicom-web, found no host and port in it"
        ) from None
    if parts.username or parts.password:
        raise ConfigError(
            f"a URL with a user or a password is seen by everybody on this machine; set {USER_VARIABLE} and {PASSWORD_VARIABLE}"
        )
    if not parts.hostname or parts.query or parts.fragment or port == 0:
        raise ConfigError(f"{text!r}: expected a DICOMweb URL such as https://host/dicom-web")
    return WebPeer(text.rstrip("/"))
