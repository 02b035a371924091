"""Says which files of servers that number nothing were announced unheard.

Servers of the earlier implementation cannot be asked for announcements again: their ``info`` lists names, newest first,
without what it takes to ask for a file. So what was missed is not caught up with; but it is named in the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from trollmoves.errors import TrollmovesError
from trollmoves.journal import DONE, Journal, Task
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import Requester
from trollmoves.receiver.fetch_tasks import KIND as FETCH

log = logging.getLogger(__name__)

KIND = "legacy_server"  # of the notes of such servers; the key is address and subject
TIMEOUT = 10.0  # s
MAX_INFO_FILES = 2256  # names in one answer
MAX_NAMED = 10  # files in one log line


class LegacyServers:
    """The servers of one chain that number nothing. Any thread."""

    def __init__(self, name: str, journal: Journal, requester: Requester) -> None:
        self.name = name
        self._journal = journal
        self._requester = requester
        self._lock = threading.Lock()
        self._known = set(journal.keys(name, KIND))
        self._told: set[str] = set()  # names of files

    def on_announced(self, address: str, subject: str) -> None:
        """Take note of where an announcement without a number came from."""
        key = f"{address} {subject}"
        with self._lock:
            if key in self._known:
                return
            self._known.add(key)
        self._journal.add_tasks([Task(self.name, KIND, key, KIND, "", state=DONE)])
        log.warning(
            "[%s] %s does not number its announcements: what it announces unheard is named here and not caught up with",
            self.name,
            address,
        )

    def request_all(self) -> None:
        """Find out what was announced unheard."""
        with self._lock:
            known = sorted(self._known)
        for key in known:
            address, _, subject = key.partition(" ")
            # Twice: what the first answer names and the second one finds unknown was not just on its way.
            self._ask(address, subject, partial(self._ask_again, address, subject))

    def _ask_again(self, address: str, subject: str, names: list[str]) -> None:
        self._ask(address, subject, lambda _: self._report(address, names))

    def _ask(self, address: str, subject: str, then: Callable[[list[str]], None]) -> None:
        def answered(answer: Message | TrollmovesError) -> None:
            data = answer.data if isinstance(answer, Message) else None
            files = data.get("files") if isinstance(data, dict) else None
            if isinstance(files, list):
                then([str(file).rsplit("/", 1)[-1] for file in files])

        question = Message(subject, "info", {"max_count": MAX_INFO_FILES}).encode()
        self._requester.send_request(address, question, TIMEOUT, answered)

    def _report(self, address: str, names: list[str]) -> None:
        known = [self._journal.find(self.name, FETCH, name) is not None for name in names]
        oldest = (
            len(known) - known[::-1].index(True) if True in known else 0
        )  # what is older may be from before our time
        unknown = [name for name, had in zip(names[:oldest], known, strict=False) if not had]
        missed = [name for name in dict.fromkeys(unknown) if name not in self._told]  # a list may hold a name twice
        self._told.update(missed)
        if missed:
            more = f" and {len(missed) - MAX_NAMED} more" if len(missed) > MAX_NAMED else ""
            log.error(
                "[%s] %s announced %d files unheard, which are not fetched: %s%s",
                self.name,
                address,
                len(missed),
                " ".join(missed[:MAX_NAMED]),
                more,
            )
