"""Periodic lookup of publishers of services in a nameserver."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from posttroll.ns import get_pub_address

logger = logging.getLogger(__name__)

QUERY_INTERVAL = 10.0  # s between queries: services start, stop and change their address


class ServiceDiscovery:
    """Queries a nameserver for the addresses of services, on a separate thread.

    For each new address ``on_addresses`` is called on that thread with all known addresses (``tcp://host:port``).
    Without services it looks up all publishers. With ``follow`` it queries until ``stop``, otherwise until one query
    finds all services.
    """

    def __init__(
        self,
        services: Sequence[str],
        nameserver: str,
        timeout: float,
        on_addresses: Callable[[list[str]], None],
        *,
        follow: bool = True,
    ) -> None:
        self._services = list(services) or [""]
        self._nameserver = nameserver
        self._timeout = timeout
        self._on_addresses = on_addresses
        self._follow = follow
        self._known: dict[str, None] = {}
        self._missing: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"nameserver-{nameserver}", daemon=True)

    def start(self) -> None:
        """Start to query, now and every QUERY_INTERVAL seconds."""
        self._thread.start()

    def stop(self) -> None:
        """Stop querying; wait for a running query up to its timeout."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self._timeout + 1.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            found = [self._query(service) for service in self._services]
            if all(found) and not self._follow:
                return
            self._stopped.wait(QUERY_INTERVAL)

    def _query(self, service: str) -> bool:
        try:
            reply = get_pub_address(service, timeout=self._timeout, nameserver=self._nameserver)
            addresses = [str(publisher["URI"]) for publisher in reply or ()]
        except Exception as error:  # every error of a nameserver may be temporary
            logger.debug("cannot query the nameserver at %s: %s", self._nameserver, error)
            addresses = []
        new = [address for address in addresses if address not in self._known]
        if new:
            self._known |= dict.fromkeys(new)
            self._on_addresses(list(self._known))
        if not addresses and service not in self._missing:
            logger.warning(
                "no address of %s from the nameserver at %s, next attempt in %.0f s",
                service or "any service",
                self._nameserver,
                QUERY_INTERVAL,
            )
            self._missing.add(service)
        elif addresses:
            self._missing.discard(service)
        return bool(addresses)
