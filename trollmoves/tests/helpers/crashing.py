"""Crash scenarios of daemons, and the table of all cases.

``python -m trollmoves.tests.helpers.crashing`` prints the table in doc/reliability.md.
"""

from __future__ import annotations

import bz2
import itertools
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trollmoves.movers import is_partial
from trollmoves.tests.helpers.armed import FAILPOINTS
from trollmoves.tests.helpers.daemons import Process, ServerClientPair, Testbed, client_section, server_section
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.feeding import Feeder, content
from trollmoves.tests.helpers.fetching import FETCHER, FetchTestbed
from trollmoves.tests.helpers.fetching import TOPIC as FETCHED_TOPIC
from trollmoves.tests.helpers.recording import HOST, ReceivedMessage, RecordingSubscriber
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import seaweed
from trollmoves.tests.servers.openssh import OpenSsh
from trollmoves.tests.servers.seaweed import Seaweed
from trollmoves.tests.system.test_mirror import Chain

FILES = 4
LARGE = 3_000_000  # bytes of a file that is sent in several pieces
REQUEST_TIMEOUT = 1  # seconds after which a client repeats a request: a killed server sends no reply
DEADLINE = 60.0  # s for a daemon to reach its failpoint, and for the recovery afterwards, on a busy machine


class CrashScenario(ABC):
    """Daemons, their input and their target; no process is started yet.

    ``processes`` maps names to daemons; ``received`` records the receipts for files at the target.
    """

    processes: dict[str, Process]
    received: RecordingSubscriber
    feeder: Feeder
    target: Path
    size = 1000
    count = 1  # the victim dies when it hits its failpoint for this time

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.too_early: list[str] = []
        self.set_up()
        self.received.on_message = self._check_receipt

    @abstractmethod
    def set_up(self) -> None:
        """Set the attributes."""

    def run_until_kill(self, victim: Process, arm: Callable[[], None]) -> None:
        """Run the ``victim`` until it reaches its failpoint; ``arm`` sets the failpoint for its next start."""
        arm()
        self.start()
        self.feed()

    def start(self) -> None:
        """Start all processes, the server last: clients replay only from their first contact with a server."""
        others = [process for name, process in self.processes.items() if name != "server"]
        for process in others:
            process.start(wait=False)
        for process in others:
            process.wait_until_ready()
        self.processes["server"].start(wait=False)

    def feed(self) -> None:
        """Add files to the source directory."""
        self.feeder.feed(FILES, size=self.size)

    def restart(self, victim: Process) -> None:
        """Restart the victim."""
        victim.start(wait=False)

    def missing(self) -> list[str]:
        """Return the names of the files that are missing or incomplete at the target."""
        return self.feeder.missing(self.target)

    def stale_partials(self) -> list[str]:
        """Return the names of partials and unpacking directories at the target."""
        return [path.name for path in self.target.rglob("*") if is_partial(path.name) or path.name.endswith("ing")]

    def check_removals(self) -> None:
        """Fail if an undelivered file was removed; called when the victim is dead, and at the end."""
        missing = self.missing()
        lost = [name for name in missing if not (self.feeder.folder / name).exists()]
        assert lost == []

    def wait_until_removed(self) -> None:  # noqa: B027  (most remove nothing)
        """Wait until delivered files are removed, if the scenario removes files."""

    def _check_receipt(self, receipt: ReceivedMessage) -> None:
        if receipt.type == "file" and receipt.uid in self.missing():
            self.too_early.append(receipt.uid)

    def wait_until_done(self) -> None:
        """Wait until every file is complete at the target, has a receipt, and no partial is left."""
        self.received.wait_for_receipts(self.feeder.fed, DEADLINE)
        until(lambda: not self.missing(), 5, "the files are complete at the target")
        until(lambda: not self.stale_partials(), 5, "no partial is left")
        self.wait_until_removed()
        self.check_removals()
        assert self.too_early == []
        for process in self.processes.values():
            assert "Traceback" not in process.log.read_text()


