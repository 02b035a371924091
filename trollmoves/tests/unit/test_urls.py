"""Promises of the destinations."""

from __future__ import annotations

import random
import time
from typing import Any
from urllib.parse import urlparse

import pytest

from trollmoves.errors import BadDestination
from trollmoves.net import urls

HOSTILE = "ab1:@/#?;%&=[]\\ $!'\"*+~^.,é€ß\t\udcff"


def random_texts(count: int, alphabet: str = HOSTILE, longest: int = 12, seed: int = 1) -> list[str]:
    """Make texts of the characters that are most trouble in URLs, the same ones each time."""
    dice = random.Random(seed)
    return ["".join(dice.choice(alphabet) for _ in range(dice.randint(1, longest))) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "scheme", "netloc", "path"),
    [
        ("/data/in/", "file", "", "/data/in/"),
        ("  /data/in", "file", "", "/data/in"),
        ("data/in", "file", "", "data/in"),
        ("file:///data/in", "file", "", "/data/in"),
        ("FILE:/data/in", "file", "", "/data/in"),
        ("file://host/data", "file", "host", "/data"),
        ("//host/data", "file", "host", "/data"),
        ("sftp://host", "sftp", "host", ""),
        ("sftp://user@host:22/in", "sftp", "user@host:22", "/in"),
        ("ftp://user:pass@host:/in", "ftp", "user:pass@host:", "/in"),
        ("scp://[::1]:22/in", "scp", "[::1]:22", "/in"),
        ("scp://u:p@[fe80::1%eth0]/in", "scp", "u:p@[fe80::1%eth0]", "/in"),
        ("s3://bucket/a b/c", "s3", "bucket", "/a b/c"),
        ("sftp:///in", "sftp", "", "/in"),
        ("ftp://bücher.example/in", "ftp", "bücher.example", "/in"),
        ("sftp://h//abs;x?y#z%41\n@", "sftp", "h", "//abs;x?y#z%41\n@"),
    ],
)
def test_a_destination_is_read(text: str, scheme: str, netloc: str, path: str) -> None:
    """A URL gives scheme, netloc and path, and nothing else."""
    assert tuple(urls.parse(text)) == (scheme, netloc, path, "", "", "")


def test_the_default_scheme_can_be_another() -> None:
    """A text without a scheme gets the one asked for."""
    assert urls.parse("//host/x", "sftp").scheme == "sftp"


@pytest.mark.parametrize(
    "text",
    [
        *(5, None, b"sftp://host/in", [], {}, 1.5),
        *(
            "",
            "  ",
            "scp://[x",
            "scp://[::1",
            "scp://[1.2.3.4]/",
            "scp://h:port/",
            "scp://h:65536/",
            "scp://h:" + "9" * 5000,
        ),
        *("scp://h\n/in", "scp://h\x00/in", "/in\x00", "scp://a b/in", "scp://u:p@/in", "https://h?x/in", "scp://h#x"),
    ],
)
def test_unusable_url_is_rejected(text: Any) -> None:
    """An unusable URL raises BadDestination."""
    with pytest.raises(BadDestination):
        urls.parse(text)


