"""Options of client and server that behave differently in a mirror."""

from __future__ import annotations

import bz2
import os

import pytest

from trollmoves.config.option_table import options_of
from trollmoves.config.options import NOT_OF_A_MIRROR, MirrorOptions
from trollmoves.tests.helpers.daemons import Testbed, mirror_section
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import PROXY_HOST, answers
from trollmoves.tests.servers.pyftpd import PASSWORD, USER
from trollmoves.tests.system.test_mirror import Chain


@pytest.mark.parametrize("made", ["true", "false"])
def test_cache_by_ftp(testbed: Testbed, made: str) -> None:
    """Inner servers log in to ``destination`` with ``login``, never published; ``ftp_root`` is its local path."""
    root = testbed.directory("ftp")
    far = RemoteDirectory(testbed, "ftp", root)
    (testbed.root / "home" / ".netrc").unlink()
    chain = Chain(
        testbed, destination=f"{far.url}below", ftp_root=root, login=f"{USER}:{PASSWORD}", create_target_directory=made
    )
    outer = chain.outer()
    chain.start(outer)
    fed = chain.feeder.feed(3)
    chain.wait_until_done(outer)
    assert sorted(path.name for path in (root / "below").rglob("H-*")) == sorted(fed)
    said = "\n".join([*chain.mirrored.texts, *outer.received.texts, chain.mirror.lines(), outer.process.lines()])
    assert PASSWORD[:6] not in said


def test_backup_targets(testbed: Testbed) -> None:
    """Files reach the cache through the next of ``backup_targets`` when ``destination`` does not respond."""
    far = RemoteDirectory(testbed, "sftp", testbed.directory("copies"))
    dead = far.url.replace(PROXY_HOST, "127.0.0.9")
    chain = Chain(
        testbed,
        {"connection_parameters__num_ssh_retries": 1},
        destination=dead,
        ftp_root="/",
        backup_targets=PROXY_HOST,
    )
    outer = chain.outer()
    chain.start(outer)
    chain.feeder.feed()
    chain.wait_until_done(outer)
    assert far.proxy.connections[far.port] > 0


def test_retry_period_expires(testbed: Testbed) -> None:
    """A file that cannot be fetched is retried, and dropped after ``retry_for`` with one error."""
    chain = Chain(testbed, {"retry_for": 1}, destination="sftp://127.0.0.9:1/x", retry_for=4)
    outer = chain.outer(retry_for=60)
    chain.start(outer)
    chain.feeder.feed()
    chain.mirror.wait_for_line("giving up on ", seconds=60)
    assert outer.received.receipts() == []


def test_unpacking_programs(testbed: Testbed) -> None:
    """``prog`` names xRITDecompress as for a server; ``block_size`` applies to unpacking too."""
    program = testbed.directory("bin") / "decompress"
    program.write_text('#!/bin/sh\ntr a-z A-Z < "$1" > "$(basename "${1%C_}")__"\n')
    program.chmod(0o755)
    chain = Chain(testbed, compression="xrit", prog=program)
    chain.server_sections[0]["hrit"]["origin"] = f"{chain.feeder.folder}/{{name}}"
    chain.server.reconfigure(chain.server_sections[0])
    bzip = mirror_section(
        chain.publish_ports, testbed.directory("more"), testbed.port(), compression="bzip", block_size=3
    )
    chain.mirror.reconfigure({**chain.sections, "bzip": bzip | {"topic": "/bzip"}})
    xrit, packed = chain.outer("xrit"), chain.outer("packed", topic="/bzip")
    chain.start(xrit, packed)
    for name, content in (("H-1-C_", b"segment"), ("a.bz2", bz2.compress(b"hello"))):
        (testbed.root / name).write_bytes(content)
        (testbed.root / name).rename(chain.feeder.folder / name)
    xrit.received.wait_for_receipts(["H-1-__"])
    packed.received.wait_for_receipts(["a"])
    assert (xrit.target / "H-1-__").read_bytes() == b"SEGMENT"
    assert (packed.target / "a").read_bytes() == b"hello"


def test_bind_address_and_lanes(testbed: Testbed) -> None:
    """Ports open on ``bind_address`` only; a client's host gets ``max_transfers_per_host`` files concurrently."""
    far = RemoteDirectory(testbed, "ftp", testbed.directory("far"))
    chain = Chain(testbed, bind_address="127.0.0.1", max_transfers_per_host=1)
    outer = chain.outer(destination=far.url, ftp_root=far.folder)
    outer.target = far.folder
    chain.start(outer)
    chain.feeder.feed(30)
    chain.wait_until_done(outer)
    assert far.proxy.connections[far.port] == 1
    assert answers(chain.request_port)
    assert not _answers_elsewhere(chain.request_port)


def _answers_elsewhere(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex((PROXY_HOST, port)) == 0


def test_a_stop_in_time(testbed: Testbed) -> None:
    """``stop_timeout`` bounds a stop with running transfers; their files are relayed after the next start."""
    far = RemoteDirectory(testbed, "ftp", testbed.directory("far"))
    chain = Chain(testbed)
    chain.mirror.reconfigure({"DEFAULT": {"stop_timeout": 1, "synchronous": "full", "workers": 2}, **chain.sections})
    outer = chain.outer(destination=far.url, ftp_root=far.folder)
    outer.target = far.folder
    chain.start(outer)
    far.proxy.stall_after(0)
    chain.feeder.feed(5)
    until(lambda: far.proxy.sent > 0, what="a transfer runs")
    assert chain.mirror.terminate(9) == 0
    assert "transfers were still running after 1 s" in chain.mirror.lines()
    far.proxy.heal()
    far.proxy.cut()
    chain.mirror.start()
    chain.wait_until_done(outer, seconds=60)


def test_ignored_options(testbed: Testbed) -> None:
    """``--check`` names each option that has no effect in a mirror, and no other one."""
    values = {
        "origin": "/a/b",
        "listen": "/a",
        "unpack": "tar",
        "nameserver": HOST,
        "watchdog_timeout": 3,
        "timeout": 3,
        "files": "shared",
    }
    given = {name: values.get(name, "1") for name in NOT_OF_A_MIRROR}
    section = mirror_section(9010, testbed.directory("copies"), 9094)
    checked = testbed.run("move_it_mirror.py", testbed.config({"far": section | given}), "--check")
    assert checked.returncode == 0, checked.stdout
    reported = [line.split("] ")[1].split(":")[0] for line in checked.stdout.splitlines() if "has no effect" in line]
    assert sorted(reported) == sorted(given)
    assert set(given) < set(options_of(MirrorOptions))
    assert os.listdir(testbed.root / "copies") == []