class PlainScenario(CrashScenario):
    """A server and a client."""

    server: Mapping[str, object] = {}
    client: Mapping[str, object] = {}
    origin = ""  # file name pattern in the server's directory, if not the default

    def set_up(self) -> None:
        """Make a pair."""
        pair = ServerClientPair(
            self.testbed,
            self.server,
            **{"transfer_req_timeout": REQUEST_TIMEOUT, **self.client, **self.destination_options()},
        )
        if self.origin:
            pair.server_sections["hrit"]["origin"] = f"{pair.feeder.folder}/{self.origin}"
            pair.server.reconfigure(pair.server_sections)
        self.processes = {"server": pair.server, "client": pair.client}
        self.received, self.feeder, self.target = pair.received, pair.feeder, pair.target
        self.announced = pair.announced

    def destination_options(self) -> Mapping[str, object]:
        """Return the client's destination if it is not the default directory."""
        return {}


class GroupScenario(PlainScenario):
    """A client that requests files together, because they were announced while it was stopped."""

    def run_until_kill(self, victim: Process, arm: Callable[[], None]) -> None:
        """Let the client learn the destination from one file, then stop it until further files are announced."""
        arm()
        self.start()
        self.feeder.feed()
        self._wait_for(self.received, victim)
        self.processes["client"].send(signal.SIGSTOP)
        self.feed()
        self._wait_for(self.announced, victim)
        self.processes["client"].send(signal.SIGCONT)

    def _wait_for(self, subscriber: RecordingSubscriber, victim: Process) -> None:
        """Wait for a message about each file; a victim that a repetition has killed earlier sends none."""
        until(
            lambda: set(self.feeder.fed) <= set(subscriber.receipts()) or not victim.is_running(),
            DEADLINE,
            "a message about each file",
        )


class LargeFileScenario(PlainScenario):
    """The same, with files that are sent in several pieces."""

    size = LARGE


class DeletingScenario(PlainScenario):
    """A server that removes delivered files."""

    server = {"delete": "true", "remove_delay": 0.2}

    def wait_until_removed(self) -> None:
        """Wait until the server's directory is empty."""
        until(lambda: not list(self.feeder.folder.iterdir()), DEADLINE, "the delivered files are removed")


class KnownSourceScenario(CrashScenario):
    """A victim that knows its source, and did not run when files were announced: it replays them at any later time."""

    def run_until_kill(self, victim: Process, arm: Callable[[], None]) -> None:
        """Connect the victim to the server once, and announce the files while it is down."""
        self.start()
        self.feeder.feed()
        self.received.wait_for_receipts(self.feeder.fed)
        victim.kill()
        self.feed()
        self.processes["server"].wait_for_line("announced", 2)
        arm()
        victim.start(wait=False)


class MissedAnnouncementScenario(KnownSourceScenario, PlainScenario):
    """A client that did not run when files were announced."""


class KilledBeforeScenario(PlainScenario):
    """A client that was killed just after it published receipts."""

    def run_until_kill(self, victim: Process, arm: Callable[[], None]) -> None:
        """Kill it a first time."""
        self.start()
        self.feed()
        self.received.wait_for_receipts(self.feeder.fed)
        until(lambda: not self.testbed.pending_tasks("fetch"), what="the receipts are stored as published")
        victim.kill()
        arm()
        victim.start(wait=False)


class HotSpareScenario(CrashScenario):
    """Two servers with the same files; the second one starts when the client has received all files."""

    def set_up(self) -> None:
        """Make a pair, and a second server, which removes acknowledged files."""
        testbed = self.testbed
        pair = ServerClientPair(testbed, transfer_req_timeout=REQUEST_TIMEOUT)
        self.second_feeder = testbed.feeder("in-too")
        ports = testbed.port(), testbed.port()
        section = server_section(self.second_feeder.folder, ports[1], delete="true", remove_delay=0.2)
        second = testbed.server({"hrit": section}, ports[0], name="second")
        client = client_section([pair.publish_port, ports[0]], pair.target, pair.client_port)
        pair.client.reconfigure({"hrit": client})
        self.first, self.processes = pair.server, {"server": second, "client": pair.client}
        self.received, self.feeder, self.target = pair.received, pair.feeder, pair.target

    def run_until_kill(self, victim: Process, arm: Callable[[], None]) -> None:
        """Fetch the files from the first server, then start the second."""
        self.processes["client"].start()
        self.first.start(wait=False)
        self.feed()
        self.received.wait_for_receipts(self.feeder.fed)
        for name in self.feeder.fed:
            self.second_feeder.put(name, size=self.size)
        arm()
        victim.start(wait=False)

    def wait_until_removed(self) -> None:
        """Wait until the second server's directory is empty."""
        until(
            lambda: not list(self.second_feeder.folder.iterdir()),
            DEADLINE,
            "the files of the second server are removed",
        )


