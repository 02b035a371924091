"""Logs the missed announcements of legacy servers, which do not number their announcements.

Legacy servers (trollmoves 0.19) cannot replay announcements. Their reply to ``info`` lists file names, newest first,
without the data that a request needs. So missed announcements cannot be recovered; the names are logged.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from functools import partial

from trollmoves.errors import TrollmovesError
from trollmoves.journal import DONE, Journal, Task
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import Requester
from trollmoves.receiver.fetch_tasks import KIND as FETCH
from trollmoves.receiver.peers import Peers

logger = logging.getLogger(__name__)

KIND = "legacy_server"  # of the tasks that record legacy servers; the key is address and subject
TIMEOUT = 10.0  # s
MAX_INFO_FILES = 2256  # names in one reply
MAX_NAMED = 10  # files in one log line


class LegacyServers:
    """The legacy servers of one chain. Any thread."""

    def __init__(self, name: str, journal: Journal, requester: Requester, peers: Peers) -> None:
        self.name = name
        self._journal = journal
        self._requester = requester
        self._peers = peers
        self._lock = threading.Lock()
        self._known = set(journal.keys(name, KIND))
        self._reported: set[str] = set()  # names of logged files

    def on_announced(self, address: str, subject: str) -> None:
        """Record the source of an announcement without a number."""
        key = f"{address} {subject}"
        with self._lock:
            if key in self._known:
                return
            self._known.add(key)
        self._journal.add_tasks([Task(self.name, KIND, key, KIND, "", state=DONE)])
        logger.info(
            "[%s] %s is an older server: missed announcements can be reported but not recovered",
            self.name,
            address,
        )

    def request_all(self) -> None:
        """Request the names of announced files, and log missed ones."""
        with self._lock:
            known = sorted(self._known)
        for key in known:
            address, _, subject = key.partition(" ")
            # Twice: an announcement of the first reply that is unknown at the second one is not merely delayed.
            self._request_names(address, subject, partial(self._request_confirmation, address, subject))

    def _request_confirmation(self, address: str, subject: str, names: list[str]) -> None:
        self._request_names(address, subject, lambda _: self._report(address, names))

    def _request_names(self, address: str, subject: str, then: Callable[[list[str]], None]) -> None:
        def on_reply(reply: Message | TrollmovesError) -> None:
            data = reply.data if isinstance(reply, Message) else None
            files = data.get("files") if isinstance(data, dict) else None
            if isinstance(files, list):
                then([str(file).rsplit("/", 1)[-1] for file in files])

        request = Message(subject, "info", {"max_count": MAX_INFO_FILES}).encode()
        self._requester.send_request(address, request, TIMEOUT, on_reply)

    def _report(self, address: str, names: list[str]) -> None:
        known = [self._journal.find(self.name, FETCH, name) is not None or self._peers.is_done(name) for name in names]
        # Files older than the oldest known one may have been announced before this client was installed.
        oldest = len(known) - known[::-1].index(True) if True in known else 0
        unknown = [name for name, is_known in zip(names[:oldest], known, strict=False) if not is_known]
        missed = [name for name in dict.fromkeys(unknown) if name not in self._reported]  # a reply may repeat a name
        self._reported.update(missed)
        if missed:
            more = f" and {len(missed) - MAX_NAMED} more" if len(missed) > MAX_NAMED else ""
            shared = self._peers.seen
            logger.log(
                logging.INFO if shared else logging.ERROR,
                "[%s] missed %d announcements of %s, these files are not fetched%s: %s%s",
                self.name,
                len(missed),
                address,
                ", except by the peer client" if shared else "",
                " ".join(missed[:MAX_NAMED]),
                more,
            )


def is_legacy_server(address: str, keys: Collection[str]) -> bool:
    """Return True if a server once announced without numbers; ``keys`` are those of all tasks of KIND of the chain."""
    return any(key.startswith(f"{address} ") for key in keys)