@pytest.mark.parametrize(
    "text",
    ["ftp://u:s3cret", "ftp://u:s3cret@h:x/in", "ftp://u:s3cret@/in", "x\x00ftp://u:s3cret@h"],
)
def test_a_refusal_shows_no_password(text: str) -> None:
    """The text, the repr and the cause of a refusal hold no password."""
    with pytest.raises(BadDestination) as refusal:
        urls.parse(text)
    error = refusal.value
    assert "s3cret" not in f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [
        ("ftp://host/in", None, None),
        ("ftp://me@host/in", "me", None),
        ("ftp://me:@host/in", "me", ""),
        ("ftp://me:pw@host/in", "me", "pw"),
        ("ftp://:pw@host/in", None, "pw"),
        ("ftp://me:p:w@host/in", "me", "p:w"),
        ("ftp://me:p@w@host/in", "me", "p@w"),
        ("ftp://me%40home:p%2Fw%25@host/in", "me@home", "p/w%"),
        ("ftp://me@home:pw@host/in", "me@home", "pw"),
        ("ftp://me:100%@host/in", "me", "100%"),
        ("ftp://me:p/w@host/in", "me", "p/w"),
        ("ftp://me:p#w@host/in", "me", "p#w"),
        ("ftp://me:p?w@host/in", "me", "p?w"),
        ("ftp://me:p/w@x{y}@host/in", "me", "p/w@x{y}"),
        ("ftp://me:/p@host/in", "me", "/p"),
        ("ftp://me@home:p/w@host/in", "me@home", "p/w"),
        ("ftp://me:p[w]@host/in", "me", "p[w]"),
        ("ftp://me:p w@host/in", "me", "p w"),
    ],
)
def test_a_login_is_understood_encoded_or_as_it_is(text: str, user: str | None, password: str | None) -> None:
    """User and password come out as they were meant, and survive another reading, ours or urllib's."""
    url = urls.parse(text)
    for form in (text, url, url.geturl(), urlparse(url.geturl())):
        assert (urls.user(form), urls.password(form), urls.host(form)) == (user, password, "host")
    assert url.path == "/in"
    assert url.username == urlparse(url.geturl()).username


def test_at_sign_in_the_path() -> None:
    """After the host an @ belongs to the path."""
    assert urls.parse("sftp://host:22/in/a@b").path == "/in/a@b"
    assert urls.parse("sftp://me:pw@host/in/a@b").path == "/in/a@b"
    assert urls.parse("sftp://host/in:x/a@b").path == "/in:x/a@b"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("/in", None, None),
        ("ftp://Host.EXAMPLE:21/", "host.example", 21),
        ("ftp://[::1]:2121/", "::1", 2121),
        ("ftp://h:/", "h", None),
    ],
)
def test_host_and_port(text: str, host: str | None, port: int | None) -> None:
    """Host and port are returned without brackets and in lower case."""
    assert (urls.host(text), urls.port(text)) == (host, port)


def test_login_roundtrip() -> None:
    """Any user and password are read back unchanged, and a plain one is written unchanged."""
    assert urls.with_login("sftp://host:22/in", "user:p@ss:w0rd!") == "sftp://user:p@ss:w0rd!@host:22/in"
    for user, password in zip(random_texts(2000), random_texts(2000, seed=2), strict=True):
        user = user.replace(":", "")
        url = urls.with_login("sftp://other:login@host:22/in/a@b?c#d", f"{user}:{password}")
        assert (urls.user(url) or "", urls.password(url)) == (user, password)
        assert (urls.host(url), urls.port(url), urls.parse(url).path) == ("host", 22, "/in/a@b?c#d")
        assert urls.without_login(url) == "sftp://host:22/in/a@b?c#d"


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("ftp://a:p%40ss%2Fw:rd@h:22/in", "ftp://a@h:22/in"),
        ("ftp://a@h/in", "ftp://a@h/in"),
        ("ftp://:pw@h/in", "ftp://h/in"),
        ("ftp://h/in", "ftp://h/in"),
        ("/in", "file:///in"),
    ],
)
def test_identity_has_the_user(url: str, identity: str) -> None:
    """The identity of a destination contains its user and not its password."""
    assert urls.without_password(url) == identity


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("two", "sftp://a:b@two:2222/in"),
        ("two:22", "sftp://a:b@two:22/in"),
        ("c:d@two", "sftp://c:d@two:2222/in"),
        ("c@[::1]:22", "sftp://c@[::1]:22/in"),
        ("c:d%40e@::1", "sftp://c:d%40e@[::1]:2222/in"),
    ],
)
def test_other_host(target: str, expected: str) -> None:
    """Another host keeps login and port of the URL unless it has its own; a login never becomes part of the host."""
    url = urls.with_host("sftp://a:b@h:2222/in", target)
    assert url.geturl() == expected
    assert urls.host(url) in ("two", "::1")


