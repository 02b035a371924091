"""Answers the requests for the files of a chain.

The giving half of a conversation, for server and mirror alike: what is announced stands in the log (``announcer``),
what is asked for is delivered once (``pushes``), and what nobody wants any more is removed (``removals``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from trollmoves.config.options import ServerOptions
from trollmoves.errors import TrollmovesError
from trollmoves.journal import DONE, Journal, Task
from trollmoves.messaging import sockets
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.replier import Replier, Request
from trollmoves.net import hosts
from trollmoves.provider.announcer import Announcer
from trollmoves.provider.file_store import FileStore
from trollmoves.provider.pushes import PushService, reject
from trollmoves.provider.removals import Removals
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints

log = logging.getLogger(__name__)

MAX_NAMED = 5  # chains in one line


def security_warning(chains: Iterable[ServerOptions]) -> str:
    """Give what whoever runs these chains should know, in one line; empty when there is nothing."""
    names = [f"[{one.name}]" for one in chains if one.request_port is not None and not one.allowed_destinations]
    if not names:
        return ""
    shown = " ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
    return (
        f"without allowed_destinations, {shown} will send the files they announce wherever a request says, and write "
        "over what is there with the rights of this process; see doc/security.md"
    )


class RequestHandler:
    """One chain's request port. A request is served only for what this chain announced."""

    def __init__(
        self,
        options: ServerOptions,
        port: int,
        journal: Journal,
        publisher: Publisher,
        workers: Scheduler,
        holdings: FileStore,
    ) -> None:
        """Bind the request port; StartError when it is taken."""
        self.name = options.name
        self._station = options.station
        self._journal = journal
        self._workers = workers
        address = sockets.tcp(options.request_address or hosts.own_address(), port).removeprefix("tcp://")
        self.announcer = Announcer(self.name, options.topic, journal, publisher, holdings=holdings, address=address)
        self.removals = Removals(
            self.name, journal, workers, holdings, wanted=options.delete, delay=options.remove_delay
        )
        self.pushes = PushService(
            self.name,
            journal,
            workers,
            self.announcer,
            holdings,
            limit=options.max_transfers_per_host,
            parameters=options.connection_parameters,
            allowed=options.allowed_destinations,
            follow=self.removals.tasks_for,
        )
        self._replier = Replier(
            self.name,
            port,
            self._handle,
            bind_address=options.bind_address,
            clients=options.allowed_clients,
            tick=self.pushes.send_keepalives,
        )

    def start(self, *, again: bool = True) -> None:
        """Answer requests, push what was asked for; with ``again`` also announce anew what nobody has had yet."""
        self.pushes.start()
        self.removals.start()
        self._replier.start()
        self.announcer.start(again=again)

    def stop(self) -> None:
        """Hear no requests any more. What runs goes on, and whoever waits for it asks again."""
        self.announcer.stop()
        self._workers.unregister(self.name)
        self._replier.stop()

    def _handle(self, requests: list[Request]) -> None:
        pushes: list[Request] = []
        for request in requests:
            if request.message.type == "push":
                pushes.append(request)
                continue
            try:
                self._answer(request)
            except TrollmovesError as error:
                reject(self.name, request, error)
            except Exception:
                log.exception("[%s] cannot answer %s", self.name, request.message.type)
                request.reject("internal error")
        if pushes:
            self.pushes.accept(pushes)

    def _answer(self, request: Request) -> None:
        kind, data = request.message.type, request.message.data
        if kind == "ping":
            request.reply("pong", {"station": self._station})
        elif kind == "info":
            request.reply("info", self.announcer.info(request.message.subject, data))
        elif kind == "ack":
            self._acknowledge(data)
            request.reply("ack", data)
        elif kind == "replay":
            request.reply("replay", self.announcer.replay(data))
        else:
            request.reply("unknown")

    def _acknowledge(self, data: Any) -> None:
        """Take note that a client needs nothing (more) of an announcement."""
        number = self.announcer.find_announcement(data).number
        failpoints.hit("ack-heard")
        note = Task(self.name, "ack", str(number), "ack", "", announcement_number=number, state=DONE)
        noted = self._journal.add_tasks([note, *self.removals.tasks_for(number)])
        failpoints.hit("acknowledged")
        self._workers.submit([task for task, new in noted[1:] if new])
