"""The process of a command that fetches files: one subscription, one publisher, one chain."""

from __future__ import annotations

import argparse
import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple, TypeVar

from trollmoves.chains import Chain, Runtime
from trollmoves.config.config_file import Configuration
from trollmoves.config.options import ChainOptions
from trollmoves.daemons.subscriber import SubscriberDaemon
from trollmoves.fetching.chain import KIND, REPUBLISH, FetchChain, Rules
from trollmoves.journal import drop_body
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.receiver.subscription import Subscription

logger = logging.getLogger(__name__)

O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, as is the custom for a type)


class Endpoints(NamedTuple):
    """The publishers to subscribe to, and the service that the process publishes."""

    topics: Sequence[str]
    addresses: Sequence[str]
    services: Sequence[str]
    nameserver: str | Literal[False]
    service: str
    port: int = 0
    nameservers: Sequence[str] | Literal[False] | None = None
    ports: tuple[int, int] | None = None  # to choose from for port 0


class FetchDaemon(SubscriberDaemon[O]):
    """A process that fetches files."""

    last_event = "received"
    compactors = {KIND: drop_body, REPUBLISH: drop_body}
    types: ClassVar[Sequence[str]]

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self._endpoints: Endpoints | None = None
        self._options: O | None = None

    @abstractmethod
    def read_file(self) -> Configuration[O]:
        """Return the parsed configuration file; raise ``ConfigError`` if it is unusable."""

    @abstractmethod
    def endpoints(self, options: O) -> Endpoints:
        """Return the endpoints of the process."""

    @abstractmethod
    def rules(self, options: O) -> Rules:
        """Return the rules of the chain."""

    def read_config(self) -> Configuration[O]:
        """Return the parsed configuration file; raise ``ConfigError`` if it is unusable."""
        found = self.read_file()
        (self._options,) = found.sections.values()
        if self._endpoints not in (None, self.endpoints(self._options)):
            logger.warning("changes of the subscription and of the publisher take effect after a restart")
        return found

    def open_shared(self, runtime: Runtime) -> None:
        """Start the publisher; the subscription starts after the chain."""
        assert self._options is not None  # noqa: S101  (the configuration was read)
        self._endpoints = found = self.endpoints(self._options)
        self._publisher = Publisher(
            found.service,
            found.port,
            nameservers=found.nameservers,
            bind_address=self._options.bind_address,
            clients=self._options.allowed_clients,
            heartbeat=False,
            ports=found.ports,
            option="the port of the publisher",
        )
        self._publisher.start()
        self._subscription = Subscription(
            self.role,
            found.addresses,
            found.nameserver,
            found.services,
            self._on_messages,
            partial(runtime.journal.set_aside, self.role),
            self.types,
            spool=runtime.spool,
        )
        self._subscription.add_topics(found.topics or ("",))

    def make_chain(self, options: O, runtime: Runtime) -> Chain:
        """Return the chain."""
        assert self._publisher is not None  # noqa: S101  (opened before)
        return FetchChain(options, runtime, self.rules(options), self._publisher)

    def _on_messages(self, messages: Sequence[Message]) -> None:
        for chain in self.chains:
            if isinstance(chain, FetchChain):
                chain.on_messages(messages)
