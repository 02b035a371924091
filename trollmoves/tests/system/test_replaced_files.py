"""Files that are replaced in quick succession arrive in whole versions, and the newest version stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trollmoves.tests.helpers.crashing import PackingFeeder
from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    DaemonPair,
    Testbed,
    client_section,
    mirror_section,
)
from trollmoves.tests.helpers.feeding import Feeder, content
from trollmoves.tests.helpers.waiting import until

VERSIONS = 8
SIZE = 300_000


def plain(testbed: Testbed) -> tuple[Feeder, Path]:
    """Return feeder and target of a server and a client."""
    pair = DaemonPair(testbed).start()
    return pair.feeder, pair.target


def packed(testbed: Testbed, server: dict[str, object], **client: object) -> tuple[Feeder, Path]:
    """Return feeder and target of a pair for packed files."""
    pair = DaemonPair(testbed, server, **client)
    pair.server_sections["hrit"]["origin"] = f"{pair.feeder.folder}/{{name}}.bz2"
    pair.server.reconfigure(pair.server_sections)
    pair.start()
    return PackingFeeder(pair.feeder.folder), pair.target


def unpacking_server(testbed: Testbed) -> tuple[Feeder, Path]:
    """Return those of a server that unpacks and removes the packed files."""
    working_directory = testbed.directory("work")
    return packed(testbed, {"compression": "bzip", "working_directory": working_directory, "delete": True})


def unpacking_client(testbed: Testbed) -> tuple[Feeder, Path]:
    """Return those of a client that unpacks and removes the packed files."""
    return packed(testbed, {}, compression="bzip", delete=True)


def mirror(testbed: Testbed) -> tuple[Feeder, Path]:
    """Return those of a server, a mirror and a client of the mirror."""
    pair = DaemonPair(testbed)
    port = testbed.port()
    far = mirror_section(pair.publish_port, testbed.directory("copies"), testbed.port())
    relay = testbed.mirror({"far": far}, port)
    pair.client.reconfigure({"outer": client_section(port, pair.target, pair.client_port, topic=MIRROR_TOPIC)})
    relay.start()
    pair.start()
    return pair.feeder, pair.target


@pytest.mark.parametrize("path", [plain, unpacking_server, unpacking_client, mirror])
def test_newest_version_stays(testbed: Testbed, path: Callable[[Testbed], tuple[Feeder, Path]]) -> None:
    """In every path, a reader sees whole versions of a file that is replaced repeatedly, at last the newest one."""
    feeder, target = path(testbed)
    (name,) = feeder.feed(1, size=SIZE)
    versions = {content(name, version, SIZE) for version in range(1, VERSIONS + 1)}

    def is_newest() -> bool:
        try:
            found = (target / name).read_bytes()
        except FileNotFoundError:
            return False
        assert found in versions
        return found == feeder.fed[name]

    until(is_newest, what="the first version arrives")
    for version in range(2, VERSIONS + 1):
        feeder.put(name, version=version, size=SIZE)
        is_newest()
    until(is_newest, what="the newest version arrives")
    until(lambda: not testbed.pending_tasks(), what="no task is pending")
    assert is_newest()
    assert sorted(found.name for found in target.iterdir() if found.suffix != ".bz2") == [name]
