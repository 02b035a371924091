"""A daemon that announces files: one publisher and one publish port for all its chains."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from trollmoves.chains import Chain, Runtime
from trollmoves.config.options import ServerOptions
from trollmoves.daemon import Daemon
from trollmoves.messaging.publisher import Publisher
from trollmoves.orders.executor import Resender
from trollmoves.provider import push_tasks
from trollmoves.provider.announcer import Announcer
from trollmoves.provider.request_handler import RequestHandler, security_warning

PUBLISH_PORT = 9010

S = TypeVar("S", bound=ServerOptions)


class ProviderChain(Chain):
    """A chain of such a daemon. Without a request handler, clients read its files by other means."""

    announcer: Announcer
    request_handler: RequestHandler | None

    def on_reload(self) -> None:
        """Repeat the undelivered announcements, so that clients repeat their requests."""
        if self.request_handler:
            self.request_handler.republisher.repeat()


class ProviderDaemon(Daemon[S]):
    """The common part of server and mirror; ``service`` is the name of the publisher."""

    last_event = "announced"
    service: ClassVar[str]
    compactors = {"push": push_tasks.compact_body}
    resenders = {"push": Resender(push_tasks.task_again, announced=push_tasks.task_to)}

    @classmethod
    def make_parser(cls, description: str) -> argparse.ArgumentParser:
        """Return a parser for the arguments common to server and mirror."""
        parser = super().make_parser(description)
        help_text = "port for publishing announcements (%(default)s)"
        parser.add_argument("-p", "--port", type=int, default=PUBLISH_PORT, help=help_text)
        return parser

    def open_shared(self, runtime: Runtime) -> None:
        """Bind the publish port."""
        self._publisher = Publisher(
            self.service,
            self.arguments.port,
            bind_address=runtime.options.bind_address,
            clients=runtime.options.allowed_clients,
            heartbeat_data=self._heartbeat_data,
            option="the port of -p",
        )
        self._publisher.start()

    def close_shared(self) -> None:
        """Close the publish port."""
        self._publisher.stop()

    def startup_warning(self, chains: Iterable[S]) -> str:
        """Return the security warning for the configuration of these chains; empty if there is none."""
        return security_warning(chains)

    def _heartbeat_data(self) -> dict[str, Any]:
        return {
            "logs": [
                chain.announcer.heartbeat_data()
                for chain in self.chains
                if isinstance(chain, ProviderChain) and chain.request_handler
            ]
        }
