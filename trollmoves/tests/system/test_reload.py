"""A changed configuration is applied section by section, and undisturbed sections continue."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import Process, ServerClientPair, Testbed, client_section, ini, server_section
from trollmoves.tests.helpers.feeding import Feeder
from trollmoves.tests.helpers.recording import HOST, RecordingSubscriber, RequestSocket, send_request
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import answers
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd, missing

TAKEN_OVER = "configuration reloaded"
REFUSED = "configuration not reloaded, the chains keep running unchanged"


class Two:
    """A server with two sections, each with a feeder, and a subscriber."""

    def __init__(self, testbed: Testbed, *, start: bool = True) -> None:
        self.feeders = {"hrit": testbed.feeder("hrit"), "modis": testbed.feeder("modis", 1000)}
        self.ports = {name: testbed.port() for name in ("hrit", "modis")}
        self.sections = {
            name: server_section(feeder.folder, self.ports[name], topic=f"/1b/{name}")
            for name, feeder in self.feeders.items()
        }
        port = testbed.port()
        self.server = testbed.server(self.sections, port)
        self.subscriber = testbed.subscriber(port)
        if start:
            self.server.start()

    def works(self, name: str, topic: str = "") -> None:
        """Check that a section announces new files."""
        (fed,) = self.feeders[name].feed()
        until(lambda: self.subscriber.of_file(fed), what=f"{fed} is announced by {name}")
        assert self.subscriber.of_file(fed)[0].message.subject == (topic or f"/1b/{name}")


@pytest.fixture
def two(testbed: Testbed) -> Two:
    """A server that runs two sections."""
    return Two(testbed)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """A server that runs two sections, for tests that restore its state."""
    with Testbed(tmp_path_factory.mktemp("steady")) as testbed:
        yield Two(testbed)


def test_edited_in_place(two: Two) -> None:
    """A file that is edited in place is applied."""
    two.sections["hrit"]["topic"] = "/new"
    two.server.config.write_text(ini(two.sections))
    two.server.wait_for_line(TAKEN_OVER)
    two.works("hrit", "/new")
    two.works("modis")


def test_replaced_by_rename(two: Two) -> None:
    """A file that is replaced by rename is applied, repeatedly."""
    for number in range(1, 3):
        two.sections["hrit"]["topic"] = f"/new/{number}"
        two.server.reconfigure(two.sections)
        two.server.wait_for_line(TAKEN_OVER, number)
        two.works("hrit", f"/new/{number}")


def test_changed_while_it_starts(testbed: Testbed) -> None:
    """A file that is changed between its reading and the end of the start is applied too."""
    two = Two(testbed, start=False)
    two.server.start(wait=False)
    until(lambda: "publishing as" in two.server.lines())
    two.sections["hrit"]["topic"] = "/new"
    two.server.reconfigure(two.sections)
    two.server.wait_for_line(TAKEN_OVER)
    two.works("hrit", "/new")


def test_sighup(steady: Two) -> None:
    """SIGHUP reads the file again."""
    steady.server.mark_log()
    steady.server.send(signal.SIGHUP)
    steady.server.wait_for_line(f"{TAKEN_OVER}: 0 added, 0 changed, 0 removed, 2 unchanged")
    steady.works("hrit")


def test_written_slowly(two: Two) -> None:
    """A file that is written in pieces is applied when complete, and not before."""
    two.sections["hrit"]["topic"] = "/new"
    text = ini(two.sections)
    with two.server.config.open("w") as stream:
        for start in range(0, len(text), len(text) // 5):
            stream.write(text[start : start + len(text) // 5])
            stream.flush()
            os.fsync(stream.fileno())
    two.server.wait_for_line(TAKEN_OVER)
    assert "[ERROR" not in two.server.lines()
    two.works("hrit", "/new")


def test_sections_come_and_go_and_the_others_are_not_disturbed(two: Two, testbed: Testbed) -> None:
    """A section is added, changed and removed, and an unchanged one keeps its connections."""
    added = testbed.feeder("added", 2000)
    two.feeders["added"], two.ports["added"] = added, testbed.port()
    moved_to = testbed.port()
    until(lambda: two.subscriber.connections)
    with RequestSocket(two.ports["hrit"]) as line:
        line.ping()
        two.sections["added"] = server_section(added.folder, two.ports["added"], topic="/1b/added")
        two.server.reconfigure(two.sections)
        two.server.wait_for_line(f"{TAKEN_OVER}: 1 added, 0 changed, 0 removed, 2 unchanged")
        two.works("added")
        two.works("modis")

        two.sections["added"]["request_port"] = moved_to
        two.server.reconfigure(two.sections)
        two.server.wait_for_line(f"{TAKEN_OVER}: 0 added, 1 changed, 0 removed, 2 unchanged")
        assert send_request(moved_to, "/", "ping").type == "pong"
        until(lambda: not answers(two.ports["added"]), what="the port is given back")
        two.works("added")

        del two.sections["added"]
        two.server.reconfigure(two.sections)
        two.server.wait_for_line(f"{TAKEN_OVER}: 0 added, 0 changed, 1 removed, 2 unchanged")
        until(lambda: not answers(moved_to), what="the port is given back")
        added.feed()
        two.works("modis")
        two.works("hrit")
        assert line.ping() == "pong"
        assert not line.dropped()
    assert not two.subscriber.of_file(list(added.fed)[-1])
    assert two.subscriber.connections == 1


BROKEN = {
    "half an option": ("[hrit]\norigin = /x/{name}\ntopic = /a\nrequest_po", "in line 4"),
    "no section": ("origin = /x/{name}\n", "line 1"),
    "empty": ("", "no section"),
    "junk": ("\0\1\2\3", "line 1"),
    "a wrong port": ("[hrit]\norigin = /x/{name}\ntopic = /a\nrequest_port = lots\n", "[hrit] request_port: "),
    "no topic": ("[hrit]\norigin = /x/{name}\nrequest_port = 9000\n", "[hrit] topic: "),
    "a twin": ("[hrit]\ntopic = /a\ntopic = /b\n", "[hrit] topic: "),
}


@pytest.mark.parametrize("text", BROKEN)
def test_broken_file(steady: Two, text: str) -> None:
    """A broken file is reported with file, section and option and changes nothing; its repair is applied."""
    broken, problem = BROKEN[text]
    server = steady.server
    server.mark_log()
    server.reconfigure(broken)
    server.wait_for_line(REFUSED)
    (line,) = [line for line in server.lines().splitlines() if REFUSED in line]
    assert str(server.config) in line
    assert problem in line
    assert "Traceback" not in server.lines()
    steady.works("hrit")
    steady.works("modis")
    server.reconfigure(steady.sections)
    server.wait_for_line(f"{TAKEN_OVER}: 0 added, 0 changed, 0 removed, 2 unchanged")


def test_one_broken_section(two: Two) -> None:
    """A section that becomes broken keeps its old settings; other changes of the file are applied."""
    changed = {"hrit": two.sections["hrit"] | {"request_port": "none"}, "modis": two.sections["modis"]}
    changed["modis"] = changed["modis"] | {"topic": "/new"}
    two.server.reconfigure(changed)
    two.server.wait_for_line(TAKEN_OVER)
    assert re.search(rf"ERROR.*{two.server.config}: \[hrit\] request_port: ", two.server.lines())
    two.works("hrit")
    two.works("modis", "/new")


def test_file_is_away_for_a_while(two: Two) -> None:
    """A removed file changes nothing, and is applied when it is back."""
    two.server.config.unlink()
    two.server.send(signal.SIGHUP)
    two.server.wait_for_line(REFUSED)
    two.works("hrit")
    two.sections["hrit"]["topic"] = "/new"
    two.server.reconfigure(two.sections)
    two.server.wait_for_line(TAKEN_OVER)
    two.works("hrit", "/new")


def test_changed_section_that_cannot_start(two: Two) -> None:
    """A section with a new port that is in use keeps its old settings, and the others are not affected."""
    two.sections["hrit"]["request_port"] = int(two.server.command[-1])  # where this server publishes
    two.server.reconfigure(two.sections)
    two.server.wait_for_line("[hrit] keeps its previous configuration")
    assert "Traceback" not in two.server.lines()
    two.works("hrit")
    two.works("modis")
    assert send_request(two.ports["hrit"], "/", "ping").type == "pong"


def test_old_sections_leave_no_resources(two: Two) -> None:
    """Sections that are changed repeatedly leave no thread and no open file."""

    def holds() -> tuple[int, int]:
        assert two.server.popen is not None
        of_process = f"/proc/{two.server.popen.pid}"
        return len(os.listdir(f"{of_process}/task")), len(os.listdir(f"{of_process}/fd"))

    two.works("hrit")
    two.works("modis")
    before = holds()
    for number in range(1, 4):
        two.sections["hrit"]["topic"] = f"/new/{number}"
        two.server.reconfigure(two.sections)
        two.server.wait_for_line(TAKEN_OVER, number)
    two.works("hrit", "/new/3")
    until(lambda: all(now <= then + 1 for now, then in zip(holds(), before, strict=True)), what=f"{before} {holds()}")


def test_client_sections_come_and_go(testbed: Testbed) -> None:
    """A client's section is added, changed and removed, and an unchanged one keeps its subscribers."""
    pair = ServerClientPair(testbed).start()
    subscribers = {"hrit": pair.received}
    targets = {"hrit": pair.target, "added": testbed.directory("added"), "changed": testbed.directory("changed")}
    until(lambda: pair.received.connections)
    port = testbed.port()
    subscribers["added"] = testbed.subscriber(port)
    sections = dict(pair.client_sections)

    sections["added"] = client_section(pair.publish_port, targets["added"], port)
    pair.client.reconfigure(sections)
    pair.client.wait_for_line(f"{TAKEN_OVER}: 1 added, 0 changed, 0 removed, 1 unchanged")
    _moves(pair.feeder, subscribers["added"], targets["added"])

    sections["added"] = client_section(pair.publish_port, targets["changed"], port)
    pair.client.reconfigure(sections)
    pair.client.wait_for_line(f"{TAKEN_OVER}: 0 added, 1 changed, 0 removed, 1 unchanged")
    _moves(pair.feeder, subscribers["added"], targets["changed"])

    del sections["added"]
    pair.client.reconfigure(sections)
    pair.client.wait_for_line(f"{TAKEN_OVER}: 0 added, 0 changed, 1 removed, 1 unchanged")
    until(lambda: not answers(port), what="the port is given back")
    _moves(pair.feeder, pair.received, pair.target)
    pair.wait_until_done()
    assert pair.received.connections == 1
    assert len(pair.received.receipts()) == len(pair.feeder.fed)


