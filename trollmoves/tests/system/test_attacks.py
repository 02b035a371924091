"""Attacks on a running server: unauthorized requests get no file and change nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from posttroll.message import Message
from posttroll.publisher import Publisher
from zmq.auth import load_certificate

from trollmoves.server.file_sources import UNPACK_CONCURRENCY
from trollmoves.tests.helpers.curve import Keys
from trollmoves.tests.helpers.daemons import TOPIC, Process, Testbed, server_section
from trollmoves.tests.helpers.feeding import Feeder, content, names
from trollmoves.tests.helpers.recording import HOST, RecordingSubscriber, send_request
from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR, until

ALLOWED = "127.0.0.2"  # an address of this host that tests bind to on request
SECRET = b"s" * 1000
REQUEST = {"id": "mallory/x/1", "timeout": 10}


class Fort:
    """One server with a chain for each defence, and a subscriber to its announcements."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.out = testbed.directory("out")
        self.secret = testbed.directory("secret") / next(names(9000))
        self.secret.write_bytes(SECRET)
        self.ports = {name: testbed.port() for name in ("plain", "other", "delete", "none", "closed", "listen", "deep")}
        self.feeders = {name: testbed.feeder(name, 300 * number) for number, name in enumerate(self.ports)}
        self.names = names(5000)  # for files that are announced by messages
        self.publisher = Publisher(f"tcp://{HOST}:0", "speaker").start()
        testbed.call_at_end(self.publisher.stop)
        folder = {name: feeder.folder for name, feeder in self.feeders.items()}
        allowed = f"{self.out} sftp://good.invalid/in *://any.invalid/ ftp://me@host.invalid/"
        bound: dict[str, object] = {"allowed_destinations": allowed}
        sections: dict[str, dict[str, object]] = {
            "DEFAULT": {"publisher_port": 9010},
            "plain": server_section(folder["plain"], self.ports["plain"], **bound),
            "other": server_section(folder["other"], self.ports["other"]),
            "delete": server_section(folder["delete"], self.ports["delete"], delete="true", remove_delay=0.1),
            "none": server_section(folder["none"], self.ports["none"], external_symlinks="none"),
            "closed": server_section(folder["closed"], self.ports["closed"], allowed_clients=ALLOWED),
            "deep": server_section(
                Path(f"{folder['deep']}/{{place}}"), self.ports["deep"], delete="true", remove_delay=0.1
            ),
            "listen": {
                "listen": "/spoken",
                "topic": TOPIC,
                "addresses": f"tcp://{HOST}:{self.publisher.port_number}",
                "nameserver": "False",
                "request_port": self.ports["listen"],
                "request_address": HOST,
            },
        }
        port = testbed.port()
        self.server = testbed.server(sections, port)
        self.subscriber = testbed.subscriber(port)
        self.server.start()
        until(lambda: self.subscriber.connections)

    def announced(self, path: Path) -> dict[str, Any]:
        """Wait until a file is announced; return the data of its newest announcement."""
        until(
            lambda: self.subscriber.of_file(path.name),
            20,
            f"an announcement of {path.name}: {self.server.lines()[-2000:]}",
        )
        data = dict(self.subscriber.of_file(path.name)[-1].data)
        assert data["uri"] == str(path)
        return data

    def feed(self, chain: str = "plain") -> dict[str, Any]:
        """Publish a message about a file; return the data of its announcement."""
        feeder = self.feeders[chain]
        (name,) = feeder.feed()
        return self.announced(feeder.folder / name)

    def push(self, data: dict[str, Any], chain: str = "plain", **changes: object) -> Message:
        """Request a file."""
        request = {**data, "destination": str(self.out), **changes}
        return send_request(
            self.ports[chain], TOPIC, "push", {key: one for key, one in request.items() if one is not None}
        )

    def has_nothing_of(self, name: str) -> bool:
        """Return True if no file of that name and no secret reached the requested destination."""
        return not any(
            path.name == name or path.read_bytes() == SECRET for path in self.out.rglob("*") if path.is_file()
        )


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    """The server of this module's tests."""
    with Testbed(tmp_path_factory.mktemp("fort")) as testbed:
        yield Fort(testbed)