class PackingFeeder(Feeder):
    """Feeds packed files."""

    def put(self, name: str, *, version: int = 1, size: int = 1000) -> Path:
        """Add one file, with ".bz2" appended to its name."""
        self.fed[name] = content(name, version, size)
        staged = self._staging / name
        staged.write_bytes(bz2.compress(self.fed[name]))
        return staged.rename(self.folder / f"{name}.bz2")


PACKED: Mapping[str, object] = {"compression": "bzip", "delete": "true"}


class UnpackingServerScenario(PlainScenario):
    """A server that unpacks."""

    server = {**PACKED, "remove_delay": 0.2}
    origin = "{name}.bz2"

    def set_up(self) -> None:
        """Make a pair for packed files."""
        self.server = {**self.server, "working_directory": self.testbed.directory("work")}
        super().set_up()
        self.feeder = PackingFeeder(self.feeder.folder)

    def check_removals(self) -> None:
        """Check for the packed or the unpacked file."""
        places = (self.feeder.folder, ".bz2"), (self.testbed.directory("work"), "")
        missing = self.missing()
        assert [n for n in missing if not any((folder / f"{n}{end}").exists() for folder, end in places)] == []

    def wait_until_removed(self) -> None:
        """Wait until the server's directories are empty."""
        folders = self.feeder.folder, self.testbed.directory("work")
        until(lambda: not any(list(folder.iterdir()) for folder in folders), DEADLINE, "all is removed")


class UnpackingClientScenario(PlainScenario):
    """A client that unpacks, and removes the archives."""

    client = PACKED
    origin = "{name}.bz2"

    def set_up(self) -> None:
        """Make a pair for packed files."""
        super().set_up()
        self.feeder = PackingFeeder(self.feeder.folder)

    def check_removals(self) -> None:
        """Check for the archives at both ends."""
        places = self.feeder.folder, self.target
        assert [n for n in self.missing() if not any((folder / f"{n}.bz2").exists() for folder in places)] == []

    def wait_until_removed(self) -> None:
        """Wait until the archives are removed from the target."""
        until(lambda: not list(self.target.glob("*.bz2")), DEADLINE, "the archives are removed")


class MirrorScenario(CrashScenario):
    """A server, a mirror that removes delivered copies, and a client of the mirror."""

    mirror: Mapping[str, object] = {"delete": "true", "remove_delay": 0}
    origin = ""

    def set_up(self) -> None:
        """Make a chain."""
        self.chain = Chain(self.testbed, **self.mirror)  # type: ignore[arg-type]
        if self.origin:
            self.chain.server_sections[0]["hrit"]["origin"] = f"{self.chain.feeder.folder}/{self.origin}"
            self.chain.server.reconfigure(self.chain.server_sections[0])
        outer = self.chain.outer()
        self.processes = {"server": self.chain.server, "mirror": self.chain.mirror, "client": outer.process}
        self.received, self.feeder, self.target = outer.received, self.chain.feeder, outer.target

    def stale_partials(self) -> list[str]:
        """Include the partials in the mirror's cache."""
        return super().stale_partials() + [path.name for path in self.chain.copies.rglob("*") if is_partial(path.name)]


class MissedByMirrorScenario(KnownSourceScenario, MirrorScenario):
    """A mirror that did not run when files were announced."""


class UnpackingMirrorScenario(MirrorScenario):
    """The same with packed files, which the mirror unpacks."""

    mirror = {**MirrorScenario.mirror, "compression": "bzip"}
    origin = "{name}"

    def set_up(self) -> None:
        """Make a chain for packed files."""
        super().set_up()
        self.feeder = PackingFeeder(self.feeder.folder)

    def check_removals(self) -> None:
        """Check nothing: the server removes no file."""


