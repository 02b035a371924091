"""Which destinations may be named, and who may ask: the patterns by themselves."""

from __future__ import annotations

import pytest

from trollmoves.config import parsers
from trollmoves.errors import RequestRejected, TrollmovesError
from trollmoves.messaging.payload import escapes_directory
from trollmoves.net import client_allowlist, destination_allowlist, urls
from trollmoves.net.destination_allowlist import ANY_PORT


def allows(patterns: str, destination: str, *below: str) -> bool:
    """Return True if a destination is allowed by a list of patterns."""
    places = tuple(map(destination_allowlist.parse_pattern, parsers.word_list(patterns)))
    try:
        destination_allowlist.check_allowed(places, urls.parse(destination), below)
    except TrollmovesError:
        return False
    return True


@pytest.mark.parametrize(
    ("patterns", "destination"),
    [
        ("/data/out", "/data/out"),
        ("/data/out", "file:///data/out/"),
        ("/data/out", "file://any.host/data/out/sub/dir/"),
        ("/data/out/", "/data/out/"),
        ("/data/out", "/data/out/a/../b"),
        ("/data/out", "/data//out//x"),
        ("/", "/anything"),
        ("sftp://host/data", "sftp://host/data"),
        ("sftp://host/data", "sftp://HOST/data/sub/"),
        ("sftp://host/data", "sftp://host./data/"),
        ("sftp://host/data", "sftp://user:pass@host/data/"),
        ("sftp://user:secret@host/data", "sftp://user@host/data/"),
        ("sftp://user@host/data", "sftp://user:pass@host/data/"),
        ("sftp://us*@host/data", "sftp://user@host/data/"),
        ("*://a%40b@host/data", "ftp://a%40b:pass@host/data/"),
        ("s3://bucket/prefix", "s3://key:secret@bucket/prefix/x/"),
        ("*://*/", "sftp://host/data/"),
        ("*://host/data /data", "/data/x"),
        ("sftp://host/data", "sftp://host:22/data/"),
        ("sftp://host:22/data", "sftp://host/data/"),
        ("sftp://host:2222/data", "sftp://host:2222/data/"),
        ("sftp://host:*/data", "sftp://host:2222/data/"),
        ("sftp://host", "sftp://host/anywhere/"),
        ("sftp://*.site.org/data", "sftp://a.site.org/data/"),
        ("sftp://10.1.*/data", "sftp://10.1.2.3/data/"),
        ("sftp://10.1.2.3/data", "sftp://[::ffff:10.1.2.3]/data/"),
        ("sftp://[2001:db8::1]/data", "sftp://[2001:DB8:0::0001]/data/"),
        ("*://host/data", "scp://host/data/"),
        ("ftp://host/data/*/in", "ftp://host/data/customer/in/"),
        ("/other, sftp://host/data /data", "/data/x"),
        ("s3://bucket/prefix", "s3://bucket/prefix/x/"),
        ("/data/[a]", "/data/[a]/x"),
        ("", "sftp://anyone:at@any.host:99/../x"),
    ],
)
def test_allowed(patterns: str, destination: str) -> None:
    """A path that matches a pattern, or is below it, is allowed for any user; without patterns all paths are."""
    assert allows(patterns, destination)


@pytest.mark.parametrize(
    ("patterns", "destination"),
    [
        ("/data/out", "/data"),
        ("/data/out", "/data/outside/"),
        ("/data/out", "/data/out/../in/"),
        ("/data/out", "/data/out/x/../../../etc/"),
        ("/data/out", "/data/out/%2e%2e/in/"),
        ("/data/out", "/data/out/%252e%252e/in/"),
        ("/data/out", "/data/out/%2e./in/"),
        ("/data/out", "/data/out/..%2fin/"),
        ("/data/out", "/data/out/..\\..\\in/"),
        ("/data/out", "/data/out/x%5c..%5c..%5cin/"),
        ("/data/out", "/data/out/%25252525252e/"),
        ("/data/out", "\\data\\out"),
        ("/data/out", "sftp://localhost/data/out/"),
        ("/data/out", "ftp://host/data/out/"),
        ("sftp://host/data", "/data/"),
        ("sftp://other@host/data", "sftp://user@host/data/"),
        ("sftp://user@host/data", "sftp://host/data/"),
        ("sftp://user@host/data", "sftp://USER@host/data/"),
        ("sftp://us[e]r@host/data", "sftp://user@host/data/"),
        ("sftp://user@host/data", "sftp://user%0a@host/data/"),
        ("*://host/data", "/data/"),
        ("*://host/data", "file://host/data/"),
        ("*://localhost/data", "file://localhost/data/"),
        ("*://*/data", "file:/data/"),
        ("*:///data", "file:///data/"),
        ("*://user@*/data", "file://user@host/data/"),
        ("sftp://host/data", "file://host/data/"),
        ("sftp://host/data", "scp://host/data/"),
        ("sftp://host/data", "sftp://evil/data/"),
        ("sftp://host/data", "sftp://host@evil/data/"),
        ("sftp://host/data", "sftp://host:22@evil/data/"),
        ("sftp://host/data", "sftp://host:x@evil:22/data/"),
        ("sftp://host/data", "sftp://evil#@host:1/data/"),
        ("sftp://host/data", "sftp://evil/@host/data/"),
        ("sftp://host/data", "sftp://evil:x/../@host/../data/../"),
        ("sftp://host/data", "sftp://host.evil/data/"),
        ("sftp://host/data", "sftp://evilhost/data/"),
        ("sftp://host/data", "sftp://host:2222/data/"),
        ("sftp://host/data", "sftp://host:0/etc/"),
        ("sftp://host:2222/data", "sftp://host/data/"),
        ("sftp://host/data", "sftp://host/data/../etc/"),
        ("sftp://host/data", "sftp://host/Data/"),
        ("sftp://host/data", "sftp://host/"),
        ("sftp://host/data", "sftp://host"),
        ("sftp://*.site.org/data", "sftp://site.org/data/"),
        ("sftp://*.site.org/data", "sftp://a.site.org.evil/data/"),
        ("sftp://*.site.org/data", "sftp://evil/.site.org/data/"),
        ("sftp://10.*/data", "sftp://10.evil.org/data/"),
        ("sftp://10.1.2.3/data", "sftp://10.1.2.33/data/"),
        ("sftp://[2001:db8::1]/data", "sftp://[2001:db8::2]/data/"),
        ("ftp://host/data/*/in", "ftp://host/data/a/b/in/"),
        ("ftp://host/data/*/in", "ftp://host/data/a/../in/"),
        ("ftp://host", "ftps://host/"),
        ("s3://bucket/prefix", "s3://other/prefix/"),
        ("s3://bucket/prefix", "s3://bucket@other/prefix/"),
        ("s3://bucket/prefix", "s3://bucket:80/prefix/"),
        ("s3://bucket/prefix", "s3://bucket/"),
    ],
)
def test_refused(patterns: str, destination: str) -> None:
    """Another scheme, host or port is refused, and whatever path could be read as one that leads elsewhere."""
    assert not allows(patterns, destination)


