"""``move_it.py`` as a process: each new file reaches all destinations, after any failure."""

from __future__ import annotations

import bz2
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from trollmoves.tests.helpers.crashing import armed
from trollmoves.tests.helpers.daemons import Process, Testbed, script
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import PROXY_HOST, free_port
from trollmoves.tests.servers.proxy import Proxy
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd, missing

PATTERN = "{platform}_{start_time:%Y%m%d%H%M}.dat"
NAME = "noaa20_202501020304.dat"
needs_ftp = pytest.mark.skipif(bool(missing()), reason=f"missing: {missing()}")


class MoveItTestbed:
    """A ``move_it.py`` that watches ``source``, and a subscriber to it; the process is not started yet."""

    def __init__(self, testbed: Testbed, destinations: str, *arguments: str, **options: object) -> None:
        self.testbed = testbed
        self.source = testbed.directory("in")
        self.out = testbed.directory("out")
        self.port = testbed.port()
        self.sections: dict[str, Mapping[str, object]] = {
            "files": {
                "origin": f"{self.source}/{PATTERN}",
                "destinations": destinations.replace("OUT", str(self.out)),
                "topic": "/moved",
                **options,
            }
        }
        config = testbed.config(self.sections)
        command = [sys.executable, script("move_it.py"), str(config), *(arguments or ("-p", str(self.port)))]
        self.process: Process = testbed.process("move_it", command, config)
        self.subscriber = testbed.subscriber(self.port)

    def file(self, name: str = NAME, content: str = "content") -> Path:
        """Write a file under a hidden name and rename it."""
        path = self.source / name
        hidden = self.testbed.root / f".{name}"
        hidden.write_text(content)
        hidden.rename(path)
        return path

    def wait_for(self, *names: str) -> None:
        """Wait until these files are delivered and nothing is pending."""
        until(lambda: all((self.out / name).exists() for name in names), what=f"{names} arrive")
        until(lambda: not self.testbed.pending_tasks(), what="no task is pending")


def test_all_destinations_and_their_messages(testbed: Testbed) -> None:
    """A file is copied to each destination, by the rules of the movers, and each copy is published as it is."""
    bed = MoveItTestbed(
        testbed,
        "OUT/a/ file://OUT/renamed OUT/existing",
        info="sensor=viirs;bands=a,b",
        request_port=9099,
        request_address="myhost",
    )
    (bed.out / "existing").mkdir()
    bed.process.start()
    bed.subscriber.wait_for(1, "beat")
    bed.file()
    bed.wait_for(f"a/{NAME}", "renamed", f"existing/{NAME}")
    messages = [received.message for received in bed.subscriber.wait_for(3)]
    assert {(message.subject, message.type) for message in messages} == {("/moved", "file")}
    paths = {str(bed.out / path) for path in (f"a/{NAME}", "renamed", f"existing/{NAME}")}
    assert {message.data.pop("uri") for message in messages} == paths
    for message in messages:
        assert message.data.pop("start_time").isoformat() == "2025-01-02T03:04:00"
        assert message.data == {
            "sensor": "viirs",
            "bands": ["a", "b"],
            "platform": "noaa20",
            "uid": NAME,
            "request_address": "myhost:9099",
        }
    beat = bed.subscriber.of_type("beat")[0].message
    assert (beat.subject, beat.data) == ("/heartbeat/move_it", {"min_interval": 30})
    assert (bed.source / NAME).exists()


@pytest.mark.parametrize("polling", [False, True], ids=["events", "polling"])
def test_files_of_before_the_start(testbed: Testbed, polling: bool) -> None:
    """Existing and empty files are delivered, each once, also over a restart; without -p nothing is published."""
    arguments = ["-w", "-v"] if polling else ["-v"]
    bed = MoveItTestbed(testbed, "OUT/", *arguments, watchdog_timeout=0.1)
    bed.file()
    bed.file("empty_202501020304.dat", "")
    bed.process.start()
    bed.wait_for(NAME, "empty_202501020304.dat")
    assert bed.process.terminate() == 0
    (bed.out / NAME).unlink()
    bed.process.start()
    bed.file("later_202501020304.dat")
    bed.wait_for("later_202501020304.dat")
    assert not (bed.out / NAME).exists()
    assert bed.subscriber.connections == 0


