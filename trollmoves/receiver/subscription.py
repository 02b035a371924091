"""Receives messages about files from configured publishers and from services of a name server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.nameserver import ServiceDiscovery
from trollmoves.messaging.subscriber import PublisherEndpoint, Subscriber
from trollmoves.spool import Spool, SpoolQueue
from trollmoves.utils.batch_delivery import SetAside, Stopped

NAMESERVER_TIMEOUT = 2.0  # seconds; a stop may wait this long for the reply
POLL_INTERVAL = 0.1  # seconds between checks whether a paused batch must be dropped because the process stops

OnMessages = Callable[[Sequence[Message]], None]


class Subscription:
    """One subscription for all chains of a daemon.

    The subscriber thread calls ``on_messages`` with each batch of messages about files; the ``Subscriber`` handles its
    exceptions and calls ``set_aside`` with a message that keeps failing. The main thread calls the other methods.

    Args:
        name: the name of the subscriber, for the log.
        addresses: publishers, as ``tcp://host:port`` or ``host:port``.
        nameserver: host of the name server to query for publishers; False queries none.
        services: services to query for; all without one.
        on_messages: the handler.
        set_aside: records a message that keeps failing, and the reason.
        types: the types of messages to pass to the handler; others are ignored.
        spool: keeps messages while the journal cannot be written.
        on_kept: the handler of messages that were kept, on a separate thread; ``on_messages`` without it.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        nameserver: str | Literal[False],
        services: Sequence[str],
        on_messages: OnMessages,
        set_aside: SetAside,
        types: Sequence[str] = payload.FILE_TYPES,
        *,
        spool: Spool | None = None,
        on_kept: OnMessages | None = None,
    ) -> None:
        self._handler = on_messages
        self._kept_handler = on_kept or on_messages
        self._queue = SpoolQueue(spool, name, self._on_kept, set_aside)
        self._types = types
        self._addresses = [a if "://" in a else f"tcp://{a}" for a in addresses]
        self._topics: tuple[str, ...] = ()
        self._lock = threading.Lock()  # guards addresses and topics: the discovery thread adds addresses
        self._input_lock = threading.Lock()  # held during each batch, and while input is paused
        self._started = self._closed = False
        self._subscriber = Subscriber(name, [], self._on_messages, set_aside=set_aside, lasting=True)
        self._discovery = None
        if nameserver is not False:
            self._discovery = ServiceDiscovery(services, nameserver, NAMESERVER_TIMEOUT, self._on_addresses)

    def start(self) -> None:
        """Start receiving."""
        with self.paused():
            pass

    def stop(self) -> None:
        """Stop receiving; drop the batch that a pause holds back."""
        self._closed = True
        if self._discovery:
            self._discovery.stop()
        self._subscriber.stop()
        self._queue.stop()

    def connection_states(self) -> dict[str, bool]:
        """Return whether each publisher is connected, by address. Any thread."""
        return self._subscriber.connection_states()

    def add_topics(self, topics: Sequence[str]) -> None:
        """Subscribe to further subject prefixes; existing subscriptions are not interrupted."""
        with self._lock:
            new = tuple(_shortest(topic for topic in topics if not topic.startswith(self._topics)))
            self._topics += new
            if new:
                self._subscriber.add_publishers([PublisherEndpoint(address, new) for address in self._addresses])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold messages back in ZeroMQ while chains start or stop; start receiving after the first pause."""
        with self._input_lock:
            yield
            if not self._started and not self._closed:
                self._started = True
                self._queue.start()
                self._subscriber.start()
                if self._discovery:
                    self._discovery.start()

    def _on_addresses(self, addresses: Sequence[str]) -> None:
        with self._lock:
            new = [address for address in addresses if address not in self._addresses]
            self._addresses += new
            if self._topics:
                self._subscriber.add_publishers([PublisherEndpoint(address, self._topics) for address in new])

    def _on_messages(self, _: str, messages: list[Message]) -> None:
        file_messages = [message for message in messages if message.type in self._types]
        if file_messages:
            self._queue.pass_on(file_messages, lambda: self._handle(self._handler, file_messages))

    def _on_kept(self, messages: list[Message]) -> None:
        if not self._handle(self._kept_handler, messages):
            raise Stopped

    def _handle(self, handler: OnMessages, messages: Sequence[Message]) -> bool:
        """Call a handler while input is not paused; return False if the process stops first."""
        while not self._input_lock.acquire(timeout=POLL_INTERVAL):
            if self._closed:
                return False
        try:
            handler(messages)
        finally:
            self._input_lock.release()
        return True


def _shortest(topics: Iterator[str]) -> list[str]:
    """Return the topics that do not begin with another one of them."""
    shortest: list[str] = []
    for topic in sorted(set(topics)):
        if not topic.startswith(tuple(shortest)):
            shortest.append(topic)
    return shortest
