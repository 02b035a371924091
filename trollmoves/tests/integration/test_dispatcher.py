"""The dispatcher as a process: received files are delivered to all matching targets after any failure."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from posttroll.message import Message

from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.dispatching import LAST, TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.recording import send_frames
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import PROXY_HOST, ServerProcess, answers
from trollmoves.tests.servers.proxy import Proxy
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd, missing

START = dt.datetime(2025, 1, 2, 3, 4, 5)  # noqa: DTZ001  (as most messages have it)
needs_ftp = pytest.mark.skipif(bool(missing()), reason=f"missing: {missing()}")


def one(**options: Any) -> dict[str, Any]:
    """Return targets with one that matches files under the usual topic."""
    return {"t": {"directory": "OUT", "topics": [TOPIC], **options}}


def url(server: ServerProcess) -> str:
    """Return the host of a target."""
    return f"ftp://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}"


def published(subscriber: Any) -> list[tuple[str, str, Any]]:
    """Return subject, type and data of the published messages about files, ordered by path."""
    found = [one.message for one in list(subscriber.messages) if one.type != "beat" and one.message.subject != "/last"]
    return sorted(((m.subject, m.type, m.data) for m in found), key=lambda recorded: str(recorded[2]["uri"]))


# -- comparison with the earlier implementation

SAME: dict[str, Any] = {
    "plain": {
        "host": "",
        "directory": "OUT/plain",
        "publish_topic": "/sent/{platform_name}",
        "dispatch_configs": [{"topics": [TOPIC]}],
    },
    "patterns": {
        "host": "file://localhost",
        "directory": "OUT/{platform_name}",
        "filepattern": "{platform_name}_{start_time:%Y%m%d_%H%M}_{num:03d}.{product!u}",
        "publish_topic": "/sent/{platform_name}/{product}",
        "dispatch_configs": [{"topics": [TOPIC]}],
    },
    "conditions": {
        "host": "",
        "directory": "OUT/nowhere",
        "publish_topic": "/conditions",
        "dispatch_configs": [
            {
                "topics": ["/level1", "/level2"],
                "conditions": [
                    {"product": ["red", "blue"], "num": ">=6"},
                    {"product": "green", "num": "<6", "except": {"platform_name": "n20"}},
                ],
                "directory": "OUT/conditions",
            }
        ],
    },
    "aliases": {
        "host": "",
        "directory": "OUT/aliases",
        "filepattern": "{product}_{num}_{platform_name}",
        "publish_topic": "/aliases/{product}",
        "aliases": {"product": {"green": "grün"}, "num": {5: "five"}, "nothere": {"a": "b"}},
        "dispatch_configs": [{"topics": [TOPIC]}],
    },
    "last": {
        "host": "",
        "directory": "OUT/last",
        "publish_topic": "/last",
        "dispatch_configs": [{"topics": ["/last"]}],
    },
}


def publish_all(dispatching: DispatcherTestbed) -> None:
    """Say the same as to the other one."""
    a, b, c = (dispatching.file(name) for name in ("a.txt", "b.txt", "c.txt"))
    publisher = dispatching.publisher
    publisher.publish_file(a, f"{TOPIC}/x", platform_name="npp", start_time=START, product="green", num=5, lst=["x"])
    publisher.publish_file(b, platform_name="n20", start_time=START, product="green", num=5, none=None)
    publisher.publish_file(c, "/level1/avhrr", platform_name="n20", start_time=START, product="blue", num="7")
    publisher.publish_file(c, "/other", platform_name="npp", start_time=START, product="green", num=5)
    publisher.publish(TOPIC, "info", {"uri": str(c), "uid": "c.txt", "product": "green", "num": 5})
    data = {"product": "green", "num": 1, "platform_name": "npp", "start_time": START}
    members = [{"uri": str(dispatching.file(name)), "uid": name, "more": 1} for name in ("d.txt", "e.txt")]
    publisher.publish("/level2/dataset", "dataset", {**data, "dataset": members})


def test_as_the_earlier_implementation(testbed: Testbed) -> None:
    """The same file and messages give the same files and the same publications as trollmoves 0.19.0."""
    ours = DispatcherTestbed(testbed, SAME).start()
    theirs = DispatcherTestbed(testbed, SAME, old=True).start()
    for dispatching in (ours, theirs):
        dispatching.wait_until_processed()
        publish_all(dispatching)
        dispatching.wait_until_idle()
    wanted = {
        "plain/a.txt": "content of a.txt",
        "plain/b.txt": "content of b.txt",
        "npp/npp_20250102_0304_005.GREEN": "content of a.txt",
        "n20/n20_20250102_0304_005.GREEN": "content of b.txt",
        "conditions/a.txt": "content of a.txt",
        "conditions/c.txt": "content of c.txt",
        "conditions/d.txt": "content of d.txt",
        "conditions/e.txt": "content of e.txt",
        "aliases/grün_five_npp": "content of a.txt",
        "aliases/grün_five_n20": "content of b.txt",
    }
    for dispatching in (ours, theirs):
        found = {name: text for name, text in dispatching.delivered_files().items() if not name.startswith("last/")}
        assert found == wanted
    until(
        lambda: len(published(ours.subscriber)) == len(published(theirs.subscriber)) == len(wanted),
        what="all messages",
    )
    for (subject, kind, data), (old_subject, old_kind, old_data) in zip(
        published(ours.subscriber), published(theirs.subscriber), strict=True
    ):
        assert (subject, kind) == (old_subject, old_kind)
        assert data == old_data | {"uri": old_data["uri"].replace(str(theirs.out), str(ours.out))}


# -- what each option does


def test_two_dispatch_configs(testbed: Testbed) -> None:
    """Several matching dispatch configs of one target each deliver to where they say."""
    configs = [
        {"topics": ["/level2"], "filepattern": "1_{uid}"},
        {"topics": [TOPIC], "directory": "OUT/two", "filepattern": "2_{uid}"},
        {"topics": ["/level3"], "directory": "OUT/three"},
    ]
    d = DispatcherTestbed(testbed, {"t": {"directory": "OUT/one", "dispatch_configs": configs}, **LAST}).start()
    d.publisher.publish_file(d.file("a"))
    d.wait_until_idle()
    assert {"one/1_a", "two/2_a"} == {name for name in d.delivered_files() if not name.startswith("last")}


def test_texts_that_read_as_times(testbed: Testbed) -> None:
    """Metadata such as ``20250101`` keep their text in paths, aliases, conditions and published messages."""
    config = one(
        directory="OUT/{product}",
        filepattern="{batch}_{start:%H}_{uid}",
        aliases={"batch": {"2025W01": "first"}},
        conditions=[{"product": "20250101"}],
        publish_topic="/sent/{product}",
    )
    d = DispatcherTestbed(testbed, config).start()
    d.publisher.publish_file(d.file("a"), product="20250101", batch="2025W01", start="2025-01-01T12:00:00")
    d.wait_for("20250101/first_12_a")
    d.subscriber.wait_for_receipts(["a"])
    (sent,) = [json.loads(text.partition("application/json ")[2]) for text in d.subscriber.texts if "/sent/" in text]
    assert (sent["product"], sent["batch"]) == ("20250101", "2025W01")


def test_alias_name(testbed: Testbed) -> None:
    """An alias may have its own name, next to the item, in each message."""
    aliases = {"product": [{"_alias_name": "short", "green": "gg"}, {"green": "g"}]}
    d = DispatcherTestbed(testbed, one(filepattern="{short}_{product}_{uid}", aliases=aliases)).start()
    for name in ("a", "b"):
        d.publisher.publish_file(d.file(name), product="green")
    d.wait_for("gg_g_a", "gg_g_b")


def test_file_creation_time(testbed: Testbed) -> None:
    """file_creation_time is the local time at which the file got its name, content and rights."""
    d = DispatcherTestbed(testbed, one(filepattern="{file_creation_time:%Y%m%d%H%M%S}_{uid}")).start()
    path = d.file("a")
    os.utime(path, (1e9, 1e9))
    when = dt.datetime.fromtimestamp(path.stat().st_ctime)  # noqa: DTZ006
    d.publisher.publish_file(path)
    d.wait_for(f"{when:%Y%m%d%H%M%S}_a")


def test_collection(testbed: Testbed) -> None:
    """With ``collections`` their files are delivered and published one by one, with the metadata of their part."""
    targets = one(publish_topic="/sent/{platform_name}", collections=True)
    targets["without"] = {"directory": "OUT/without", "topics": [TOPIC]}
    d = DispatcherTestbed(testbed, targets).start()
    parts = [
        {"start_time": START, "dataset": [{"uri": str(d.file("a")), "uid": "a"}]},
        {"dataset": [{"uri": str(d.file("b")), "uid": "b"}, {"uri": str(d.file("c"))}]},
    ]
    d.publisher.publish(TOPIC, "collection", {"collection": parts, "platform_name": "npp"})
    d.wait_for("a", "b", "c")
    d.subscriber.wait_for(3)
    assert published(d.subscriber) == [
        ("/sent/npp", "file", {"platform_name": "npp", "start_time": START, "uid": "a", "uri": f"{d.out}/a"}),
        ("/sent/npp", "file", {"platform_name": "npp", "uid": "b", "uri": f"{d.out}/b"}),
        ("/sent/npp", "file", {"platform_name": "npp", "uid": "c", "uri": f"{d.out}/c"}),
    ]
    assert not (d.out / "without").exists()


@pytest.mark.parametrize(
    "arguments",
    [("-p", "CONFIG"), ("-n", "CONFIG"), ("-p", "9999", "-n", "host", "CONFIG"), ("CONFIG", "-n", "host", "-p")],
)
def test_file_after_options(testbed: Testbed, arguments: tuple[str, ...]) -> None:
    """-p and -n before the configuration file do not take it for their value."""
    config = testbed.config("[t]\ndirectory = /x\ntopics = /a\n")
    done = testbed.run("dispatcher.py", "--check", *(argument.replace("CONFIG", str(config)) for argument in arguments))
    assert (done.returncode, done.stderr) == (0, "")
    assert "[t]" in done.stdout


def test_topic_of_several_words(testbed: Testbed) -> None:
    """A file is delivered even if its metadata make an unreadable topic; no message with that topic is published."""
    d = DispatcherTestbed(testbed, {**one(publish_topic="/sent/{platform_name}"), **LAST}).start()
    for name, platform in (("a", "Suomi NPP"), ("b", "npp\n"), ("c", " "), ("d", "npp")):
        d.publisher.publish_file(d.file(name), platform_name=platform)
    d.wait_for("a", "b", "c", "d")
    d.subscriber.wait_for_receipts(["d"])
    d.wait_until_idle()
    assert d.subscriber.receipts() == ["d"]
    assert "/a will not be published: its topic '/sent/Suomi NPP' must be a single word" in d.process.lines()


def test_nothing_is_published_without_p(testbed: Testbed) -> None:
    """Without -p no publisher is started."""
    d = DispatcherTestbed(testbed, one(publish_topic="/sent"), "-v").start()
    d.publisher.publish_file(d.file("a"))
    d.wait_for("a")
    assert "publishing as" not in d.process.lines()


def test_any_publish_port(testbed: Testbed) -> None:
    """A bare -p publishes on any port; -n without a host registers with no nameserver."""
    d = DispatcherTestbed(testbed, one(publish_topic="/sent"), "-p", "-n").start()
    line = next(line for line in d.process.lines().splitlines() if "publishing as dispatcher on port" in line)
    subscriber = testbed.subscriber(int(line.rpartition(" ")[2]))
    until(lambda: subscriber.connections, what="a connection")
    d.publisher.publish_file(d.file("a"))
    subscriber.wait_for(1)


def test_bind_address(testbed: Testbed) -> None:
    """bind_address says where the publish port is opened."""
    d = DispatcherTestbed(testbed, {"DEFAULT": {"bind_address": "127.0.0.1"}, **one(publish_topic="/sent")}).start()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", d.port), 5)
    d.publisher.publish_file(d.file("a"))
    d.subscriber.wait_for(1)


def test_log_arguments(testbed: Testbed) -> None:
    """-l, -c and -v direct the log as for all daemons."""
    file, other = testbed.root / "file.log", testbed.root / "other.log"
    handlers = {"h": {"class": "logging.FileHandler", "filename": str(other)}}
    config = testbed.config(
        yaml.safe_dump({"version": 1, "handlers": handlers, "root": {"handlers": ["h"]}}), "log.yaml"
    )
    d = DispatcherTestbed(testbed, one(), "-l", str(file), "-c", str(config), "-v")
    d.process.start(wait=False)
    d.publisher.wait_for_subscribers()
    for _ in range(2):
        d.publisher.publish_file(d.file("a") if not (d.source / "a").exists() else d.source / "a")
    d.wait_for("a")
    until(lambda: "a to " in file.read_text() and "ignored a repeated message" in other.read_text(), what="both logs")
    assert d.process.lines() == ""


def test_duplicates(testbed: Testbed) -> None:
    """A file in a repeated message is delivered once; a file with new content is delivered again."""
    d = DispatcherTestbed(testbed, {**one(publish_topic="/sent"), **LAST}).start()
    for _ in range(3):
        d.publisher.publish_file(d.file("a") if not (d.source / "a").exists() else d.source / "a")
    d.wait_for("a")
    d.publisher.publish_file(d.file("a", "new and longer content"))
    until(lambda: d.delivered_files().get("a") == "new and longer content", what="the new content")
    d.wait_until_idle()
    assert len(d.subscriber.wait_for(2)) == 2


@pytest.mark.parametrize("published", [True, False])
def test_repeated_messages(testbed: Testbed, published: bool) -> None:
    """A repeated message about an unchanged file is ignored for ``repeat_after``, unless its metadata differ."""
    topic = {"publish_topic": "/sent"} if published else {}
    d = DispatcherTestbed(testbed, {**one(repeat_after=100, **topic), **LAST}).start()
    path = d.file("a")
    for version in (1, 1, 2):
        d.publisher.publish_file(path, version=version)
        d.wait_until_idle()
    assert d.process.lines().count("ignored a repeated message: the delivery of a to ") == (1 if published else 2)
    again = d.process.lines().count("delivering a to ")
    assert again == (1 if published else 0)
    d.reconfigure({**one(repeat_after=0.01, **topic), **LAST})
    (d.out / "a").unlink()
    d.publisher.publish_file(path, version=2)
    d.wait_for("a")
    if published:
        assert [received.data["version"] for received in d.subscriber.wait_for(3)] == [1, 2, 2]


def test_to_one_name(testbed: Testbed) -> None:
    """Of several files with the same final name the last one stays."""
    d = DispatcherTestbed(testbed, {**one(filepattern="latest", max_transfers_per_host=8), **LAST}).start()
    for number in range(40):
        d.publisher.publish_file(d.file(f"f{number}"))
    until(lambda: d.delivered_files().get("latest") == "content of f39", what="the last one")
    until(lambda: d.process.lines().count("delivered") + d.process.lines().count("superseded") >= 40, what="the rest")
    assert d.delivered_files()["latest"] == "content of f39"


def test_nothing_that_is_said_ends_it(testbed: Testbed) -> None:
    """Whatever a message says, the next one is delivered."""
    d = DispatcherTestbed(testbed, {**one(directory="OUT/{platform_name}", conditions=[{"num": "<6"}]), **LAST}).start()
    good = {"uri": str(d.file("a")), "uid": "a", "platform_name": "npp", "num": 5}
    remote = "ssh://elsewhere.site.invalid/a"
    odd = [
        "hello", [], {}, {"uid": "a", "num": 5}, good | {"uri": None}, good | {"uri": 5}, good | {"uri": ""},
        good | {"uri": "/no/such/file"}, good | {"uri": remote}, good | {"uri": "a\0b"}, good | {"uri": "ssh://[x"},
        good | {"uri": str(d.source)}, good | {"num": None}, good | {"num": "x"}, good | {"platform_name": "../../up"},
        {"uri": str(d.source / "a"), "num": 5}, {"dataset": 5, "num": 5}, {"dataset": [5, {}], "num": 5},
        good | {"uid": {"a": []}, "platform_name": {"x": 1}, "uri": str(d.file("b"))},
    ]  # fmt: skip
    for data in odd:
        for kind in ("file", "dataset"):
            d.publisher.publish(TOPIC, kind, data)
    d.publisher.publish_text(f"pytroll:/{TOPIC} file")
    d.publisher.publish_text(f"pytroll:/{TOPIC} file me@here yesterday v1.01 application/json {{}}")
    d.publisher.publish_text(f"pytroll:/{TOPIC} file me@here 2025-01-01T00:00:00 v1.01 application/json {{bad")
    d.publisher.publish(TOPIC, "file", good)
    d.wait_for("npp/a")
    d.process.wait_for_line("metadata would lead above the directory")
    assert f"{remote} is on another host" in d.process.lines()
    assert "/no/such/file: No such file or directory" in d.process.lines()
    assert "missing field 'platform_name' for" in d.process.lines()
    assert "metadata would lead above the directory" in d.process.lines()
    assert not (testbed.root / "up").exists()
    assert "Traceback" not in d.process.lines()


def test_file_urls(testbed: Testbed) -> None:
    """A URL that names this host is a file here."""
    d = DispatcherTestbed(testbed, one()).start()
    for name, prefix in (("a", "file://"), ("b", "ssh://localhost"), ("c", "ssh://127.0.0.1")):
        d.publisher.publish(TOPIC, "file", {"uri": f"{prefix}{d.file(name)}", "uid": name})
    d.wait_for("a", "b", "c")


def test_permanent_failure(testbed: Testbed) -> None:
    """A destination that must be repaired is logged once; a new message about the file retries it."""
    d = DispatcherTestbed(testbed, {**one(directory="OUT/file"), **LAST}).start()
    (d.out / "file").write_text("in the way")
    d.publisher.publish_file(d.file("a"))
    d.process.wait_for_line(", held (attempt")
    d.publisher.publish_file(d.source / "a")
    assert d.process.lines().count(", held (attempt") == 1
    (d.out / "file").unlink()
    d.publisher.publish_file(d.source / "a")
    d.wait_for("file/a")


@needs_ftp
def test_idle_dispatcher_is_killed(testbed: Testbed) -> None:
    """A dispatcher that was idle for a moment before its kill publishes none of its messages again."""
    d = DispatcherTestbed(testbed, one(publish_topic="/sent")).start()
    for name in ("a", "b"):
        d.publisher.publish_file(d.file(name))
    until(lambda: len(published(d.subscriber)) == 2)
    testbed.wait_until_outlived("dispatcher")
    d.process.kill()
    d.restart()
    d.publisher.publish_file(d.file("c"))
    until(lambda: "c" in [data["uid"] for _, _, data in published(d.subscriber)])
    assert [data["uid"] for _, _, data in published(d.subscriber)] == ["a", "b", "c"]


def test_killed_before_delivery(testbed: Testbed, tmp_path: Path) -> None:
    """A file received for several targets is delivered to all after a kill."""
    server = PyFtpd(tmp_path / "ftp", testbed.directory("out") / "far")
    server.root.mkdir()
    far = {"host": url(server), "directory": "/", "topics": [TOPIC], "publish_topic": "/far"}
    d = DispatcherTestbed(testbed, {**one(directory="OUT/near"), "far": far}).start()
    names = [f"f{number}" for number in range(100)]
    for name in names:
        d.publisher.publish_file(d.file(name))
    until(lambda: len(d.delivered_files()) > 50, what="some are delivered to the one that is there")
    d.process.kill()
    near = {name.removeprefix("near/") for name in d.delivered_files()}
    with server:
        d.restart()
        d.wait_for(*(f"far/{name}" for name in near), seconds=40)
        d.subscriber.wait_for_receipts(near)
    arrived = d.delivered_files()
    for name in near:
        assert arrived[f"near/{name}"] == arrived[f"far/{name}"] == f"content of {name}"


@needs_ftp
def test_users_of_one_host(testbed: Testbed, tmp_path: Path) -> None:
    """Two users of one host with their own home directories get each file, from one target."""
    homes = {USER: testbed.directory("home-a"), "other": testbed.directory("home-b")}
    server = PyFtpd(tmp_path / "ftp", homes[USER], options=("--user", "other", str(homes["other"])))
    password = quote(PASSWORD, safe="")
    configs = [{"host": f"ftp://{user}:{password}@127.0.0.1:{server.port}", "topics": [TOPIC]} for user in homes]
    with server:
        d = DispatcherTestbed(testbed, {"far": {"directory": "/in", "dispatch_configs": configs}}).start()
        for name in ("a", "b"):
            d.publisher.publish_file(d.file(name))
        until(lambda: all(len(list(home.glob("in/?"))) == 2 for home in homes.values()), what="each user has both")


def _rewrite(path: Path, content: str) -> None:
    path.write_text(content)


def _replace(path: Path, content: str) -> None:
    staged = path.with_name(".staged")
    staged.write_text(content)
    staged.rename(path)


@needs_ftp
def test_file_that_changes_while_it_is_sent(testbed: Testbed, tmp_path: Path) -> None:
    """A file that is rewritten, replaced or removed while it is sent arrives whole, and the newest version stays."""
    server = PyFtpd(tmp_path / "ftp", testbed.directory("out"))
    host = url(server).replace("127.0.0.1", PROXY_HOST)
    older, newer = ("1" * 1_000_000, "2" * 1_000_000)
    with server, Proxy(server.port, *server.passive_ports) as proxy:
        d = DispatcherTestbed(testbed, {"far": {"host": host, "directory": "/", "topics": [TOPIC]}}).start()

        def send_until_stalled(name: str) -> Path:
            path = d.file(name, older)
            os.utime(path, (1, 1))
            proxy.stall_after(200_000)
            d.publisher.publish_file(path)
            until(lambda: proxy.sent > 200_000, what="a part is sent")
            return path

        def wait_for(name: str, content: str) -> None:
            def has_content() -> bool:
                found = d.delivered_files().get(name)
                assert found in (None, older, newer)
                return found == content

            until(has_content, what=f"{name} arrives")

        for change in (_rewrite, _replace):
            path = send_until_stalled(change.__name__)
            change(path, newer)
            d.publisher.publish_file(path)
            proxy.heal()
            wait_for(path.name, newer)
        path = send_until_stalled("removed")
        path.unlink()
        proxy.heal()
        wait_for(path.name, older)
        path = send_until_stalled("slowly")
        with path.open("r+") as writer:
            writer.write(newer[:1000])
            writer.flush()
            proxy.heal()
            d.process.wait_for_line("slowly: differs from its announcement and may be incomplete")
            writer.write(newer[1000:])
        wait_for(path.name, newer)
        until(lambda: not testbed.pending_tasks(), what="no task is pending")
        assert d.delivered_files() == {"_rewrite": newer, "_replace": newer, "removed": older, "slowly": newer}


def test_retry_for(testbed: Testbed) -> None:
    """What fails for longer than retry_for is given up, and said so."""
    port = testbed.port()
    d = DispatcherTestbed(testbed, one(host=f"ftp://127.0.0.1:{port}", retry_for=0.5, directory="/x")).start()
    d.publisher.publish_file(d.file("a"))
    d.process.wait_for_line("giving up on", seconds=40)


def test_stopped_in_a_burst(testbed: Testbed) -> None:
    """SIGTERM ends it with status 0, and received files are delivered after the next start."""
    d = DispatcherTestbed(testbed, one()).start()
    for number in range(300):
        d.publisher.publish_file(d.file(f"f{number}"))
    until(lambda: len(d.delivered_files()) > 10, what="some")
    assert d.process.terminate() == 0
    d.restart()
    d.publisher.publish_file(d.file("more"))
    d.wait_for("more")


# -- reload


def test_reload(testbed: Testbed) -> None:
    """A reload adds, changes and removes targets; new topics are subscribed to, and other targets continue."""
    d = DispatcherTestbed(testbed, one()).start()
    d.publisher.publish_file(d.file("a"))
    d.wait_for("a")
    d.reconfigure({**one(directory="OUT/changed"), "u": {"directory": "OUT/u", "topics": ["/new"]}})
    d.publisher.wait_for_subscribers(2)
    d.publisher.publish_file(d.file("b"))
    d.publisher.publish_file(d.file("c"), "/new")
    d.wait_for("changed/b", "u/c")
    d.reconfigure({"u": {"directory": "OUT/u", "topics": ["/new"]}, **LAST})
    d.publisher.wait_for_subscribers(3)
    d.publisher.publish_file(d.file("e"))
    d.publisher.publish_file(d.file("f"), "/new")
    d.wait_for("u/f")
    d.wait_until_idle()
    assert not any(name.endswith("e") for name in d.delivered_files())


def test_no_message_is_lost_while_it_reloads(testbed: Testbed) -> None:
    """Messages that come while targets change are delivered by the old ones or the new ones."""
    d = DispatcherTestbed(testbed, one()).start()
    names = [f"f{number}" for number in range(300)]
    for number, name in enumerate(names):
        if number % 100 == 50:
            d.process.reconfigure(d.text(one(max_transfers_per_host=number)))
        d.publisher.publish_file(d.file(name))
        time.sleep(0.002)
    d.wait_for(*names)
    d.process.wait_for_line("configuration reloaded", 1)


def test_bad_file_on_reload(testbed: Testbed) -> None:
    """An unusable file on reload keeps the running configuration, and is reported with the line."""
    d = DispatcherTestbed(testbed, one()).start()
    d.process.reconfigure("t: [x\nu: y\n")
    d.process.wait_for_line("configuration not reloaded, the chains keep running unchanged")
    assert "line 2" in d.process.lines()
    d.publisher.publish_file(d.file("a"))
    d.wait_for("a")
    d.process.send(signal.SIGHUP)
    d.process.wait_for_line("configuration not reloaded", 2)


def test_subscriber_needs_a_restart(testbed: Testbed) -> None:
    """A changed subscriber is said to need a restart."""
    d = DispatcherTestbed(testbed, one()).start()
    d.process.reconfigure(d.text(one()).replace("nameserver: false", "nameserver: localhost"))
    d.process.wait_for_line("changes in [DEFAULT] take effect after a restart: nameserver")


# -- a directory instead of messages


@pytest.mark.parametrize("above", [False, True])
def test_origin(testbed: Testbed, above: bool) -> None:
    """With an origin the files that appear are delivered, with the fields of their names, also after a restart."""
    source = testbed.directory("watched")
    origin = f"{source}/{{platform_name}}_{{num:d}}.dat"
    conditions = [{"num": "<6"}]
    options = {"directory": "OUT/{platform_name}", "publish_topic": "/sent/{platform_name}", "conditions": conditions}
    targets: dict[str, Any] = {"origin": origin, "t": options} if above else {"t": {**options, "origin": origin}}
    d = DispatcherTestbed(testbed, targets)
    (source / "npp_1.dat").write_text("before")
    d.process.start()
    d.wait_for("npp/npp_1.dat")
    (source / "n20_2.dat").write_text("after")
    (source / "n20_7.dat").write_text("does not match")
    (source / "other").write_text("is none")
    d.wait_for("n20/n20_2.dat")
    d.process.kill()
    (source / "n20_3.dat").write_text("while it was away")
    d.process.start()
    d.wait_for("n20/n20_3.dat")
    assert set(d.delivered_files()) == {"npp/npp_1.dat", "n20/n20_2.dat", "n20/n20_3.dat"}
    until(lambda: d.subscriber.of_file("n20_2.dat"), what="it is published")
    recorded = d.subscriber.of_file("n20_2.dat")[
        0
    ]  # there is a second one when the kill came before the journal had it
    wanted = {"platform_name": "n20", "num": 2, "uid": "n20_2.dat", "uri": f"{d.out}/n20/n20_2.dat"}
    assert (recorded.message.subject, recorded.data) == ("/sent/n20", wanted)


# -- services of a nameserver


def test_services(testbed: Testbed) -> None:
    """A dispatcher finds publishers by their services at a nameserver, and is found there itself."""
    ports = {f"POSTTROLL_{name}_PORT": str(testbed.port()) for name in ("NAMESERVER", "BROADCAST", "ADDRESS_PUBLISH")}
    environment = {**testbed.environment, **ports}
    nameserver = Path(sys.executable).with_name("nameserver")
    port = int(ports["POSTTROLL_NAMESERVER_PORT"])
    testbed.process(
        "nameserver", [str(nameserver), "--no-multicast"], nameserver, lambda _: answers(port), environment
    ).start()
    first = DispatcherTestbed(testbed, one(directory="OUT/first", publish_topic="/sent"), "-p", "-n", "localhost")
    first.process.environment = environment
    second = {
        "posttroll_subscriber": {"nameserver": "localhost", "subscribe_services": ["dispatcher"]},
        "t": {"directory": f"{first.out}/second", "topics": ["/sent"]},
    }
    config = testbed.config(yaml.safe_dump(second), "second.yaml")
    process = testbed.process("second", testbed.command("dispatcher.py", config), config, environment=environment)
    first.start()
    request = Message("/oper/ns", "request", {"service": "dispatcher"}).encode().encode()
    until(lambda: Message.decode(send_frames(port, request)).data, what="the first one is known")
    process.start()
    process.wait_for_line("listening to")

    def arrives() -> bool:
        first.publisher.publish_file(first.file(f"f{time.monotonic_ns()}"))
        time.sleep(0.1)
        return any(name.startswith("second/") for name in first.delivered_files())

    until(arrives, what="a file is delivered by the second one")


# -- INI, --check and --explain


def test_ini(testbed: Testbed) -> None:
    """An INI file runs as a YAML file does."""
    d = DispatcherTestbed(testbed, {})
    d.config.write_text(
        f"[posttroll_subscriber]\nsubscribe_addresses = {d.publisher.address}\nnameserver = false\n"
        f"[t]\ntopics = {TOPIC}\ndirectory = {d.out}\nfilepattern = {{product}}_{{uid}}\n"
        "conditions__num = >5\naliases__product__green = gg\n"
    )
    d.start()
    d.publisher.publish_file(d.file("a"), num=6, product="green")
    d.wait_for("gg_a")


def check(testbed: Testbed, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the dispatcher to its end."""
    return testbed.run("dispatcher.py", config, *arguments)


