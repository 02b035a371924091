"""Secrets, with characters that URLs encode, appear in no output of a daemon under any condition."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    TOPIC,
    Process,
    Testbed,
    client_section,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.dispatching import DispatcherTestbed
from trollmoves.tests.helpers.recording import HOST, RecordingSubscriber, send_frames, send_request
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import asyncsshd, openssh, pyftpd, seaweed
from trollmoves.tests.servers.asyncsshd import AsyncSshd
from trollmoves.tests.servers.openssh import OpenSsh, make_key
from trollmoves.tests.servers.process import free_port
from trollmoves.tests.servers.pyftpd import PyFtpd
from trollmoves.tests.servers.seaweed import Seaweed

WRONG = "wr0ng/p@ss w%rd:#"
PASSPHRASE = "0pen/s3same@home"
SECRETS = (asyncsshd.PASSWORD, pyftpd.PASSWORD, seaweed.SECRET, WRONG, PASSPHRASE)
SECRETS_OF_TESTS = ("s3cr3t", "wr0ng", "s3same", "pass@word", "pass%40word", "p@ss")

# The most verbose logging of every library that an operator can configure.
DEBUG_LOG = {
    "version": 1,
    "formatters": {"level": {"format": "%(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "level"}},
    "loggers": {
        name: {"level": "DEBUG"}
        for name in ("paramiko", "botocore", "boto3", "s3transfer", "urllib3", "posttroll", "pyinotify")
    },
    "root": {"level": "DEBUG", "handlers": ["console"]},
}


def traces() -> Iterator[str]:
    """Return the forms in which a secret could leak."""
    yield from SECRETS_OF_TESTS
    for secret in SECRETS:
        yield from {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]}
        yield base64.b64encode(secret.encode()).decode().rstrip("=")


def assert_silent(texts: Mapping[str, str]) -> None:
    """Check that none of these texts contains a form of a secret."""
    assert texts
    for where, text in texts.items():
        for trace in traces():
            at = text.find(trace)
            assert at < 0, f"{where} holds {trace!r}: ...{text[max(0, at - 300) : at + 100]}..."


def titles(processes: Iterable[Process]) -> dict[str, str]:
    """Return the command lines of processes and all their descendants, as any user of the host sees them."""
    groups = {process.popen.pid for process in processes if process.popen}
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) in groups:
                found[f"title of {path.name}"] = (path / "cmdline").read_text(errors="replace")
        except (OSError, ProcessLookupError):
            continue
    return found


class Far:
    """Remote servers that accept a password, a key with a passphrase, or no login; and an unreachable one."""

    def __init__(self, testbed: Testbed) -> None:
        for why in (asyncsshd.missing(), openssh.missing(), pyftpd.missing()):
            if why:
                pytest.skip(why)
        self.folder = testbed.directory("far")
        ssh = AsyncSshd(testbed.directory("sshd"))
        ftp = PyFtpd(testbed.directory("ftpd"), self.folder)
        keys = OpenSsh(testbed.directory("keys"))
        for server in (ssh, ftp, keys):
            testbed.enter(server)
        locked = make_key(testbed.directory("keys") / "locked", passphrase=PASSPHRASE)
        (testbed.directory("keys") / "authorized_keys").write_text(locked.with_suffix(".pub").read_text())
        known = testbed.directory("etc") / "known_hosts"
        known.write_text(ssh.known_hosts.read_text() + keys.known_hosts.read_text())
        phrase = self.secret(testbed, "phrase", PASSPHRASE)
        self.known: dict[str, object] = {"ssh_known_hosts": str(known), "num_ssh_retries": 1}
        self.key = self.known | {"ssh_key_filename": str(locked), "ssh_key_passphrase": f"file:{phrase}"}
        login = self.secret(testbed, "login", f"{ssh.user}:{asyncsshd.PASSWORD}")
        wrong = self.secret(testbed, "wrong", f"{ssh.user}:{WRONG}")
        refused = free_port()
        self.good = {
            "by-sftp": (f"sftp://{HOST}:{ssh.port}{self.folder}", f"file:{login}"),
            "by-scp": (f"scp://{HOST}:{ssh.port}{self.folder}", f"{ssh.user}:{asyncsshd.PASSWORD}"),
            "by-ftp": (f"ftp://{HOST}:{ftp.port}/", f"{pyftpd.USER}:{pyftpd.PASSWORD}"),
            "by-key": (f"sftp://{HOST}:{keys.port}{self.folder}", keys.user),
        }
        self.bad = {
            "wrong-sftp": (f"sftp://{HOST}:{ssh.port}{self.folder}", f"file:{wrong}"),
            "wrong-ftp": (f"ftp://{HOST}:{ftp.port}/", f"{pyftpd.USER}:{WRONG}"),
            "refused-scp": (f"scp://{HOST}:{refused}/x", f"sat:{WRONG}"),
            "refused-ftp": (f"ftp://{HOST}:{refused}/x", f"sat:{WRONG}"),
            "no-scheme": (f"gopher://{HOST}/x", f"sat:{WRONG}"),
        }

    @staticmethod
    def secret(testbed: Testbed, name: str, text: str) -> Path:
        """Write a secret's file."""
        path = testbed.directory("etc") / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def arrived(self, names: Iterable[str], name: str) -> bool:
        """Return True if a file exists in each of these folders."""
        return all((self.folder / folder / name).exists() for folder in names)


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    """A testbed with a configuration that logs everything."""
    with Testbed(tmp_path) as found:
        found.config(yaml.safe_dump(DEBUG_LOG), "loud.yaml")
        yield found


