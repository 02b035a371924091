"""Allowlist of clients: addresses, networks and, with CURVE, client keys."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

KEY_LENGTH = 40  # characters of a public key in Z85; some of them may be slashes
LOOPBACK = ("127.0.0.0/8", "::1/128")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4-mapped IPv6 addresses


@dataclass(frozen=True)
class ClientAllowlist:
    """Allowed clients. Without networks any address is allowed, without keys any key."""

    networks: tuple[Network, ...] = ()
    keys: tuple[str, ...] = ()
    """Names of keys, or public keys."""

    def __bool__(self) -> bool:
        return bool(self.networks or self.keys)

    def __str__(self) -> str:
        return " ".join((*map(str, self.networks), *self.keys))

    def allows_address(self, text: str) -> bool:
        """Return True if clients at this address are allowed; with networks, an invalid address is not allowed."""
        if not self.networks:
            return True
        try:
            address = _unmapped(ipaddress.ip_address(text.strip("[]").partition("%")[0]))
        except ValueError:
            return False
        return any(address in network for network in self.networks)


ANYONE = ClientAllowlist()


def parse_allowlist(words: tuple[str, ...]) -> ClientAllowlist:
    """Return the allowlist of addresses, networks (``192.0.2.0/24``), ``localhost`` and keys.

    Raises:
        ValueError: a word is an invalid address or network.
    """
    networks: list[Network] = []
    keys: list[str] = []
    for word in words:
        if word == "localhost":
            networks += map(ipaddress.ip_network, LOOPBACK)
        elif network := _network(word):
            networks.append(network)
        elif len(word) != KEY_LENGTH and ("/" in word or word.replace(".", "").isdigit()):
            raise ValueError(f"invalid address or network: {word[:60]!r}")
        else:
            keys.append(word)
    return ClientAllowlist(tuple(networks), tuple(keys))


def _network(word: str) -> Network | None:
    try:
        network = ipaddress.ip_network(word.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network


def _unmapped(address: Address) -> Address:
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