def test_no_backlog(testbed: Testbed) -> None:
    """With --disable-backlog only files that appear later are delivered."""
    bed = MoveItTestbed(testbed, "OUT/", "--disable-backlog")
    bed.file()
    bed.process.start()
    bed.file("later_202501020304.dat")
    bed.wait_for("later_202501020304.dat")
    assert not (bed.out / NAME).exists()


@pytest.mark.parametrize("delete", [False, True])
def test_unpacking(testbed: Testbed, delete: bool) -> None:
    """A packed file is unpacked, the content is delivered and published, and only the packed file may stay."""
    work = testbed.directory("work")
    bed = MoveItTestbed(
        testbed, "OUT/a/ OUT/b/", compression="bzip", working_directory=work, delete=delete, topic="/m/{platform}"
    )
    bed.sections["files"] = {**bed.sections["files"], "origin": f"{bed.source}/{PATTERN}.bz2"}
    bed.process.reconfigure(bed.sections)
    bed.process.start()
    bed.subscriber.wait_for(1, "beat")
    packed = bed.source / f"{NAME}.bz2"
    packed.write_bytes(bz2.compress(b"content"))
    bed.wait_for(f"a/{NAME}", f"b/{NAME}")
    assert (bed.out / "a" / NAME).read_text() == "content"
    messages = [received.message for received in bed.subscriber.wait_for(2)]
    assert {(message.subject, message.data["uid"]) for message in messages} == {("/m/noaa20", NAME)}
    assert not list(work.iterdir())
    assert packed.exists() != delete


@needs_ftp
def test_delete_after_all_destinations(testbed: Testbed) -> None:
    """A held destination keeps the file; after the repair it is delivered there, and only then removed."""
    port = free_port()
    password = quote(PASSWORD, safe="")
    bed = MoveItTestbed(testbed, f"OUT/ ftp://{USER}:{password}@127.0.0.1:{port}/in/", delete=True, probe_interval=1)
    bed.process.start()
    path = bed.file()
    until(lambda: (bed.out / NAME).exists(), what="the first destination has it")
    bed.process.wait_for_line("will be retried")
    assert path.exists()
    root = testbed.directory("ftp")
    ftp = PyFtpd(testbed.directory("ftpd"), root)
    ftp.port = port
    ftp.command[3] = str(port)
    testbed.enter(ftp)
    bed.process.send(signal.SIGHUP)
    until(lambda: not path.exists(), what="the file is removed")
    assert (root / "in" / NAME).read_text() == "content"
    assert PASSWORD not in bed.process.log.read_text()
    assert password not in bed.process.log.read_text()


@needs_ftp
def test_newer_file_is_not_removed_undelivered(testbed: Testbed) -> None:
    """With delete, a file that is rewritten or replaced while it is sent is delivered again, and then removed."""
    server = PyFtpd(testbed.directory("ftpd"), testbed.directory("ftp"))
    older, newer = "1" * 1_000_000, "2" * 1_000_000
    login = f"{USER}:{quote(PASSWORD, safe='')}"
    bed = MoveItTestbed(testbed, f"ftp://{login}@{PROXY_HOST}:{server.port}/", delete=True)
    with server, Proxy(server.port, *server.passive_ports) as proxy:
        bed.process.start()
        for replaced in (True, False):
            proxy.stall_after(200_000)
            path = bed.file(content=older)
            until(lambda: proxy.sent > 200_000, what="a part is sent")
            if replaced:
                bed.file(content=newer)
            else:
                path.write_text(newer)
            proxy.heal()
            until(
                lambda: (server.root / NAME).exists() and (server.root / NAME).read_text() == newer, what="it arrives"
            )
            until(lambda: not list(bed.source.iterdir()), what="it is removed")
            (server.root / NAME).unlink()


