"""Which announcements are new files, while servers are upgraded and rolled back."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trollmoves.journal import BACKLOG, DONE, FRESH, Journal, Outcome, Retention, Task, open_journal
from trollmoves.messaging.messages import Message
from trollmoves.receiver.fetch_sources import compact_body
from trollmoves.receiver.fetch_tasks import KIND, FetchTasks
from trollmoves.receiver.peers import Peers

SOURCE = "host:9010"
LATER = 4e9  # s since the epoch
MTIME = 1_700_000_000 * 10**9


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


def fetch(fetches: FetchTasks, journal: Journal, message: Message, *, compacted: bool = False) -> None:
    """Record an announcement and finish its fetch."""
    (task,) = fetches.record_announcements([message], (), FRESH)
    journal.finish([Outcome(task, DONE)])
    if compacted:
        list(journal.prune(Retention(1e9, 10**9, 10**9, 10**9), {KIND: compact_body}, min_age=-1.0))


def repeated(
    fetches: FetchTasks, age: float | None = None, *, number: int = 1, rank: int = FRESH, **metadata: str
) -> int:
    """Record an announcement of the same file with these metadata; return the number of fetches that it causes."""
    message = announcement(age)
    message.data |= metadata
    if age is not None:
        message.data["announcement"] |= {"number": number, "mtime": MTIME}
    return len(fetches.record_announcements([message], (), rank, connected=LATER))


@pytest.mark.parametrize("compacted", [False, True])
def test_a_legacy_server_repeats_a_file(journal: Journal, compacted: bool) -> None:
    """A repeated file is fetched again if its metadata, its destination or the time differ."""
    late, early, elsewhere = (
        FetchTasks("chain", journal, Peers(0.0), 0.0, None, repeat_after=after, target=target)
        for after, target in [(0.0, "/out"), (300.0, "/out"), (300.0, "/other")]
    )
    fetch(early, journal, announcement(), compacted=compacted)
    assert repeated(early) == 0
    assert repeated(early, station="kiruna") == 1
    assert repeated(early, station="kiruna") == 0  # its fetch is pending
    for task in claim(journal):
        journal.finish([Outcome(task, DONE)])
    assert repeated(early, station="kiruna") == 0
    assert repeated(late, station="kiruna", rank=BACKLOG) == 0  # missed, not sent again
    assert len(late.record_announcements([announcement()], (), FRESH, connected=0.0)) == 1  # other metadata
    for task in claim(journal):
        journal.finish([Outcome(task, DONE)])
    assert len(late.record_announcements([announcement()], (), FRESH, connected=-1.0)) == 0  # the server has started
    assert repeated(late) == 1
    for task in claim(journal):
        journal.finish([Outcome(task, DONE)])
    assert repeated(elsewhere) == 1


@pytest.mark.parametrize("compacted", [False, True])
def test_a_server_publishes_an_announcement_again(journal: Journal, compacted: bool) -> None:
    """The same or an older number is a known announcement, at any time; a higher number repeats the file."""
    fetches = FetchTasks("chain", journal, Peers(0.0), 0.0, None, repeat_after=0.0)
    message = announcement(60.0)
    message.data["announcement"]["mtime"] = MTIME
    fetch(fetches, journal, message, compacted=compacted)
    assert repeated(fetches, 60.0) == 0
    assert repeated(fetches, 60.0, number=2) == 1
    assert repeated(fetches, 60.0, number=1, station="of a replay") == 0


def test_a_peer_fetches_a_file_while_its_own_fetch_ends(fetches: FetchTasks, journal: Journal) -> None:
    """The result of a fetch is kept that is stored while the task is compared with the tasks in flight."""
    (task,) = fetches.record_announcements([announcement()], (), FRESH)

    def in_flight() -> set[int]:
        journal.finish([Outcome(task, DONE, reply="delivered")])
        return set()

    fetches.finish_for_peer(["a"], in_flight)
    stored = journal.find("chain", KIND, "a")
    assert stored
    assert stored.reply == "delivered"


def test_two_servers_repeat_a_file_with_the_same_changes(journal: Journal) -> None:
    """Changed metadata cause one fetch, although both sources announce them."""
    fetches = FetchTasks("chain", journal, Peers(0.0), 0.0, None, repeat_after=300.0)
    fetch(fetches, journal, announcement())
    assert repeated(fetches, request_address="other:9010") == 0
    assert repeated(fetches, station="kiruna") == 1
    assert repeated(fetches, request_address="other:9010", station="kiruna") == 0


@pytest.mark.parametrize("compacted", [False, True])
def test_another_file_of_the_same_version(journal: Journal, compacted: bool) -> None:
    """A file that has returned is fetched again, once although two sources announce it, each several times."""
    fetches = FetchTasks("chain", journal, Peers(0.0), 0.0, None, repeat_after=300.0)

    def announced(number: int, source: str = SOURCE, *, returned: bool = True) -> Message:
        message = announcement(60.0)
        message.data["request_address"] = source
        message.data["announcement"] |= {"number": number, "mtime": MTIME} | ({"returned": True} if returned else {})
        return message

    fetch(fetches, journal, announced(1, returned=False), compacted=compacted)
    other = "other:9010"
    assert fetches.record_announcements([announced(1, other, returned=False)], (), FRESH) == []
    fetch(fetches, journal, announced(2), compacted=compacted)
    for message in (announced(2), announced(2, other), announced(2, other), announced(1, returned=False)):
        assert fetches.record_announcements([message], (), BACKLOG) == []
    assert len(fetches.record_announcements([announced(3)], (), BACKLOG)) == 1