def log_arguments(testbed: Testbed) -> tuple[str, ...]:
    """Return the arguments of a daemon that logs everything."""
    return "-v", "-c", str(testbed.root / "etc" / "loud.yaml")


def in_ini(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return connection parameters as lines of an INI file."""
    return {f"connection_parameters__{name}": value for name, value in parameters.items()}


def sections_of(
    far: Far, source: int, topic: str, testbed: Testbed
) -> tuple[dict[str, Any], list[RecordingSubscriber]]:
    """Return a client's sections for all remote servers, and subscribers to them."""
    sections, subscribers = {}, []
    for name, (destination, login) in (far.good | far.bad).items():
        if name != "no-scheme":  # for which a client does not start
            port = testbed.port()
            end = "" if name in far.bad else f"/{name}"
            own = f"{topic}/locked" if name == "by-key" else f"{topic}/open"
            sections[name] = client_section(source, f"{destination}{end}/", port, login=login, topic=own)
            subscribers.append(testbed.subscriber(port))
    return sections, subscribers


def checked(testbed: Testbed, command: str, process: Process, *arguments: str) -> dict[str, str]:
    """Return the output of ``--check`` for a configuration."""
    ran = testbed.run(command, process.config, "--check", *arguments)
    return {f"{command} --check": ran.stdout + ran.stderr}


@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["server", "mirror"])
def test_server_client_and_mirror(testbed: Testbed, daemon: str) -> None:
    """Logins, valid or not, and a key's passphrase are in no log, message, reply, process title or ``--check``."""
    far, feeder = Far(testbed), testbed.feeder()
    published, request_port = testbed.port(), testbed.port()
    servers = {
        "feed": server_section(feeder.folder, request_port, topic=f"{TOPIC}/open", **in_ini(far.known)),
        "locked": server_section(feeder.folder, testbed.port(), topic=f"{TOPIC}/locked", **in_ini(far.key)),
    }
    processes = {"server": testbed.server(servers, published, *log_arguments(testbed))}
    announced, topic, source = [testbed.subscriber(published)], TOPIC, published
    if daemon == "mirror":
        source, topic, request_port = testbed.port(), MIRROR_TOPIC, testbed.port()
        copies = testbed.directory("copies")
        mirrors = {
            "feed": mirror_section(
                published,
                copies,
                request_port,
                client_topic=f"{TOPIC}/open",
                topic=f"{MIRROR_TOPIC}/open",
                login=f"sat:{WRONG}",
                **in_ini(far.known),
            ),
            "locked": mirror_section(
                published,
                copies,
                testbed.port(),
                client_topic=f"{TOPIC}/locked",
                topic=f"{MIRROR_TOPIC}/locked",
                **in_ini(far.key),
            ),
        }
        processes["mirror"] = testbed.mirror(mirrors, source, *log_arguments(testbed))
        announced.append(testbed.subscriber(source))
    sections, subscribers = sections_of(far, source, topic, testbed)
    processes["client"] = testbed.client(sections, *log_arguments(testbed))
    for process in processes.values():
        process.start()
    (name,) = feeder.feed(1)
    until(lambda: far.arrived(far.good, name), 60, "it has arrived where it can")
    giver = processes[daemon]
    until(lambda: giver.lines().count(" not delivered to ") >= 4, 60, "failures are logged")
    until(lambda: processes["client"].lines().count(" not delivered: ") >= 4, 60, "the client logs it")
    answers = bad_requests(request_port, topic, name)
    assert_silent(titles(processes.values()))
    assert all(process.terminate() == 0 for process in processes.values())
    said = {f"log of {process}": one.lines() for process, one in processes.items()}
    assert all(f"DEBUG {name}" in "".join(said.values()) for name in ("paramiko", "trollmoves"))
    assert_silent(
        said
        | answers
        | {"messages": "\n".join(t for subscriber in [*announced, *subscribers] for t in subscriber.texts)}
    )
    assert_silent(checked(testbed, "move_it_client.py", processes["client"]))
    assert_silent(checked(testbed, "move_it_server.py", processes["server"]))
    journals = [path for path in (testbed.root / "state").rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in journals)
    assert_silent({path.name: path.read_bytes().decode("latin-1") for path in journals if "client" in path.name})


