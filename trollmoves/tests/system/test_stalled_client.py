"""Announcements during a stall of a client that exceed every buffer."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trollmoves.journal import AnnouncementRecord, open_journal
from trollmoves.messaging import sockets
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.replier import Replier, Request
from trollmoves.provider.announcer import Announcement, Announcer
from trollmoves.tests.helpers.daemons import TOPIC, Testbed, client_section
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.system.test_load import memory_of

SIZE = 1000  # bytes of a message
EVERY = 150  # messages of the publisher, of which one is an announcement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Kept:
    """A file store in which all files exist unchanged."""

    def is_unchanged(self, announced: AnnouncementRecord) -> bool:
        """Return True."""
        return True


class Source:
    """The announcing half of a server, in this process; it replies success, and delivers nothing.

    It publishes its log faster than a server finds files, before the client is disconnected. Most published messages
    under its topic are not announcements, so that the client need not request many thousand files.
    """

    def __init__(self, testbed: Testbed) -> None:
        self.announced: list[str] = []
        self.caught_up = 0
        self._journal = testbed.close_at_end(open_journal(str(testbed.root / "source.journal")))
        self._replier = Replier("source", 0, self._handle, bind_address=HOST)
        self.publisher = Publisher("move_it_server", nameservers=False, bind_address=HOST, heartbeat_data=self._beat)
        self._announcer = Announcer(
            "hrit",
            TOPIC,
            self._journal,
            self.publisher,
            file_store=Kept(),  # type: ignore[arg-type]  # nothing else of it is needed
            address=f"{HOST}:{self._replier.port}",
        )
        self._other = Message(TOPIC, "info", "x" * SIZE).encode()
        self._replier.start()
        self.publisher.start()
        testbed.call_at_end(self._replier.stop)
        testbed.call_at_end(self.publisher.stop)

    def _beat(self) -> dict[str, Any]:
        return {"logs": [self._announcer.heartbeat_data()]}

    def publish(self, count: int) -> None:
        """Publish at least this number of messages, announcements among them."""
        for _ in range(0, count, EVERY):
            name = f"file {len(self.announced)}"
            self.announced.append(name)
            self.publisher.send_encoded([self._other] * (EVERY - 1))
            self._announcer.announce([Announcement(f"/in/{name}", name, {"uri": f"/in/{name}", "uid": name}, 1, 1)])

    def _handle(self, requests: list[Request]) -> None:
        for request in requests:
            message = request.message
            if message.type == "replay":
                answer = self._announcer.replay(message.data)
                self.caught_up += len(answer["messages"])
                request.reply("replay", answer)
            else:
                request.reply("file" if message.type == "push" else message.type, message.data)


def buffered() -> int:
    """Return the number of messages that ZeroMQ's queue of one peer and the kernel's buffers hold."""
    room = sum(int(Path(f"/proc/sys/net/ipv4/tcp_{end}mem").read_text().split()[2]) for end in "rw")
    return sockets.HIGH_WATER_MARK + room // SIZE


def test_more_than_any_buffer_holds(testbed: Testbed) -> None:
    """A stopped client catches up with the announcements that neither ZeroMQ nor the kernel could hold for it.

    The memory held for it is bounded.
    """
    source = Source(testbed)
    port = testbed.port()
    section = client_section(source.publisher.port, testbed.directory("out"), port)
    client = testbed.client({"hrit": section})
    subscriber = testbed.subscriber(port)
    client.start()

    def all_are_here() -> bool:
        source.publisher.send_heartbeat()  # a server's next heartbeat comes within 30 s
        time.sleep(0.2)
        return set(source.announced) <= set(subscriber.receipts())

    source.publish(EVERY)
    until(all_are_here, 20)
    before, already = memory_of("self"), source.caught_up
    client.send(signal.SIGSTOP)
    source.publish(buffered() + 10 * EVERY)
    held = memory_of("self") - before
    client.send(signal.SIGCONT)
    until(all_are_here, 100)
    caught_up = source.caught_up - already
    sys.stdout.write(f"\n{buffered()} messages: {held:.0f} MB held, {caught_up} announcements caught up with\n")
    assert caught_up > 0
    assert held < 2 * sockets.HIGH_WATER_MARK * SIZE / 1e6 + 50
    assert len(subscriber.receipts()) == len(set(subscriber.receipts()))
