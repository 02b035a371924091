"""Keeps received messages on the local disk while a journal that several hosts share cannot be written.

Publishers without a log cannot repeat their messages. So these wait in a small SQLite journal in the state directory,
and are handled in their order when the shared journal can be written again, before all newer ones.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from trollmoves.errors import JournalError
from trollmoves.journal import BATCH_SIZE, DONE, LOCK_SUFFIX, Journal, Outcome, Task, open_journal
from trollmoves.messaging.messages import Message
from trollmoves.utils.batch_delivery import BatchDelivery, SetAside
from trollmoves.utils.logs import LogThrottle

logger = logging.getLogger(__name__)

SUFFIX = ".spool"  # of the file, which has the name of the journal that the daemon would have without a shared one
KIND = "received"  # of the tasks; the chain is the name of the queue
MAX_MESSAGES = 100_000
MAX_AGE = 86_400.0  # s; older messages, which a standby has kept until it works, are dropped
RETRY_DELAY = 1.0  # s before the next attempt to read the file
STOP_TIMEOUT = 5.0  # s that a stop waits for the call of a handler
_FIRST = 1.0  # due time of all messages, so that they keep their order


class Spool:
    """The messages of one process that wait, by queue. The file exists only while there are some. Any thread.

    All methods raise JournalError if the file cannot be used.
    """

    def __init__(self, path: str, limit: int = MAX_MESSAGES) -> None:
        """``limit`` is the maximum number of messages in all queues together."""
        self.path = path
        self._limit = limit
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._count = 0
        self._dropped = 0
        self._throttle = LogThrottle(burst=1)
        self.on_kept: dict[str, Callable[[], None]] = {}  # by queue: called after ``keep``

    def keep(self, queue: str, messages: Sequence[Message]) -> None:
        """Store messages as ``append`` does, for a queue that passes them on when its chain runs."""
        self.append(queue, messages)
        if on_kept := self.on_kept.get(queue):
            on_kept()

    def append(self, queue: str, messages: Sequence[Message]) -> None:
        """Store messages behind those of the queue, without those that it has already.

        Beyond the limit, messages are dropped; this is logged with their number.
        """
        with self._lock:
            journal = self._open()
            kept = messages[: max(0, self._limit - self._count)]
            tasks = [Task(queue, KIND, _digest(message.raw), KIND, message.raw, _FIRST) for message in kept]
            self._count += sum(is_new for _, is_new in journal.add_tasks(tasks))
            self._dropped += len(messages) - len(kept)
            if len(kept) < len(messages) and (more := self._throttle.admit()) is not None:
                logger.error(
                    "[%s] the spool %s is full (%d messages): messages dropped since the start: %d%s",
                    *(queue, self.path, self._limit, self._dropped, more),
                )

    def first(self, queue: str) -> list[Task]:
        """Return the oldest messages of a queue, at most BATCH_SIZE; the body of a task is the text of a message."""
        with self._lock:
            if self._journal is None and not os.path.exists(self.path):
                return []
            journal = self._open()
            tasks = journal.claim(queue, KIND, BATCH_SIZE, journal.now())
            oldest = journal.now() - MAX_AGE
            if old := [task for task in tasks if task.created < oldest]:
                logger.warning("[%s] dropped messages in %s that are older than a day: %d", queue, self.path, len(old))
                self._remove(journal, old)
            return [task for task in tasks if task.created >= oldest]

    def remove(self, tasks: Sequence[Task]) -> None:
        """Remove messages; remove the file with the last one."""
        with self._lock:
            self._remove(self._open(), tasks)

    def _remove(self, journal: Journal, tasks: Sequence[Task]) -> None:
        journal.finish([Outcome(task, DONE) for task in tasks])
        self._count -= len(tasks)
        if not self._count:
            self._close()
            for suffix in ("", LOCK_SUFFIX):
                with suppress(FileNotFoundError):
                    os.unlink(self.path + suffix)

    def _open(self) -> Journal:
        if self._journal is None:
            self._journal = open_journal(self.path)
            self._count = self._journal.count()["waiting"]
        return self._journal

    def _close(self) -> None:
        if self._journal:
            self._journal.close()
            self._journal = None

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            self._close()


class SpoolQueue:
    """Passes received messages on, or keeps them in a spool while the journal cannot be written.

    ``handler`` is called with the kept messages, in order, on a separate thread; ``set_aside`` with the text of a
    message for which it keeps failing, and the reason. Without a spool, messages are only passed on.
    """

    def __init__(
        self,
        spool: Spool | None,
        name: str,
        handler: Callable[[list[Message]], None],
        set_aside: SetAside | None = None,
    ) -> None:
        self.name = name
        self._spool = spool
        self._handler = handler
        self._set_aside = set_aside
        self._lock = threading.Lock()  # held while a message is stored: later ones wait for it
        self._is_keeping = False  # guarded by the lock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to pass on messages that wait, also those of ``Spool.keep``; call it before the first message."""
        if self._spool:
            self._spool.on_kept[self.name] = self._begin
            if os.path.exists(self._spool.path):
                self._begin()

    def stop(self) -> None:
        """Stop; messages that wait stay in the spool."""
        self._stopping.set()
        if self._spool:
            self._spool.on_kept.pop(self.name, None)
        if self._thread:
            self._thread.join(STOP_TIMEOUT)

    def pass_on(self, messages: Sequence[Message], store: Callable[[], object]) -> None:
        """Call ``store``, which stores messages in the journal, or keep them if this fails or earlier ones wait.

        Raise the error of ``store`` if it is not temporary, or JournalError if the spool cannot be written.
        """
        if self._spool is None:
            store()
            return
        with self._lock:
            if not self._is_keeping:
                try:
                    store()
                    return
                except JournalError as error:
                    if not error.temporary:
                        raise
                    logger.warning(
                        "[%s] keeping messages in %s until the journal can be written: %s",
                        *(self.name, self._spool.path, error),
                    )
            self._spool.append(self.name, messages)
            self._start_thread(self._spool)

    def _begin(self) -> None:
        with self._lock:
            if self._spool:
                self._start_thread(self._spool)

    def _start_thread(self, spool: Spool) -> None:
        if not self._is_keeping and not self._stopping.is_set():
            self._is_keeping = True
            self._thread = threading.Thread(target=self._run, args=(spool,), name=f"spool-{self.name}", daemon=True)
            self._thread.start()

    def _run(self, spool: Spool) -> None:
        delivery = BatchDelivery(
            self._handle,
            self.name,
            source=spool.path,
            describe=lambda task: f"message {task.body[:1000]}",
            stopping=self._stopping,
            set_aside=self._set_aside,
        )
        count = 0
        while not self._stopping.is_set():
            try:
                tasks = spool.first(self.name)
                if not tasks and self._has_ended(spool):
                    if count:
                        logger.info("[%s] handled the messages that waited in %s: %d", self.name, spool.path, count)
                    return
                handled = delivery.deliver(tasks) if tasks else []
                # Those that were not handled are set aside, unless the process stops.
                spool.remove(handled if self._stopping.is_set() else tasks)
                count += len(handled)
            except JournalError as error:
                logger.error("[%s] cannot read or remove messages that wait, trying again: %s", self.name, error)
                self._stopping.wait(RETRY_DELAY)

    def _has_ended(self, spool: Spool) -> bool:
        """Return True if no message waits, so that later ones are passed on directly."""
        with self._lock:
            self._is_keeping = bool(spool.first(self.name))
            return not self._is_keeping

    def _handle(self, tasks: list[Task]) -> None:
        self._handler([Message.decode(task.body) for task in tasks])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