class MessageScenario(CrashScenario):
    """A daemon that receives messages about files."""

    bed: DispatcherTestbed | FetchTestbed

    @abstractmethod
    def send_messages(self, names: Iterable[str]) -> None:
        """Publish messages about files."""

    def run_until_kill(self, victim: Process, arm: Callable[[], None]) -> None:
        """Publish messages once it is subscribed, one by one: a dying daemon loses messages."""
        arm()
        self.bed.start()
        self.feed()
        for number, name in enumerate(list(self.feeder.fed)[: self.count]):
            self.received.wait_for_receipts(list(self.feeder.fed)[:number], DEADLINE)
            self.send_messages([name])

    def restart(self, victim: Process) -> None:
        """Start it, wait until it is subscribed, and publish the remaining messages."""
        self.bed.restart()
        self.send_messages(list(self.feeder.fed)[self.count :])


class DispatcherScenario(MessageScenario):
    """A dispatcher that receives messages about files."""

    def set_up(self) -> None:
        """Make a dispatcher."""
        target = {"directory": "OUT", "topics": [TOPIC], "publish_topic": "/sent"}
        self.bed = DispatcherTestbed(self.testbed, {"t": target})
        self.processes = {"dispatcher": self.bed.process}
        self.received, self.target = self.bed.subscriber, self.bed.out
        self.feeder = Feeder(self.bed.source)

    def send_messages(self, names: Iterable[str]) -> None:
        """Publish messages about files."""
        for name in names:
            self.bed.publisher.publish_file(self.feeder.folder / name)


class RepeatedMessageScenario(DispatcherScenario):
    """The same, with a publisher that repeats all messages."""

    def restart(self, victim: Process) -> None:
        """Repeat the messages after the restart."""
        self.bed.restart()
        assert len(self.missing()) == FILES
        self.send_messages(self.feeder.fed)


class FetcherScenario(MessageScenario):
    """A fetcher that receives messages about files on another host."""

    def set_up(self) -> None:
        """Make a fetcher that can log in to the host."""
        self.bed = FetchTestbed(self.testbed, FETCHER)
        self.host = OpenSsh(self.testbed.directory("ssh"))
        self.testbed.enter(self.host)
        self.bed.give_login(self.host.user_key, self.host.known_hosts.read_text())
        self.processes = {"fetcher": self.bed.process}
        self.received, self.target = self.bed.subscriber, self.bed.out
        self.feeder = Feeder(self.testbed.directory("in"))

    def send_messages(self, names: Iterable[str]) -> None:
        """Publish messages about files."""
        for name in names:
            uri = f"sftp://{HOST}:{self.host.port}{self.feeder.folder / name}"
            self.bed.publisher.publish(FETCHED_TOPIC, "file", {"uri": uri})


class RemoteScenario(LargeFileScenario):
    """A server that delivers to another host."""

    scheme = ""

    def destination_options(self) -> Mapping[str, object]:
        """Start a server for the destination."""
        return {"destination": RemoteDirectory(self.testbed, self.scheme, self.testbed.directory("out")).url}


class SftpScenario(RemoteScenario):
    """By SFTP."""

    scheme = "sftp"


class ScpScenario(RemoteScenario):
    """By SCP."""

    scheme = "scp"


class FtpScenario(RemoteScenario):
    """By FTP."""

    scheme = "ftp"


