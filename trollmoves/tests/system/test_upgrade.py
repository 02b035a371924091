"""An upgrade of a site of the earlier implementation, host by host, while files arrive."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import yaml

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import TOPIC, Testbed, client_section, script, server_section
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import openssh
from trollmoves.tests.servers.openssh import OpenSsh
from trollmoves.tests.servers.process import answers

ROLES = ("server", "client", "dispatcher")  # the flow of the files
OLD, NEW = "old", "new"
PAUSE = 0.2  # s between two files
MORE = 20  # files after each step
BY_SSH = "000002"  # in names of files for the SSH host: the earlier implementation needs more than a second for each
REMOVE_DELAY = 1  # s
SECONDS = 60


class Site:
    """A server that deletes delivered files, a client, a dispatcher with a directory and an SSH host, and remove_it.

    Each daemon runs either the earlier implementation or ours, with the same configuration.
    """

    def __init__(self, testbed: Testbed, ssh: OpenSsh) -> None:
        self.testbed = testbed
        self.feeder = testbed.feeder()
        self.received, self.copied = testbed.directory("received"), testbed.directory("copied")
        self.sent = testbed.directory("sent")
        publish_port, client_port = testbed.port(), testbed.port()
        dispatcher_port = testbed.port()
        removal = {"delete": "true", "remove_delay": REMOVE_DELAY}
        server = {"hrit": server_section(self.feeder.folder, testbed.port(), **removal)}
        client = {"hrit": client_section(publish_port, self.received, client_port, topic="")}
        self.processes = {
            ("server", OLD): earlier.server(testbed, server, publish_port),
            ("server", NEW): testbed.server(server, publish_port),
            ("client", OLD): earlier.client(testbed, client),
            ("client", NEW): testbed.client(client),
        }
        self._make_dispatchers(ssh, client_port, dispatcher_port)
        self.versions: dict[str, str] = {}
        self.receipts, self.deliveries = testbed.subscriber(client_port), testbed.subscriber(dispatcher_port)
        self.probes: list[str] = []

    def _make_dispatchers(self, ssh: OpenSsh, client_port: int, port: int) -> None:
        parameters = {"ssh_key_filename": str(ssh.user_key)}
        topics = {"dispatch_configs": [{"topics": [TOPIC]}], "publish_topic": "/copied"}
        few = {"topics": [TOPIC], "conditions": [{"segment": f"{BY_SSH}___"}]}
        scp = f"scp://{HOST}:{ssh.port}"
        targets = {
            "posttroll_subscriber": {"subscribe_addresses": [f"tcp://{HOST}:{client_port}"], "nameserver": False},
            "directory": {"host": "", "directory": str(self.copied), **topics},
            "remote": {
                "host": scp,
                "directory": str(self.sent),
                "connection_parameters": parameters,
                "dispatch_configs": [few],
            },
        }
        config = self.testbed.config(yaml.safe_dump(targets), "dispatcher.yaml")
        arguments = [str(config), "-p", str(port), "-n", "false"]
        old = [*earlier._command("dispatcher.py"), str(config), "-p", str(port)]
        self.processes["dispatcher", OLD] = self.testbed.process(
            "old-dispatcher", old, config, lambda _: answers(port), earlier._environment(self.testbed)
        )
        command = [sys.executable, script("dispatcher.py"), *arguments]
        self.processes["dispatcher", NEW] = self.testbed.process("dispatcher", command, config)

    def stop(self, role: str) -> None:
        """Stop a daemon, as systemd does."""
        self.processes[role, self.versions.pop(role)].terminate(60)

    def start(self, role: str, version: str) -> None:
        """Start a version of a daemon."""
        self.versions[role] = version
        self.processes[role, version].start()

    def misses_messages(self, role: str) -> bool:
        """Return True if a daemon never receives what its source publishes while it is stopped."""
        return role == "dispatcher" or (role == "client" and self.versions["server"] == OLD)

    def arrived(self, name: str) -> bool:
        """Return True if a file is at all its destinations."""
        return all((folder / name).exists() for folder in self.folders(name))

    def folders(self, name: str) -> list[Path]:
        """Return the directories to which a file goes."""
        return [self.received, self.copied, *([self.sent] if BY_SSH in name else [])]

    def connect(self) -> None:
        """Feed files until one arrives: the earlier implementation publishes to missing subscribers too."""
        for name in itertools.islice(self.feeder.fresh_names(), 100):
            self.feeder.put(name)
            self.probes.append(name)
            try:
                until(lambda name=name: self.arrived(name), 2, timeout_factor=1)  # type: ignore[misc]
                return
            except AssertionError:
                continue
        raise AssertionError("no file arrives")

    def replace(self, role: str, version: str, flow: Flow) -> None:
        """Replace a daemon by another version.

        Files arrive all the time, with these exceptions: the earlier implementation forgets unfinished work when it is
        stopped, publishes to absent subscribers when it starts, and some daemons miss messages while they are stopped.
        """
        if self.misses_messages(role) or version == OLD:
            with flow.paused():
                self.stop(role)
                self.start(role, version)
                self.connect()
        else:
            with flow.paused() if self.versions[role] == OLD else nullcontext():
                self.stop(role)
            self.start(role, version)
        flow.feed_more()

    def check(self, flow: Flow) -> None:
        """Check that each file has arrived everywhere, was received once, and is deleted at its source."""
        for name in flow.fed:
            for folder in self.folders(name):
                assert (folder / name).read_bytes() == self.feeder.fed[name], (folder, name)
        expected = {name for name in flow.fed if name not in self.probes}
        counts = Counter(self.receipts.receipts())
        assert {name: counts[name] for name in expected if counts[name] != 1} == {}
        until(lambda: not set(flow.fed) & set(os.listdir(self.feeder.folder)), SECONDS, "delivered files are deleted")


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
                if self._running.is_set():
                    self.fed += self._site.feeder.feed()
            time.sleep(PAUSE)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Feed nothing during the ``with`` block, which begins when all files have arrived."""
        self._running.clear()
        with self._lock:
            until(lambda: all(map(self._site.arrived, self.fed)), SECONDS, "all files arrive")
            yield
        self._running.set()

    def feed_more(self) -> None:
        """Wait until more files are fed, and have arrived."""
        count = len(self.fed) + MORE
        until(lambda: len(self.fed) >= count, SECONDS)
        until(lambda: all(map(self._site.arrived, self.fed[:count])), SECONDS, "the files arrive")