def test_a_login_needs_a_host() -> None:
    """A path on this host takes no login, and an empty login takes the present one away."""
    assert urls.with_login("/data/in", "me:pw") == "file:///data/in"
    assert urls.with_login("ftp://me:pw@host/in", "") == "ftp://me:pw@host/in"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sftp://user:pw@host:22/path", "sftp://user@host:22/path"),
        ("sftp://user@host:22/a@b", "sftp://user@host:22/a@b"),
        ("sftp://host/a@b", "sftp://host/a@b"),
        ("sftp://u:p@[::1]:22/a", "sftp://u@[::1]:22/a"),
        ("sftp://[::1]:22/a@b", "sftp://[::1]:22/a@b"),
        ("/data/12:30/a@b?c", "/data/12:30/a@b?c"),
        ("ftp://u:p/w#x@host/in", "ftp://u@host/in"),
        ("ftp://u:p@s/w@host/in", "ftp://u@***@host/in"),
        ("ftp://u:p@host/in/a@b", "ftp://u@***@b"),
        ("ftp://u:12/34@host/in", "ftp://u@***@host/in"),
        ("s3://bucket/key?X-Amz-Signature=abc/=&x=y", "s3://bucket/key?***"),
        ("s3://bucket/what?.nc", "s3://bucket/what?.nc"),
        ("https://host?token=x", "https://host?***"),
        ("sftp://h/a\nb\x1b", "sftp://h/a\\nb\\x1b"),
        (5, "5"),
        (None, "None"),
        (b"ftp://u:p@h/\xff", "ftp://u@h/\udcff"),
        ({"destination": "ftp://u:p@h/in"}, "{'destination': 'ftp://u@h/in'}"),
    ],
)
def test_redacted_url_keeps_the_rest(text: object, shown: str) -> None:
    """The user stays, the password and the query are removed, and ambiguous parts are masked."""
    assert urls.redacted(text) == shown


def test_no_password_is_ever_printed() -> None:
    """Encoded or as it is, read or not, alone, in a text or in a repr: no password is shown, and once is enough."""
    for number, noise in enumerate(random_texts(3000, "ab1:@/#?;%=[]$é")):
        secret = f"{noise[: number % 7]}Secret{noise[number % 7 :]}"
        for url in (f"ftp://me:{secret}@host/in", urls.with_login("ftp://host/in/", f"me:{secret}")):
            for shown in (urls.redacted(url), urls.redact_text(f"to {url}, by me"), urls.redact_text(f"{[url]}")):
                assert "Secret" not in shown
                assert "ftp://me@" in shown
                assert urls.redacted(shown) == shown or not shown.startswith("ftp:")
                assert urls.redact_text(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        *(
            "ftp://u:s3cret",
            "ftp://u:s3cret@[",
            "ftp://u:s3cret@h:x/",
            "ftp:/u:s3cret@h/x",
            "ftp:///u:s3cret@h/x",
            "u:s3cret@h:/x",
        ),
        *(
            "//u:s3cret@h/x",
            "ftp:u:s3cret@h",
            "ftp://dom/u:s3cret@h/x",
            "http://h/?key=s3cret",
            "http://h#access_token=s3cret",
        ),
        *(
            "http://h/a?b&token=s3cret",
            "ftp://h:s3cret/x",
            "ftp://u@h:s3cret/x@h",
            "\x00ftp://u:s3cret@h",
            "ftp://u:s3cret@h@",
        ),
    ],
)
def test_malformed_url_does_not_leak(text: str) -> None:
    """A malformed URL is printed without its possible password."""
    assert "s3cret" not in urls.redacted(text)


