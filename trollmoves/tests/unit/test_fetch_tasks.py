"""Which announcements are new files, while servers are upgraded and rolled back."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trollmoves.journal import DONE, Journal, Outcome, Task, open_journal
from trollmoves.messaging.messages import Message
from trollmoves.receiver.fetch_tasks import FetchTasks
from trollmoves.receiver.peers import Peers

SOURCE = "host:9010"
LATER = 4e9  # s since the epoch


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Return a new journal."""
    opened = open_journal(str(tmp_path / "client.journal"))
    yield opened
    opened.close()


@pytest.fixture
def fetches(journal: Journal) -> FetchTasks:
    """Return the fetch tasks of one chain."""
    return FetchTasks("chain", journal, Peers(0.0), 0.0, None)


def announcement(age: float | None = None, *, clock: float = 0.0, uri: str = "/in/a", uid: str = "a") -> Message:
    """Return the announcement of a file that was modified ``age`` seconds ago; without it that of a legacy server.

    ``clock`` is the difference of the clock of the server in seconds.
    """
    now = time.time() + clock
    data: dict[str, object] = {"uri": uri, "uid": uid, "request_address": SOURCE}
    if age is not None:
        data["announcement"] = {"log": "log", "number": 1, "size": 9, "mtime": int((now - age) * 1e9)}
    return Message("/topic", "file", data, time=dt.datetime.fromtimestamp(now, dt.UTC))


def claim(journal: Journal) -> list[Task]:
    """Return the waiting tasks."""
    return [task for lane, _ in journal.lanes("chain") for task in journal.claim("chain", lane, 99, LATER)]


@pytest.mark.parametrize("clock", [0.0, 7200.0, -7200.0])
def test_an_upgraded_server_repeats_its_files(fetches: FetchTasks, clock: float) -> None:
    """A file that was last modified before its announcement by a legacy server is fetched once, with any clock."""
    assert fetches.record_announcements([announcement(clock=clock)], (), 0)
    assert fetches.record_announcements([announcement(60.0, clock=clock)], (), 0) == []


@pytest.mark.parametrize("clock", [0.0, 7200.0, -7200.0])
def test_a_file_is_rewritten_during_an_upgrade(fetches: FetchTasks, clock: float) -> None:
    """A file that was modified after its announcement by a legacy server is fetched again, with any clock."""
    assert fetches.record_announcements([announcement(clock=clock)], (), 0)
    assert fetches.record_announcements([announcement(-60.0, clock=clock)], (), 0)


@pytest.mark.parametrize("ages", [(60.0, None), (None, 60.0)], ids=["rollback", "upgrade"])
def test_pending_files_are_requested_from_the_new_server(
    fetches: FetchTasks, journal: Journal, ages: tuple[float | None, float | None]
) -> None:
    """A pending file is requested by the announcement of the version that now runs; a fetched one is not."""
    before, after = map(announcement, ages)
    assert fetches.record_announcements([before], (), 0)
    assert fetches.record_announcements([after], (), 0) == []
    (task,) = claim(journal)
    assert fetches.announcements(task) == {SOURCE: after.encode()}
    fetches.on_attempt_ended(task)
    assert fetches.announcements(task) == {SOURCE: after.encode()}
    journal.finish([Outcome(task, DONE)])
    assert fetches.record_announcements([before], (), 0) == []
    assert claim(journal) == []


def test_files_of_one_name_in_two_directories(fetches: FetchTasks) -> None:
    """Files of one name at one source are fetched once each, and again if the content of one changes."""
    first, second, rewritten = (
        announcement(60.0),
        announcement(60.0, uri="/in/b/a"),
        announcement(30.0, uri="/in/b/a"),
    )
    for message, new in [(first, 1), (second, 1), (second, 0), (rewritten, 1), (first, 0)]:
        assert len(fetches.record_announcements([message], (), 0)) == new


def test_a_name_like_the_key_of_another_file(fetches: FetchTasks) -> None:
    """A name that equals the key of a file of the same name in a second directory is another file."""
    fetches.record_announcements([announcement(60.0, uri="/in/c", uid="a\n/in/b/a")], (), 0)
    for uri in ("/in/a", "/in/b/a"):
        assert len(fetches.record_announcements([announcement(60.0, uri=uri)], (), 0)) == 1
