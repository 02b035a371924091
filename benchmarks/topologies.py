"""Systems with many hosts: clients, servers, a mirror, a dead host among healthy ones, a slow connection."""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.flow import WORK_TIMEOUT
from benchmarks.observers import Cost, Receipts
from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    Testbed,
    client_section,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.network import Network, SlowLink
from trollmoves.tests.helpers.waiting import until

CLIENTS, SERVERS, HEALTHY = 10, 5, 9
PAIRS = 11  # of bursts, with and without a dead host
DELAY = 0.005  # s each way


def _timed(folders: list[Path], receipts: list[Receipts], fed: list[str]) -> float:
    """Create files in each of the folders; return the seconds until all observers have all receipts."""
    for folder in folders:
        ready = folder.with_name(f"{folder.name}-ready")
        ready.mkdir(exist_ok=True)
        for name in fed:
            (ready / name).write_bytes(content(name))
    began = time.monotonic()
    for name in fed:
        for folder in folders:
            os.rename(folder.with_name(f"{folder.name}-ready") / name, folder / name)
    for observer in receipts:
        observer.wait_for(fed, WORK_TIMEOUT)
    return max(observer.at[name] for observer in receipts for name in fed) - began


def fan_out(logs: Path, *, count: int, most: int = CLIENTS) -> Iterator[Figure]:
    """Time one server and many clients that fetch every file, and the cost of a delivery in the server.

    A single client fetches the same number of files as all clients together.
    """
    took, cost = {}, {}
    for clients in (1, most):
        with Testbed(logs) as testbed:
            origin, port = testbed.directory("in"), testbed.port()
            server = testbed.server({"hrit": server_section(origin, testbed.port())}, port).start(wait=False)
            receipts, processes = [], []
            for number in range(clients):
                published = testbed.port()
                section = client_section(port, testbed.directory(f"out{number}"), published)
                processes.append(testbed.client({"hrit": section}, name=f"client{number}").start(wait=False))
                receipts.append(testbed.close_at_end(Receipts(published)))
            for process in (server, *processes):
                process.wait_until_ready()
            fed = names()
            _timed([origin], receipts, list(itertools.islice(fed, 20)))
            assert server.popen
            used = Cost(server.popen.pid)
            took[clients] = _timed([origin], receipts, list(itertools.islice(fed, most * count // clients)))
            cost[clients] = used.cpu()
    yield Figure(
        f"1 server, {most} clients, {count} files: deliveries", most * count / took[most], "files/s",
        limit=most * count / took[1], limit_of="1 client, as many deliveries",
    )  # fmt: skip
    times = cost[most] / cost[1]
    yield Figure(
        f"CPU of the server per delivery, {most} clients relative to one", times, "times", more=False,
        promise="<= 2", kept=times <= 2,
    )  # fmt: skip


def fan_in(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time five servers with the same files, and a client that fetches each once."""
    with Testbed(logs) as testbed:
        origins = [testbed.directory(f"in{number}") for number in range(SERVERS)]
        ports = [testbed.port() for _ in origins]
        servers = [
            testbed.server({"hrit": server_section(origin, testbed.port())}, port, name=f"server{port}").start(
                wait=False
            )
            for origin, port in zip(origins, ports, strict=True)
        ]
        published = testbed.port()
        target = testbed.directory("out")
        client = testbed.client({"hrit": client_section(ports, target, published)}).start(wait=False)
        observer = testbed.close_at_end(Receipts(published))
        for process in (*servers, client):
            process.wait_until_ready()
        fed = names()
        _timed(origins, [observer], list(itertools.islice(fed, 20)))
        took = _timed(origins, [observer], list(itertools.islice(fed, count)))
        delivered = sum(server.lines().count(" delivered ") for server in servers)
        yield Figure(f"{SERVERS} servers, 1 client, the same {count} files", count / took, "files/s")
        yield Figure("transfers of each of them", delivered / (count + 20), "times", more=False)


def mirror(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time files through a mirror."""
    with Testbed(logs) as testbed:
        origin, inner, outer, published = testbed.directory("in"), testbed.port(), testbed.port(), testbed.port()
        processes = [
            testbed.server({"hrit": server_section(origin, testbed.port())}, inner),
            testbed.mirror({"hrit": mirror_section(inner, testbed.directory("copies"), testbed.port())}, outer),
            testbed.client({"hrit": client_section(outer, testbed.directory("out"), published, topic=MIRROR_TOPIC)}),
        ]
        observer = testbed.close_at_end(Receipts(published))
        for process in processes:
            process.start(wait=False)
        for process in processes:
            process.wait_until_ready()
        fed = names()
        _timed([origin], [observer], list(itertools.islice(fed, 50)))
        took = _timed([origin], [observer], list(itertools.islice(fed, count)))
        yield Figure(f"server, mirror, client: burst of {count} files", count / took, "files/s")


def dead_host(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time nine healthy targets, with and without a tenth one that accepts connections and never replies.

    Both systems run and take turns, so that other load of the machine affects them equally.
    """
    with Testbed(logs) as testbed, socket.create_server(("127.0.0.99", 0), backlog=500) as hole:
        there = f"ftp://me:x@127.0.0.99:{hole.getsockname()[1]}/in/"
        systems = {"with": _system(testbed, "with", there), "without": _system(testbed, "without")}
        fed = names()
        for origin, receipts in systems.values():
            _timed([origin], receipts, list(itertools.islice(fed, 20)))
        lost = []
        for pair in range(PAIRS):
            took = {}
            for which in sorted(systems, reverse=bool(pair % 2)):
                origin, receipts = systems[which]
                took[which] = _timed([origin], receipts, list(itertools.islice(fed, count)))
            lost.append(100 * (1 - took["without"] / took["with"]))
    middle = statistics.median(lost)
    yield Figure(
        f"a dead host among {HEALTHY + 1}: loss of the healthy ones", middle, "%", more=False,
        promise="< 10 %", kept=middle < 10,
    )  # fmt: skip


def _system(testbed: Testbed, name: str, dead: str = "") -> tuple[Path, list[Receipts]]:
    """Start a server and a client with nine targets, and one at ``dead``; return the origin and nine observers."""
    origin, port = testbed.directory(f"{name}-in"), testbed.port()
    sections, receipts = {}, []
    for number in range(HEALTHY):
        published = testbed.port()
        sections[f"out{number}"] = client_section(port, testbed.directory(f"{name}-out{number}"), published)
        receipts.append(testbed.close_at_end(Receipts(published)))
    if dead:
        sections["dead"] = client_section(port, dead, testbed.port())
    server = testbed.server({"hrit": server_section(origin, testbed.port())}, port, name=f"{name}-server").start(
        wait=False
    )
    testbed.client(sections, name=f"{name}-client").start()
    server.wait_until_ready()
    return origin, receipts


def slow_link(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time a client with a round trip of 10 ms to its server."""
    with Testbed(logs) as testbed:
        network = Network(testbed)
        here, there = network.host(), network.host()
        line = SlowLink(testbed, here, there, DELAY)
        origin, port, published = testbed.directory("in"), testbed.port(), testbed.port()
        section = server_section(origin, testbed.port(), request_address=line.ends[0])
        server = here.run_inside(testbed.server({"hrit": section}, port)).start()
        wanted = client_section(port, testbed.directory("out"), published) | {"providers": f"{line.ends[0]}:{port}"}
        client = there.run_inside(testbed.client({"hrit": wanted})).start()
        with there.inside():
            observer = testbed.close_at_end(Receipts(published))
        fed = names()
        until(lambda: "hrit" in server.lines() and client.is_running(), 10)
        _timed([origin], [observer], list(itertools.islice(fed, 50)))
        took = _timed([origin], [observer], list(itertools.islice(fed, count)))
        rate, one_by_one = count / took, 1 / (2 * DELAY)
        yield Figure(
            f"{count} files over a connection with a round trip of {2000 * DELAY:.0f} ms", rate, "files/s",
            limit=one_by_one, limit_of="one at a time", promise="not one at a time", kept=rate > 2 * one_by_one,
        )  # fmt: skip