class S3Scenario(LargeFileScenario):
    """A server that delivers to a bucket, where objects appear complete."""

    scheme = "s3"
    size = 17_000_000  # bytes, so that it is sent in parts

    def set_up(self) -> None:
        """Start an S3 service, and configure its keys in the server."""
        service = self.testbed.enter(Seaweed(self.testbed.directory("s3")))
        self.s3 = seaweed.client(service.port)
        self.testbed.call_at_end(self.s3.close)
        self.server = {
            "connection_parameters__endpoint_url": f"http://{HOST}:{service.port}",
            "connection_parameters__key": seaweed.KEY,
            "connection_parameters__secret": seaweed.SECRET,
            "connection_parameters__client_kwargs__region_name": "us-east-1",
        }
        super().set_up()

    def destination_options(self) -> Mapping[str, object]:
        """Name the bucket."""
        return {"destination": f"s3://{seaweed.BUCKET}/out"}

    def missing(self) -> list[str]:
        """Compare the objects in the bucket."""
        found = self.s3.list_objects_v2(Bucket=seaweed.BUCKET, Prefix="out/").get("Contents", ())
        keys = {one["Key"].rpartition("/")[2]: one["Key"] for one in found}
        return [name for name, expected in self.feeder.fed.items() if self._read(keys.get(name, "")) != expected]

    def _read(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=seaweed.BUCKET, Key=key)["Body"].read()) if key else b""


@dataclass(frozen=True)
class Case:
    """A daemon that is killed at the ``count``-th hit of a failpoint; ``visible`` describes the effect for users."""

    daemon: str
    failpoint: str
    scenario: type[CrashScenario]
    visible: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.daemon}-{self.failpoint}"


DELAY = "a delay"
DELIVERED_TWICE = "one file is sent twice; it is complete at any time"
PUBLISHED_TWICE = "one receipt is published twice"

CASES = (
    Case("server", "found", PlainScenario, "the files are announced after the restart"),
    Case("server", "unpacked", UnpackingServerScenario, "one file is unpacked twice", count=2),
    Case("server", "announcing", PlainScenario, "the files are announced after the restart"),
    Case("server", "announced", PlainScenario, "the files are announced after the restart"),
    Case("server", "published", PlainScenario, "some files are announced twice"),
    Case("server", "request-received", PlainScenario, "the client repeats the request"),
    Case("server", "push-stored", PlainScenario, "the client repeats the request"),
    Case("server", "sending", LargeFileScenario, "a hidden partial, which the next attempt replaces", count=2),
    Case("server", "sent", LargeFileScenario, "a hidden partial, which the next attempt replaces", count=2),
    Case("server", "delivered", DeletingScenario, DELIVERED_TWICE, count=2),
    Case("server", "committed", DeletingScenario, "the client repeats the request, and gets an ack"),
    Case("server", "replied", DeletingScenario, DELAY, count=2),
    Case("server", "ack-received", HotSpareScenario, "the file is announced again, and acknowledged again", count=2),
    Case("server", "acknowledged", HotSpareScenario, DELAY, count=2),
    Case("server", "removing", DeletingScenario, "the file is removed after the restart", count=2),
    Case("server", "removed", DeletingScenario, DELAY, count=2),
    Case(
        "client",
        "announcement-received",
        MissedAnnouncementScenario,
        "it requests the missed announcements after the restart",
    ),
    Case("client", "announcement-stored", PlainScenario, "it requests the file after the restart"),
    Case("client", "requesting", PlainScenario, "it requests the file after the restart", count=2),
    Case("client", "delivery-reported", PlainScenario, "it repeats the request, and gets an ack", count=2),
    Case("client", "acked", UnpackingClientScenario, "it repeats the request; the ack is published twice", count=2),
    Case("client", "receipt-published", PlainScenario, PUBLISHED_TWICE, count=2),
    Case("client", "committed", PlainScenario, "receipts of the last half second are published twice"),
    Case("client", "receipt-republished", KilledBeforeScenario, "the receipt is published once more"),
    Case("client", "unpacked", UnpackingClientScenario, "one file is unpacked twice", count=2),
    Case("client", "discarding", UnpackingClientScenario, "the archive is removed after the restart", count=2),
    Case("client", "discarded", UnpackingClientScenario, DELAY, count=2),
    Case(
        "mirror",
        "announcement-received",
        MissedByMirrorScenario,
        "it requests the missed announcements after the restart",
    ),
    Case("mirror", "announcement-stored", MirrorScenario, "it announces the file after the restart"),
    Case("mirror", "relaying", MirrorScenario, "it announces the file after the restart", count=2),
    Case("mirror", "announced", MirrorScenario, "it announces the file after the restart", count=2),
    Case("mirror", "request-received", MirrorScenario, "the client repeats the request"),
    Case("mirror", "copy-requested", MirrorScenario, "it fetches the file after the restart", count=2),
    Case("mirror", "copy-fetched", MirrorScenario, "one copy is fetched twice", count=2),
    Case("mirror", "unpacked", UnpackingMirrorScenario, DELAY, count=2),
    Case("mirror", "delivered", MirrorScenario, DELIVERED_TWICE, count=2),
    Case("mirror", "removed", MirrorScenario, DELAY, count=2),
    Case(
        "dispatcher",
        "message-received",
        RepeatedMessageScenario,
        "**files of these messages are not delivered**, unless the publisher repeats the messages: it cannot be asked",
    ),
    Case("dispatcher", "deliveries-stored", DispatcherScenario, DELAY),
    Case("dispatcher", "sending", DispatcherScenario, "a hidden partial, which the next attempt replaces", count=2),
    Case("dispatcher", "sent", DispatcherScenario, "a hidden partial, which the next attempt replaces", count=2),
    Case("dispatcher", "delivered", DispatcherScenario, DELIVERED_TWICE, count=2),
    Case("dispatcher", "receipt-published", DispatcherScenario, f"{DELIVERED_TWICE}; {PUBLISHED_TWICE}", count=2),
    Case("dispatcher", "committed", DispatcherScenario, "receipts of the last half second are published twice"),
    Case("fetcher", "fetches-stored", FetcherScenario, DELAY),
    Case("fetcher", "sending", FetcherScenario, "a hidden partial, which the next attempt replaces", count=2),
    Case("fetcher", "sent", FetcherScenario, "a hidden partial, which the next attempt replaces", count=2),
    Case("fetcher", "fetched", FetcherScenario, "one file is fetched twice; it is complete at any time", count=2),
    Case("fetcher", "receipt-published", FetcherScenario, f"one file is fetched twice; {PUBLISHED_TWICE}", count=2),
    Case("fetcher", "committed", FetcherScenario, "receipts of the last half second are published twice"),
)

