"""Whatever is read from outside: any input gives a result, or an error of ours, and nothing else."""

from __future__ import annotations

import base64
import bz2
import contextlib
import datetime as dt
import io
import json
import os
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from trollmoves import unpacking
from trollmoves.config import config_file, secrets
from trollmoves.config import dispatcher_file as dispatch_config
from trollmoves.config.option_table import options_of
from trollmoves.config.options import ClientOptions, MirrorOptions, ServerOptions
from trollmoves.errors import BadDestination, ConfigError, MessageError, TransferError, UnpackError
from trollmoves.matching import conditions, patterns
from trollmoves.matching.patterns import ComposeError, Pattern, reader
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.movers.ssh import known_hosts
from trollmoves.net import urls
from trollmoves.tests.helpers.fuzzing import ODD_TEXTS, SCALE, Fuzz, scaled

F = Callable[..., Any]


def tries(count: int) -> Callable[[F], F]:
    """Have a property tried so often: the same inputs each time, unless more than usual are asked for."""
    return settings(
        max_examples=scaled(count),
        derandomize=SCALE == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


texts = st.text(st.characters(exclude_categories=()), max_size=60) | st.sampled_from(ODD_TEXTS[:-5])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.datetimes().map(dt.datetime.isoformat)
data = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.sampled_from(["uri", "uid", "dataset", "collection", "path", "request"]), inner)
    ),
    max_leaves=12,
)
HEAD = "pytroll://a/b file sat@host 2025-01-02T03:04:05.678 v1.01 application/json "


