"""Finds the publishers of services through a nameserver, again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from posttroll.ns import get_pub_address

log = logging.getLogger(__name__)

QUERY_INTERVAL = 10.0  # s between questions: services come, go and move


class ServiceDiscovery:
    """Asks a nameserver for the addresses of services, on a thread of its own.

    ``found`` gets all addresses (``tcp://host:port``) known so far whenever there is a new one. Without services,
    those of every publisher. With ``follow`` it goes on asking for ever, else until each service was found once.
    """

    def __init__(
        self,
        services: Sequence[str],
        nameserver: str,
        timeout: float,
        found: Callable[[list[str]], None],
        *,
        follow: bool = True,
    ) -> None:
        self._services = list(services) or [""]
        self._nameserver = nameserver
        self._timeout = timeout
        self._found = found
        self._follow = follow
        self._known: dict[str, None] = {}
        self._missing: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"nameserver-{nameserver}", daemon=True)

    def start(self) -> None:
        """Ask, now and every ten seconds."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self._timeout + 1.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            met = [self._query(service) for service in self._services]
            if all(met) and not self._follow:
                return
            self._stopped.wait(QUERY_INTERVAL)

    def _query(self, service: str) -> bool:
        try:
            answer = get_pub_address(service, timeout=self._timeout, nameserver=self._nameserver)
            addresses = [str(one["URI"]) for one in answer or ()]
        except Exception as error:  # whatever a nameserver answers, or does not, it may later
            log.debug("the nameserver at %s: %s", self._nameserver, error)
            addresses = []
        new = [address for address in addresses if address not in self._known]
        if new:
            self._known |= dict.fromkeys(new)
            self._found(list(self._known))
        if not addresses and service not in self._missing:
            log.warning("no address of %s from the nameserver at %s yet", service or "any service", self._nameserver)
            self._missing.add(service)
        elif addresses:
            self._missing.discard(service)
        return bool(addresses)
