"""Handles the requests for the files of a chain.

Used by server and mirror: ``announcer`` keeps the announcement log, ``republisher`` repeats announcements, ``pushes``
delivers each requested file once, and ``removals`` removes delivered files.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from trollmoves.chains import Runtime
from trollmoves.config.options import OWN, ServerOptions
from trollmoves.errors import JournalError
from trollmoves.journal import DONE, AnnouncementRecord, Task
from trollmoves.messaging import payload, sockets
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.replier import Replier, Request, TooManyRequests
from trollmoves.net import hosts, urls
from trollmoves.provider.announcer import Announcer
from trollmoves.provider.file_store import FileStore
from trollmoves.provider.push_replies import rejecting
from trollmoves.provider.push_request import requested_files
from trollmoves.provider.pushes import PushService
from trollmoves.provider.removals import Removals
from trollmoves.provider.republisher import Republisher
from trollmoves.status.history import Step, steps_of_announcement

THIS_HOST = "this host"  # in place of a directory of this host
MAX_STEPS = 200  # of one file in a reply
MAX_LISTED_CHAINS = 5  # chains named in the security warning
MAX_REPLAYS = 10  # pending replays and histories of one client
Sources = Callable[[AnnouncementRecord], Mapping[str, str]]


def security_warning(chains: Iterable[ServerOptions]) -> str:
    """Return the security warning for the configuration of these chains; empty if there is none."""
    names = [f"[{one.name}]" for one in chains if one.request_port is not None and not one.allowed_destinations]
    if not names:
        return ""
    more = len(names) - MAX_LISTED_CHAINS
    listed = " ".join(names[:MAX_LISTED_CHAINS]) + (f" and {more} more" if more > 0 else "")
    return (
        f"without allowed_destinations, {listed} will send announced files to any destination that a request names, "
        "and overwrite files there with the permissions of this process; see doc/security.md"
    )


class RequestHandler:
    """The request port of one chain. It serves only files that this chain has announced."""

    def __init__(
        self,
        options: ServerOptions,
        port: int,
        runtime: Runtime,
        publisher: Publisher,
        file_store: FileStore,
        sources: Sources = lambda _: {},
    ) -> None:
        """Bind the request port; raise StartError if it is in use.

        ``sources`` returns the path of an announced file at each upstream server.
        """
        self.name = options.name
        self._health = runtime.health
        self._station = options.station
        self._journal = journal = runtime.journal
        self._scheduler = runtime.scheduler
        self._address = sockets.tcp(options.request_address or hosts.own_address(), port).removeprefix("tcp://")
        self._place = ""
        if journal.sharing:
            self._place = journal.sharing.keep_files(self.name, port if options.files == OWN else None)
        self.announcer = Announcer(
            *(self.name, options.topic, journal, publisher),
            file_store=file_store,
            address=self._address,
            place=self._place,
        )
        self.republisher = Republisher(self.name, journal, publisher, self.announcer.publish_again)
        self.removals = Removals(options, journal, runtime.scheduler, file_store)
        self.pushes = PushService(
            *(options, journal, runtime.scheduler, self.announcer, file_store),
            follow=self.removals.tasks_for,
            in_turn=bool(self._place),
        )
        self._role = options.role
        self._sources = sources
        self._replayer = _Replayer(self.name, {"replay": self.announcer.replay, "history": self._history})
        self._replier = Replier(
            self.name,
            port,
            self._handle,
            bind_address=options.bind_address,
            clients=options.allowed_clients,
            tick=self.pushes.on_tick,
        )

    def start(self, *, republish: bool = True) -> None:
        """Reply to requests and run pushes; with ``republish`` also publish undelivered announcements again."""
        sharing = self._journal.sharing
        if sharing:
            sharing.set_address(self.name, self._address)
            # Later members find the announcements of others.
            republish = republish and (bool(self._place) or sharing.is_first())
        unanswered = set() if sharing else self.pushes.unanswered()
        self.pushes.start()
        self.removals.start()
        self._replayer.start()
        self._replier.start()
        self.announcer.start()
        self.republisher.start(undelivered=republish, unanswered=unanswered)
        self.repeat_last_messages()

    def stop(self) -> None:
        """Stop receiving requests. Running pushes go on; clients that wait for a reply repeat their requests."""
        self.announcer.stop()
        self.republisher.stop()
        self._scheduler.unregister(self.name)
        self._replayer.stop()
        self._replier.stop()
        if self._journal.sharing:
            with suppress(JournalError):  # it is removed with the member
                self._journal.sharing.set_address(self.name, None)

    def repeat_last_messages(self) -> None:
        """Publish announcements of killed members of the fleet again, of which they cannot answer the requests.

        Not if this member does not have their files.
        """
        sharing = self._journal.sharing
        if sharing and (addresses := sharing.killed_addresses(self.name)) and not self._place:
            self.republisher.repeat_for_killed(addresses, self.pushes.unanswered())

    def _handle(self, requests: list[Request]) -> None:
        pushes: list[Request] = []
        for request in requests:
            if request.message.type == "push":
                pushes.append(request)
                continue
            with rejecting(self.name, request):
                self._reply(request)
        if pushes:
            self.pushes.accept(pushes)

    def _reply(self, request: Request) -> None:
        kind, data = request.message.type, request.message.data
        if kind == "ping":
            request.reply("pong", {"station": self._station, "health": self._health.of_chain(self.name)})
        elif kind == "info":
            request.reply("info", self.announcer.info(request.message.subject, data))
        elif kind == "ack":
            self._acknowledge(data)
            request.reply("ack", data)
        elif kind in ("replay", "history"):
            self._replayer.accept(request)
        else:
            request.reply("unknown")

    def _acknowledge(self, data: Any) -> None:
        """Record that a client does not need (more) files of an announcement."""
        uris = [item["uri"] for item in requested_files(data)]
        number = self.announcer.find_announcement(uris, payload.announcement_metadata(data)).number
        ack = Task(self.name, "ack", str(number), "ack", "", announcement_number=number, state=DONE)
        stored = self._journal.add_tasks([ack, *self.removals.tasks_for(number)])
        self._scheduler.submit([task for task, created in stored[1:] if created])

    def _history(self, data: Any) -> dict[str, Any]:
        """Return the steps of the announced file ``uri``, and its paths at the upstream servers."""
        uri = data.get("uri") if isinstance(data, dict) else None
        announced = self._journal.latest_announcement(self.name, uri) if isinstance(uri, str) else None
        if announced is None:
            return {"kind": self._role, "chain": self.name, "steps": [], "sources": {}}
        with self._journal.open_reader() as reader:
            row = reader.announcement(self.name, announced.number)
            steps = steps_of_announcement(reader, row) if row else []
        return {
            "kind": self._role,
            "chain": self.name,
            "steps": [_public(step) for step in steps[-MAX_STEPS:]],
            "sources": dict(self._sources(announced)),
        }


def _public(step: Step) -> dict[str, Any]:
    """Return the facts of a step that a client may know: of a destination only the host."""
    names = ("time", "event", "file", "peer", "number", "size", "seconds", "attempts")
    public = {name: value for name in names if (value := getattr(step, name)) not in (None, "")}
    if step.destination:
        url = urls.parse(step.destination)
        public["destination"] = f"{url.scheme}://{urls.host(url)}" if urls.host(url) else THIS_HOST
    return public


class _Replayer:
    """The thread that replies to ``replay`` and ``history``: the disk of the origin or the journal may be slow."""

    def __init__(self, name: str, replies: Mapping[str, Callable[[Any], dict[str, Any]]]) -> None:
        self._name = name
        self._replies = replies
        self._requests: SimpleQueue[Request | None] = SimpleQueue()
        self._pending: Counter[str] = Counter()  # by client
        self._lock = threading.Lock()  # guards it
        self._thread = threading.Thread(target=self._run, name=f"replayer-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the pending requests; do not wait for it."""
        self._requests.put(None)

    def accept(self, request: Request) -> None:
        """Reply to a request later; raise TooManyRequests if too many of its client are pending. Replier thread."""
        with self._lock:
            if self._pending[request.sender] >= MAX_REPLAYS:
                raise TooManyRequests("too many replays of this client are pending")
            self._pending[request.sender] += 1
        self._requests.put(request)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            with rejecting(self._name, request):
                kind = request.message.type
                request.reply(kind, self._replies[kind](request.message.data))
            with self._lock:
                self._pending[request.sender] -= 1
                self._pending += Counter()  # without the clients that have none