def older(data: dict[str, Any], **changes: object) -> dict[str, Any]:
    """Return the data as an older or hostile client sends it: a path without an announcement number."""
    return {key: value for key, value in data.items() if key != "announcement"} | changes


# -- files


def names_of_secrets(fort: Fort, data: dict[str, Any]) -> dict[str, str]:
    """Return paths that the chain has not announced, by the kind of attack."""
    folder = fort.feeders["plain"].folder
    (folder / "way").unlink(missing_ok=True)
    (folder / "way").symlink_to(fort.secret.parent)
    return {
        "absolute": str(fort.secret),
        "climbing": f"{folder}/../secret/{fort.secret.name}",
        "climbing, with an announced name": f"{folder}/../plain/{data['uid']}",
        "dots": f"{folder}/./{data['uid']}",
        "slashes": f"/{folder}//{data['uid']}",
        "through a link": f"{folder}/way/{fort.secret.name}",
        "url": f"file://{HOST}{fort.secret}",
        "url of an announced one": f"file://{HOST}{data['uri']}",
        "system": "/etc/passwd",
        "empty": "",
        "nul": f"{data['uri']}\0",
        "line": f"{data['uri']}\n",
        "of another chain": fort.feed("other")["uri"],
    }


@pytest.mark.parametrize("kind", ["push", "ack"])
def test_only_what_was_announced(fort: Fort, kind: str) -> None:
    """Requests for paths that the chain has not announced, byte by byte, are rejected."""
    data = fort.feed()
    for way, uri in names_of_secrets(fort, data).items():
        for changed in (older(data, uri=uri), {**data, "uri": uri}):
            answer = send_request(fort.ports["plain"], TOPIC, kind, {**changed, "destination": str(fort.out)})
            assert (way, answer.type) == (way, "err")
        nested = older(data, dataset=[{"uri": uri, "uid": "x"}])
        assert send_request(fort.ports["plain"], TOPIC, kind, {**nested, "destination": str(fort.out)}).type == "err"
    assert fort.has_nothing_of(fort.secret.name)
    assert fort.push(data).type == "file"


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**63 - 1, 2**63, 2**200, 1.0, "1", None, [], {}, True])
def test_number_must_fit(fort: Fort, number: object) -> None:
    """A numbered request is rejected if the number belongs to another announcement."""
    data, another = fort.feed(), fort.feed()
    mark = {**data["announcement"], "number": number}
    answer = fort.push({**data, "announcement": mark})
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63:
        assert answer.type == "err"
    else:
        assert answer.type in ("err", "file")  # without a number, the path is checked
    assert fort.push({**data, "announcement": another["announcement"]}).type == "err"
    assert fort.push(data).type == "file"


def test_not_more_than_was_announced(fort: Fort) -> None:
    """A request that repeats a file, to cause many transfers with one message, is rejected."""
    data = fort.feed()
    many = [{"uri": data["uri"], "uid": data["uid"], "path": f"d{number}"} for number in range(500)]
    assert fort.push(older(data, dataset=many)).type == "err"
    assert not list(fort.out.glob("d*"))


def test_ack_removes_no_unannounced_file(fort: Fort) -> None:
    """An ack removes neither an unannounced file nor the target of a link that replaced an announced file."""
    data = fort.feed("delete")
    fort.secret.write_bytes(SECRET)
    for uri in (str(fort.secret), f"{fort.feeders['delete'].folder}/../secret/{fort.secret.name}"):
        assert send_request(fort.ports["delete"], TOPIC, "ack", older(data, uri=uri)).type == "err"
    assert send_request(fort.ports["delete"], TOPIC, "ack", data).type == "ack"
    until(lambda: not Path(data["uri"]).exists())
    assert fort.secret.read_bytes() == SECRET


def test_removal_in_a_swapped_directory(fort: Fort) -> None:
    """A file is not removed if its directory has been replaced by a link."""
    name = next(fort.names)
    folder = fort.feeders["deep"].folder / f"place of {name}"
    folder.mkdir()
    (folder / f".{name}").write_bytes(content(name))
    (folder / f".{name}").rename(folder / name)
    data = fort.announced(folder / name)
    victim = fort.testbed.directory("victim") / name
    shutil.copy2(folder / name, victim)
    folder.rename(fort.testbed.directory("away") / name)
    folder.symlink_to(victim.parent)
    assert send_request(fort.ports["deep"], TOPIC, "ack", data).type == "ack"
    fort.server.wait_for_line(f"kept {folder / name}")
    assert victim.exists()
    assert fort.push(data, "deep").type == "err"


