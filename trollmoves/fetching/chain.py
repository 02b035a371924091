"""The chain of a process that fetches files: receives messages, fetches each file, publishes where it is."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from trollmoves.chains import Chain, Runtime
from trollmoves.config.options import ChainOptions
from trollmoves.errors import TransferError, TrollmovesError
from trollmoves.fetching.fetch import fetch
from trollmoves.fetching.sources import Source
from trollmoves.journal import UNFLUSHED_SECONDS, Task
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.movers import PartialId
from trollmoves.scheduler.lanes import FileStats, Result
from trollmoves.utils.logs import LogThrottle, format_bytes
from trollmoves.utils.ordered_names import RECHECK_DELAY, OrderedNames

logger = logging.getLogger(__name__)

KIND = "fetch"
REPUBLISH = "republish"


class Rules(ABC):
    """The files that a command fetches, their paths, and the messages about them. Any thread."""

    make_directory: bool
    """True if a missing directory is created."""

    @abstractmethod
    def items(self, message: Message) -> Sequence[dict[str, Any]]:
        """Return the data of each file that a message names; raise MessageError if it names none."""

    @abstractmethod
    def source(self, item: dict[str, Any]) -> Source:
        """Return the source of a file; raise MessageError if its data are invalid."""

    @abstractmethod
    def path(self, message: Message, source: Source) -> str:
        """Return the path on this host; raise ComposeError or BadDestination if the metadata do not fit."""

    @abstractmethod
    def receipt(self, message: Message, path: str) -> Message:
        """Return the message about the fetched file ``path``."""


class FetchChain(Chain):
    """A running chain. The subscriber thread stores tasks, worker threads fetch and publish."""

    def __init__(self, options: ChainOptions, runtime: Runtime, rules: Rules, publisher: Publisher) -> None:
        self.name = options.name
        self._options = options
        self._runtime = runtime
        self._rules = rules
        self._publisher = publisher
        self._throttle = LogThrottle()
        self._order = OrderedNames()
        self._created = runtime.journal.now()

    def start(self) -> None:
        """Resume pending fetches, including those stored by an earlier process."""
        scheduler, journal = self._runtime.scheduler, self._runtime.journal
        limit, delay = self._options.max_transfers_per_host, self._publisher.grace
        scheduler.register(self.name, KIND, limit=limit, handler=self._fetch, delay=delay)
        scheduler.register(self.name, REPUBLISH, limit=1, handler=self._republish, delay=delay)
        scheduler.submit([task for task, new in journal.add_tasks(self._unpublished()) if new])

    def stop(self) -> None:
        """Start no further fetches; pending ones stay in the journal."""
        self._runtime.scheduler.unregister(self.name)

    # -- messages

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Store a fetch for each file; the next batch is received after that."""
        tasks = [task for message in messages for task in self._tasks(message)]
        stored = self._runtime.journal.add_tasks(tasks) if tasks else []
        self._runtime.scheduler.submit([task for task, is_new in stored if is_new])

    def _tasks(self, message: Message) -> list[Task]:
        """Return the fetches for a message; log an invalid one. Never raises."""
        try:
            return [
                self._task(message, number, self._rules.source(item))
                for number, item in enumerate(self._rules.items(message))
            ]
        except Exception as error:  # a malformed message must not stop the process
            if (suffix := self._throttle.admit(message.subject)) is not None:
                is_unexpected = not isinstance(error, TrollmovesError)
                level = logging.ERROR if is_unexpected else logging.WARNING
                text = "[%s] ignored message about %s: %s%s"
                logger.log(level, text, self.name, message.subject, error, suffix, exc_info=is_unexpected)
        return []

    def _task(self, message: Message, number: int, source: Source) -> Task:
        """Return the fetch of one file. A message that is received twice is one task, a repeated message is another."""
        digest = hashlib.sha256(f"{number} {message.raw}".encode("utf-8", "backslashreplace")).hexdigest()
        body = json.dumps([number, message.raw])
        return Task(self.name, KIND, f"{source.name}\n{digest}", f"{KIND} {source.endpoint}", body, context=message)

    # -- fetching

    def _fetch(self, task: Task) -> Result:
        """Fetch a file and publish it; give up after ``retry_for`` seconds. Runs on a worker thread."""
        try:
            return self._fetch_in_order(task)
        except TransferError as error:
            waited = self._runtime.journal.now() - task.created
            if not (error.temporary and waited > self._options.retry_for > 0):
                raise
            name = task.key.partition("\n")[0]
            logger.error("[%s] giving up on %s at attempt %d: %s", self.name, name, task.tries, error)
            return Result(error=error, final=True)

    def _fetch_in_order(self, task: Task) -> Result:
        """Fetch a file, unless a newer message has fetched one to the same path, and publish it."""
        number, text = json.loads(task.body)
        message = task.context or Message.decode(text)
        source = self._rules.source(self._rules.items(message)[number])
        path = self._rules.path(message, source)
        with self._order.claim((path,), task.id) as current:
            if current is None:
                task.tries -= 1
                return Result(retry_in=RECHECK_DELAY)
            size = 0
            if current:
                size = self._fetch_to(task, source, path)
            else:
                logger.info("[%s] not fetching %s again: a newer message did", self.name, source.name)
            receipt = self._rules.receipt(message, path)
            self._publisher.send(receipt)
            return Result(reply=receipt.encode(), files=FileStats(1, size, int(message.timestamp() * 1e9)))

    def _fetch_to(self, task: Task, source: Source, path: str) -> int:
        started = time.monotonic()
        partial_id = PartialId.of_task(self._runtime.journal, task, self._created)
        size = fetch(source, path, make_directory=self._rules.make_directory, partial_id=partial_id)
        seconds = time.monotonic() - started
        logger.info(
            "[%s] fetched %s from %s (%s, %.2f s, attempt %d)",
            *(self.name, source.name, source.endpoint, format_bytes(size), seconds, task.tries),
        )
        return size

    # -- receipts of a killed process

    def _unpublished(self) -> list[Task]:
        """Return tasks that publish the receipts which a killed process may have lost."""
        return [
            Task(self.name, REPUBLISH, f"{task.id} {task.finished}", REPUBLISH, task.reply)
            for task in self._runtime.journal.finished_before_kill(self.name, (KIND,), UNFLUSHED_SECONDS)
            if task.reply
        ]

    def _republish(self, task: Task) -> None:
        """Publish a receipt that a killed process may have lost; runs on a worker thread."""
        receipt = Message.decode(task.body)
        self._publisher.send(Message(receipt.subject, receipt.type, receipt.data))