def _moves(feeder: Feeder, subscriber: RecordingSubscriber, target: Path) -> None:
    (name,) = feeder.feed()
    subscriber.wait_for_receipts([name])
    assert (target / name).read_bytes() == feeder.fed[name]


@pytest.mark.skipif(bool(missing()), reason=f"missing: {missing()}")
@pytest.mark.parametrize("which", ["server", "client"])
def test_transfer_in_flight(testbed: Testbed, which: str) -> None:
    """A transfer of an unchanged section continues through a reload."""
    root = testbed.directory("root")
    with PyFtpd(testbed.logs, root) as ftp:
        pair = ServerClientPair(testbed, login=f"{USER}:{PASSWORD}", destination=f"ftp://{HOST}:{ftp.port}/")
        pair.start()
        ftp.pause()
        (name,) = pair.feeder.feed()
        pair.received.wait_for(1, "push")
        process: Process = getattr(pair, which)
        sections = dict(pair.server_sections if process is pair.server else pair.client_sections)
        sections["another"] = sections["hrit"] | {"origin": f"{testbed.root}/another/{{name}}", "topic": "/another"}
        sections["another"] |= {"request_port" if process is pair.server else "publish_port": testbed.port()}
        if process is pair.client:
            del sections["another"]["origin"]
        process.reconfigure(sections)
        process.wait_for_line(f"{TAKEN_OVER}: 1 added, 0 changed, 0 removed, 1 unchanged")
        assert not pair.received.receipts()
        ftp.resume()
        pair.received.wait_for_receipts([name])
        assert (root / name).read_bytes() == pair.feeder.fed[name]
        assert pair.server.lines().count(" delivered ") == 1
        assert "attempt 1" in pair.client.lines()


def test_changes_are_logged(testbed: Testbed) -> None:
    """A reload logs each changed option, without secrets, and how many sections failed."""
    pair = ServerClientPair(testbed, destination="ftp://user:old-secret@127.0.0.1/in/")
    pair.client.start()
    section = pair.client_sections["hrit"]
    changed = {**section, "destination": "ftp://user:new-secret@127.0.0.1/out/", "priority": 3}
    pair.client.reconfigure({"hrit": changed})
    pair.client.wait_for_line("configuration reloaded: 0 added, 1 changed, 0 removed, 0 unchanged")
    lines = pair.client.lines()
    assert "[hrit] changed destination: ftp://user@127.0.0.1/in/ -> ftp://user@127.0.0.1/out/" in lines
    assert "[hrit] changed priority: default -> 3" in lines
    assert "secret" not in lines
    used = {**section, "publish_port": testbed.port(), "providers": "nonsense:port"}
    pair.client.reconfigure({"hrit": changed, "new": used})
    pair.client.wait_for_line("configuration reloaded: 0 added, 0 changed, 0 removed, 1 unchanged, 1 failed")
