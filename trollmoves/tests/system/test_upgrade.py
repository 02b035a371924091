"""An upgrade of a site of the earlier implementation, host by host, while files arrive."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import yaml

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    Process,
    Testbed,
    client_section,
    mirror_section,
    script,
    server_section,
)
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import openssh, seaweed
from trollmoves.tests.servers.openssh import OpenSsh
from trollmoves.tests.servers.process import ServerProcess
from trollmoves.tests.servers.seaweed import BUCKET, Seaweed

ROLES = ("server", "client", "dispatcher")  # the flow of the files
ALL_ORDERS = "TROLLMOVES_ALL_ORDERS"  # environment variable: with it, the other three orders are tested too
# Each role is before and after each other one, and once the last, which is rolled back.
ORDERS = (("server", "client", "dispatcher"), ("dispatcher", "client", "server"), ("server", "dispatcher", "client"))
OLD, NEW = "old", "new"
PAUSE = 0.2  # s between two files
MORE = 10  # files after each step
MOST = 20  # files on their way, on a machine that is slower than the flow
BY_SSH = "000002"  # in names of files for the SSH host: the earlier implementation needs more than a second for each
BY_S3 = "000003"  # in names of files for the bucket
REMOVE_DELAY = 1  # s
SECONDS = 60


class Site:
    """A server that deletes delivered files, a mirror, a client, a dispatcher, and a nameserver.

    The dispatcher finds the client by the nameserver, and has a directory, an SSH host and a bucket as targets. The
    access to the bucket is in the configuration of fsspec. Each daemon runs either the earlier implementation or ours,
    with the same configuration. Only the mirror is always ours: those of 0.17 to 0.19 run no section.
    """

    def __init__(self, testbed: Testbed, ssh: OpenSsh, s3: Seaweed) -> None:
        self.testbed = testbed
        self.feeder = testbed.feeder()
        self.received, self.copied = testbed.directory("received"), testbed.directory("copied")
        self.sent = testbed.directory("sent")
        self._bucket = seaweed.client(s3.port)
        testbed.call_at_end(self._bucket.close)
        server_port, mirror_port, client_port = testbed.port(), testbed.port(), testbed.port()
        dispatcher_port = testbed.port()
        removal = {"delete": "true", "remove_delay": REMOVE_DELAY}
        server = {"hrit": server_section(self.feeder.folder, testbed.port(), **removal)}
        mirror = mirror_section(server_port, testbed.directory("copies"), testbed.port(), **removal)
        client = client_section(mirror_port, self.received, client_port, topic="", nameservers="localhost")
        client["transfer_req_timeout"] = mirror["transfer_req_timeout"] = 60  # an old client drops a file after it
        self.mirror = testbed.mirror({"far": mirror}, mirror_port)
        dispatcher = testbed.config(yaml.safe_dump(self._targets(ssh)), "dispatcher.yaml")
        command = [sys.executable, script("dispatcher.py"), str(dispatcher), "-p", str(dispatcher_port)]
        self._processes: dict[tuple[str, str], Process] = {
            ("server", OLD): earlier.server(testbed, server, server_port),
            ("server", NEW): testbed.server(server, server_port),
            ("client", OLD): earlier.client(testbed, {"hrit": client}),
            ("client", NEW): testbed.client({"hrit": client}),
            ("dispatcher", OLD): earlier.dispatcher(testbed, dispatcher, dispatcher_port),
            ("dispatcher", NEW): testbed.process("dispatcher", command, dispatcher),
        }
        settings = self._start_nameserver()
        for process in self._processes.values():
            process.environment = {**process.environment, **settings}
        self._configure_fsspec(s3)
        self._versions: dict[str, str] = {}
        self._objects: set[str] = set()
        self._messages = testbed.subscriber(client_port), testbed.subscriber(dispatcher_port)

    def _targets(self, ssh: OpenSsh) -> dict[str, object]:
        def config(segment: str = "", **options: object) -> dict[str, object]:
            conditions = {"conditions": [{"segment": f"{segment}___"}]} if segment else {}
            return {"dispatch_configs": [{"topics": [MIRROR_TOPIC], **conditions}], **options}

        parameters = {"ssh_key_filename": str(ssh.user_key)}
        scp = f"scp://{HOST}:{ssh.port}"
        return {
            "posttroll_subscriber": {"nameserver": "localhost"},
            "directory": config(host="", directory=str(self.copied), publish_topic="/copied"),
            "remote": config(BY_SSH, host=scp, directory=str(self.sent), connection_parameters=parameters),
            "bucket": config(BY_S3, host=f"s3://{BUCKET}", directory="/sent"),
        }

    def _start_nameserver(self) -> dict[str, str]:
        ports = {name: self.testbed.port() for name in ("nameserver", "broadcast", "address_publish")}
        settings = {f"POSTTROLL_{name.upper()}_PORT": str(port) for name, port in ports.items()}
        command = [sys.executable, str(Path(sys.executable).with_name("nameserver")), "--no-multicast"]
        log = self.testbed.logs / "nameserver.log"
        self.testbed.enter(ServerProcess(ports["nameserver"], command, log, settings))
        return settings

    def _configure_fsspec(self, s3: Seaweed) -> None:
        endpoint = {"endpoint_url": f"http://{HOST}:{s3.port}", "region_name": "us-east-1"}
        values = {"key": seaweed.KEY, "secret": seaweed.SECRET, "client_kwargs": endpoint}
        (self.testbed.directory("home/.config/fsspec") / "conf.json").write_text(json.dumps({"s3": values}))

    def start(self) -> None:
        """Start all daemons, those of the earlier implementation if there is one."""
        self.mirror.start(wait=False)
        for role in ROLES:
            self._start(role, OLD, wait=False)
        for role in ROLES:
            self._processes[role, OLD].wait_until_ready()
        self.mirror.wait_until_ready()
        self.connect()

    def stop(self, role: str) -> None:
        """Stop a daemon, as systemd does."""
        self._processes[role, self._versions.pop(role)].terminate(60)

    def _start(self, role: str, version: str, *, wait: bool = True) -> None:
        """Start a version of a daemon; a client without the journal of before its rollback, see doc/migration.md."""
        self._versions[role] = version
        if (role, version) == ("client", NEW):
            for journal in (self.testbed.root / "state").rglob("client-*.journal*"):
                journal.unlink()
        self._processes[role, version].start(wait=wait)

    def arrived(self, names: Collection[str]) -> bool:
        """Return True if files are at all their destinations, and published there."""
        published = set.intersection(*(set(one.receipts()) for one in self._messages))
        if not published.issuperset(names):
            return False
        stored = {name for name in names if BY_S3 in name}
        if not stored <= self._objects:
            listed = self._bucket.list_objects_v2(Bucket=BUCKET, Prefix="sent/").get("Contents", ())
            self._objects = {found["Key"].rpartition("/")[2] for found in listed}
        return stored <= self._objects and all((self.sent / name).exists() for name in names if BY_SSH in name)

    def connect(self) -> None:
        """Feed files until one arrives: the earlier implementation publishes to missing subscribers too.

        Which of these files arrive, and how often, is not checked.
        """
        for name in itertools.islice(self.feeder.fresh_names(), 100):
            if BY_SSH in name or BY_S3 in name:
                continue
            self.feeder.put(name)
            try:
                until(lambda name=name: self.arrived([name]), 2, timeout_factor=1)  # type: ignore[misc]
                return
            except AssertionError:
                continue
        raise AssertionError("no file arrives")

    def replace(self, role: str, version: str, flow: Flow) -> None:
        """Replace a daemon by another version.

        Files arrive all the time, with these exceptions: the earlier implementation forgets unfinished work when it is
        stopped, publishes to absent subscribers when it starts, and a dispatcher misses messages while it is stopped.
        """
        if role == "dispatcher" or version == OLD:
            with flow.paused():
                self.stop(role)
                self._start(role, version)
                self.connect()
        else:
            with flow.paused() if self._versions[role] == OLD else nullcontext():
                self.stop(role)
            self._start(role, version)
        if (role, version) == ("client", NEW):  # as doc/migration.md says: its servers repeat missed announcements
            self._processes[role, version].wait_for_line("connected to")
            self.mirror.send(signal.SIGHUP)
        flow.feed_more()

    def check(self, names: Collection[str]) -> None:
        """Check that each file has arrived everywhere, was received and copied once, and is deleted at its source."""
        for name in names:
            for folder in (self.received, self.copied, *([self.sent] if BY_SSH in name else [])):
                assert (folder / name).read_bytes() == self.feeder.fed[name], (folder, name)
            if BY_S3 in name:
                stored = self._bucket.get_object(Bucket=BUCKET, Key=f"sent/{name}")["Body"].read()
                assert stored == self.feeder.fed[name], name
        for messages in self._messages:
            counts = Counter(messages.receipts())
            assert {name: counts[name] for name in names if counts[name] != 1} == {}
        until(lambda: not set(names) & set(os.listdir(self.feeder.folder)), SECONDS, "delivered files are deleted")


class Flow:
    """A thread that feeds files."""

    def __init__(self, site: Site) -> None:
        self.fed: list[str] = []
        self._site = site
        self._running = threading.Event()
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Flow:
        self._running.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._running.set()
        self._thread.join(20)

    def _run(self) -> None:
        while not self._stopping:
            self._running.wait()
            with self._lock:
                if self._running.is_set() and self._site.arrived(self.fed[:-MOST]):
                    self.fed += self._site.feeder.feed()
            time.sleep(PAUSE)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Feed nothing during the ``with`` block, which begins when all files have arrived."""
        self._running.clear()
        with self._lock:
            until(lambda: self._site.arrived(self.fed), SECONDS, "all files arrive")
            yield
        self._running.set()

    def feed_more(self) -> None:
        """Wait until more files are fed, and have arrived."""
        count = len(self.fed) + MORE
        until(lambda: len(self.fed) >= count, SECONDS)
        until(lambda: self._site.arrived(self.fed[:count]), SECONDS, "the files arrive")


