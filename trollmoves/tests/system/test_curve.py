"""Posttroll's CURVE keys: clients with a key are served, others are rejected, and rejections are logged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.curve import Keys
from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    Process,
    ServerClientPair,
    Testbed,
    client_section,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR, until
from trollmoves.tests.system.test_examples import EXAMPLES, Example


@pytest.fixture
def keys(testbed: Testbed) -> Keys:
    """Keys for one test."""
    return Keys(testbed.root / "keys")


class SecuredPair(ServerClientPair):
    """A server and a client with keys; the server knows the client's key."""

    def __init__(self, testbed: Testbed, keys: Keys, *, invited: bool = True) -> None:
        super().__init__(testbed)
        keys.give(self.server, "server")
        keys.give(self.client, "alice")
        if invited:
            keys.authorize("alice")

    def start(self) -> SecuredPair:
        """Start both; the subscribers of the test have no keys."""
        self.server.start()
        self.client.start()
        return self

    def arrives(self) -> None:
        """Feed a file and wait for its delivery."""
        self.feeder.feed(3)
        until(lambda: not self.feeder.missing(self.target), 30, "the files are there")


# -- accepted


def test_server_and_client_with_keys(testbed: Testbed, keys: Keys) -> None:
    """A client with a key known to the server gets its files."""
    pair = SecuredPair(testbed, keys).start()
    pair.arrives()
    assert " cannot " not in pair.server.lines() + pair.client.lines()


def test_clients_without_a_key_are_rejected(testbed: Testbed, keys: Keys) -> None:
    """Without a key, or with an unknown key, neither publications nor requests of a daemon are reachable."""
    pair = SecuredPair(testbed, keys).start()
    keys.make("mallory")
    ports = (pair.publish_port, pair.request_port, pair.client_port)
    assert [keys.can_connect(port, "alice") for port in ports] == [True] * 3
    for port in ports:
        assert not keys.can_connect(port, None, 0.5)
        assert not keys.can_connect(port, "mallory", 0.5)
    pair.arrives()
    assert not pair.announced.messages
    assert not pair.received.messages
    for process, port in ((pair.server, pair.request_port), (pair.client, pair.client_port)):
        wait_for_rejection(process, f"rejected connection from {HOST}: its key ", keys, port, "mallory")
        wait_for_rejection(process, ": it has no key: the backend of its posttroll must be secure", keys, port, None)
    assert pair.server.lines().count(f"rejected connection from {HOST}: its key") == 1, "said once a minute"


def wait_for_rejection(process: Process, line: str, keys: Keys, port: int, name: str | None) -> None:
    """Connect until a process logs why it rejects this client, as it does unless the client disconnects first."""

    def is_logged() -> bool:
        return line in process.lines() or keys.can_connect(port, name, 0.5)

    until(is_logged)
    assert line in process.lines()


@pytest.mark.slow
def test_every_daemon_and_command(testbed: Testbed, keys: Keys) -> None:
    """Mirror, hot spare, dispatcher and move_it_req work with keys."""
    feeder, mirrored, out = testbed.feeder(), testbed.directory("mirrored"), testbed.directory("out")
    publish, request, mirror_publish, mirror_request, primary_port, spare_port = (testbed.port() for _ in range(6))
    for name in ("mirror", "alice", "spare", "dispatcher"):
        keys.make(name)
        keys.authorize(name)
    keys.give(testbed.server({"hrit": server_section(feeder.folder, request)}, publish), "server").start()
    mirror = {"hrit": mirror_section(publish, testbed.directory("copies"), mirror_request)}
    primary = {"hrit": client_section([mirror_publish, spare_port], mirrored, primary_port, topic=MIRROR_TOPIC)}
    spare = {"hrit": client_section([mirror_publish, primary_port], mirrored, spare_port, topic=MIRROR_TOPIC)}
    spare["hrit"]["processing_delay"] = 1
    targets = {
        "posttroll_subscriber": {"subscribe_addresses": [f"tcp://{HOST}:{primary_port}"], "nameserver": False},
        "target": {"directory": str(out), "dispatch_configs": [{"topics": [MIRROR_TOPIC]}]},
    }
    config = testbed.config(json.dumps(targets), "dispatcher.yaml")
    dispatcher = testbed.process("dispatcher", testbed.command("dispatcher.py", config), config)
    keys.give(testbed.mirror(mirror, mirror_publish), "mirror").start()
    keys.give(testbed.client(primary, name="primary"), "alice").start()
    keys.give(testbed.client(spare, name="spare"), "spare").start()
    keys.give(dispatcher, "dispatcher").start()
    for port in (publish, mirror_publish, primary_port, spare_port):
        assert keys.can_connect(port, "alice")
    feeder.feed(3)
    until(lambda: not feeder.missing(mirrored), 30, "the files are mirrored")
    until(lambda: bool(feeder.feed(1, pause=0.2)) and any(out.iterdir()), 30, "the dispatcher delivers")
    asked = move_it_req(testbed, mirror_request, keys.settings("alice"))
    assert asked.returncode == 0, asked.stderr
    for log in testbed.logs.glob("*.log"):
        assert "cannot" not in log.read_text(), log.read_text()


