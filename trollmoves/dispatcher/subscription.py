"""Hears messages about files, and notes for all targets at once what is to be done about them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from trollmoves.config.options import DispatcherOptions
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.nameserver import ServiceDiscovery
from trollmoves.messaging.subscriber import PublisherEndpoint, Subscriber

NAMESERVER_TIMEOUT = 2.0  # s; an end waits for an answer
POLL_INTERVAL = 0.1  # s between looks whether a held back batch of messages is to be dropped, since this process ends

Heard = Callable[[Sequence[Message]], None]


class Subscription:
    """The ears of a dispatcher: one subscription for all its targets.

    ``heard`` gets the messages about files that are at hand together, on the listener's thread; what it raises is as
    for a ``Listener``. The main thread calls all else.
    """

    def __init__(self, options: DispatcherOptions, heard: Heard) -> None:
        self._heard = heard
        self._addresses = [a if "://" in a else f"tcp://{a}" for a in options.subscribe_addresses]
        self._topics: tuple[str, ...] = ()
        self._lock = threading.Lock()  # addresses and topics: the finder's thread adds to the former
        self._gate = threading.Lock()  # held by whoever takes messages, and by whoever holds them back
        self._started = self._closed = False
        self._listener = Subscriber("dispatcher", [], self._on_messages)
        self._finder = None
        if options.nameserver is not False:
            self._finder = ServiceDiscovery(
                options.subscribe_services, options.nameserver, NAMESERVER_TIMEOUT, self._on_addresses
            )

    def stop(self) -> None:
        """Hear no more; what was not taken yet is dropped."""
        self._closed = True
        if self._finder:
            self._finder.stop()
        self._listener.stop()

    def add_topics(self, topics: Sequence[str]) -> None:
        """Hear the subjects that begin so, too; what was wanted before goes on undisturbed."""
        with self._lock:
            new = tuple(_shortest(topic for topic in topics if not topic.startswith(self._topics)))
            self._topics += new
            if new:
                self._listener.add_publishers([PublisherEndpoint(address, new) for address in self._addresses])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have messages wait while targets come and go: they stay with ZeroMQ. After the first time it hears."""
        with self._gate:
            yield
            if not self._started and not self._closed:
                self._started = True
                self._listener.start()
                if self._finder:
                    self._finder.start()

    def _on_addresses(self, addresses: Sequence[str]) -> None:
        with self._lock:
            new = [address for address in addresses if address not in self._addresses]
            self._addresses += new
            if self._topics:
                self._listener.add_publishers([PublisherEndpoint(address, self._topics) for address in new])

    def _on_messages(self, _: str, messages: list[Message]) -> None:
        wanted = [message for message in messages if message.type in payload.FILE_TYPES]
        if not wanted:
            return
        while not self._gate.acquire(timeout=POLL_INTERVAL):
            if self._closed:
                return
        try:
            self._heard(wanted)
        finally:
            self._gate.release()


def _shortest(topics: Iterator[str]) -> list[str]:
    """Leave out what begins with another one of them."""
    found: list[str] = []
    for topic in sorted(set(topics)):
        if not topic.startswith(tuple(found)):
            found.append(topic)
    return found
