"""Runs calls that a dead file system or name server may block for any time, without blocking their callers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from trollmoves.utils.watched_threads import start_thread

logger = logging.getLogger(__name__)

CALL_TIMEOUT = 5.0  # s for one call; a local directory takes microseconds
MAX_BLOCKED = 4  # blocked calls of a chain; with that many no further call is started


class _Job(NamedTuple):
    key: str
    call: Callable[[], str]
    then: Callable[[str], None]
    failed: Callable[[Exception | None], None]


class Preparer:
    """The calls of one chain, one after another, each on a thread that may block.

    A blocked call costs one thread. While it is blocked, no other call with its key is started.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._stopping = False
        self._ended = threading.Event()  # of the current call
        self._blocked: dict[str, threading.Thread] = {}
        self._thread: threading.Thread | None = None

    def run(
        self, key: str, call: Callable[[], str], then: Callable[[str], None], failed: Callable[[Exception | None], None]
    ) -> None:
        """Call ``call``, then ``then`` with its result, or ``failed`` with its error; None if it is blocked.

        Call this from one thread; it does not block. ``then`` and ``failed`` are called on a thread of this object, and
        must not block.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._loop, name=f"preparer-{self.name}", daemon=True)
            start_thread(thread)
            self._thread = thread
        self._jobs.put(_Job(key, call, then, failed))
        if self._stopping:
            self._reject_all()

    def stop(self) -> None:
        """End the thread without waiting for the current call; ``failed`` is called for all that have no result."""
        self._stopping = True
        self._jobs.put(None)
        self._ended.set()
        self._reject_all()

    def _reject_all(self) -> None:
        with suppress(Empty):
            while True:
                if job := self._jobs.get_nowait():
                    job.failed(None)

    def _loop(self) -> None:
        while not self._stopping and (job := self._jobs.get()):
            try:
                self._run(job)
            except Exception as error:  # an error in one task must not stop the chain
                logger.exception("[%s] unexpected error while preparing %s", self.name, job.key)
                job.failed(error)

    def _run(self, job: _Job) -> None:
        self._blocked = {key: thread for key, thread in self._blocked.items() if thread.is_alive()}
        if job.key in self._blocked or len(self._blocked) >= MAX_BLOCKED:
            job.failed(None)
            return
        result, thread = self._call(job)
        if isinstance(result, str):
            job.then(result)
            return
        if result is None and not self._stopping:
            self._blocked[job.key] = thread
            logger.error(
                "[%s] %s: no response within %.0f s; its files are held until it responds",
                self.name,
                job.key,
                CALL_TIMEOUT,
            )
        job.failed(result)

    def _call(self, job: _Job) -> tuple[str | Exception | None, threading.Thread]:
        """Return the result or the error of a call, None if it does not end in time; and its thread."""
        results: list[str | Exception] = []
        ended = self._ended = threading.Event()

        def call() -> None:
            try:
                results.append(job.call())
            except Exception as error:  # the result
                results.append(error)
            ended.set()
            if job.key in self._blocked:
                logger.info("[%s] %s: responds again", self.name, job.key)

        thread = threading.Thread(target=call, name=f"prepare-{self.name}", daemon=True)
        start_thread(thread)
        if not self._stopping:
            ended.wait(CALL_TIMEOUT)
        return (results[0] if results else None), thread