@tries(400)
@given(st.binary(max_size=200) | texts.map(lambda text: f"pytroll:/{text}".encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_message(raw: bytes) -> None:
    """Any bytes are a message, or a MessageError on one line of moderate length."""
    why = ""
    try:
        Message.decode(raw)
    except MessageError as error:
        why = str(error)
    assert len(why) < 1000
    assert why.isprintable()


def test_damaged_messages() -> None:
    """A valid message that was damaged somewhere is a message that can be passed on, or a MessageError."""
    fuzz = Fuzz(10)
    valid = {"uid": "f", "uri": "/in/f", "time": "2025-01-02T03:04:05", "dataset": [{"uri": "/a", "path": "b"}]}
    for _ in range(scaled(2000)):
        raw = fuzz.message(HEAD.removesuffix(" application/json "), valid)
        with contextlib.suppress(MessageError):
            message = Message.decode(raw)
            payload.file_names(message.data)
            payload.request_id(message.raw)
            if isinstance(message.data, dict):
                Message.decode(message.derive("push", {"destination": "/x"}).encode())


@tries(200)
@given(data)
def test_any_data_in_a_message(value: Any) -> None:
    """Any JSON in a message can be read, looked through and written again, with the same outcome."""
    text = HEAD + json.dumps(value)
    try:
        message = Message.decode(text.encode("utf-8", "surrogatepass"))
    except MessageError:
        return
    payload.file_names(message.data)
    payload.request_metadata(message.data)
    payload.announcement_metadata(message.data)
    list(payload.file_items(message.data))
    with contextlib.suppress(MessageError):
        again = Message.decode(message.encode())
        assert Message.decode(again.encode()).data == again.data or "NaN" in text or "nan" in str(again.data)


passwords = st.text(st.characters(exclude_characters="\0"), min_size=6, max_size=20).map(lambda text: f"s3cr3t{text}")
users = st.text("abcXYZ019._-", min_size=1, max_size=8)
hosts = st.sampled_from(["host", "h.example.org", "127.0.0.1", "[::1]", "a-b_c~d"])
paths = st.lists(
    st.text(st.characters(exclude_characters="\0@", exclude_categories=["Cs"]), max_size=8), max_size=4
).map(lambda parts: "".join(f"/{part}" for part in parts))


@tries(400)
@given(texts | st.builds("{}://{}".format, st.sampled_from(["sftp", "ftp", "s3", ""]), texts))
def test_any_text_as_a_url(text: str) -> None:
    """Any text is a destination that reads the same when it is read again, or a BadDestination; it can be shown."""
    urls.redacted(text)
    urls.redact_text(text)
    urls.excerpt(text)
    try:
        parsed = urls.parse(text)
    except BadDestination:
        return
    again = urls.parse(parsed)
    assert again == parsed
    assert urls.parse(urls.without_login(text)).path == parsed.path
    for part in (urls.user, urls.password, urls.host, urls.port):
        assert part(text) == part(again)


@tries(600)
@given(st.sampled_from(["sftp", "ftp", "scp"]), users, passwords, hosts, paths)
def test_password_of_a_url(scheme: str, user: str, secret: str, host: str, path: str) -> None:
    """A login goes into a URL and comes out of it as it was, and is shown nowhere, however it is written."""
    with contextlib.suppress(UnicodeEncodeError):
        secret.encode()
        url = urls.with_login(f"{scheme}://{host}{path}", f"{user}:{secret}")
        assert (urls.user(url), urls.password(url), urls.parse(url).path) == (user, secret, path)
        encoded = f"{scheme}://{user}:{quote(secret, safe='')}@{host}{path}"
        assert urls.password(encoded) == secret
        for one in (url, encoded, urls.parse(url)):
            for shown in (urls.redacted(one), urls.redact_text(f"to {one} now"), urls.excerpt(f"x {one}")):
                assert "s3cr3t" not in shown
        with pytest.raises(BadDestination) as caught:
            urls.parse(f"{scheme}://{user}:{quote(secret, safe='')}@{host}:99999{path}")
        assert "s3cr3t" not in str(caught.value)


@tries(600)
@given(st.sampled_from(["sftp", "ftp", "scp"]), users, passwords, hosts)
def test_unquoted_password(scheme: str, user: str, secret: str, host: str) -> None:
    """An unquoted password in a URL is not shown either."""
    assert "s3cr3t" not in urls.redacted(f"{scheme}://{user}:{secret}@{host}/in")


option_names = st.sampled_from(
    sorted(
        {
            *options_of(ServerOptions),
            *options_of(MirrorOptions),
            "connection_parameters__secret",
            "ssh_key_filename",
            "a__b",
        }
    )
)
ini_values = texts.map(lambda text: text.replace("\n", "\n  ")) | st.sampled_from(["1", "-1", "1e999", "h:1", "/x/{y}"])
sections = st.dictionaries(texts, st.dictionaries(option_names | texts, ini_values, max_size=6), max_size=3)


@tries(80)
@given(sections)
def test_ini_file(found: dict[str, dict[str, str]]) -> None:
    """Any INI file is a configuration, or a ConfigError on one line that names it."""
    lines = [f"[{name}]\n" + "\n".join(f"{key} = {text}" for key, text in one.items()) for name, one in found.items()]
    _read_any("\n".join(lines).encode("utf-8", "surrogatepass"))


@tries(60)
@given(st.binary(max_size=300))
def test_any_bytes_as_a_configuration(raw: bytes) -> None:
    """So are any bytes."""
    _read_any(raw)
    _read_any(b"[DEFAULT]\n" + raw)
    _read_any(b"[a]\n" + raw)


conditional = st.recursive(
    scalars | st.sampled_from([">5", "<= 3", "!=x", "!", ">", "=="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("except"), inner, max_size=3),
    max_leaves=8,
)
targets = st.dictionaries(
    st.sampled_from(["posttroll_subscriber", "DEFAULT", "t1", "t2"]),
    st.dictionaries(
        st.sampled_from(
            [
                "host",
                "directory",
                "filepattern",
                "topics",
                "conditions",
                "aliases",
                "connection_parameters",
                "dispatch_configs",
                "login",
                "origin",
                "publish_topic",
                "subscribe_addresses",
                "nameserver",
            ]
        ),
        data | conditional,
        max_size=6,
    )
    | data,
    max_size=3,
)


@tries(60)
@given(targets)
def test_yaml_file(found: dict[str, Any]) -> None:
    """Any YAML file is a dispatcher's configuration, or a ConfigError on one line that names it."""
    with contextlib.suppress(yaml.YAMLError, UnicodeError):
        _read_any(yaml.safe_dump(found, allow_unicode=True).encode("utf-8", "surrogatepass"))


def _read_any(raw: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".conf") as file:
        file.write(raw)
        file.flush()
        reads: list[Callable[[], config_file.Configuration[Any]]] = [
            lambda: config_file.read(file.name, ServerOptions),
            lambda: config_file.read(file.name, ClientOptions),
            lambda: config_file.read(file.name, MirrorOptions),
            lambda: dispatch_config.read_dispatcher_config(file.name),
        ]
        for read in reads:
            why = file.name
            try:
                config_file.check_report(read())
            except ConfigError as error:
                why = str(error)
            assert file.name in why
            assert len(why.splitlines()) == 1


@tries(200)
@given(texts)
def test_any_text_as_a_secret(value: str) -> None:
    """The value of a secret option is a secret, or a ValueError that shows no more than its source."""
    with contextlib.suppress(ValueError):
        secrets.resolve(value)
    with contextlib.suppress(ValueError):
        secrets.resolve(f"env:{value}")


@tries(200)
@given(conditional, st.dictionaries(texts, data, max_size=3))
def test_conditions(written: Any, metadata: dict[str, Any]) -> None:
    """Any conditions can be evaluated for any metadata, or are reported as invalid."""
    try:
        found = conditions.parse_conditions(written)
    except ValueError:
        return
    assert isinstance(found.mismatch_reason(metadata), str)
    keys = list(written) if isinstance(written, dict) else []
    assert isinstance(found.mismatch_reason(dict.fromkeys(keys, 5)), str)


fields = st.sampled_from(
    ["{a}", "{a:4s}", "{b:03d}", "{t:%Y%m%d}", "{t:%j}", "{a:_<6s}", "{b:x}", "{", "}", "{{", "{}", "{a!r}", "{a.b}"]
)
pattern_texts = st.lists(fields | st.text("ab/._-*?[]%:{}0d", max_size=5), max_size=6).map("".join)


@tries(200)
@given(
    pattern_texts | texts,
    texts | st.text("ab/._-0123456789", max_size=20),
    st.dictionaries(st.sampled_from("abt"), data),
)
def test_patterns(text: str, name: str, metadata: dict[str, Any]) -> None:
    """Any text is a pattern that parses and composes names or fails cleanly, or it is reported as invalid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(ValueError):
            reader(text).read(name)
        with contextlib.suppress(ValueError):
            compose = Pattern(text)
            with contextlib.suppress(ComposeError):
                assert isinstance(compose.compose(metadata), str)
        with contextlib.suppress(ValueError):
            patterns.Origin(f"/{text}")


def _tar(fuzz: Fuzz, mode: str) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:  # type: ignore[call-overload]
        for number in range(fuzz.random.randrange(4)):
            member = tarfile.TarInfo(
                fuzz.random.choice((f"m{number}", "d/x", "../x", "/etc/x", "a" * 200, "\udcff", "."))
            )
            member.type = fuzz.random.choice(
                (tarfile.REGTYPE,) * 6 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE)
            )
            member.linkname = fuzz.random.choice(("m0", "/etc/passwd", "../.."))
            member.size = 700 if member.type == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(bytes(700)))
    return memory.getvalue()


def _zip(fuzz: Fuzz) -> bytes:
    memory = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # names that occur twice
        for _ in range(fuzz.random.randrange(4)):
            archive.writestr(fuzz.random.choice(("m", "d/x", "../x", "/etc/x", "d/", "ü")), bytes(700))
    return memory.getvalue()


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".tar.bz2", ".zip", ".bz2"])
def test_packed_files(tmp_path: Path, kind: str) -> None:
    """A damaged archive is unpacked within its directory, or an UnpackError; nothing half-written stays."""
    fuzz = Fuzz(20)
    for number in range(scaled(60)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if kind == ".zip":
            raw = _zip(fuzz)
        elif kind == ".bz2":
            raw = bz2.compress(bytes(fuzz.random.randrange(5000)))
        else:
            raw = _tar(fuzz, f"w:{kind.rpartition('.')[2]}" if kind != ".tar" else "w")
        packed = folder / f"packed{kind}"
        packed.write_bytes(fuzz._damaged(raw) if fuzz.random.random() < 0.8 else raw)
        made = []
        with contextlib.suppress(UnpackError):
            made = _unpack(packed, kind)
        left = {path for path in folder.rglob("*") if path.is_file()} - {packed}
        assert left == {Path(path) for path in made}
        assert set(tmp_path.iterdir()) == {tmp_path / str(one) for one in range(number + 1)}
        for path in folder.rglob("*"):
            path.unlink() if path.is_file() else None


def _unpack(packed: Path, kind: str) -> list[str]:
    name = "bzip" if kind == ".bz2" else kind.lstrip(".").partition(".")[0]
    return [os.fspath(path) for path in unpacking.unpack(name, os.fspath(packed), os.fspath(packed.parent))]


@tries(100)
@given(texts, texts)
def test_any_destination_of_a_file(name: str, rel_path: str) -> None:
    """A file is delivered to any name below a directory, or there is an error of ours."""
    from trollmoves.movers import move_it

    assume(".." not in f"{name}/{rel_path}")
    with tempfile.TemporaryDirectory() as folder:
        origin = Path(folder) / "f"
        origin.write_bytes(b"x")
        with contextlib.suppress(TransferError):
            reached = move_it(origin, f"file://{folder}/out/{name}", rel_path=rel_path)
            assert reached.path.startswith(folder)


KNOWN_HOSTS = st.lists(
    st.sampled_from(["@revoked ", "@x ", "!", "|1|", "host", "*", "[", "]:22", ",", " ", "\t", "\n", "ssh-rsa", "AAAA"])
    | st.text(max_size=4)
).map("".join)


@tries(200)
@given(KNOWN_HOSTS)
def test_any_text_in_known_hosts(text: str) -> None:
    """Any known_hosts file gives the valid lines; the others do not affect the line after them."""
    key = base64.b64encode(b"\0\0\0\x07ssh-rsa\0").decode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "known_hosts"
        path.write_text(f"{text}\nhost ssh-rsa {key}\n", encoding="utf-8")
        lines, _ = known_hosts.lines_for([str(path)], "HOST", 22)
    assert lines[-1].kind == "ssh-rsa"
