"""The deliveries to one target: noted when a message tells of a file, made by workers, told when they are made."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import ParseResult

from trollmoves.config.options import TargetOptions
from trollmoves.dispatcher.files import LocalFile, ReceivedMessage
from trollmoves.dispatcher.routes import format_destination, logins, routes
from trollmoves.errors import MessageError, TransferError, TrollmovesError
from trollmoves.journal import FAILED, UNFLUSHED_SECONDS, WAITING, Journal, Task
from trollmoves.matching.patterns import ComposeError, Pattern
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import SUBSCRIBER_GRACE, Publisher
from trollmoves.movers import PartialId, move_it
from trollmoves.net import urls
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints
from trollmoves.utils.logs import format_bytes

logger = logging.getLogger(__name__)

KIND = "deliver"
REPUBLISH = "republish"
RECHECK_DELAY = 0.2  # s after which a delivery looks again whether the one before it to the same name is over
CACHE_SIZE = 10_000  # names that were delivered to lately


@dataclass(frozen=True, slots=True)
class DeliveryOrder:
    """What is to be delivered, as the journal has it: no password; ``receipt`` is the message to publish, if any."""

    path: str
    scheme: str
    netloc: str
    path_there: str
    receipt: str = ""

    @property
    def url(self) -> ParseResult:
        """The destination, without a password."""
        return ParseResult(self.scheme, self.netloc, self.path_there, "", "", "")

    @property
    def name(self) -> str:
        """What is delivered to, as a key."""
        return f"{self.scheme}://{self.netloc}{self.path_there}"

    def text(self) -> str:
        """Give it as the journal keeps it."""
        return json.dumps([self.path, self.scheme, self.netloc, self.path_there, self.receipt])


class Deliveries:
    """The deliveries to one target. ``tasks`` is for the thread that hears, the rest for the workers."""

    def __init__(
        self, options: TargetOptions, journal: Journal, workers: Scheduler, publisher: Publisher | None
    ) -> None:
        self.name = options.name
        self._options = options
        self._journal = journal
        self._workers = workers
        self._publisher = publisher
        self._routes = routes(options)
        self._logins = logins(options)
        self._topic = Pattern(options.publish_topic, compose_only=True) if options.publish_topic else None
        self._turns = _DestinationLocks()
        self._began = journal.now()

    def start(self) -> None:
        """Deliver, also what was noted by an earlier process."""
        if self._publisher and not self._topic:
            logger.info("[%s] has no publish_topic: nothing will be published about it", self.name)
        settle = SUBSCRIBER_GRACE if self._publisher else 0.0
        self._workers.register(
            self.name, KIND, limit=self._options.max_transfers_per_host, handler=self._deliver, delay=settle
        )
        if self._publisher:
            self._workers.register(self.name, REPUBLISH, limit=1, handler=self._republish, delay=settle)
            self._workers.submit([task for task, new in self._journal.add_tasks(self._unpublished()) if new])

    def _unpublished(self) -> list[Task]:
        """Give the tasks of telling again what an earlier process may not have told when it was killed."""
        return [
            Task(self.name, REPUBLISH, f"{task.id} {task.finished}", REPUBLISH, receipt)
            for task in self._journal.finished_before_kill(self.name, (KIND,), UNFLUSHED_SECONDS)
            if task.body and (receipt := DeliveryOrder(*json.loads(task.body)).receipt)
        ]

    def _republish(self, task: Task) -> None:
        """Publish what may have been lost with the process that was killed; runs on a worker."""
        self._publish(Message.decode(task.body))

    # -- noting

    def tasks(self, news: ReceivedMessage, subject: str | None) -> list[Task]:
        """Give what is to be done about a message; what cannot be is told in the log. Never raises.

        Without a ``subject`` the topics do not matter.
        """
        told = news.message.subject
        try:
            ways = [route for route in self._routes if not route.mismatch_reason(subject, news.metadata)]
            found = list(self._local_files(news)) if ways else []
            return [task for file in found for route in ways for task in self._task(route.number, file)]
        except TrollmovesError as error:
            logger.warning("[%s] message about %s passed over: %s", self.name, told, error)
        except Exception:  # nothing that is sent makes a dispatcher deaf
            logger.exception("[%s] message about %s passed over", self.name, told)
        return []

    def _local_files(self, news: ReceivedMessage) -> Iterator[LocalFile]:
        for file in news.files():
            if isinstance(file, LocalFile):
                yield file
            else:
                told = news.message.subject
                logger.warning("[%s] passed over a file of a message about %s: %s", self.name, told, file)

    def _task(self, number: int, file: LocalFile) -> Iterator[Task]:
        try:
            url = self._routes[number - 1].destination(file)
        except TrollmovesError as error:
            logger.warning("[%s] dispatch config %d: %s is not delivered: %s", self.name, number, file.path, error)
            return
        receipt = self._receipt(file, url)
        order = DeliveryOrder(file.path, url.scheme, url.netloc, url.path, receipt.raw if receipt else "")
        version = f"{file.size} {file.mtime_ns}"
        key = f"{os.path.basename(file.path)} to {format_destination(url)}\n{file.path} {version} {url.geturl()}"
        host = "this host" if url.scheme == "file" else url.netloc.rpartition("@")[2] or url.scheme
        yield Task(self.name, KIND, key, f"{KIND} {host}", order.text(), context=(order, receipt))

    def _receipt(self, file: LocalFile, url: ParseResult) -> Message | None:
        """Give the message about a file that is going to be delivered, with its text; None without one."""
        if self._topic is None:
            return None
        try:
            subject = _subject(self._topic.compose(file.published))
            receipt = Message(subject, "file", {**file.published, "uri": url.path})
            receipt.raw = receipt.encode()
            return receipt
        except (ComposeError, MessageError) as error:
            logger.warning("[%s] nothing will be published about %s: %s", self.name, file.path, error)
            return None

    # -- delivering

    def _deliver(self, task: Task) -> Result:
        """Deliver a file; runs on a worker."""
        order, receipt = task.context or (DeliveryOrder(*json.loads(task.body)), None)
        with self._turns.turn(order.name, task.id) as turn:
            if turn == _LATER:
                task.tries -= 1
                return Result(retry_in=RECHECK_DELAY)
            if turn == SUPERSEDED:
                logger.info(
                    "[%s] %s has been overtaken by a newer file of its name", self.name, task.key.partition("\n")[0]
                )
                return Result()
            return self._send(task, order, receipt)

    def _send(self, task: Task, order: DeliveryOrder, receipt: Message | None) -> Result:
        started = time.monotonic()
        url = order.url
        mark = PartialId.for_delivery(self._journal.identity, self.name, task.key, tried=task.may_have_run(self._began))
        try:
            move_it(order.path, self._with_password(url), self._options.connection_parameters, mark=mark)
        except TransferError as error:
            if error.temporary and self._journal.now() - task.created > self._options.retry_for > 0:
                what = task.key.partition("\n")[0]
                logger.error("[%s] %s is given up after %d tries: %s", self.name, what, task.tries, error)
                return Result(error=error, final=True)
            raise
        failpoints.hit("delivered")
        logger.info(
            "[%s] delivered %s to %s (%s, %.2f s, try %d)",
            self.name,
            os.path.basename(order.path),
            format_destination(url),
            format_bytes(_size(order.path)),
            time.monotonic() - started,
            task.tries,
        )
        if self._publisher and order.receipt:
            self._publish(receipt or Message.decode(order.receipt))
            failpoints.hit("receipt-published")
        return Result()

    def _publish(self, receipt: Message) -> None:
        if self._publisher:
            self._publisher.send(Message(receipt.subject, receipt.type, receipt.data))

    def _with_password(self, url: ParseResult) -> ParseResult:
        known = self._logins.get((url.scheme, url.netloc))
        return url._replace(netloc=known.netloc) if known and known.netloc != url.netloc else url


def enqueue(tasks: Sequence[Task], journal: Journal, workers: Scheduler) -> None:
    """Write down, in one transaction, what is to be done, and have it done.

    What is known is done or will be; but what failed for good is tried again when a message tells of it again.
    """
    if not tasks:
        return
    new, again = [], []
    for task, wanted in zip(journal.add_tasks(tasks), tasks, strict=True):
        known, is_new = task
        if is_new:
            new.append(known)
        elif known.state == FAILED:
            known.body, known.context, known.lane = wanted.body, wanted.context, wanted.lane
            known.state, known.tries, known.due = WAITING, 0, journal.now()
            again.append(known)
        else:
            logger.debug("[%s] %s is known", known.chain, known.key.partition("\n")[0])
    if again:
        journal.reset_tasks(again)
    failpoints.hit("deliveries-stored")
    workers.submit([*new, *again])


_NOW, _LATER, SUPERSEDED = range(3)


class _DestinationLocks:
    """Sees that what goes to one name goes one after the other, and nothing older after something newer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._newest: OrderedDict[str, int] = OrderedDict()  # the last task delivered to each name

    @contextmanager
    def turn(self, name: str, number: int) -> Iterator[int]:
        """Tell whether a task may deliver to a name; it has the name for itself meanwhile."""
        with self._lock:
            overtaken = self._newest.get(name, 0) > number
            verdict = _LATER if name in self._busy else SUPERSEDED if overtaken else _NOW
            if verdict == _NOW:
                self._busy.add(name)
        try:
            yield verdict
            if verdict == _NOW:
                self._remember(name, number)
        finally:
            if verdict == _NOW:
                with self._lock:
                    self._busy.discard(name)

    def _remember(self, name: str, number: int) -> None:
        with self._lock:
            self._newest[name] = number
            self._newest.move_to_end(name)
            while len(self._newest) > CACHE_SIZE:
                self._newest.popitem(last=False)


def _subject(composed: str) -> str:
    """Give the subject of a message; MessageError when it is more than one word, as metadata may make it."""
    if len(composed.split()) > 1 or composed != composed.strip():
        raise MessageError(f"its topic would be {urls.excerpt(composed)!r}, which is not one word")
    return composed if composed.startswith("/") else f"/{composed}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
