"""Many at once: clients, servers, a mirror in between, a dead host among healthy ones, a long line."""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.flow import PATIENCE
from benchmarks.witness import Cost, Receipts
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


def _timed(folders: list[Path], ears: list[Receipts], fed: list[str]) -> float:
    """Have files appear in each of the folders at once; give the seconds until every ear has heard of all of them."""
    for folder in folders:
        ready = folder.with_name(f"{folder.name}-ready")
        ready.mkdir(exist_ok=True)
        for name in fed:
            (ready / name).write_bytes(content(name))
    began = time.monotonic()
    for name in fed:
        for folder in folders:
            os.rename(folder.with_name(f"{folder.name}-ready") / name, folder / name)
    for ear in ears:
        ear.wait_for(fed, PATIENCE)
    return max(ear.at[name] for ear in ears for name in fed) - began


def fan_out(logs: Path, *, count: int, most: int = CLIENTS) -> Iterator[Figure]:
    """Time one server and many clients, each of which wants every file, and what a delivery costs the server.

    One client alone has as many files to fetch as all of them have together.
    """
    took, cost = {}, {}
    for clients in (1, most):
        with Testbed(logs) as site:
            origin, port = site.directory("in"), site.port()
            server = site.server({"hrit": server_section(origin, site.port())}, port).start(wait=False)
            ears, processes = [], []
            for number in range(clients):
                published = site.port()
                section = client_section(port, site.directory(f"out{number}"), published)
                processes.append(site.client({"hrit": section}, name=f"client{number}").start(wait=False))
                ears.append(site.close_at_end(Receipts(published)))
            for process in (server, *processes):
                process.wait_until_ready()
            fed = names()
            _timed([origin], ears, list(itertools.islice(fed, 20)))
            assert server.popen
            used = Cost(server.popen.pid)
            took[clients] = _timed([origin], ears, list(itertools.islice(fed, most * count // clients)))
            cost[clients] = used.cpu()
    yield Figure(
        f"1 server, {most} clients, {count} files: deliveries", most * count / took[most], "files/s",
        limit=most * count / took[1], limit_of="1 client, as many deliveries",
    )  # fmt: skip
    times = cost[most] / cost[1]
    yield Figure(
        f"CPU of the server a delivery with {most} clients to that with one", times, "times", more=False,
        promise="<= 2", kept=times <= 2,
    )  # fmt: skip


def fan_in(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time five servers that have the same files, and a client that wants each once."""
    with Testbed(logs) as site:
        origins = [site.directory(f"in{number}") for number in range(SERVERS)]
        ports = [site.port() for _ in origins]
        servers = [
            site.server({"hrit": server_section(origin, site.port())}, port, name=f"server{port}").start(wait=False)
            for origin, port in zip(origins, ports, strict=True)
        ]
        published = site.port()
        target = site.directory("out")
        client = site.client({"hrit": client_section(ports, target, published)}).start(wait=False)
        ear = site.close_at_end(Receipts(published))
        for process in (*servers, client):
            process.wait_until_ready()
        fed = names()
        _timed(origins, [ear], list(itertools.islice(fed, 20)))
        took = _timed(origins, [ear], list(itertools.islice(fed, count)))
        delivered = sum(server.lines().count(" delivered ") for server in servers)
        yield Figure(f"{SERVERS} servers, 1 client, the same {count} files", count / took, "files/s")
        yield Figure("transfers of each of them", delivered / (count + 20), "times", more=False)


def mirror(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time files through a mirror."""
    with Testbed(logs) as site:
        origin, inner, outer, published = site.directory("in"), site.port(), site.port(), site.port()
        processes = [
            site.server({"hrit": server_section(origin, site.port())}, inner),
            site.mirror({"hrit": mirror_section(inner, site.directory("copies"), site.port())}, outer),
            site.client({"hrit": client_section(outer, site.directory("out"), published, topic=MIRROR_TOPIC)}),
        ]
        ear = site.close_at_end(Receipts(published))
        for process in processes:
            process.start(wait=False)
        for process in processes:
            process.wait_until_ready()
        fed = names()
        _timed([origin], [ear], list(itertools.islice(fed, 50)))
        took = _timed([origin], [ear], list(itertools.islice(fed, count)))
        yield Figure(f"server, mirror, client: {count} files at once", count / took, "files/s")


def dead_host(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time nine targets that work, with a tenth one that takes connections and then says nothing, and without it.

    Both stand side by side and work in turns, so that what else the machine does meets one as much as the other.
    """
    with Testbed(logs) as site, socket.create_server(("127.0.0.99", 0), backlog=500) as hole:
        there = f"ftp://me:x@127.0.0.99:{hole.getsockname()[1]}/in/"
        crowds = {"with": _crowd(site, "with", there), "without": _crowd(site, "without")}
        fed = names()
        for origin, ears in crowds.values():
            _timed([origin], ears, list(itertools.islice(fed, 20)))
        lost = []
        for pair in range(PAIRS):
            took = {}
            for which in sorted(crowds, reverse=bool(pair % 2)):
                origin, ears = crowds[which]
                took[which] = _timed([origin], ears, list(itertools.islice(fed, count)))
            lost.append(100 * (1 - took["without"] / took["with"]))
    middle = statistics.median(lost)
    yield Figure(
        f"a dead host among {HEALTHY + 1}: what the healthy ones lose", middle, "%", more=False,
        promise="< 10 %", kept=middle < 10,
    )  # fmt: skip


def _crowd(site: Testbed, name: str, dead: str = "") -> tuple[Path, list[Receipts]]:
    """Start a server and a client with nine targets, and one at ``dead``; give the origin, and the ears of the nine."""
    origin, port = site.directory(f"{name}-in"), site.port()
    sections, ears = {}, []
    for number in range(HEALTHY):
        published = site.port()
        sections[f"out{number}"] = client_section(port, site.directory(f"{name}-out{number}"), published)
        ears.append(site.close_at_end(Receipts(published)))
    if dead:
        sections["dead"] = client_section(port, dead, site.port())
    server = site.server({"hrit": server_section(origin, site.port())}, port, name=f"{name}-server").start(wait=False)
    site.client(sections, name=f"{name}-client").start()
    server.wait_until_ready()
    return origin, ears


def long_line(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time a client that is 10 ms away from its server."""
    with Testbed(logs) as site:
        network = Network(site)
        here, there = network.host(), network.host()
        line = SlowLink(site, here, there, DELAY)
        origin, port, published = site.directory("in"), site.port(), site.port()
        section = server_section(origin, site.port(), request_address=line.ends[0])
        server = here.run_inside(site.server({"hrit": section}, port)).start()
        wanted = client_section(port, site.directory("out"), published) | {"providers": f"{line.ends[0]}:{port}"}
        client = there.run_inside(site.client({"hrit": wanted})).start()
        with there.inside():
            ear = site.close_at_end(Receipts(published))
        fed = names()
        until(lambda: "hrit" in server.lines() and client.is_running(), 10)
        _timed([origin], [ear], list(itertools.islice(fed, 50)))
        took = _timed([origin], [ear], list(itertools.islice(fed, count)))
        rate, one_by_one = count / took, 1 / (2 * DELAY)
        yield Figure(
            f"{count} files over a line of {2000 * DELAY:.0f} ms", rate, "files/s",
            limit=one_by_one, limit_of="one at a time", promise="not one at a time", kept=rate > 2 * one_by_one,
        )  # fmt: skip