def test_check(testbed: Testbed) -> None:
    """--check says what would run, and whether something is wrong, without a secret."""
    text = "t: {host: 'ftp://u:geheim@h', directory: /d, topics: [/a]}\n"
    found = check(testbed, testbed.config(text, "a.yaml"), "--check")
    assert found.returncode == 0
    assert "1 dispatcher chain" in found.stdout
    assert "geheim" not in found.stdout
    broken = check(testbed, testbed.config(text + "u: {directory: /d}\n", "b.yaml"), "--check")
    assert broken.returncode == 1
    assert "[u] dispatch_configs: is missing" in broken.stdout


EXPLAINED = """\
one:
  host: ftp://u:geheim@h:21
  directory: /in/{platform_name}
  publish_topic: /sent/{platform_name}
  dispatch_configs:
    - topics: [/level2]
      conditions: [{product: [red, blue]}, {num: ">5"}]
    - topics: [/level3, /level4]
    - topics: [/level2]
      filepattern: "{nothere}"
    - topics: [/level2]
      filepattern: "{product}.txt"
two: {directory: /d, origin: "/watched/{platform_name}.dat"}
"""


def test_explain_a_message(testbed: Testbed) -> None:
    """--explain says of a message where it goes, and why it does not go to the rest."""
    config = testbed.config(EXPLAINED, "a.yaml")
    data = {"uri": "/no/such/a.txt", "uid": "a.txt", "platform_name": "npp", "product": "green", "num": 5}
    text = str(Message("/level2/viirs", "file", data))
    expected = [
        "/level2/viirs file: a.txt",
        "[one]",
        "dispatch config 1: no: product is 'green', not one of 'red', 'blue'; num is 5, not > 5",
        "dispatch config 2: no: its subject does not begin with /level3 or /level4",
        "dispatch config 3: no: missing field 'nothere' for '/in/{platform_name}/{nothere}'",
        "dispatch config 4: to ftp://u@h:21/in/npp/green.txt, published as /sent/npp "
        "(but not now: /no/such/a.txt: No such file or directory)",
        "[two]",
        "no: its files come from its origin, not from messages",
    ]
    for given in (text, str(testbed.config(text, "message"))):
        for arguments in (("--explain", given), ("--check", "--explain", given)):
            found = check(testbed, config, *arguments)
            assert [line.strip() for line in found.stdout.splitlines()] == expected
            assert found.returncode == 0