def remove_old_files(site: Site, version: str) -> None:
    """Run remove_it with a configuration of the earlier implementation, as cron does, and check what it removes."""
    folder = site.testbed.directory("kept")
    config = site.testbed.config({"old": {"base_dir": folder, "templates": "*.old,*/*.old", "hours": 1}}, "remove.ini")
    for name in ("first.old", "second.old", "third.new"):
        path = folder / name
        path.touch()
        os.utime(path, (1, 1))
    (folder / "young.old").touch()
    command = [*earlier._command("remove_it.py")] if version == OLD else [sys.executable, script("remove_it.py")]
    config.write_text(f"{config.read_text()}stat_time_method = st_mtime\n")
    environment = earlier._environment(site.testbed) if version == OLD else site.testbed.environment
    subprocess.run([*command, str(config)], env=environment, check=True, timeout=100, stdin=subprocess.DEVNULL)
    assert sorted(os.listdir(folder)) == ["third.new", "young.old"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site that runs the earlier implementation."""
    if why := openssh.missing():
        pytest.skip(f"missing: {why}")
    with Testbed(tmp_path) as testbed:
        ssh = OpenSsh(testbed.directory("ssh"))
        testbed.enter(ssh)
        keys = testbed.directory("home/.ssh")
        (keys / "known_hosts").write_text(ssh.known_hosts.read_text())
        found = Site(testbed, ssh)
        for role in ROLES:
            found.start(role, OLD)
        found.connect()
        yield found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("order", list(itertools.permutations(ROLES)), ids="-".join)
def test_upgrade(site: Site, order: tuple[str, ...]) -> None:
    """An upgrade in any order, and a rollback of the last daemon, lose and repeat no file."""
    with Flow(site) as flow:
        flow.feed_more()
        for role in order:
            site.replace(role, NEW, flow)
        site.replace(order[-1], OLD, flow)
        site.replace(order[-1], NEW, flow)
    until(lambda: all(map(site.arrived, flow.fed)), SECONDS, "all files arrive")
    site.check(flow)


@pytest.mark.parametrize("version", [OLD, NEW])
def test_removal(site: Site, version: str) -> None:
    """The configuration of remove_it has the same effect in both versions."""
    remove_old_files(site, version)