def bad_requests(port: int, topic: str, name: str) -> dict[str, str]:
    """Request files that cannot be delivered, with logins in the destinations; return the replies."""
    destinations = [
        f"sftp://sat:{WRONG}@",
        f"sftp://sat:{WRONG}@{HOST}:99999/x",
        f"sftp:/sat:{WRONG}@{HOST}/x",
        f"gopher://sat:{WRONG}@{HOST}/x",
        f"sftp://sat:{quote(WRONG, safe='')}@[{HOST}/x",
        f"sat:{WRONG}@{HOST}:/x",
        f"ftp://sat:{WRONG}@{HOST}:1/x/../../etc",
        f"ftp://sat:{WRONG}@{HOST}",
    ]
    odd = [
        {"uri": destinations[1]},
        {"uri": destinations[-1]},
        {"destination": destinations[1]},
        {"uri": name, "uid": name, "destination": "/x", "path": destinations[1]},
        [destinations[1]],
        destinations[1],
    ]
    answers = {
        destination: str(
            send_request(port, topic, "push", {"uid": name, "uri": f"/in/{name}", "destination": destination})
        )
        for destination in destinations
    }
    answers |= {
        f"{kind} {number}": str(send_request(port, topic, kind, data))
        for kind in ("push", "info", "replay")
        for number, data in enumerate(odd)
    }
    answers["no message"] = send_frames(port, f"pytroll://x push {destinations[1]}".encode())
    return {f"answer to {number}": text for number, text in enumerate(answers.values())}


@pytest.mark.slow
def test_dispatcher(testbed: Testbed) -> None:
    """A dispatcher's logins are in no log, message, title, journal, ``--check`` or explanation."""
    far = Far(testbed)
    targets: dict[str, Any] = {}
    for name, (url, login) in (far.good | far.bad).items():
        host, _, directory = url.replace("://", "§").partition("/")
        targets[name] = {
            "host": host.replace("§", "://"),
            "login": login,
            "directory": f"/{directory}/{name}",
            "publish_topic": f"/sent/{name}",
            "connection_parameters": far.key if name == "by-key" else far.known,
            "dispatch_configs": [{"topics": ["/level2/viirs"]}],
        }
    targets["in-url"] = targets["by-sftp"] | {
        "host": targets["by-sftp"]["host"].replace("://", f"://x:{quote(WRONG, safe='')}@"),
    }
    dispatching = DispatcherTestbed(
        testbed, targets, "-p", str(port := testbed.port()), "-n", "false", *log_arguments(testbed)
    )
    subscriber = testbed.subscriber(port)
    dispatching.start()
    path = dispatching.file("f")
    dispatching.publisher.publish_file(path)
    until(lambda: far.arrived(far.good, "f"), 60, "it has arrived where it can")
    process = dispatching.process
    failures = [f"[{name}] deliver of f" for name in (*far.bad, "in-url") if name != "no-scheme"]
    until(lambda: all(one in process.lines() for one in failures), 60, "failures are logged")
    assert_silent(titles([process]))
    explained = testbed.run("dispatcher.py", process.config, "--explain", path)
    assert explained.stdout
    assert_silent({"explanation": explained.stdout + explained.stderr} | checked(testbed, "dispatcher.py", process))
    assert process.terminate() == 0
    assert_silent({"log": process.lines(), "messages": "\n".join(subscriber.texts)})
    journals = [path for path in (testbed.root / "state").rglob("*") if path.is_file()]
    assert_silent({path.name: path.read_bytes().decode("latin-1") for path in journals})