@pytest.mark.parametrize("below", ["%2e%2e/in", "a\\..\\..\\in", "a/%252e%252e/b"])
def test_sub_path(below: str) -> None:
    """A sub-path that some system resolves to a parent directory is rejected with its destination."""
    assert allows("/data/out", "/data/out", "a/b")
    assert not allows("/data/out", "/data/out", below)


def test_dots_are_resolved_before_use() -> None:
    """The compared path is the used one, so a remote link cannot change the meaning of ``..``."""
    places = (destination_allowlist.parse_pattern("sftp://host/data"),)
    used = destination_allowlist.check_allowed(places, urls.parse("sftp://u:p@host/data/link/../x/"))
    assert used.geturl() == "sftp://u:p@host/data/x/"


@pytest.mark.parametrize("path", ["/etc", "..", "a/../b", "a\\..\\b", "\\etc", "a/..", "a\0b"])
def test_climbing_sub_paths(path: str) -> None:
    """A sub-path climbs when it does on any system."""
    assert escapes_directory(path)
    assert not escapes_directory("a/b..c/...")


@pytest.mark.parametrize("word", ["data/out", "sftp:/host", "sftp://ho[st/", "sftp://host:99999/", "://host", "sf tp"])
def test_invalid_pattern(word: str) -> None:
    """An invalid pattern is reported."""
    with pytest.raises(ValueError, match=r"destination|port"):
        destination_allowlist.parse_pattern(word)


def test_pattern_shows_no_password() -> None:
    """The password in a pattern is neither compared nor shown, whether the pattern is valid or not."""
    assert str(destination_allowlist.parse_pattern("sftp://u:gehe1m@host:*/a/../b")) == "sftp://u@host:*/b"
    with pytest.raises(ValueError, match="scheme") as wrong:
        destination_allowlist.parse_pattern("sftp://u:gehe1m@ho[st/")
    assert "gehe1m" not in str(wrong.value)
    assert destination_allowlist.parse_pattern("sftp://host:*").port == ANY_PORT


def test_refusal_shows_no_password() -> None:
    """The text of a refusal has the destination without its password."""
    with pytest.raises(RequestRejected, match="sftp://u@evil/x") as refusal:
        destination_allowlist.check_allowed(
            (destination_allowlist.parse_pattern("/data"),), urls.parse("sftp://u:gehe1m@evil/x")
        )
    assert "gehe1m" not in str(refusal.value)


@pytest.mark.parametrize(
    ("clients", "address", "allowed"),
    [
        ("", "198.51.100.7", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.77", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.0/24", "192.0.2.255", True),
        ("192.0.2.1/24", "192.0.2.255", True),
        ("192.0.2.0/24", "192.0.3.1", False),
        ("::ffff:192.0.2.0/120", "192.0.2.9", True),
        ("::ffff:192.0.2.0/120", "192.0.3.9", False),
        ("2001:db8::/32", "2001:db8:1::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("[2001:db8::1]", "2001:db8::1", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("0.0.0.0/0", "", False),
        ("0.0.0.0/0", "no address", False),
        ("localhost", "127.0.0.1", True),
        ("localhost", "::1", True),
        ("localhost 192.0.2.7", "192.0.2.7", True),
        ("localhost", "192.0.2.7", False),
    ],
)
def test_addresses(clients: str, address: str, allowed: bool) -> None:
    """An address is compared as an address, in whatever spelling; one that is not known is not allowed."""
    assert client_allowlist.parse_allowlist(parsers.word_list(clients)).allows_address(address) is allowed


@pytest.mark.parametrize("word", ["192.0.2.300", "192.0.2.0/33", "host/24", "1.2.3"])
def test_invalid_address(word: str) -> None:
    """An invalid address is reported, not mistaken for the name of a key."""
    with pytest.raises(ValueError, match="invalid address or network"):
        client_allowlist.parse_allowlist((word,))


def test_public_key() -> None:
    """A public key is taken for one, whatever characters are in it."""
    key = ")TBk./E<rl6S-y&//sj09GWS:]uvo%ka-1)/uj*)"
    assert client_allowlist.parse_allowlist(parsers.word_list(f"{key}, 192.0.2.7")).keys == (key,)