def move_it_req(testbed: Testbed, port: int, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Ping the server on a port."""
    return subprocess.run(
        testbed.command("move_it_req.py", "--ping", f"tcp://{HOST}:{port}"),
        capture_output=True,
        text=True,
        timeout=30 * TIMEOUT_FACTOR,
        env={**testbed.environment, **settings},
        check=False,
    )


@pytest.mark.parametrize("which", ["server", "client"])
def test_earlier_peers_with_the_same_settings(testbed: Testbed, keys: Keys, which: str) -> None:
    """A client or server of 0.19 works with the same keys, on either side."""
    pair = SecuredPair(testbed, keys)
    if which == "server":
        pair.server = keys.give(earlier.server(testbed, pair.server_sections, pair.publish_port), "server")
    else:
        pair.client = keys.give(earlier.client(testbed, pair.client_sections), "alice")
    pair.server.start(wait=False)
    pair.client.start(wait=False)
    until(lambda: pair.feeder.feed(1, pause=0.5) and any(pair.target.iterdir()), 60, "a file is there")


# -- log lines on both sides


def test_unknown_client_is_logged_and_can_be_added(testbed: Testbed, keys: Keys) -> None:
    """Server and client log an unknown key; once it is added, both continue without a restart and without loss."""
    pair = SecuredPair(testbed, keys, invited=False).start()
    pair.feeder.feed(3)
    pair.server.wait_for_line(f"rejected connection from {HOST}: its key ")
    pair.client.wait_for_line("[hrit] cannot connect to ")
    assert (
        "it rejected our key: check clients_public_keys_directory there and client_secret_key_file"
        in pair.client.lines()
    )
    assert not any(pair.target.iterdir())
    keys.authorize("alice")
    until(lambda: pair.feeder.feed(1, pause=0.2) and any(pair.target.iterdir()), 40, "a file is there")
    until(lambda: not pair.feeder.missing(pair.target), 40, "the files are there")


def ask_in_vain(testbed: Testbed, port: int, settings: dict[str, str], here: str, server: Process, there: str) -> None:
    """Send requests until the server has logged the reason: a connection that closes early leaves none."""

    def is_logged() -> bool:
        asked = move_it_req(testbed, port, settings)
        assert asked.returncode == 2
        assert here in asked.stderr.splitlines()[-1], asked.stderr
        return f": {there}" in server.lines()

    until(is_logged, what=f"{there!r} in the server's log")


def test_request_with_wrong_keys_explains_the_cause(testbed: Testbed, keys: Keys) -> None:
    """move_it_req explains in one line why it gets no reply, and so does the server's log."""
    pair = SecuredPair(testbed, keys)
    pair.server.start()
    keys.make("mallory")
    keys.make("other")
    other = {"POSTTROLL_SERVER_PUBLIC_KEY_FILE": str(keys.folder / "other.key")}
    for settings, here, there in (
        (keys.settings("mallory"), "it rejected our key: check clients_public_keys_directory", "its key "),
        (keys.settings("alice") | other, "server_public_key_file here holds its key", "it expects another server key"),
        ({"POSTTROLL_BACKEND": "unsecure_zmq"}, "requires a key", "it has no key"),
    ):
        ask_in_vain(testbed, pair.request_port, settings, here, pair.server, there)


def test_keys_on_one_side_only_are_logged(testbed: Testbed, keys: Keys) -> None:
    """Keys on one side only are logged on both sides."""
    pair = SecuredPair(testbed, keys)
    pair.server.environment = testbed.environment
    pair.start()
    pair.client.wait_for_line("it has no key: the backend of its posttroll must be secure_zmq")
    pair.server.wait_for_line("it requires a secured connection: the backend of our posttroll is unsecure_zmq")


@pytest.mark.parametrize(
    "missing",
    [
        "POSTTROLL_SERVER_SECRET_KEY_FILE",
        "POSTTROLL_CLIENTS_PUBLIC_KEYS_DIRECTORY",
    ],
)
def test_missing_or_unreadable_keys_end_a_daemon_with_one_line(testbed: Testbed, keys: Keys, missing: str) -> None:
    """A missing or unusable key setting is named, and the daemon does not start."""
    pair = SecuredPair(testbed, keys)
    for value, why in (("", "is missing"), (str(testbed.root / "none"), "")):
        server = keys.give(pair.server, "server", **{missing: value})
        server.start(wait=False)
        assert server.popen is not None
        assert server.popen.wait(20 * TIMEOUT_FACTOR) == 1
        (line,) = server.lines().splitlines()[-1:]
        assert f"posttroll's setting {missing.removeprefix('POSTTROLL_').lower()}" in line
        assert why in line
        assert "Traceback" not in server.lines()


def test_readable_secret_key_is_logged(testbed: Testbed, keys: Keys) -> None:
    """A secret key that other users can read is logged, without its value."""
    pair = SecuredPair(testbed, keys)
    keys.secret("server").chmod(0o644)
    pair.server.start()
    pair.server.wait_for_line(f"every user of this host can read the secret key in {keys.secret('server')}")
    secret = keys.secret("server").read_text().rpartition("secret-key")[2].split('"')[1]  # which may end with "="
    assert len(secret) == 40
    assert secret not in pair.server.lines()


# -- for the whole life of the process


def test_keys_are_required_after_reloads(testbed: Testbed, keys: Keys) -> None:
    """After chains and publishers are reloaded, removed and added, an unknown key is still rejected everywhere."""
    pair = SecuredPair(testbed, keys).start()
    keys.make("mallory")
    more = testbed.port()
    second = {"more": server_section(testbed.directory("more"), more)}
    for sections in (pair.server_sections | second, pair.server_sections, second, pair.server_sections | second):
        before = pair.server.lines().count("configuration reloaded")
        pair.server.reconfigure(sections)
        pair.server.wait_for_line("configuration reloaded", before + 1)
    ports = (pair.publish_port, pair.request_port, more)
    assert [keys.can_connect(port, "alice") for port in ports] == [True] * 3
    assert not any(keys.can_connect(port, "mallory", 0.5) for port in ports)
    pair.arrives()


def test_posttroll_publishers_do_not_disable_authentication(keys: Keys) -> None:
    """Stopping a posttroll publisher, which stops posttroll's authenticator, leaves our sockets authenticated."""
    code = f"""
import sys
from posttroll.publisher import Publisher
from trollmoves.messaging.replier import Replier
ours = Replier("ours", 0, lambda requests: [one.reply("pong") for one in requests], bind_address="{HOST}")
ours.start()
theirs = Publisher("tcp://{HOST}:0").start()
theirs.stop()
print(ours.port, flush=True)
sys.stdin.read()
"""
    environment = os.environ | keys.settings("alice")
    keys.authorize("alice")
    keys.make("mallory")
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout
        port = int(running.stdout.readline())
        assert " pong " in keys.ping(port, "alice")
        assert not keys.can_connect(port, "mallory", 0.5)
        assert not keys.can_connect(port, None, 0.5)
        running.communicate("")


def test_removed_key_is_rejected(testbed: Testbed, keys: Keys) -> None:
    """After the removal of its key, a client cannot connect again."""
    pair = SecuredPair(testbed, keys)
    pair.server.start()
    assert keys.can_connect(pair.request_port, "alice")
    (keys.clients / "alice.key").unlink()
    until(lambda: not keys.can_connect(pair.request_port, "alice", 0.5), 20)


def test_no_key_is_accepted_while_the_directory_of_keys_cannot_be_read(testbed: Testbed, keys: Keys) -> None:
    """A server whose key directory has been removed rejects all clients, and accepts them when it is back."""
    pair = SecuredPair(testbed, keys)
    pair.server.start()
    assert keys.can_connect(pair.request_port, "alice")
    away = keys.clients.rename(keys.folder / "away")
    until(lambda: not keys.can_connect(pair.request_port, "alice", 0.5), 20)
    assert not keys.can_connect(pair.publish_port, "alice", 0.5)
    pair.server.wait_for_line(f"cannot read client keys, rejecting all connections: {keys.clients}")
    away.rename(keys.clients)
    until(lambda: keys.can_connect(pair.request_port, "alice", 1.0), 20)


def test_messages_to_the_authenticator_do_not_stop_it(keys: Keys) -> None:
    """Malformed authentication requests from sockets of the same process are answered, and clients still connect."""
    code = f"""
import sys, zmq
from trollmoves.messaging.replier import Replier
from trollmoves.messaging.security.authenticator import process_authenticator
ours = Replier("ours", 0, lambda requests: [one.reply("pong") for one in requests], bind_address="{HOST}")
ours.start()
sender = process_authenticator().context.socket(zmq.DEALER)
sender.connect("inproc://zeromq.zap.01")
for frames in ([b"x"], [b"1.0", b"1"], [b""] * 3, [b"x"] * 20, [b"1.0", b"1", b"*", b"a", b"i", b"CURVE", b"short"]):
    sender.send_multipart([b"", *frames])
    assert sender.poll(10_000), frames
    assert sender.recv_multipart()[3] in (b"400", b"500"), frames
print(ours.port, flush=True)
sys.stdin.read()
"""
    environment = os.environ | keys.settings("alice")
    keys.authorize("alice")
    keys.make("mallory")
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout
        port = int(running.stdout.readline())
        assert keys.can_connect(port, "alice")
        assert not keys.can_connect(port, "mallory", 0.5)
        running.communicate("")


def test_only_authorized_addresses_connect(testbed: Testbed) -> None:
    """Posttroll's authorized_client_addresses is applied without keys too."""
    pair = ServerClientPair(testbed)
    pair.server.environment = {**pair.server.environment, "POSTTROLL_AUTHORIZED_CLIENT_ADDRESSES": "['127.0.0.9']"}
    pair.server.start()
    asked = move_it_req(testbed, pair.request_port, {})
    assert asked.returncode == 2
    assert "it rejected our address: check authorized_client_addresses there" in asked.stderr
    pair.server.wait_for_line(f"rejected connection from {HOST}: its address is not in authorized_client_addresses")


# -- the example


def test_curve_example(testbed: Testbed) -> None:
    """The commands of the example's page create working keys, and a client without one is logged."""
    example = Example(testbed, "curve")
    page = (EXAMPLES / "curve" / "README.md").read_text()
    commands = Path(sys.executable).parent
    for line in re.findall(r"^(?:posttroll-generate-keys|chmod|cp) .*$", page, re.MULTILINE):
        program, *arguments = example.moved(line).split()
        path = commands / program
        subprocess.run([str(path) if path.exists() else program, *arguments], check=True, timeout=30)
    settings = testbed.config(example.moved((EXAMPLES / "curve" / "posttroll.yaml").read_text()), "posttroll.yaml")
    for process in example.run.values():
        process.environment = {**process.environment, "POSTTROLL_CONFIG": str(settings)}
    example.start()
    example.put("incoming/H-MSG4-000001")
    example.arrives("delivered/H-MSG4-000001")
    settings_of_none = {"POSTTROLL_CONFIG": os.devnull}
    ask_in_vain(
        testbed, example.ports["19061"], settings_of_none, "requires a key", example.run["server.ini"], "it has no key"
    )