# -- links


def replace_by_link(path: Path, target: Path) -> None:
    """Replace a file by a link, atomically."""
    new = path.with_name(f".{path.name}")
    new.symlink_to(target)
    new.replace(path)


@pytest.mark.parametrize("chain", ["plain", "none"])
def test_swapped_for_a_link(fort: Fort, chain: str) -> None:
    """An announced file that was replaced by a link to another file is not served under the old announcement."""
    data = fort.feed(chain)
    replace_by_link(Path(data["uri"]), fort.secret)
    if chain == "none":
        answer = fort.push({**data, "request": REQUEST}, chain)
        assert (answer.type, answer.data["temporary"]) == ("err", False)
        assert "has changed since it was announced" in answer.data["error"]
        assert fort.push(older(data), chain).type == "err"
    else:  # our own link is announced; the older announcement does not cover it
        until(lambda: len(fort.subscriber.of_file(data["uid"])) > 1)
        assert fort.push(data, chain).type == "err"
        assert fort.push(older(data), chain).type == "file"
        (fort.out / data["uid"]).unlink()
    assert fort.has_nothing_of(data["uid"])


def test_packed_file_swapped_for_a_link(tmp_path: Path) -> None:
    """A packed file that was replaced by a link out of the origin while it waited is not unpacked."""
    with Testbed(tmp_path) as testbed:
        origin, work, gate = testbed.directory("in"), testbed.directory("work"), testbed.root / "gate"
        secret = testbed.directory("secret") / "last-C_"
        secret.write_bytes(SECRET)
        program = testbed.root / "prog"
        program.write_text(f'#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.05; done\ncp "$1" "${{1##*/}}_"\n')
        program.chmod(0o755)
        section = server_section(origin, testbed.port(), compression="xrit", prog=program, working_directory=work)
        section |= {"origin": f"{origin}/{{name}}-C_", "external_symlinks": "none"}
        server = testbed.server({"packed": section}, testbed.port()).start()
        running = [f"{number}-C_" for number in range(UNPACK_CONCURRENCY)]
        for name in [*running, secret.name]:
            (testbed.directory("staging") / name).write_bytes(b"packed")
            (testbed.root / "staging" / name).rename(origin / name)
            if name == running[-1]:  # the last one waits behind these
                until(lambda: testbed.pending_tasks("unpack") == UNPACK_CONCURRENCY)
        until(lambda: testbed.pending_tasks("unpack") == UNPACK_CONCURRENCY + 1)
        replace_by_link(origin / secret.name, secret)
        gate.touch()
        server.wait_for_line(f"{origin / secret.name} must not be announced: it leads out of the origin")
        until(lambda: not testbed.pending_tasks("unpack"))
        unpacked = [path for path in work.iterdir() if not path.name.startswith(".")]
        assert len(unpacked) == len(running)
        assert not any(path.read_bytes() == SECRET for path in unpacked)


def test_link_of_the_owner(fort: Fort) -> None:
    """A link out of the origin that our own user made is announced and followed, and so is a hard link."""
    feeder = fort.feeders["plain"]
    disk = Feeder(fort.testbed.directory("disk"), 7000)
    soft, hard = (disk.folder / name for name in disk.feed(2))
    (feeder.folder / soft.name).symlink_to(soft)
    (feeder.folder / hard.name).hardlink_to(hard)
    for one in (soft, hard):
        data = fort.announced(feeder.folder / one.name)
        assert fort.push(data).type == "file"
        assert (fort.out / one.name).read_bytes() == one.read_bytes()


