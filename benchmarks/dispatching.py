"""Files from messages through a dispatcher to a directory on this host."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from posttroll.message import Message

from benchmarks.figures import Figure
from benchmarks.flow import WORK_TIMEOUT
from benchmarks.observers import Arrivals
from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.waiting import until

TARGETS = {"archive": {"host": "", "directory": "OUT/archive", "dispatch_configs": [{"topics": [TOPIC]}]}}
ROUNDS = 3


def dispatcher(logs: Path, *, count: int, old: bool) -> Iterator[Figure]:
    """Time a burst of messages."""
    before = max(_rates(logs, count, old=True)) if old else None
    yield Figure(
        f"dispatcher: burst of {count:,} messages, to a directory", max(_rates(logs, count)), "files/s", old=before
    )


def _rates(logs: Path, count: int, *, old: bool = False) -> list[float]:
    with Testbed(logs) as testbed:
        one = DispatcherTestbed(testbed, TARGETS, old=old)
        target = one.out / "archive"
        target.mkdir(parents=True)
        seen = testbed.close_at_end(Arrivals(target))
        one.start()
        fed = names()
        rates = []
        for _ in range(1 + ROUNDS):  # the first round warms up
            wanted = list(itertools.islice(fed, count))
            for name in wanted:
                (one.source / name).write_bytes(content(name))
            data = [{"uri": str(one.source / name), "uid": name} for name in wanted]
            texts = [str(Message(TOPIC, "file", one_file)) for one_file in data]
            began = time.monotonic()
            for text in texts:
                one.publisher.publish_text(text)
            until(lambda: all(name in seen.at for name in wanted), WORK_TIMEOUT, "all files arrive")  # noqa: B023
            rates.append(count / (max(seen.at[name] for name in wanted) - began))
        return rates[1:]