FAR = (SftpScenario, ScpScenario, FtpScenario)
# (daemon, failpoint) in the request for a group, and the hit that kills: the first are those of a single file
GROUPED = {
    ("server", "push-stored"): 2,
    ("server", "delivered"): 3,
    ("server", "replied"): 3,
    ("client", "requesting"): 2,
    ("client", "delivery-reported"): 3,
    ("client", "acked"): 2,
}
MOVED = {"sending": 3, "sent": 2, "delivered": 2}  # failpoints inside a transfer, and the hit that kills


def armed(command: Sequence[str], failpoint: str) -> list[str]:
    """Return the command of a daemon that kills itself at a failpoint, ``NAME:COUNT``."""
    interpreter, *rest = command
    return [interpreter, "-m", "trollmoves.tests.helpers.armed", failpoint, *rest]


def crash(case: Case, testbed: Testbed) -> CrashScenario:
    """Kill a daemon at its failpoint and restart it; fail unless all files arrive."""
    scenario = case.scenario(testbed)
    scenario.count = case.count
    victim = scenario.processes[case.daemon]
    normal = victim.command

    def arm() -> None:
        victim.command = armed(normal, f"{case.failpoint}:{case.count}")

    scenario.run_until_kill(victim, arm)
    until(
        lambda: not victim.is_running(), DEADLINE, f"{case.daemon} reaches {case.failpoint}: {victim.lines()[-3000:]}"
    )
    assert victim.popen is not None
    assert victim.popen.returncode == -signal.SIGKILL, victim.lines()
    scenario.check_removals()
    victim.command = normal
    scenario.restart(victim)
    scenario.wait_until_done()
    return scenario


def table(cases: Sequence[Case] = CASES) -> str:
    """Return the table of all cases, in Markdown."""
    lines = ["| killed when | what a user sees |", "|---|---|"]
    for daemon, group in itertools.groupby(cases, lambda case: case.daemon):
        lines.append(f"| **{daemon}** | |")
        lines += [f"| `{case.failpoint}` {FAILPOINTS[case.failpoint].rstrip('.')} | {case.visible} |" for case in group]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