def test_retargeted_link(fort: Fort) -> None:
    """A link whose target changed is served only after the new target has been announced."""
    feeder = fort.feeders["plain"]
    disk = Feeder(fort.testbed.directory("disk"), 7100)
    first, second = (disk.folder / name for name in disk.feed(2))
    os.utime(second, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
    link = feeder.folder / first.name
    link.symlink_to(first)
    data = fort.announced(link)
    replace_by_link(link, second)
    until(lambda: len(fort.subscriber.of_file(link.name)) > 1)
    assert fort.push(data).type == "err"
    assert fort.push(fort.announced(link)).type == "file"
    assert (fort.out / link.name).read_bytes() == second.read_bytes()


def test_link_within_the_origin(fort: Fort) -> None:
    """A link within the origin is announced and served with any value of the option."""
    feeder = fort.feeders["none"]
    data = fort.feed("none")
    name = next(feeder.fresh_names())
    (feeder.folder / name).symlink_to(data["uri"])
    assert fort.push(fort.announced(feeder.folder / name), "none").type == "file"


def test_no_links_out(fort: Fort) -> None:
    """With ``external_symlinks = none`` a link out of the origin is not announced, and the log gives the reason."""
    feeder = fort.feeders["none"]
    link = feeder.folder / fort.secret.name
    link.symlink_to(fort.secret)
    reason = f"the target is {fort.secret}, and such links are not followed (external_symlinks)"
    fort.server.wait_for_line(f"{link} leads out of the origin, not announced: {reason}")
    assert not fort.subscriber.of_file(link.name) or fort.subscriber.of_file(link.name)[-1].data["uri"] != str(link)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links to others")
def test_link_of_a_stranger(fort: Fort) -> None:
    """A link that another user put into the origin does not expose files that only our user can read."""
    folder = fort.feeders["plain"].folder
    disk = Feeder(fort.testbed.directory("disk"), 7200)
    ours, theirs = (disk.folder / name for name in disk.feed(2))
    os.chown(theirs, 12345, 12345)
    for target in (ours, theirs):
        link = folder / target.name
        new = folder / f".{link.name}"
        new.symlink_to(target)
        os.chown(new, 12345, 12345, follow_symlinks=False)
        new.rename(link)
    fort.announced(folder / theirs.name)  # they may publish their own files
    fort.server.wait_for_line(f"{folder / ours.name} leads out of the origin")
    assert not fort.subscriber.of_file(ours.name)


def test_files_from_messages(fort: Fort) -> None:
    """A chain that listens serves the files that messages named, and not replacements under the same paths."""
    folder = fort.testbed.directory("heard")
    feeder = Feeder(folder, 8000)
    plain, swapped = (folder / name for name in feeder.feed(2))
    (folder / "by-link").symlink_to(folder)
    linked = folder / "by-link" / plain.name

    def spoken(path: Path) -> dict[str, Any]:
        def announcements() -> list[Any]:
            fort.publisher.send(str(Message("/spoken", "file", {"uri": str(path), "uid": path.name})))
            return [one for one in fort.subscriber.of_file(path.name) if one.data["uri"] == str(path)]

        return dict(until(announcements)[-1].data)

    assert fort.push(spoken(plain), "listen").type == "file"
    assert fort.push(spoken(linked), "listen").type == "file"
    data = spoken(swapped)
    replace_by_link(swapped, fort.secret)
    assert fort.push(data, "listen").type == "err"
    assert fort.push(older(data, uri=str(fort.secret)), "listen").type == "err"
    assert fort.has_nothing_of(swapped.name)


# -- destinations


@pytest.mark.parametrize(
    "destination",
    [
        "/tmp",
        "{out}/../in",
        "{out}/%2e%2e/in",
        "{out}/..\\in",
        "file://" + HOST + "/",
        "sftp://evil.invalid/in",
        "sftp://good.invalid@evil.invalid/in",
        "sftp://good.invalid:23/in",
        "sftp://good.invalid/other",
        "ftp://good.invalid/in",
        "file://any.invalid/tmp",
        "ftp://you@host.invalid/in",
        "ftp://host.invalid/in",
        "sftp://[::ffff:127.0.0.1]/in",
        "relative/path",
        "",
        5,
        ["/"],
    ],
)
def test_destination(fort: Fort, destination: object) -> None:
    """A request for a destination that is not allowed is rejected, and nothing is written."""
    data = fort.feed()
    wanted = destination.format(out=fort.out) if isinstance(destination, str) else destination
    answer = fort.push({**data, "request": REQUEST}, destination=wanted)
    assert answer.type == "err"
    answer = fort.push(older(data), destination=wanted)
    assert answer.type == "err"
    assert isinstance(answer.data, str)


@pytest.mark.parametrize(
    "destination",
    [
        "ftp://a%0d%0aDELE%20x:p@127.0.0.1:1/in",
        "ftp://a%00b:p@127.0.0.1:1/in",
        "ftps://a:p%0a@127.0.0.1:1/in",
        "ftp://a%ffb:p@127.0.0.1:1/in",
        "sftp://a:p%ff@127.0.0.1:1/in",
        "scp://a%00b:p@127.0.0.1:1/in",
        "s3://a%0a:p@bucket/in",
        "s3://a:p%ff@bucket/in",
        "ftp://a..b/in",
        "sftp://.../in",
        "scp://" + "a" * 300 + "/in",
    ],
)
def test_login_or_host_that_cannot_be_sent(fort: Fort, destination: str) -> None:
    """A login or host that no protocol can send is permanently rejected with the rule, without a traceback."""
    answer = fort.push({**fort.feed("other"), "request": REQUEST}, "other", destination=destination)
    assert (answer.type, answer.data["temporary"]) == ("err", True)
    assert "invalid host name" in answer.data["error"] or "user and password must be" in answer.data["error"]
    assert "unexpected error" not in fort.server.lines()


@pytest.mark.parametrize("path", ["../in", "/etc", "a/../../in", "a\\..\\..\\in", "%2e%2e/in", 5, ["a"]])
def test_sub_path(fort: Fort, path: object) -> None:
    """A sub-path that leads out of the destination is rejected, for one file or for one of several."""
    answer = fort.push(fort.feed(), path=path)
    assert answer.type == "err"
    rule = "allowed destinations" if path == "%2e%2e/in" else "must be a path below the destination"
    assert rule in str(answer.data)


@pytest.mark.parametrize("backups", [["evil.invalid"], ["good.invalid", "x@evil.invalid"], ["good.invalid:23"]])
def test_backup_targets(fort: Fort, backups: list[str]) -> None:
    """Backup targets are checked against the same allow list as the destination."""
    answer = fort.push(older(fort.feed()), destination="sftp://good.invalid/in", backup_targets=backups)
    assert answer.type == "err"
    assert "allowed destinations" in answer.data


@pytest.mark.parametrize("backups", ["evil", [5], ["good.invalid"] * 17, {"good.invalid": 1}])
def test_form_of_backup_targets(fort: Fort, backups: object) -> None:
    """Backup targets must be a short list of hosts, otherwise the request is rejected."""
    answer = fort.push(older(fort.feed()), destination="sftp://good.invalid/in", backup_targets=backups)
    assert answer.type == "err"
    assert "backup targets must be a list" in answer.data


def test_allowed_destination(fort: Fort) -> None:
    """An allowed destination is served, also with dot segments, which are resolved before the check."""
    data = fort.feed()
    assert fort.push(data, destination=f"{fort.out}/a/../b", path="c").type == "file"
    assert (fort.out / "b" / "c" / data["uid"]).read_bytes() == content(data["uid"])
    assert not (fort.out / "a").exists()


def test_startup_warning(fort: Fort) -> None:
    """At the start one line names the chains that send files to any destination, and no other chain."""
    lines = [line for line in fort.server.lines().splitlines() if "without allowed_destinations" in line]
    assert len(lines) == 1
    assert "[other]" in lines[0]
    assert "[plain]" not in lines[0]


# -- who


def ask_from(address: str, port: int, kind: str, data: object = "", payload: bytes = b"") -> Message:
    """Send a request from an address of this host."""
    with zmq.Context() as context, context.socket(zmq.REQ) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(f"tcp://{address}:0;{HOST}:{port}")
        peer.send(payload or str(Message(TOPIC, kind, data)).encode())
        assert peer.poll(10_000 * TIMEOUT_FACTOR), f"no answer to {kind}"
        return Message.decode(peer.recv().decode())


@pytest.mark.parametrize("kind", ["ping", "info", "replay", "push", "ack", "unheard-of"])
def test_client_that_is_not_allowed(fort: Fort, kind: str) -> None:
    """A client that is not allowed gets no information and no file, whatever sender its message claims."""
    data = fort.feed("closed")
    wanted = {**data, "destination": str(fort.out), "log": data["announcement"]["log"], "after": 0}
    claims = {"request_address": f"{ALLOWED}:1", "Peer-Address": ALLOWED, "request": REQUEST}
    answer = send_request(fort.ports["closed"], TOPIC, kind, {**wanted, **claims})
    assert answer.type == "err"
    assert answer.data == {
        "error": "this client is not allowed here",
        "temporary": True,
        "retry_after": 0.0,
        "held": True,
    }
    assert ask_from("127.0.0.3", fort.ports["closed"], kind, older(wanted)).data == "this client is not allowed here"
    assert fort.has_nothing_of(data["uid"])
    good = ask_from(ALLOWED, fort.ports["closed"], kind, wanted)
    assert good.type == {"ping": "pong", "push": "file", "unheard-of": "unknown"}.get(kind, kind)


def test_malformed_requests_of_a_client_that_is_not_allowed(fort: Fort) -> None:
    """Malformed and oversized requests of such a client get a reply, and are logged once."""
    for payload in (b"nonsense", b"pytroll://x", b"\xff" * 1_000_000):
        assert ask_from("127.0.0.4", fort.ports["closed"], "", payload=payload).type == "err"
    for _ in range(50):
        assert ask_from("127.0.0.4", fort.ports["closed"], "ping").type == "err"
    assert fort.server.lines().count("127.0.0.4 is not among the allowed clients") == 1


def test_rejections_do_not_fill_the_log(fort: Fort) -> None:
    """The first rejections are logged, the rest is counted."""
    before = fort.server.lines().count("] rejected push from")
    data = fort.feed("other")
    for number in range(100):
        assert fort.push(older(data, uri=f"/etc/{number}"), "other").type == "err"
    assert fort.server.lines().count("] rejected push from") - before <= 20
    assert "further lines of this kind are only counted" in fort.server.lines()


def test_allowed_subscribers(tmp_path: Path) -> None:
    """With allow lists in [DEFAULT], other addresses cannot connect to the publish port."""
    with Testbed(tmp_path) as testbed:
        feeder = testbed.feeder()
        port = testbed.port()
        sections: dict[str, dict[str, object]] = {
            "DEFAULT": {"allowed_clients": ALLOWED},
            "hrit": server_section(feeder.folder, testbed.port()),
        }
        server: Process = testbed.server(sections, port)
        stranger = testbed.subscriber(port)
        friend = RecordingSubscriber(port, address=f"{ALLOWED}:0;{HOST}")
        testbed.call_at_end(friend.stop)
        server.start()
        until(lambda: friend.connections)
        fed = feeder.feed(3)
        friend.wait_for_receipts(fed)
        assert not stranger.texts
        assert not stranger.connections


def test_key_without_curve(tmp_path: Path) -> None:
    """A name in ``allowed_clients`` that would be a key keeps the chain from starting if CURVE is off."""
    with Testbed(tmp_path) as testbed:
        sections = {"hrit": server_section(testbed.directory("in"), testbed.port(), allowed_clients="friend.site.org")}
        server = testbed.server(sections, testbed.port()).start(wait=False)
        server.wait_for_line("'friend.site.org' is not an address")
        assert server.popen
        assert server.popen.wait(20 * TIMEOUT_FACTOR) == 1


def test_keys(tmp_path: Path) -> None:
    """With CURVE, a client with a known key is served only if the chain allows that key, by name or by value."""
    with Testbed(tmp_path) as testbed:
        keys = Keys(testbed.root / "keys")
        for name in ("alice", "bob", "carol"):
            keys.make(name)
            keys.authorize(name)
        key = load_certificate(keys.folder / "carol.key")[0].decode()
        ports = {"both": testbed.port(), "elsewhere": testbed.port(), "unknown": testbed.port()}
        allowed = {"both": f"alice {key} localhost", "elsewhere": f"alice {ALLOWED}", "unknown": "mallory"}
        folder = testbed.directory("in")
        sections = {
            name: server_section(folder / name, port, allowed_clients=allowed[name]) for name, port in ports.items()
        }
        server = keys.give(testbed.server(sections, testbed.port()), "server").start()
        server.wait_for_line("[unknown] cannot be started: allowed_clients: mallory.key does not exist in")
        assert " pong " in keys.ping(ports["both"], "alice")
        assert " pong " in keys.ping(ports["both"], "carol")
        assert "this client is not allowed here" in keys.ping(ports["both"], "bob")
        assert "this client is not allowed here" in keys.ping(ports["elsewhere"], "alice")
