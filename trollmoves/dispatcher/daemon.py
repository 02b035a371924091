"""A message tells of a file: send it to whom it concerns."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from trollmoves.config import dispatcher_file
from trollmoves.config.config_file import Configuration, check_report
from trollmoves.config.options import DispatcherOptions, TargetOptions
from trollmoves.daemon import Chain, Daemon, Runtime
from trollmoves.dispatcher.deliveries import KIND, REPUBLISH, Deliveries, enqueue
from trollmoves.dispatcher.explain import explain
from trollmoves.dispatcher.files import ReceivedMessage
from trollmoves.dispatcher.subscription import Subscription
from trollmoves.journal import drop_body
from trollmoves.matching.patterns import Origin
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.utils import failpoints
from trollmoves.watch import DirectoryWatch, FoundFile

logger = logging.getLogger(__name__)


class TargetChain:
    """One target, running. With an ``origin`` it is told of files by a watch, else the dispatcher does."""

    def __init__(self, options: TargetOptions, runtime: Runtime, publisher: Publisher | None) -> None:
        self.name = options.name
        self.deliveries = Deliveries(options, runtime.journal, runtime.scheduler, publisher)
        self._runtime = runtime
        self._watch = None
        self._oldest = 0.0  # s since the epoch
        if options.origin:
            self._watch = DirectoryWatch(Origin(options.origin), self._on_found, name=self.name)
            self._oldest = time.time() - runtime.journal.history_seconds()  # what is older was delivered long ago

    @property
    def uses_messages(self) -> bool:
        """Whether it wants to be told of messages."""
        return self._watch is None

    def start(self) -> None:
        """Deliver what waits, and look for files."""
        self.deliveries.start()
        if self._watch:
            self._watch.start()

    def stop(self) -> None:
        """Look for no more files; what waits stays in the journal."""
        if self._watch:
            self._watch.stop()
        self._runtime.scheduler.unregister(self.name)

    def _on_found(self, found: list[FoundFile]) -> None:
        news = [
            ReceivedMessage(Message("/", "file", {**one.fields, "uri": one.path, "uid": os.path.basename(one.path)}))
            for one in found
            if one.fresh or not self._is_old(one.path)
        ]
        tasks = [task for one in news for task in self.deliveries.tasks(one, None)]
        enqueue(tasks, self._runtime.journal, self._runtime.scheduler)

    def _is_old(self, path: str) -> bool:
        try:
            return os.stat(path).st_ctime < self._oldest
        except OSError:
            return True


class Dispatcher(Daemon[TargetOptions]):
    """The dispatcher: one subscription and at most one publisher for all its targets."""

    role = "dispatcher"
    options = TargetOptions
    compactors = {KIND: drop_body, REPUBLISH: drop_body}

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self._hearing: Subscription | None = None
        self._publisher: Publisher | None = None
        self._topics: list[str] = []
        if arguments.explain is not None:
            arguments.check = True

    def read_config(self) -> Configuration[TargetOptions]:
        """Read the configuration, and listen to what its targets want to hear of."""
        found = dispatcher_file.read_dispatcher_config(self._file)
        self._topics = [t for x in found.sections.values() for way in x.dispatch_configs for t in way.topics]
        if self._hearing:
            self._hearing.add_topics(self._topics)
        return found

    def check_report(self, found: Configuration[TargetOptions]) -> str:
        """Give what ``--check`` prints, or what becomes of the message or file that is to be explained."""
        if self.arguments.explain is None:
            return check_report(found)
        return explain(found, self.arguments.explain)

    def open_shared(self, runtime: Runtime) -> None:
        """Bind the publish port when there is one; hear when the targets are there."""
        if self.arguments.publish_port is not None:
            self._publisher = Publisher(
                "dispatcher",
                self.arguments.publish_port,
                nameservers=_nameservers(self.arguments.publish_nameserver),
                bind_address=runtime.options.bind_address,
                clients=runtime.options.allowed_clients,
            )
            self._publisher.start()
        options = runtime.options
        assert isinstance(options, DispatcherOptions)  # noqa: S101  (for the type checker: ``read`` makes no other)
        self._hearing = Subscription(options, lambda messages: self._on_messages(messages, runtime))
        self._hearing.add_topics(self._topics)

    def close_shared(self) -> None:
        """Hear no more, and give the publish port back."""
        if self._hearing:
            self._hearing.stop()
        if self._publisher:
            self._publisher.stop()

    def paused_input(self) -> AbstractContextManager[None]:
        """Have messages wait while targets come and go."""
        return self._hearing.paused() if self._hearing else nullcontext()

    def make_chain(self, options: TargetOptions, runtime: Runtime) -> Chain:
        """Make the chain of one target."""
        return TargetChain(options, runtime, self._publisher)

    def _on_messages(self, messages: Sequence[Message], runtime: Runtime) -> None:
        """Note all that is to be done about messages before the next ones are heard."""
        failpoints.hit("message-received")
        chains = [chain for chain in self.running_chains() if isinstance(chain, TargetChain) and chain.uses_messages]
        enqueue(
            [
                task
                for news in map(ReceivedMessage, messages)
                for chain in chains
                for task in chain.deliveries.tasks(news, news.message.subject)
            ],
            runtime.journal,
            runtime.scheduler,
        )


def _nameservers(given: Sequence[str] | None) -> Sequence[str] | bool | None:
    if given is None:
        return None
    hosts = [host for host in given if host.lower() not in ("false", "none", "no", "off", "0", "")]
    return hosts or False


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = Dispatcher.make_parser("Send files that messages tell of to whom they concern.")
    add = parser.add_argument
    add(
        "-p",
        "--publish-port",
        type=int,
        nargs="?",
        const=0,
        metavar="PORT",
        help="publish messages about delivered files on this port, or any; without it nothing is published",
    )
    add(
        "-n",
        "--publish-nameserver",
        nargs="*",
        metavar="HOST",
        help="hosts of the name servers to tell of that port; none, or false: tell nobody; without it multicast",
    )
    add(
        "--explain", metavar="MESSAGE_OR_FILE", help="with --check: say what would become of a message or file, and why"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dispatcher.py``; give its exit status."""
    return Dispatcher(make_parser().parse_args(argv)).run()