def test_printing_never_raises() -> None:
    """Whatever object is given, a text comes back."""

    class Nasty:
        def __str__(self) -> str:
            raise RuntimeError("no")

    for thing in (
        Nasty(),
        object(),
        [],
        float("nan"),
        urlparse("ftp://u:p@h:x/y"),
        "\udcff://\ud800",
        "://",
        "@",
        ":@",
        "//@:",
    ):
        assert isinstance(urls.redacted(thing), str)
    for text in random_texts(3000, ":/@[]?#=a1 \n", 16):
        assert isinstance(urls.redacted(text), str)
        assert isinstance(urls.redact_text(text), str)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing here", "nothing here"),
        ("mail root@vm, see tcp://host:9010, or ['tcp://a:1']", "mail root@vm, see tcp://host:9010, or ['tcp://a:1']"),
        ("pytroll://a/b file root@vm 2025", "pytroll://a/b file root@vm 2025"),
        ("a ftp://u:p1@h/x, then ftp://u:p2@h/y.", "a ftp://u@h/x, then ftp://u@h/y."),
        ("at ftp://u:a b@h/x!", "at ftp://u@h/x!"),
        ("got http://h/x?key=1: 403", "got http://h/x?***: 403"),
        (repr(urlparse("ftp://u:p@h/x")), repr(urlparse("ftp://u@h/x"))),
        ("one\nftp://u:p@h/x\nthree", "one\nftp://u@h/x\nthree"),
    ],
)
def test_secrets_in_a_text_are_masked(text: str, shown: str) -> None:
    """URLs in any text lose their passwords and queries, and the text around them stays."""
    assert urls.redact_text(text) == shown


@pytest.mark.alone
def test_masking_takes_no_time_out_of_proportion() -> None:
    """A long line made to be slow is masked in a time that grows with its length only."""

    def seconds(times: int) -> float:
        lines = [piece * times for piece in ("a://b:c ", "a", "@a", "://", "a://u:@/", "netloc='", "?a")]
        begin = time.thread_time()
        for line in lines:
            urls.redact_text(line + "@ ://")
            urls.redacted("ftp://" + line)
        return time.thread_time() - begin

    seconds(10)
    assert seconds(8000) < 10 * 8 * max(seconds(1000), 0.001)


@pytest.mark.parametrize(
    ("base", "parts", "text"),
    [
        ("/data", ("x.nc",), "file:///data/x.nc"),
        ("sftp://u@h", ("x?#;.nc",), "sftp://u@h/x?#;.nc"),
        ("sftp://h/in/", ("sub", "x"), "sftp://h/in/sub/x"),
        ("sftp://h/in", ("/etc/x",), "sftp://h/in/etc/x"),
        ("sftp://h/in", ("",), "sftp://h/in/"),
        ("sftp://h/in", (), "sftp://h/in"),
    ],
)
def test_parts_are_joined_below_the_path(base: str, parts: tuple[str, ...], text: str) -> None:
    """Joined parts are below the URL's path, whatever they begin with."""
    assert urls.join(urls.parse(base), *parts) == urls.parse(text)


def test_every_destination_survives_writing_and_reading() -> None:
    """A destination that was read once is read back unchanged from its own text."""
    for noise in random_texts(2000):
        for start in ("/", "//", "file:", "sftp://host/", "sftp://u@host:22/"):
            try:
                url = urls.parse(start + noise)
            except BadDestination:
                continue
            assert urls.parse(url) == url
            assert urls.parse(urls.without_login(url))[2] == url.path


@pytest.mark.parametrize("longest", [20, 30, 40, 60])
def test_excerpt(longest: int) -> None:
    """An excerpt never holds half a password, and has no more characters than it may."""
    text = "pytroll://x push sftp://sat:wr0ng/p@ss@127.0.0.1/in " + "x" * 10_000
    shown = urls.excerpt(text, longest)
    assert len(shown) <= longest
    assert "wr0ng" not in shown
    assert urls.excerpt("short", longest) == "short"