def remove_old_files(site: Site, version: str) -> None:
    """Run remove_it with a configuration of the earlier implementation, as cron does, and check the removed files."""
    folder = site.testbed.directory("kept")
    config = site.testbed.config({"old": {"base_dir": folder, "templates": "*.old,*/*.old", "hours": 1}}, "remove.ini")
    for name in ("first.old", "second.old", "third.new"):
        path = folder / name
        path.touch()
        os.utime(path, (1, 1))
    (folder / "young.old").touch()
    config.write_text(f"{config.read_text()}stat_time_method = st_mtime\n")
    if version == OLD:
        earlier.remove_it(site.testbed, config)
    else:
        done = site.testbed.run("remove_it.py", config)
        assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(folder)) == ["third.new", "young.old"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site that runs the earlier implementation."""
    if why := openssh.missing() or seaweed.missing():
        pytest.skip(f"missing: {why}")
    with Testbed(tmp_path) as testbed:
        ssh = OpenSsh(testbed.directory("ssh"))
        testbed.enter(ssh)
        s3 = Seaweed(testbed.directory("s3"))
        testbed.enter(s3)
        keys = testbed.directory("home/.ssh")
        (keys / "known_hosts").write_text(ssh.known_hosts.read_text())
        found = Site(testbed, ssh, s3)
        found.start()
        yield found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "order", list(itertools.permutations(ROLES)) if os.environ.get(ALL_ORDERS) else ORDERS, ids="-".join
)
def test_upgrade(site: Site, order: tuple[str, ...]) -> None:
    """An upgrade in any order, and a rollback of the last daemon, lose and repeat no file."""
    with Flow(site) as flow:
        flow.feed_more()
        remove_old_files(site, OLD)
        for role in order:
            site.replace(role, NEW, flow)
        remove_old_files(site, NEW)
        site.replace(order[-1], OLD, flow)
        site.replace(order[-1], NEW, flow)
    until(lambda: site.arrived(flow.fed), SECONDS, "all files arrive")
    site.check(flow.fed)


def test_mirror_of_the_earlier_implementation(testbed: Testbed) -> None:
    """The mirror of 0.19.0 does not run a section, so a site cannot have it."""
    mirrors: list[Process] = []
    for options in ({}, {"origin": "/nowhere/{name}"}, {"listen": "/"}):
        section = mirror_section(testbed.port(), testbed.directory("copies"), testbed.port(), **options)
        mirrors.append(earlier.mirror(testbed, {"far": section}, testbed.port(), name=f"mirror-{len(mirrors)}"))
    for mirror in mirrors:
        mirror.start(wait=False)
    for mirror in mirrors:
        until(lambda mirror=mirror: "Ignoring section far" in mirror.lines() or "TypeError" in mirror.lines())  # type: ignore[misc]
