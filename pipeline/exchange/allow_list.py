"""Who may send to a node: AE titles and addresses. What is not on the list is not talked to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.peers import checked_aet

ANY = "*"
LOOPBACK_ONLY = ("*@127.0.0.0/8", "*@::1")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class AllowList:
    """(AE title or `*`, network or None for any) pairs."""

    entries: tuple[tuple[str, Network | None], ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> AllowList:
        """`AET@host`, either of them `*`; a host is a name, an address or a network (10.1.0.0/16). None: this machine alone.

        Names are looked up now. Raises ConfigError.
        """
        return cls(tuple(pair for text in texts or LOOPBACK_ONLY for pair in _entries(text)))

    def has_host(self, host: str) -> bool:
        """Whether anybody may call from there."""
        return any(_within(host, network) for _, network in self.entries)

    def has(self, host: str, aet: str) -> bool:
        """Whether this title may call from there."""
        return any(title in (ANY, aet) and _within(host, network) for title, network in self.entries)


def _entries(text: str) -> list[tuple[str, Network | None]]:
    title, at, host = text.strip().rpartition("@")
    if not at or not title or not host:
        raise ConfigError(f"--allow {text!r}: expected AET@host, either of them * for any, e.g. PACS@10.1.0.5")
    aet = ANY if title == ANY else checked_aet(title)
    if host == ANY:
        return [(aet, None)]
    try:
        return [(aet, ipaddress.ip_network(host.strip("[]"), strict=False))]
    except ValueError:
        pass
    try:
        found = {str(place[4][0]) for place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        raise ConfigError(f"--allow {text!r}: no address is known of this host") from None
    return [(aet, ipaddress.ip_network(address.partition("%")[0])) for address in sorted(found)]


def _within(host: str, network: Network | None) -> bool:
    if network is None:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address) in network