def test_unknown_scheme(testbed: Testbed) -> None:
    """Files for a destination of an unknown scheme are held, logged once, and delivered to the others."""
    bed = MoveItTestbed(testbed, "foo://host/in/ OUT/", delete=True)
    bed.process.start()
    path = bed.file()
    until(lambda: (bed.out / NAME).exists(), what="the other destination has it")
    bed.process.wait_for_line("unknown scheme foo")
    bed.process.wait_for_line("no mover knows the scheme 'foo'")
    assert path.exists()
    bed.sections["files"] = {**bed.sections["files"], "destinations": f"{bed.out}/"}
    assert bed.process.is_running()


def test_a_file_that_returns_is_delivered_again(testbed: Testbed) -> None:
    """With delete, a file with the size and time of a removed one is delivered and removed again."""
    bed = MoveItTestbed(testbed, "OUT/", delete=True)
    bed.process.start()
    for _ in range(20):
        path = bed.source / NAME
        hidden = testbed.root / ".new"
        hidden.write_text("content")
        os.utime(hidden, (1_700_000_000, 1_700_000_000))
        hidden.rename(path)
        until(lambda path=path: not path.exists(), what="the file is removed")  # type: ignore[misc]
        assert (bed.out / NAME).read_text() == "content"
        (bed.out / NAME).unlink()


@pytest.mark.parametrize(
    "failpoint", ["found", "deliveries-stored", "sent", "delivered", "unpacked", "receipt-published"]
)
def test_kill(testbed: Testbed, failpoint: str) -> None:
    """A process that is killed at any point delivers, publishes and removes every file after its restart."""
    packed = failpoint == "unpacked"
    bed = MoveItTestbed(
        testbed,
        "OUT/a/ OUT/b/",
        delete=True,
        **({"compression": "bzip", "working_directory": testbed.directory("work")} if packed else {}),
    )
    suffix = ".bz2" if packed else ""
    bed.sections["files"] = {**bed.sections["files"], "origin": f"{bed.source}/{PATTERN}{suffix}"}
    bed.process.reconfigure(bed.sections)
    names = [f"noaa20_2025010203{minute:02d}.dat" for minute in range(10)]
    for name in names:
        (bed.source / f"{name}{suffix}").write_bytes(bz2.compress(name.encode()) if packed else name.encode())
    normal = bed.process.command
    bed.process.command = armed(normal, f"{failpoint}:{1 if failpoint in ('found', 'deliveries-stored') else 3}")
    bed.process.start(wait=False)
    assert bed.process.popen is not None
    assert bed.process.popen.wait(60) == -signal.SIGKILL
    bed.process.command = normal
    bed.process.start()
    bed.wait_for(*(f"{folder}/{name}" for folder in "ab" for name in names))
    until(lambda: not list(bed.source.iterdir()), what="all files are removed")
    for folder in "ab":
        assert {path.name: path.read_text() for path in (bed.out / folder).iterdir()} == {name: name for name in names}
    wanted = {str(bed.out / folder / name) for folder in "ab" for name in names}
    until(lambda: wanted <= {received.data["uri"] for received in bed.subscriber.of_type("file")}, what="all messages")


def test_check(testbed: Testbed) -> None:
    """--check shows the section without secrets, names options without effect, and finds missing options."""
    bed = MoveItTestbed(
        testbed,
        "OUT/ ftp://me:geheim@host/in/",
        station="x",
        delete_hook="y",
        publish_port="",
        remove_delay=1,
        topic="",
    )
    done = testbed.run("move_it.py", bed.process.config, "--check")
    assert done.returncode == 0, done.stderr
    assert "geheim" not in done.stdout
    assert "ftp://me@host/in/" in done.stdout
    assert "[files] station: has no effect in a section of move_it" in done.stdout
    assert "[files] delete_hook: is accepted, and has no effect" in done.stdout
    assert "[files] topic: is missing: files are delivered, but no messages about them are published" in done.stdout
    done = testbed.run("trollmoves", "explain", bed.source / "noaa_202601311200.dat", bed.process.config)
    assert (done.returncode, "geheim" in done.stdout) == (0, False), done
    assert "host/in/, as noaa_202601311200.dat" in done.stdout
    bed.process.config.write_text(f"[x]\norigin = {bed.source}/{PATTERN}\ntopic = /a\n")
    done = testbed.run("move_it.py", bed.process.config, "--check")
    assert done.returncode == 1
    assert "[x] destinations: is missing" in done.stdout + done.stderr