def test_explain_a_file(testbed: Testbed) -> None:
    """--explain says of a file name where it goes, or under which topics and conditions it would."""
    config = testbed.config(EXPLAINED, "a.yaml")
    found = check(testbed, config, "--explain", "/watched/npp.dat").stdout
    assert "/watched/npp.dat: file not found" in found
    assert "for a message under /level3 or /level4: to " in found
    assert "that fulfils the conditions: to " in found
    assert "to /d/npp.dat (but not now: /watched/npp.dat: No such file or directory)" in found
    assert "no: its origin is /watched/{platform_name}.dat" in check(testbed, config, "--explain", "/x").stdout


def test_explain_nonsense(testbed: Testbed) -> None:
    """--explain rejects an invalid message in one line."""
    config = testbed.config(EXPLAINED, "a.yaml")
    found = check(testbed, config, "--explain", "pytroll://a b")
    assert found.returncode == 1
    assert "invalid message" in found.stderr
    assert found.stderr.count("\n") == 1
    no_dict = check(testbed, config, "--explain", str(Message("/level2", "file", "text")))
    assert "no: its data must be a dictionary" in no_dict.stdout
    heartbeat = check(testbed, config, "--explain", str(Message("/level2", "beat", {})))
    assert "no: messages of type beat are not about files" in heartbeat.stdout


def test_it_cannot_start(testbed: Testbed) -> None:
    """A dispatcher that cannot start says why in one line."""
    for text in ("", "t: {directory: /d}\n", "t: [x"):
        found = check(testbed, testbed.config(text, "a.yaml"))
        assert found.returncode == 1
        assert found.stderr.startswith("dispatcher.py: ")
        assert found.stderr.count("\n") == 1
