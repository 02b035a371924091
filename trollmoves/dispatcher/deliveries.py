"""Deliveries to one target: stored when a message arrives, run on worker threads, published when done."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from urllib.parse import ParseResult

from trollmoves.config.options import TargetOptions
from trollmoves.dispatcher.files import LocalFile, ReceivedMessage
from trollmoves.dispatcher.routes import format_destination, logins, routes
from trollmoves.errors import BadDestination, MessageError, TransferError, TrollmovesError
from trollmoves.journal import BACKLOG, FAILED, UNFLUSHED_SECONDS, WAITING, Journal, Task
from trollmoves.matching.patterns import ComposeError, Pattern
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import SUBSCRIBER_GRACE, Publisher
from trollmoves.movers import PartialId, move_it
from trollmoves.net import urls
from trollmoves.scheduler.lanes import FileStats, Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints
from trollmoves.utils.logs import LogThrottle, format_bytes
from trollmoves.utils.ordered_names import RECHECK_DELAY, OrderedNames
from trollmoves.watch.completeness import check_complete

logger = logging.getLogger(__name__)

KIND = "deliver"
REPUBLISH = "republish"
_KEY = re.compile(r"[^\n]*\n(.*) (\d+) (\d+) ([a-z0-9+.-]+)://([^/]*)(/.*)", re.DOTALL)  # of a delivery
ROUTE = "route"  # task kind: a message whose destination cannot be composed until the configuration is repaired


@dataclass(frozen=True, slots=True)
class DeliveryOrder:
    """A delivery as stored in the journal, without a password.

    ``receipt`` is the message to publish, or empty. ``size`` (bytes) and ``mtime_ns`` are those of the file when its
    message arrived.
    """

    path: str
    scheme: str
    netloc: str
    destination_path: str
    receipt: str
    size: int
    mtime_ns: int

    @property
    def url(self) -> ParseResult:
        """The destination, without a password."""
        return ParseResult(self.scheme, self.netloc, self.destination_path, "", "", "")

    @property
    def name(self) -> str:
        """The destination as a key."""
        return f"{self.scheme}://{self.netloc}{self.destination_path}"

    def text(self) -> str:
        """Return the order as JSON for the journal."""
        return json.dumps(astuple(self))

    @property
    def key(self) -> str:
        """The key of the task: the delivery for people, then the file, its version and the destination."""
        version = f"{self.size} {self.mtime_ns}"
        name = f"{os.path.basename(self.path)} to {format_destination(self.url)}"
        return f"{name}\n{self.path} {version} {self.url.geturl()}"

    @property
    def lane(self) -> str:
        """The lane of the task."""
        return f"{KIND} {'this host' if self.scheme == 'file' else urls.endpoint(self.url)}"

    @classmethod
    def load(cls, task: Task) -> DeliveryOrder | None:
        """Return the order of a task, also of a compacted one; None if its key is unreadable."""
        if task.body.startswith("["):
            return cls(*json.loads(task.body))
        found = _KEY.fullmatch(task.key)
        if not found:
            return None
        path, size, mtime, scheme, netloc, destination = found.groups()
        return cls(path, scheme, netloc, destination, task.body, int(size), int(mtime))


class Deliveries:
    """The deliveries to one target. The subscriber or watch thread calls ``tasks``; worker threads run the tasks."""

    def __init__(
        self, options: TargetOptions, journal: Journal, scheduler: Scheduler, publisher: Publisher | None
    ) -> None:
        self.name = options.name
        self._options = options
        self._journal = journal
        self._scheduler = scheduler
        self._publisher = publisher
        self._routes = routes(options)
        self._logins = logins(options)
        self._topic = Pattern(options.publish_topic, compose_only=True) if options.publish_topic else None
        self._throttle = LogThrottle()
        self._order = OrderedNames()
        self._created = journal.now()

    def start(self) -> None:
        """Start the deliveries, including those stored by an earlier process."""
        if self._publisher and not self._topic:
            logger.info("[%s] no publish_topic: its deliveries will not be published", self.name)
        delay = SUBSCRIBER_GRACE if self._publisher else 0.0
        self._scheduler.register(
            self.name, KIND, limit=self._options.max_transfers_per_host, handler=self._deliver, delay=delay
        )
        self._scheduler.register(self.name, ROUTE, limit=1, handler=self._route)
        if self._publisher:
            self._scheduler.register(self.name, REPUBLISH, limit=1, handler=self._republish, delay=delay)
            self._scheduler.submit([task for task, new in self._journal.add_tasks(self._unpublished()) if new])

    def _unpublished(self) -> list[Task]:
        """Return tasks that publish the receipts which a killed process may have lost."""
        return [
            Task(self.name, REPUBLISH, f"{task.id} {task.finished}", REPUBLISH, receipt)
            for task in self._journal.finished_before_kill(self.name, (KIND,), UNFLUSHED_SECONDS)
            if (order := DeliveryOrder.load(task)) and (receipt := order.receipt)
        ]

    def _republish(self, task: Task) -> None:
        """Publish a receipt that a killed process may have lost; runs on a worker thread."""
        self._publish(Message.decode(task.body))

    # -- creating tasks

    def tasks(self, received: ReceivedMessage, subject: str | None) -> list[Task]:
        """Return the tasks for a message; log the files that cannot be delivered. Never raises.

        If ``subject`` is None, topics are not compared. If a destination cannot be composed, one of the tasks keeps the
        message until the configuration is repaired.
        """
        try:
            tasks, error = self._deliveries(received, subject)
            return [*tasks, self._kept_message(received.message, subject)] if error else tasks
        except Exception as error:  # a malformed message must not stop the dispatcher
            subject = received.message.subject
            if (suffix := self._throttle.admit(subject)) is not None:
                level = logging.WARNING if isinstance(error, TrollmovesError) else logging.ERROR
                trace = level == logging.ERROR
                logger.log(
                    level, "[%s] ignored message about %s: %s%s", self.name, subject, error, suffix, exc_info=trace
                )
        return []

    def _deliveries(self, received: ReceivedMessage, subject: str | None) -> tuple[list[Task], TrollmovesError | None]:
        """Return the delivery tasks for a message, and the error of a route without a destination."""
        matching = [route for route in self._routes if not route.mismatch_reason(subject, received.metadata)]
        tasks: list[Task] = []
        failure: TrollmovesError | None = None
        for file in self._local_files(received) if matching else ():
            for route in matching:
                try:
                    tasks.append(self._task(route.number, file))
                except TrollmovesError as error:
                    failure = error
        return tasks, failure

    def _kept_message(self, message: Message, subject: str | None) -> Task:
        text = message.raw or message.encode()
        digest = hashlib.sha256(json.dumps([subject, message.data], default=str).encode()).hexdigest()
        return Task(
            self.name, ROUTE, f"{payload.file_names(message.data)}\n{digest}", ROUTE, json.dumps([text, subject])
        )

    def _route(self, task: Task) -> Result:
        """Create the deliveries for a kept message; runs on a worker thread."""
        text, subject = json.loads(task.body)
        tasks, error = self._deliveries(ReceivedMessage(Message.decode(text)), subject)
        if error:
            raise error
        return Result(follow_ups=tasks)

    def _local_files(self, received: ReceivedMessage) -> Iterator[LocalFile]:
        for file in received.files():
            if isinstance(file, LocalFile):
                yield file
            else:
                subject = received.message.subject
                logger.warning("[%s] skipped a file in the message about %s: %s", self.name, subject, file)

    def _task(self, number: int, file: LocalFile) -> Task:
        """Return the delivery of a file by a route; raise ComposeError or BadDestination."""
        url = self._routes[number - 1].destination(file)
        receipt = self._receipt(file, url)
        text = receipt.raw if receipt else ""
        order = DeliveryOrder(file.path, url.scheme, url.netloc, url.path, text, file.size, file.mtime_ns)
        return Task(self.name, KIND, order.key, order.lane, order.text(), context=(order, receipt))

    def _receipt(self, file: LocalFile, url: ParseResult) -> Message | None:
        """Return the message to publish after a delivery, with its encoded text, or None if nothing is published."""
        if self._topic is None:
            return None
        try:
            subject = _subject(self._topic.compose(file.published))
            receipt = Message(subject, "file", {**file.published, "uri": url.path})
            receipt.raw = receipt.encode()
            return receipt
        except (ComposeError, MessageError) as error:
            logger.warning("[%s] delivery of %s will not be published: %s", self.name, file.path, error)
            return None

    # -- delivering

    def _deliver(self, task: Task) -> Result:
        """Deliver a file; runs on a worker thread."""
        order, receipt = task.context or (DeliveryOrder(*json.loads(task.body)), None)
        with self._order.claim((order.name,), task.id) as current:
            if current is None:
                task.tries -= 1
                return Result(retry_in=RECHECK_DELAY)
            if not current or (self._may_be_late(task) and self._has_newer(task, order)):
                logger.info("[%s] not sending %s: superseded by a newer file", self.name, task.key.partition("\n")[0])
                return Result()
            return self._send(task, order, receipt)

    @staticmethod
    def _may_be_late(task: Task) -> bool:
        """Return True for a retry, and for a task that waited in the journal: newer tasks may have been stored."""
        return task.tries > 1 or task.context is None

    def _has_newer(self, task: Task, order: DeliveryOrder) -> bool:
        """Return True if a newer version of the file is delivered to the same destination, or waits for that."""
        destination = f" {order.url.geturl()}"
        same_file = task.key.removesuffix(destination).rsplit(" ", 2)[0]
        return any(key.endswith(destination) for key in self._journal.newer_keys(task, f"{same_file} "))

    def _check_opened(self, order: DeliveryOrder, fd: int) -> None:
        """Raise OriginChanged if the opened file is not the one of the message and may be incomplete."""
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns) != (order.size, order.mtime_ns):
            check_complete(fd, order.path, self._options.quiet_time)

    def _send(self, task: Task, order: DeliveryOrder, receipt: Message | None) -> Result:
        started = time.monotonic()
        url = order.url
        mark = PartialId.for_delivery(
            self._journal.identity, self.name, task.key, tried=task.may_have_run(self._created)
        )
        try:
            move_it(
                order.path,
                self._with_password(url),
                self._options.connection_parameters,
                on_opened=partial(self._check_opened, order),
                partial_id=mark,
            )
        except TransferError as error:
            if error.temporary and self._journal.now() - task.created > self._options.retry_for > 0:
                label = task.key.partition("\n")[0]
                logger.error("[%s] giving up on %s at attempt %d: %s", self.name, label, task.tries, error)
                return Result(error=error, final=True)
            raise
        failpoints.hit("delivered")
        size = _size(order.path)
        logger.info(
            "[%s] delivered %s to %s (%s, %.2f s, attempt %d)",
            self.name,
            os.path.basename(order.path),
            format_destination(url),
            format_bytes(size),
            time.monotonic() - started,
            task.tries,
        )
        if self._publisher and order.receipt:
            self._publish(receipt or Message.decode(order.receipt))
            failpoints.hit("receipt-published")
        return Result(files=FileStats(1, size, order.mtime_ns))

    def _publish(self, receipt: Message) -> None:
        if self._publisher:
            self._publisher.send(Message(receipt.subject, receipt.type, receipt.data))

    def _with_password(self, url: ParseResult) -> ParseResult:
        login = self._logins.get((url.scheme, url.netloc))
        return url._replace(netloc=login.netloc) if login else url


def task_again(journal: Journal, task: Task) -> Task | None:  # noqa: ARG001
    """Return the task that repeats a finished delivery; None if its order is unreadable."""
    order = DeliveryOrder.load(task)
    if order:
        task.body, task.rank = order.text(), BACKLOG
    return task if order else None


def task_to(journal: Journal, task: Task, destination: str) -> Task | None:  # noqa: ARG001
    """Return a task that delivers the file of another one to a directory, whose login is in the configuration."""
    order, url = DeliveryOrder.load(task), urls.parse(destination)
    if urls.password(url):
        raise BadDestination("the password of a destination must be in the configuration of the target")
    if order is None:
        return None
    path = f"{url.path.rstrip('/')}/{os.path.basename(order.path)}"
    other = replace(order, scheme=url.scheme, netloc=url.netloc, destination_path=path, receipt="")
    return Task(task.chain, KIND, other.key, other.lane, other.text(), rank=BACKLOG)


def compact_body(task: Task) -> str:
    """Return the part of a finished delivery to keep: its receipt. The key contains all other values."""
    order = DeliveryOrder.load(task)
    return order.receipt if order else ""


def enqueue(tasks: Sequence[Task], journal: Journal, scheduler: Scheduler) -> None:
    """Store tasks in one transaction and submit the new ones to the scheduler.

    A stored task is skipped, except one that failed: a repeated message retries it.
    """
    if not tasks:
        return
    new, restarted = [], []
    for (stored, is_new), task in zip(journal.add_tasks(tasks), tasks, strict=True):
        if is_new:
            new.append(stored)
        elif stored.state == FAILED or (stored.state == WAITING and stored.tries):
            stored.body, stored.context, stored.lane = task.body, task.context, task.lane
            stored.state, stored.tries, stored.due = WAITING, 0, journal.now()
            restarted.append(stored)
        else:
            logger.debug("[%s] %s is a duplicate", stored.chain, stored.key.partition("\n")[0])
    if restarted:
        journal.reset_tasks(restarted)
    failpoints.hit("deliveries-stored")
    scheduler.submit([*new, *restarted])


def _subject(composed: str) -> str:
    """Return the subject of a message; raise MessageError if the metadata made it more than one word."""
    if len(composed.split()) > 1 or composed != composed.strip():
        raise MessageError(f"its topic {urls.excerpt(composed)!r} must be a single word")
    return composed if composed.startswith("/") else f"/{composed}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
