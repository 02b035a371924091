"""Deliver the local files named in messages, or found in directories, to the matching targets."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial

from trollmoves.chains import Chain, Runtime
from trollmoves.config import dispatcher_file
from trollmoves.config.config_file import Configuration, check_report
from trollmoves.config.options import DispatcherOptions, ProcessOptions, TargetOptions
from trollmoves.daemon import Receiver, nameservers_of
from trollmoves.daemons.subscriber import SubscriberDaemon
from trollmoves.dispatcher.deliveries import COMPACTORS, RESENDERS, Deliveries, enqueue
from trollmoves.dispatcher.explain import explain
from trollmoves.dispatcher.files import ReceivedMessage
from trollmoves.matching.patterns import Origin
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.receiver.subscription import OnMessages, Subscription
from trollmoves.spool import Spool
from trollmoves.utils.batch_delivery import SetAside
from trollmoves.watch import DirectoryWatch, FoundFile

logger = logging.getLogger(__name__)

_PORT = ("-p", "--publish-port")
_NAMESERVER = ("-n", "--publish-nameserver")
_WITH_VALUE = ("-c", "--log-config", "-l", "--log", "--explain")


class TargetChain(Chain):
    """A running target. Its files come from a directory watch if it has an ``origin``, otherwise from messages."""

    def __init__(self, options: TargetOptions, runtime: Runtime, publisher: Publisher | None) -> None:
        self.name = options.name
        self.deliveries = Deliveries(options, runtime.journal, runtime.scheduler, publisher)
        self._runtime = runtime
        self._watch = None
        if options.origin:
            self._watch = DirectoryWatch(
                Origin(options.origin),
                self._on_found,
                quiet=options.quiet_time,
                name=self.name,
                set_aside=partial(runtime.journal.set_aside, self.name),
            )

    @property
    def uses_messages(self) -> bool:
        """True if the files of this target come from messages."""
        return self._watch is None

    def start(self) -> None:
        """Resume pending deliveries and start the directory watch."""
        self.deliveries.start()
        if self._watch:
            self._watch.start()

    def repeat_last_messages(self) -> None:
        """Publish the last receipts of a killed member of the fleet again."""
        self.deliveries.republish_lost()

    def stop(self) -> None:
        """Stop the directory watch and the deliveries; pending deliveries stay in the journal."""
        if self._watch:
            self._watch.stop()
        self._runtime.scheduler.unregister(self.name)

    def _on_found(self, found: list[FoundFile]) -> None:
        self.deliveries.add_files(
            {**file.fields, "uri": file.path, "uid": os.path.basename(file.path)}
            for file in found
            if self.deliveries.is_new(file)
        )


class Dispatcher(SubscriberDaemon[TargetOptions]):
    """The dispatcher: one subscription and at most one publisher for all its targets."""

    role = "dispatcher"
    last_event = "delivered"
    options = TargetOptions
    compactors = COMPACTORS
    resenders = RESENDERS

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self._topics: list[str] = []
        if arguments.explain is not None:
            arguments.check = True

    def read_config(self) -> Configuration[TargetOptions]:
        """Return the parsed configuration, and subscribe to the topics of its targets."""
        found = dispatcher_file.read_dispatcher_config(self._file)
        configs = [config for target in found.sections.values() for config in target.dispatch_configs]
        self._topics = [topic for config in configs for topic in config.topics]
        if self._subscription:
            self._subscription.add_topics(self._topics)
        return found

    def check_report(self, found: Configuration[TargetOptions]) -> str:
        """Return the text that ``--check`` prints; with ``--explain``, the routes of the message or file."""
        if self.arguments.explain is None:
            return check_report(found)
        return explain(found, self.arguments.explain)

    def open_shared(self, runtime: Runtime) -> None:
        """Start the publisher if it has a port; the subscription starts after the targets."""
        if self.arguments.publish_port is not None:
            self._publisher = Publisher(
                "dispatcher",
                self.arguments.publish_port,
                nameservers=nameservers_of(self.arguments.publish_nameserver),
                bind_address=runtime.options.bind_address,
                clients=runtime.options.allowed_clients,
                option="the port of -p",
            )
            self._publisher.start()
        options = runtime.options
        self._subscription = self._subscribe(
            options,
            lambda messages: self._on_messages(messages, runtime),
            partial(runtime.journal.set_aside, self.role),
            runtime.spool,
            on_kept=lambda messages: self._on_messages(messages, runtime, were_kept=True),
        )

    def _subscribe(
        self,
        options: ProcessOptions,
        on_messages: OnMessages,
        set_aside: SetAside,
        spool: Spool | None = None,
        on_kept: OnMessages | None = None,
    ) -> Subscription:
        assert isinstance(options, DispatcherOptions)  # noqa: S101  (for the type checker)
        subscription = Subscription(
            self.role,
            options.subscribe_addresses,
            options.nameserver,
            options.subscribe_services,
            on_messages,
            set_aside,
            spool=spool,
            on_kept=on_kept,
        )
        subscription.add_topics(self._topics)
        return subscription

    def keep_messages(self, found: Configuration[TargetOptions], spool: Spool) -> Sequence[Receiver]:
        """Return a subscription to the messages for all targets."""
        return [self._subscribe(found.process, lambda messages: spool.keep(self.role, messages), lambda *_: None)]

    def make_chain(self, options: TargetOptions, runtime: Runtime) -> Chain:
        """Return the chain of one target."""
        return TargetChain(options, runtime, self._publisher)

    def _on_messages(self, messages: Sequence[Message], runtime: Runtime, *, were_kept: bool = False) -> None:
        """Store the deliveries for a batch of messages; the next batch is received after that."""
        chains = [chain for chain in self.chains if isinstance(chain, TargetChain) and chain.uses_messages]
        enqueue(
            [
                (chain.deliveries, task)
                for received in (ReceivedMessage(message, was_kept=were_kept) for message in messages)
                for chain in chains
                for task in chain.deliveries.tasks(received, received.message.subject)
            ],
            runtime.journal,
            runtime.scheduler,
        )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Dispatcher.make_parser(
        "Deliver local files to the targets whose dispatch configs match the messages about them."
    )
    add = parser.add_argument
    add(
        *_PORT,
        type=int,
        nargs="?",
        const=0,
        metavar="PORT",
        help="publish a message about each delivered file on this port (no number: any free port)",
    )
    add(
        *_NAMESERVER,
        nargs="*",
        metavar="HOST",
        help="register the port with these nameservers; without HOST, or with false: with none; without it: multicast",
    )
    add(
        "--explain",
        metavar="MESSAGE_OR_FILE",
        help="print the destinations of a message or file, and the reasons where it has none; then exit",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dispatcher.py`` and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return Dispatcher(make_parser().parse_args(_with_file_first(arguments))).run()


def _with_file_first(arguments: list[str]) -> list[str]:
    """Return the arguments with the configuration file in front, if ``-p`` or ``-n`` before it would take it."""
    words = iter(enumerate(arguments))
    last_of_list: int | None = None
    for at, word in words:
        following = arguments[at + 1] if at + 1 < len(arguments) else "-"
        if word in _WITH_VALUE or (word in _PORT and following.isdigit()):
            next(words, None)
        elif word in _NAMESERVER:
            hosts = list(itertools.takewhile(lambda other: not other.startswith("-"), arguments[at + 1 :]))
            last_of_list = at + len(hosts) if hosts else None
            for _ in hosts:
                next(words)
        elif not word.startswith("-"):
            return [word, *arguments[:at], *arguments[at + 1 :]]
    if last_of_list is None:
        return arguments
    return [arguments[last_of_list], *arguments[:last_of_list], *arguments[last_of_list + 1 :]]
