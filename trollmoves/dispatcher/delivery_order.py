"""A delivery as stored in the journal, and the tasks that repeat it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import astuple, dataclass, replace
from urllib.parse import ParseResult

from trollmoves.dispatcher.routes import format_destination
from trollmoves.errors import BadDestination
from trollmoves.journal import BACKLOG, Journal, Task
from trollmoves.messaging.messages import Message
from trollmoves.net import urls

KIND = "deliver"  # task kind
_KEY = re.compile(r"[^\n]*\n(.*) (\d+) (\d+) ([a-z0-9+.-]+)://([^/]*)(/.*)", re.DOTALL)  # of a delivery


@dataclass(frozen=True, slots=True)
class DeliveryOrder:
    """A delivery as stored in the journal, without a password.

    ``receipt`` is the message to publish, or empty. ``size`` (bytes) and ``mtime_ns`` are those of the file when its
    message arrived. ``removes`` is True if the file is removed when all destinations have received it.
    """

    path: str
    scheme: str
    netloc: str
    destination_path: str
    receipt: str
    size: int
    mtime_ns: int
    removes: bool = False

    @property
    def url(self) -> ParseResult:
        """The destination, without a password."""
        return ParseResult(self.scheme, self.netloc, self.destination_path, "", "", "")

    @property
    def name(self) -> str:
        """The destination as a key."""
        return f"{self.scheme}://{self.netloc}{self.destination_path}"

    @property
    def turn(self) -> str:
        """The turn of the task: deliveries to one destination run one after the other."""
        return hashlib.sha256(self.name.encode("utf-8", "backslashreplace")).hexdigest()[:32]

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


def receipt_data(task: Task) -> tuple[str, object] | None:
    """Return subject and data of the receipt of a delivery, None if its order is unreadable."""
    order = DeliveryOrder.load(task)
    if not order or not order.receipt:
        return ("", None) if order else None
    message = Message.decode(order.receipt)
    return message.subject, message.data


def task_again(journal: Journal, task: Task) -> Task | None:  # noqa: ARG001
    """Return the task that repeats a finished delivery; None if its order is unreadable."""
    order = DeliveryOrder.load(task)
    if order:
        task.body, task.rank = order.text(), BACKLOG
    return task if order else None


def task_to(journal: Journal, task: Task, destination: str) -> Task | None:  # noqa: ARG001
    """Return a task that delivers the file of another one to a directory; its login is in the configuration."""
    order, url = DeliveryOrder.load(task), urls.parse(destination)
    if urls.password(url):
        raise BadDestination("the password of a destination must be in the configuration of the target")
    if order is None:
        return None
    path = f"{url.path.rstrip('/')}/{os.path.basename(order.path)}"
    other = replace(order, scheme=url.scheme, netloc=url.netloc, destination_path=path, receipt="")
    return Task(task.chain, KIND, other.key, other.lane, other.text(), rank=BACKLOG, turn=other.turn)


def compact_body(task: Task) -> str:
    """Return the part of a finished delivery to keep: its receipt. The key contains all other values."""
    order = DeliveryOrder.load(task)
    return order.receipt if order else ""
