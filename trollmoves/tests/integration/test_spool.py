"""The file of messages that wait for a journal that several hosts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from trollmoves.errors import JournalError
from trollmoves.messaging.messages import Message
from trollmoves.spool import Spool, SpoolQueue
from trollmoves.tests.helpers.waiting import until


def messages(*names: str) -> list[Message]:
    """Return received messages."""
    return [Message.decode(Message("/topic", "file", {"uid": name}).encode()) for name in names]


def test_messages_wait_in_order(tmp_path: Path) -> None:
    """Each message is kept once, in order, also for the next process; the file is removed with the last one."""
    path = tmp_path / "a.spool"
    spool = Spool(str(path))
    received = messages("c", "a", "b")
    spool.append("queue", received[:2])
    spool.append("queue", received)
    spool.append("other", messages("d"))
    spool.close()
    spool = Spool(str(path))
    tasks = spool.first("queue")
    assert [task.body for task in tasks] == [message.raw for message in received]
    spool.remove(tasks)
    assert spool.first("queue") == []
    spool.remove(spool.first("other"))
    assert list(tmp_path.iterdir()) == []


def test_too_many_messages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Messages beyond the limit are dropped, and counted in the log."""
    spool = Spool(str(tmp_path / "a.spool"), limit=3)
    received = messages(*"abcde")
    spool.append("queue", received[:2])
    spool.append("queue", received[2:])
    assert [task.body for task in spool.first("queue")] == [message.raw for message in received[:3]]
    assert "is full (3 messages): messages dropped since the start: 2" in caplog.text
    spool.close()


def test_messages_are_passed_on_in_order(tmp_path: Path) -> None:
    """Messages that arrive while earlier ones wait are handled after these, and later ones directly again."""
    path = tmp_path / "a.spool"
    handled: list[str] = []
    is_away = True

    def handle(received: list[Message]) -> None:
        if is_away:
            raise JournalError("away")
        handled.extend(message.data["uid"] for message in received)

    queue = SpoolQueue(Spool(str(path)), "queue", handle)
    queue.start()
    for name in "abc":
        (message,) = messages(name)
        queue.pass_on([message], lambda message=message: handle([message]))  # type: ignore[misc]
    assert handled == []
    is_away = False
    until(lambda: not path.exists(), 20, "no message waits")
    queue.pass_on(messages("d"), lambda: handle(messages("d")))
    until(lambda: len(handled) == 4)
    assert handled == ["a", "b", "c", "d"]
    queue.stop()
