"""Lookup of publishers of services in a nameserver, by its publications and by queries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from posttroll.address_receiver import get_configured_address_port
from posttroll.ns import get_pub_address

from trollmoves.messaging import sockets
from trollmoves.messaging.messages import Message
from trollmoves.messaging.subscriber import PublisherEndpoint, Subscriber

logger = logging.getLogger(__name__)

ADDRESSES = "/address"  # subjects of the publications of a nameserver
QUERY_INTERVAL = 10.0  # s between queries: services start, stop and change their address


class ServiceDiscovery:
    """Finds the addresses of services.

    For each new address ``on_addresses`` is called with all known addresses (``tcp://host:port``), on one of two
    threads, one at a time. Without services it looks up all publishers. With ``follow`` it subscribes to the addresses
    that the nameserver publishes, and queries it until ``stop``, since publications may be missed; otherwise it queries
    until one query finds all services.
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
        self._lock = threading.Lock()  # guards the known addresses
        self._subscriber: Subscriber | None = None
        if follow:
            publications = PublisherEndpoint(sockets.tcp(nameserver, get_configured_address_port()), (ADDRESSES,))
            self._subscriber = Subscriber(f"nameserver {nameserver}", [publications], self._on_published)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"nameserver-{nameserver}", daemon=True)

    def start(self) -> None:
        """Subscribe, and query now and every QUERY_INTERVAL seconds."""
        if self._subscriber:
            self._subscriber.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop querying; wait for a running query up to its timeout."""
        self._stopped.set()
        if self._subscriber:
            self._subscriber.stop()
        if self._thread.is_alive():
            self._thread.join(self._timeout + 1.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            found = [self._query(service) for service in self._services]
            if all(found) and not self._follow:
                return
            self._stopped.wait(QUERY_INTERVAL)

    def _on_published(self, _: str, messages: list[Message]) -> None:
        self._add([address for message in messages if (address := self._address(message.data))])

    def _address(self, data: Any) -> str:
        """Return the address in a publication of the nameserver, if it is that of a service to follow."""
        if not isinstance(data, dict) or data.get("status") is False or not isinstance(data.get("URI"), str):
            return ""
        names = data.get("service")
        is_wanted = "" in self._services or any(name in self._services for name in names or () if isinstance(name, str))
        return str(data["URI"]) if is_wanted else ""

    def _add(self, addresses: list[str]) -> None:
        with self._lock:
            new = [address for address in addresses if address not in self._known]
            if new:
                self._known |= dict.fromkeys(new)
                self._on_addresses(list(self._known))

    def _query(self, service: str) -> bool:
        try:
            reply = get_pub_address(service, timeout=self._timeout, nameserver=self._nameserver)
            addresses = [str(publisher["URI"]) for publisher in reply or ()]
        except Exception as error:  # every error of a nameserver may be temporary
            logger.debug("cannot query the nameserver at %s: %s", self._nameserver, error)
            addresses = []
        self._add(addresses)
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
