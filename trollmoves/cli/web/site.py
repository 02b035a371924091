"""The state of a whole site, for all viewers: daemons of this host, and pages of other hosts."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from trollmoves.cli import history, logs, status
from trollmoves.cli.actions import give
from trollmoves.cli.answers import NAMES, UNKNOWN
from trollmoves.cli.selection import DaemonFiles
from trollmoves.cli.snapshots import snapshot_of
from trollmoves.cli.web.timeline import Timeline
from trollmoves.errors import TrollmovesError
from trollmoves.orders.order import Order

logger = logging.getLogger(__name__)

REFRESH_INTERVAL = 1.0  # s between two looks at the daemons while there are viewers
SAMPLE_INTERVAL = 5.0  # s between two points of a rate
SAMPLES = 60  # points of each rate
TIMELINE_INTERVAL = 30.0  # s between two queries of the last 24 hours
REMOTE_TIMEOUT = 5.0  # s to wait for another page
MAX_REMOTE_BYTES = 20_000_000
LOG_LINES = 50  # of each daemon
ORDER_VALUES = ("action", "name", "file", "failed", "since", "to", "chain")

Daemons = list[dict[str, Any]]


class Remote:
    """The page of another host. Any thread."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str) -> Any:
        """Return the JSON at a path; raise TrollmovesError if the page does not reply."""
        return self._open(urllib.request.Request(f"{self.url}{path}"))  # noqa: S310

    def post(self, path: str, values: Mapping[str, Any], token: str) -> Any:
        """Post JSON with a token and return the reply; raise TrollmovesError if the page rejects it."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        body = json.dumps(values).encode()
        return self._open(urllib.request.Request(f"{self.url}{path}", body, headers))  # noqa: S310

    def _open(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=REMOTE_TIMEOUT) as reply:  # noqa: S310
                return json.loads(reply.read(MAX_REMOTE_BYTES))
        except (OSError, ValueError) as error:
            raise TrollmovesError(f"{self.url}: {error}") from None


class Site:
    """The snapshots, rates, time line and warnings of all daemons; one thread refreshes them for all viewers.

    ``find_daemons`` returns the daemons of this host. ``remotes`` are pages of other hosts.
    """

    def __init__(self, find_daemons: Callable[[], Sequence[DaemonFiles]], remotes: Sequence[Remote] = ()) -> None:
        self._find_daemons = find_daemons
        self._remotes = remotes
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="site")
        self._lock = threading.Lock()
        self._last_viewed = 0.0
        self._number = 0
        self._texts: dict[str, str] = {}
        self._rates: dict[str, deque[float]] = {}
        self._totals: dict[str, tuple[float, int]] = {}
        self._sampled = self._timed = 0.0
        self._timeline = Timeline()
        self._timeline_here: list[dict[str, Any]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="site", daemon=True)

    def start(self) -> None:
        """Start to refresh."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to refresh."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- reading

    def current(self) -> tuple[int, dict[str, str]]:
        """Return the number of the newest state, and its texts (JSON) by event.

        A viewer that asks seldom gets the newest state, never a queue of older ones.
        """
        with self._lock:
            self._last_viewed = time.monotonic()
            return self._number, dict(self._texts)

    def refresh(self) -> None:
        """Look at all daemons now."""
        now = time.time()
        state = self.state()
        texts: dict[str, Any] = {"state": state, "warnings": self.warnings()}
        if now - self._sampled >= SAMPLE_INTERVAL:
            self._sample(state["daemons"], now)
            texts["rates"] = {name: list(values) for name, values in self._rates.items()}
        if now - self._timed >= TIMELINE_INTERVAL:
            self._timed = now
            texts["timeline"] = self._collect_timeline()
        encoded = {event: json.dumps(value, default=str) for event, value in texts.items()}
        with self._lock:
            if any(self._texts.get(event) != text for event, text in encoded.items()):
                self._texts |= encoded
                self._number += 1

    def state(self) -> dict[str, Any]:
        """Return the daemons of this host and of the other pages, as JSON types."""
        daemons = self._collect()
        answer = status.status_of(daemons)
        return {"verdict": answer.verdict, "status": NAMES[answer.code], "daemons": daemons}

    def history(self, name: str) -> dict[str, Any]:
        """Return the steps of a file on all hosts, oldest first."""
        steps, problems = history.steps_of(self._find_daemons(), name)
        for remote in self._remotes:
            try:
                found = remote.get(f"/api/history?file={quote(name)}")
                steps += [{**step, "host": remote.url} for step in found["steps"]]
                problems += found["problems"]
            except TrollmovesError as error:
                problems.append(str(error))
        steps.sort(key=lambda step: float("inf") if step["time"] is None else step["time"])
        return {"file": name, "steps": steps, "problems": problems}

    def timeline(self) -> list[dict[str, Any]]:
        """Return the files of each section of this host in the last 24 hours, at most ``TIMELINE_INTERVAL`` old."""
        return self._timeline_here

    def warnings(self) -> list[dict[str, Any]]:
        """Return the last warnings and errors of all daemons, newest first."""
        facts = logs.lines_of(self._find_daemons(), LOG_LINES)
        lines = [{"daemon": one["name"], **line} for one in facts for line in one["lines"]]
        for remote in self._remotes:
            with suppress(TrollmovesError):  # such a page is shown as a daemon that is down
                lines += remote.get("/api/warnings")
        return sorted(lines, key=lambda line: float(line["time"]), reverse=True)[:LOG_LINES]

    # -- acting

    def act(self, values: Mapping[str, Any], token: str) -> dict[str, Any]:
        """Give an order to the daemon with this journal, on this host or, with ``host``, by the page there.

        Raises:
            TrollmovesError: the daemon or page is unknown, or rejects the order.
        """
        if url := values.get("host"):
            remote = next((one for one in self._remotes if one.url == url), None)
            if remote is None:
                raise TrollmovesError(f"{url} must be a page of this site")
            return dict(remote.post("/api/orders", {**values, "host": ""}, token))
        files = next((one for one in self._find_daemons() if one.journal == values.get("journal")), None)
        if files is None:
            raise TrollmovesError(f"no daemon has the journal {values.get('journal')!r:.200}")
        order = {name: values[name] for name in ORDER_VALUES if values.get(name)}
        Order.parse({"action": "", **order})
        outcome = give(files, order)
        if outcome.state == "rejected":
            raise TrollmovesError(outcome.text)
        return {"state": outcome.state, "text": outcome.text}

    # -- refreshing

    def _loop(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self.refresh()
            except Exception as error:  # such as a configuration file that is being replaced
                if not self._stopping.is_set():
                    expected = isinstance(error, TrollmovesError)
                    logger.error("the page is not refreshed, trying again: %s", error, exc_info=not expected)
            took = time.monotonic() - began
            is_viewed = began - self._last_viewed < SAMPLE_INTERVAL
            self._stopping.wait(max(took, REFRESH_INTERVAL if is_viewed else SAMPLE_INTERVAL))

    def _collect(self) -> Daemons:
        here = [self._pool.submit(snapshot_of, files) for files in self._find_daemons()]
        there = [self._pool.submit(_remote_daemons, remote) for remote in self._remotes]
        return [one.result() for one in here] + [daemon for page in there for daemon in page.result()]

    def _collect_timeline(self) -> list[dict[str, Any]]:
        self._timeline_here = self._timeline.update(self._find_daemons())
        rows = list(self._timeline_here)
        for remote in self._remotes:
            with suppress(TrollmovesError):
                rows += [{**row, "host": remote.url} for row in remote.get("/api/timeline")]
        return rows

    def _sample(self, daemons: Daemons, now: float) -> None:
        """Record the files per second of each lane since the last sample."""
        self._sampled = now
        seen = set()
        for key, total in _totals(daemons):
            seen.add(key)
            before, count = self._totals.get(key, (now, total))
            self._totals[key] = (now, total)
            rate = max(0, total - count) / (now - before) if now > before else 0.0
            self._rates.setdefault(key, deque(maxlen=SAMPLES)).append(round(rate, 2))
        for key in self._rates.keys() - seen:
            del self._rates[key], self._totals[key]


def _totals(daemons: Daemons) -> list[tuple[str, int]]:
    return [
        (f"{daemon.get('host', '')} {daemon['journal']} {chain['name']} {one['lane']}", one["total_files"])
        for daemon in daemons
        for chain in daemon["chains"]
        for one in chain["destinations"]
    ]


def _remote_daemons(remote: Remote) -> Daemons:
    try:
        return [{**daemon, "host": remote.url} for daemon in remote.get("/api/state")["daemons"]]
    except (TrollmovesError, KeyError, TypeError) as error:
        page = {"name": remote.url, "kind": "page", "config": "", "journal": "", "host": remote.url}
        return [{**page, "state": "down", "running": False, "problem": str(error), "chains": [], "code": UNKNOWN}]
