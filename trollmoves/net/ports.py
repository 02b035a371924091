"""Ports of this host: the remedies if one cannot be opened."""

from __future__ import annotations

import errno


def listen_remedy(number: int | None, port_option: str, address_option: str = "bind_address") -> str:
    """Return the end of an error text for the errno of a failed ``bind``: the remedy, with the option to change.

    It begins with a semicolon; it is empty for an errno without a known remedy.
    """
    remedies = {
        errno.EADDRINUSE: f"end the process that uses it (ss -ltnp shows it), or change {port_option}",
        errno.EACCES: "a port below 1024 needs root or the capability CAP_NET_BIND_SERVICE (in a unit: "
        f"AmbientCapabilities): change {port_option} to a higher one, or grant it",
        errno.EINVAL: f"a port is a number up to 65535: change {port_option}",
    }
    remedies[errno.EADDRNOTAVAIL] = remedies[errno.ENODEV] = (
        f"change {address_option} to an address of this host, or to * for all"
    )
    return f"; {remedies[number]}" if number in remedies else ""