@pytest.mark.slow
def test_s3(testbed: Testbed) -> None:
    """A secret key, valid or not, and a token are in no log, message or ``--check``."""
    if why := seaweed.missing():
        pytest.skip(why)
    storage = Seaweed(testbed.directory("s3"))
    testbed.enter(storage)
    feeder, published = testbed.feeder(), testbed.port()
    common = {
        "connection_parameters__endpoint_url": f"http://{HOST}:{storage.port}",
        "connection_parameters__key": seaweed.KEY,
        "connection_parameters__client_kwargs__region_name": "us-east-1",
        "connection_parameters__config_kwargs__s3__addressing_style": "path",
    }
    secret = Far.secret(testbed, "secret", seaweed.SECRET)
    ways = {
        "good": {"connection_parameters__secret": f"file:{secret}"},
        "wrong": {"connection_parameters__secret": WRONG},
        "token": {"connection_parameters__secret": seaweed.SECRET, "connection_parameters__token": WRONG},
        "own": {"connection_parameters__client_kwargs__aws_secret_access_key": f"file:{secret}"},
    }
    servers, clients, subscribers = {}, {}, []
    for name, parameters in ways.items():
        servers[name] = server_section(feeder.folder, testbed.port(), topic=f"/{name}", **common, **parameters)
        port = testbed.port()
        clients[name] = client_section(published, f"s3://{seaweed.BUCKET}/{name}/", port, topic=f"/{name}")
        subscribers.append(testbed.subscriber(port))
    server = testbed.server(servers, published, *log_arguments(testbed)).start()
    client = testbed.client(clients, *log_arguments(testbed)).start()
    (name,) = feeder.feed(1)
    subscribers[0].wait_for_receipts([name], 60)
    for way in ("wrong", "token", "own"):
        client.wait_for_line(f"[{way}] {name} not delivered", seconds=60)
    assert_silent(titles([server, client]))
    assert server.terminate() == client.terminate() == 0
    assert_silent({"server": server.lines(), "client": client.lines()})
    assert_silent({"messages": "\n".join(text for subscriber in subscribers for text in subscriber.texts)})
    assert_silent(checked(testbed, "move_it_server.py", server))


def test_netrc_and_profiles(testbed: Testbed) -> None:
    """An unusable netrc and a wrong profile are reported without their content."""
    if why := pyftpd.missing():
        pytest.skip(why)
    ftp = PyFtpd(testbed.directory("ftpd"), testbed.directory("far"))
    testbed.enter(ftp)
    netrc = testbed.directory("home") / ".netrc"
    file = testbed.feeder().put("f")
    target = f"ftp://{HOST}:{ftp.port}/"
    netrc.write_text(f"machine {HOST} login {pyftpd.USER} password {pyftpd.PASSWORD}\n")
    netrc.chmod(0o600)
    assert testbed.run("move_file.py", file, target).returncode == 0
    netrc.chmod(0o644)
    open_to_all = testbed.run("move_file.py", file, target)
    assert "~/.netrc access too permissive" in open_to_all.stderr
    netrc.write_text(f"machine {HOST} login {pyftpd.USER} {pyftpd.PASSWORD}\n")
    broken = testbed.run("move_file.py", file, target)
    assert "ignored ~/.netrc: line " in broken.stderr
    netrc.write_bytes(f"machine {HOST} login {pyftpd.USER} password {pyftpd.PASSWORD}é\n".encode("latin-1"))
    encoded = testbed.run("move_file.py", file, target)
    assert "ignored ~/.netrc: it is not UTF-8 text" in encoded.stderr
    netrc.unlink()
    netrc.mkdir()
    unreadable = testbed.run("move_file.py", file, target)
    assert "ignored ~/.netrc, which cannot be read: Is a directory" in unreadable.stderr
    aws = testbed.directory("home/.aws")
    (aws / "credentials").write_text(f"[feed]\naws_access_key_id = x\naws_secret_access_key = {WRONG}\n")
    profile = testbed.run("move_file.py", "-o", "profile=other", file, "s3://b/")
    assert "other" in profile.stderr
    failed = (open_to_all, broken, encoded, unreadable, profile)
    assert [one.returncode for one in failed] == [1] * len(failed)
    assert_silent({"said": "".join(one.stdout + one.stderr for one in failed)})


def test_secrets_of_a_command(testbed: Testbed) -> None:
    """``move_file.py`` reads a password from a file or variable and prints none, also not in a traceback."""
    if why := asyncsshd.missing():
        pytest.skip(why)
    server = AsyncSshd(testbed.directory("sshd"))
    testbed.enter(server)
    file, phrase = testbed.feeder().put("f"), Far.secret(testbed, "password", asyncsshd.PASSWORD)
    target = f"sftp://{server.user}@{HOST}:{server.port}{testbed.directory('far')}/"
    known = f"ssh_known_hosts={server.known_hosts}"
    good = testbed.run("move_file.py", "-o", known, "-o", f"password=file:{phrase}", file, target)
    assert good.returncode == 0, good.stderr
    said = [good]
    for value in (f"file:{Far.secret(testbed, 'bad', WRONG)}", "file:/nowhere", "env:NOT_SET"):
        said.append(testbed.run("move_file.py", "-o", known, "-o", f"password={value}", file, target))
        assert said[-1].returncode in (1, 2)
    for url in (f"sftp://x:{WRONG}@{HOST}:1/", f"gopher://x:{WRONG}@{HOST}/", f"sftp://x:{WRONG}@h:99999/"):
        said.append(testbed.run("move_file.py", file, url))
        assert said[-1].returncode in (1, 2)
    assert_silent({"said": "".join(one.stdout + one.stderr for one in said)})
