"""The contract of all movers, as one suite that runs against a real server of each protocol."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from trollmoves.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    NameRejected,
    NoSpace,
    OriginChanged,
    OriginMissing,
    OriginUnreadable,
    PermissionRefused,
    TransferError,
    TransferStalled,
)
from trollmoves.movers import MOVERS, PartialId, close_connections, is_partial, move_it
from trollmoves.movers.partials import partial_path, token_of
from trollmoves.movers.remote import RemoteMover
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.disks import small_disk
from trollmoves.tests.servers.process import HOST, PROXY_HOST, ServerProcess
from trollmoves.tests.servers.proxy import Proxy

LONG_TIMEOUT = 30.0  # s; timeout for transfers that must succeed on a busy machine
TIMEOUTS = ("stall_timeout", "connection_timeout")
ODD_NAMES = (
    "with space",
    "quote'and\"quote",
    "$HOME `id` $(id)",
    "a;b&c|d",
    "two\nlines",
    "-rf",
    "--help",
    "nämé-日本語",
    "back\\slash",
    "star*and?[mark]",
    "hash#percent%20",
    "x" * 200,
    "~tilde",
    "comma,colon:at@equals=",
)


def replace(path: Path) -> None:
    """Replace a file by rename."""
    staged = path.with_name("staged")
    staged.write_bytes(b"newer")
    staged.rename(path)


# Changes of a file, and whether they change the open file: same size, smaller, larger, another file, no file.
CHANGES: tuple[tuple[Callable[[Path], object], bool], ...] = (
    (lambda path: path.write_bytes(bytes(path.stat().st_size)), True),
    (lambda path: os.truncate(path, 300_000), True),
    (lambda path: path.write_bytes(bytes(path.stat().st_size + 1)), True),
    (replace, False),
    (Path.unlink, False),
)


class RemoteFiles:
    """The files of the server, read from this host's disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def tree(self, directory: str) -> dict[str, bytes]:
        """Return all files below ``directory``, with partials, by their relative path."""
        top = self.root / directory
        return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist."""
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            return None


@dataclass
class MoverTarget:
    """A server and its delivery URLs."""

    scheme: str
    server: ServerProcess
    files: Any
    url_root: str  # part of the URL between the host and the path
    attrs: dict[str, Any] = field(default_factory=dict)
    login: str = ""
    wrong_login: str = ""
    wrong_attrs: dict[str, Any] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()  # further ports of the protocol

    def url(self, path: str, host: str = HOST, login: str | None = None) -> str:
        """Return the URL of a path."""
        login = self.login if login is None else login
        at = f"{login}@" if login else ""
        return f"{self.scheme}://{at}{host}:{self.server.port}{self.url_root}/{path}"

    def attrs_at(self, host: str) -> dict[str, Any]:
        """Return the connection parameters for the server under another address."""
        return dict(self.attrs)


class MoverContract:
    """The tests of one mover: a subclass provides the fixture ``target`` and the limits of its protocol."""

    unnameable: ClassVar[tuple[str, ...]] = ()
    altered: ClassVar[tuple[str, ...]] = ()
    has_directories: ClassVar[bool] = True
    on_a_disk: ClassVar[bool] = True
    checks_logins: ClassVar[bool] = True
    reports_full_disk: ClassVar[bool] = True
    probes: ClassVar[bool] = True
    has_partials: ClassVar[bool] = True

    @pytest.fixture(autouse=True)
    def _closed(self) -> Iterator[None]:
        yield
        close_connections()

    @pytest.fixture
    def origin(self, tmp_path: Path) -> Path:
        """Return a file of some size."""
        path = tmp_path / "src" / "H-000-MSG4__.dat"
        path.parent.mkdir()
        path.write_bytes(os.urandom(100_003))
        return path

    @pytest.fixture
    def here(self, request: pytest.FixtureRequest) -> str:
        """Return a directory of this test's own."""
        return f"in/{request.node.name[:40].translate(str.maketrans('[]', '__'))}"

    @pytest.fixture
    def proxy(self, target: MoverTarget) -> Iterator[Proxy]:
        """Return a proxy in front of the server."""
        with Proxy(target.server.port, *target.ports) as running:
            yield running
            close_connections()

    def through(self, target: MoverTarget, **more: Any) -> dict[str, Any]:
        """Return the connection parameters for the way through the proxy."""
        return target.attrs_at(PROXY_HOST) | dict.fromkeys(TIMEOUTS, LONG_TIMEOUT) | more

    # Final names

    def test_trailing_slash_keeps_the_name(self, target: MoverTarget, origin: Path, here: str) -> None:
        """With a trailing slash the file keeps its name, and missing directories are made."""
        result = move_it(origin, target.url(f"{here}/a/b c/"), target.attrs)
        assert result.path.endswith(f"/{here}/a/b c/")
        assert target.files.tree(here) == {f"a/b c/{origin.name}": origin.read_bytes()}

    def test_last_part_is_the_new_name(self, target: MoverTarget, origin: Path, here: str) -> None:
        """Without a trailing slash the last part is the new name."""
        move_it(origin, target.url(f"{here}/new/name"), target.attrs)
        assert target.files.tree(here) == {"new/name": origin.read_bytes()}

    def test_existing_directory_receives_the_file(self, target: MoverTarget, origin: Path, here: str) -> None:
        """Without a trailing slash a file for an existing directory is placed inside it."""
        move_it(origin, target.url(f"{here}/first"), target.attrs)
        move_it(origin, target.url(here), target.attrs)
        assert set(target.files.tree(here)) == {"first", origin.name}

    def test_existing_file_is_replaced(self, target: MoverTarget, origin: Path, here: str) -> None:
        """A file under the final name is replaced by a longer and by a shorter one."""
        for size in (10, 50_000, 0, 7):
            origin.write_bytes(os.urandom(size))
            move_it(origin, target.url(f"{here}/"), target.attrs)
            assert target.files.tree(here) == {origin.name: origin.read_bytes()}

    @pytest.mark.parametrize("known", [True, False])
    def test_partial_of_earlier_attempt(self, target: MoverTarget, origin: Path, here: str, known: bool) -> None:
        """The partial of an earlier attempt of the same delivery is replaced; those of others stay."""
        if target.scheme == "s3":
            pytest.skip("there are no partials")
        mark = PartialId(token_of("journal", "task"), known)
        for token in (mark.token, "0123456789ab"):
            move_it(origin, target.url(f"{here}/{os.path.basename(partial_path('f', token))}"), target.attrs)
        origin.write_bytes(os.urandom(100))
        move_it(origin, target.url(f"{here}/f"), target.attrs, partial_id=mark)
        left = os.path.basename(partial_path("f", "0123456789ab"))
        assert sorted(target.files.tree(here)) == [left, "f"]
        assert target.files.tree(here)["f"] == origin.read_bytes()

    def test_large_file(self, target: MoverTarget, origin: Path, here: str) -> None:
        """A file of many blocks arrives unchanged."""
        origin.write_bytes(os.urandom(20_000_123))
        move_it(origin, target.url(f"{here}/"), target.attrs)
        assert target.files.read(f"{here}/{origin.name}") == origin.read_bytes()

    def test_odd_names(self, target: MoverTarget, tmp_path: Path, here: str) -> None:
        """Names that the protocol can express arrive unchanged; others are permanently rejected."""
        sent = {}
        for number, name in enumerate(sorted(set(ODD_NAMES) - set(self.altered))):
            path = tmp_path / name
            path.write_bytes(b"%d" % number)
            if name in self.unnameable:
                with pytest.raises(NameRejected):
                    move_it(path, target.url(f"{here}/"), target.attrs)
            else:
                move_it(path, target.url(f"{here}/"), target.attrs)
                move_it(path, target.url(f"{here}/"), target.attrs)
                sent[name] = path.read_bytes()
        assert target.files.tree(here) == sent

    def test_odd_directories(self, target: MoverTarget, origin: Path, here: str) -> None:
        """Directories may have odd names too."""
        for name in ("with space", "quote'", "$HOME", "a;b", "nämé", "-rf"):
            move_it(origin, target.url(f"{here}/{name}/sub/"), target.attrs)
            assert target.files.tree(f"{here}/{name}") == {f"sub/{origin.name}": origin.read_bytes()}

    def test_copy_and_move(self, target: MoverTarget, origin: Path, here: str) -> None:
        """``copy`` keeps the origin, ``move`` removes it after delivery."""
        content = origin.read_bytes()
        mover = MOVERS[target.scheme](str(origin), target.url(f"{here}/copy"), target.attrs)
        mover.copy()
        assert origin.exists()
        assert mover.destination.path.endswith("/copy")
        MOVERS[target.scheme](str(origin), target.url(f"{here}/moved"), target.attrs).move()
        assert not origin.exists()
        assert target.files.tree(here) == {"copy": content, "moved": content}

    def test_missing_origin(self, target: MoverTarget, tmp_path: Path, here: str) -> None:
        """A missing origin raises ``OriginMissing``, and creates no file on the server."""
        with pytest.raises(OriginMissing):
            move_it(tmp_path / "none", target.url(f"{here}/"), target.attrs)
        assert target.files.tree(here) == {}

    def test_unreadable_origin(self, target: MoverTarget, here: str) -> None:
        """An origin that fails during reading raises ``OriginUnreadable`` in every protocol."""
        failing = unreadable_file()
        with pytest.raises(OriginUnreadable, match=failing):
            move_it(failing, target.url(f"{here}/"), target.attrs)
        assert all(map(is_partial, target.files.tree(here)))  # removed over the next connection

    def test_attrs_are_not_changed(self, target: MoverTarget, origin: Path, here: str) -> None:
        """The caller's connection parameters are not changed, nested ones included."""
        given = target.attrs | {"client_kwargs": dict(target.attrs.get("client_kwargs", {})), "num_ssh_retries": "2"}
        before = copy.deepcopy(given)
        move_it(origin, target.url(f"{here}/"), given)
        assert given == before

    # Complete files only

    def test_probe(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy) -> None:
        """A working connection answers a probe; a stalled one is detected."""
        attrs = self.through(target, stall_timeout=3)
        mover = MOVERS[target.scheme](str(origin), target.url(f"{here}/", PROXY_HOST), attrs)
        assert isinstance(mover, RemoteMover)
        connection = mover.connect(mover.endpoint())
        connection.probe()
        assert connection.alive()
        connection.probe()
        if self.probes:
            proxy.stall_after(0)
            with pytest.raises((OSError, TransferError)):
                connection.probe()
        connection.close()

    def test_ten_parallel_transfers(self, target: MoverTarget, tmp_path: Path, here: str, proxy: Proxy) -> None:
        """Ten parallel transfers deliver ten complete files within the connection limit."""
        paths = [tmp_path / f"f{number}" for number in range(10)]
        for path in paths:
            path.write_bytes(os.urandom(300_000))
        errors: list[str] = []

        def deliver(path: Path) -> None:
            try:
                move_it(path, target.url(f"{here}/", PROXY_HOST), self.through(target, max_connections=3))
            except BaseException:
                errors.append(traceback.format_exc())

        threads = [threading.Thread(target=deliver, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert target.files.tree(here) == {path.name: path.read_bytes() for path in paths}
        assert proxy.connections[target.server.port] <= 3

    def test_readers_see_whole_files(self, target: MoverTarget, tmp_path: Path, here: str) -> None:
        """A reader of the final name always sees one complete version."""
        versions = [bytes([number]) * 1_000_000 for number in range(2)]
        paths = [tmp_path / str(number) for number in range(2)]
        for path, content in zip(paths, versions, strict=True):
            path.write_bytes(content)
        move_it(paths[0], target.url(f"{here}/f"), target.attrs)
        stop = threading.Event()
        wrong: list[object] = []

        def look() -> None:
            while not stop.is_set():
                content = target.files.read(f"{here}/f")
                if content not in versions:
                    wrong.append(content and len(content))

        reader = threading.Thread(target=look)
        reader.start()
        for turn in range(10):
            move_it(paths[turn % 2], target.url(f"{here}/f"), target.attrs)
        stop.set()
        reader.join()
        assert wrong == []

    @pytest.mark.parametrize("position", [0, 60, 1500, 5000, 20_000, 120_000, 390_000])
    def test_cut_connection(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy, position: int) -> None:
        """After a cut at any byte the old or the new file is complete, and the retry leaves no other file."""
        url = target.url(f"{here}/f", PROXY_HOST)
        attrs = self.through(target)
        old = origin.read_bytes()
        move_it(origin, url, attrs)
        if position < 5000:
            close_connections()  # so that the cut comes while connecting
        origin.write_bytes(os.urandom(400_000))
        proxy.cut_after(position)
        error = _error_of(origin, url, attrs)
        assert error is None or error.temporary
        there = target.files.tree(here)
        assert there["f"] in ((old, origin.read_bytes()) if error else (origin.read_bytes(),))
        assert [name for name in there if name != "f" and not is_partial(name)] == []
        move_it(origin, url, attrs)
        assert target.files.tree(here) == {"f": origin.read_bytes()}

    @pytest.mark.parametrize("position", [0, 200_000])
    def test_stall(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy, position: int) -> None:
        """A server that stops responding ends the attempt within the timeout, as a temporary error."""
        origin.write_bytes(os.urandom(12_000_000))
        attrs = self.through(target) | dict.fromkeys(TIMEOUTS, 1.5)
        proxy.stall_after(position)
        started = time.monotonic()
        with pytest.raises((TransferStalled, ConnectionFailed)) as caught:
            move_it(origin, target.url(f"{here}/f", PROXY_HOST), attrs)
        assert caught.value.temporary
        assert time.monotonic() - started < LONG_TIMEOUT
        assert target.files.read(f"{here}/f") is None
        proxy.cut()
        proxy.heal()
        origin.write_bytes(b"short")
        until(lambda: not _error_of(origin, target.url(f"{here}/f", PROXY_HOST), attrs), what="it is delivered")
        assert target.files.tree(here) == {"f": b"short"}

    def test_longer_than_uptime(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy) -> None:
        """``connection_uptime`` ends idle connections only, and does end those."""
        origin.write_bytes(os.urandom(1_000_000))
        proxy.rate = 1_000_000
        move_it(origin, target.url(f"{here}/f", PROXY_HOST), self.through(target, connection_uptime="0.2"))
        assert target.files.read(f"{here}/f") == origin.read_bytes()
        until(lambda: proxy.open == 0, 5, "the idle connection is closed")

    def test_origin_that_changes(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy) -> None:
        """An origin that is rewritten while it is sent does not arrive; one that loses its name arrives as opened."""
        url, attrs = target.url(f"{here}/f", PROXY_HOST), self.through(target)
        move_it(origin, url, attrs)
        complete = origin.read_bytes()
        for change, is_rewritten in CHANGES:
            content = os.urandom(1_000_000 if self.has_partials else 15_000_000)  # more than the kernel buffers
            origin.write_bytes(content)
            os.utime(origin, (1, 1))  # the next change has another time
            proxy.stall_after(200_000)
            with ThreadPoolExecutor(1) as thread:
                sending = thread.submit(_error_of, origin, url, attrs)
                until(lambda: proxy.sent > 200_000, 20, "a part is sent")
                change(origin)
                proxy.heal()
                error = sending.result()
            assert isinstance(error, OriginChanged) if is_rewritten else error is None
            if not is_rewritten:
                complete = content
            assert target.files.read(f"{here}/f") == complete
        origin.write_bytes(b"the last version")
        move_it(origin, url, attrs)
        assert target.files.tree(here) == {"f": b"the last version"}

    # Errors

    def test_connection_refused(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy) -> None:
        """A server that refuses connections is a temporary error."""
        proxy.refuse()
        with pytest.raises(ConnectionFailed) as caught:
            move_it(origin, target.url(f"{here}/", PROXY_HOST), self.through(target, num_ssh_retries=2))
        assert caught.value.temporary

    def test_backup_target(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy) -> None:
        """A backup target gets the file, with user and port of the destination, when that does not answer."""
        proxy.refuse()
        url = target.url(f"{here}/", PROXY_HOST)
        result = move_it(origin, url, self.through(target, num_ssh_retries=1), backup_targets=["127.0.0.3", HOST])
        assert result.netloc == target.url("").split("//")[1].split("/")[0]
        assert target.files.tree(here) == {origin.name: origin.read_bytes()}

    def test_restarted_server(self, target: MoverTarget, origin: Path, here: str) -> None:
        """A server restart between two transfers does not cost an attempt."""
        move_it(origin, target.url(f"{here}/a"), target.attrs)
        target.server.stop()
        target.server.start()
        move_it(origin, target.url(f"{here}/b"), target.attrs)
        assert set(target.files.tree(here)) == {"a", "b"}

    def test_idle_connection_is_lost(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy) -> None:
        """The loss of an idle connection, with or without a reset, does not cost an attempt."""
        url = target.url(f"{here}/", PROXY_HOST)
        move_it(origin, url, self.through(target))
        proxy.cut()
        move_it(origin, url, self.through(target))
        proxy.cut_after(0)
        move_it(origin, url, self.through(target))
        assert set(target.files.tree(here)) == {origin.name}

    def test_full_disk(self, target: MoverTarget, origin: Path, here: str) -> None:
        """A full disk is a temporary error, keeps the old file, and leaves no partial."""
        if not self.on_a_disk:
            pytest.skip("the server keeps its files in its own way")
        origin.write_bytes(bytes(3_000_000))
        (target.files.root / here).mkdir(parents=True)
        with small_disk(target.files.root / here / "small") as disk:
            os.chmod(disk, 0o777)
            (disk / "f").write_bytes(b"old")
            with pytest.raises(NoSpace if self.reports_full_disk else TransferError) as caught:
                move_it(origin, target.url(f"{here}/small/f"), target.attrs | {"stall_timeout": 8})
            assert caught.value.temporary
            assert (disk / "f").read_bytes() == b"old"
            origin.write_bytes(b"new")
            move_it(origin, target.url(f"{here}/small/f"), target.attrs | {"stall_timeout": 8})
            assert (disk / "f").read_bytes() == b"new"
            assert os.listdir(disk) == ["f"]
            close_connections()
            until(lambda: _unused(disk), 10, "the server leaves the disk")

    def test_unwritable_directory(self, target: MoverTarget, origin: Path, here: str) -> None:
        """An unwritable directory is a temporary error that does not block other transfers to its host."""
        if not self.on_a_disk:
            pytest.skip("the server keeps its files in its own way")
        path = target.files.root / here / "locked"
        path.mkdir(parents=True)
        done = subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("this file system has no immutable directories")
        try:
            for suffix in ("", "sub/"):
                with pytest.raises(PermissionRefused) as caught:
                    move_it(origin, target.url(f"{here}/locked/{suffix}"), target.attrs)
                assert caught.value.temporary
                assert not caught.value.outage
        finally:
            subprocess.run(["chattr", "-i", str(path)], check=True)

    def test_a_file_where_a_directory_should_be(self, target: MoverTarget, origin: Path, here: str) -> None:
        """A path through a file is a permanent error."""
        if not self.has_directories:
            pytest.skip("the protocol knows no directories")
        move_it(origin, target.url(f"{here}/f"), target.attrs)
        with pytest.raises(TransferError) as caught:
            move_it(origin, target.url(f"{here}/f/g"), target.attrs)
        assert caught.value.held
        assert set(target.files.tree(here)) == {"f"}

    def test_wrong_login(self, target: MoverTarget, origin: Path, here: str) -> None:
        """A wrong login is permanently rejected."""
        if not self.checks_logins:
            pytest.skip("the server lets everybody in")
        with pytest.raises(AuthenticationFailed) as caught:
            move_it(origin, target.url(f"{here}/", login=target.wrong_login), target.attrs | target.wrong_attrs)
        assert caught.value.held

    def test_no_secret_in_log_or_messages(
        self, target: MoverTarget, origin: Path, here: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No password or key appears in a log line of any level, an error or its traceback."""
        caplog.set_level(1)
        for name in ("trollmoves", "paramiko", "paramiko.transport", "botocore", "boto3", "urllib3", "s3transfer"):
            caplog.set_level(1, name)
        mover = MOVERS[target.scheme](str(origin), target.url(f"{here}/", PROXY_HOST), self.through(target))
        mover.copy()
        texts = [repr(mover), str(mover)]
        proxy.refuse()
        close_connections()
        attempts = [(target.url(f"{here}/", PROXY_HOST), self.through(target, num_ssh_retries=1))]
        if self.checks_logins:
            attempts.append((target.url(f"{here}/", login=target.wrong_login), target.attrs | target.wrong_attrs))
        for url, attrs in attempts:
            error = _error_of(origin, url, attrs)
            assert error is not None
            texts += [str(error), repr(error), *traceback.format_exception(error)]
        texts += [record.getMessage() for record in caplog.records]
        texts += [logging.Formatter().format(record) for record in caplog.records]
        text = "\n".join(texts)
        assert [secret for secret in target.secrets if secret in text] == []

    # Connection reuse

    def test_one_connection_for_many_files(self, target: MoverTarget, tmp_path: Path, here: str, proxy: Proxy) -> None:
        """A connection is reused for the next file."""
        for number in range(10):
            path = tmp_path / str(number)
            path.write_bytes(b"x" * number)
            move_it(path, target.url(f"{here}/", PROXY_HOST), self.through(target))
        assert len(target.files.tree(here)) == 10
        assert proxy.connections[target.server.port] == 1

    def test_nothing_is_left_after_close(self, target: MoverTarget, origin: Path, here: str) -> None:
        """``close_connections`` leaves no additional thread or socket."""
        move_it(origin, target.url(f"{here}/a"), target.attrs)
        close_connections()
        before = _threads_and_sockets()
        threads = [
            threading.Thread(target=move_it, args=(origin, target.url(f"{here}/{name}"), target.attrs))
            for name in "bcde"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        close_connections()
        until(lambda: _threads_and_sockets() <= before, 5, "threads and sockets are gone")
        assert set(target.files.tree(here)) == set("abcde")


def unreadable_file() -> str:
    """Return the path of a file with a size of 4096 bytes, of which none can be read; skip the test without one."""
    path = "/sys/class/net/lo/speed"
    try:
        Path(path).read_bytes()
    except FileNotFoundError:
        pytest.skip("missing: sysfs")
    except OSError:
        pass
    return path


def _error_of(origin: Path, url: str, attrs: dict[str, Any]) -> TransferError | None:
    """Deliver a file; return the error, or None."""
    try:
        move_it(origin, url, attrs)
    except TransferError as error:
        return error
    return None


def _unused(directory: Path) -> bool:
    """Return True if no process has an open file or its working directory below ``directory``."""
    for process in Path("/proc").glob("[0-9]*"):
        for link in (process / "cwd", *process.glob("fd/*")):
            with suppress(OSError):
                if os.readlink(link).startswith(str(directory)):
                    return False
    return True


def _threads_and_sockets() -> tuple[int, int]:
    sockets = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            sockets += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            continue
    return threading.active_count(), sockets
