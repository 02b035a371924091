"""The metrics of each daemon, as Prometheus scrapes them."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from trollmoves.config.options import ProcessOptions
from trollmoves.journal import open_journal
from trollmoves.metrics.counters import FileCounters
from trollmoves.metrics.service import MAX_CONNECTIONS, MetricsService
from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    REPOSITORY,
    ServerClientPair,
    Testbed,
    client_section,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.scraping import Scrape, scrape
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import prometheus, pyftpd
from trollmoves.tests.servers.process import answers, free_port
from trollmoves.tests.unit.test_metrics import reader

FILES = 5


def with_metrics(sections: dict[str, dict[str, object]], port: int, **more: object) -> dict[str, dict[str, object]]:
    """Return sections with a metrics port for the process."""
    return {"DEFAULT": {"metrics_port": port, **more}, **sections}


def scrape_until(port: int, name: str, value: float, **labels: str) -> Scrape:
    """Scrape until a metric has a value; return that scrape."""
    found: list[Scrape] = []

    def has_value() -> bool:
        with suppress(ConnectionError):  # the daemon starts, or is busy
            found[:] = [scrape(port)]
        return bool(found) and found[0].value(name, **labels) == value

    until(has_value, 20, f"{name}{labels} is {value}")
    return found[0]


def test_server_and_client(testbed: Testbed) -> None:
    """Files, bytes, latencies, the last file and the state of a server and a client are counted."""
    pair = ServerClientPair(testbed)
    ports = testbed.port(), testbed.port()
    pair.server.reconfigure(with_metrics(pair.server_sections, ports[0]))
    pair.client.reconfigure(with_metrics(pair.client_sections, ports[1]))
    pair.start()
    pair.feeder.feed(FILES)
    pair.wait_until_done()
    size = sum(path.stat().st_size for path in pair.target.iterdir())

    server = scrape_until(ports[0], "trollmoves_files_total", FILES, kind="push", result="delivered")
    client = scrape_until(ports[1], "trollmoves_files_total", FILES, kind="fetch", result="received")
    own = {"role": "server", "config": "server.ini", "chain": "hrit"}
    assert server.value("trollmoves_files_total", **own, endpoint="this host", result="delivered") == FILES
    assert server.value("trollmoves_bytes_total", **own) == size
    assert client.value("trollmoves_bytes_total", endpoint=f"{HOST}:{pair.request_port}") == size
    assert server.value("trollmoves_announced_files_total", **own) == FILES
    assert server.value("trollmoves_announced_bytes_total", **own) == size
    for page, event in ((server, "announced"), (server, "delivered"), (client, "received")):
        assert page.value("trollmoves_latency_seconds_count", event=event) == FILES
        assert page.value("trollmoves_latency_seconds_bucket", event=event, le="3600.0") == FILES
    for page, event in ((server, "announced"), (client, "received")):
        last = page.value("trollmoves_last_file_timestamp_seconds", event=event)
        assert page.value("trollmoves_start_time_seconds") < last
        assert page.value("trollmoves_waiting") == page.value("trollmoves_oldest_age_seconds") == 0
        assert page.value("trollmoves_journal_up") == 1
        assert page.value("trollmoves_journal_bytes") > 4096
        assert page.value("trollmoves_log_lines_dropped_total") == 0
        assert page.value("process_cpu_seconds_total") > 0
        assert page.labels("trollmoves_build_info")[0]["version"]
    scrape_until(ports[1], "trollmoves_provider_up", 1, provider=f"{HOST}:{pair.publish_port}")


def test_a_server_that_is_down(testbed: Testbed) -> None:
    """A client reports a provider that is down, and missed announcements; it knows its last file after a restart."""
    pair = ServerClientPair(testbed)
    port, server_port = testbed.port(), testbed.port()
    pair.server.reconfigure(with_metrics(pair.server_sections, server_port))
    pair.client.reconfigure(with_metrics(pair.client_sections, port))
    pair.start()
    pair.feeder.feed(1)
    pair.wait_until_done()
    last = scrape_until(port, "trollmoves_files_total", 1, result="received").value(
        "trollmoves_last_file_timestamp_seconds"
    )
    pair.client.kill()
    pair.server.kill()
    pair.client.start()
    restarted = scrape_until(port, "trollmoves_provider_up", 0)
    assert restarted.value("trollmoves_last_file_timestamp_seconds") == pytest.approx(last, abs=1)
    pair.client.kill()
    pair.server.start()
    pair.feeder.feed(FILES)
    scrape_until(server_port, "trollmoves_announced_files_total", FILES)
    pair.client.start()
    pair.wait_until_done()
    scrape_until(port, "trollmoves_replayed_announcements_total", FILES, chain="hrit")


def test_mirror(testbed: Testbed) -> None:
    """A mirror counts its announcements, fetches and deliveries."""
    feeder, cache = testbed.feeder(), testbed.directory("cache")
    target, names = testbed.directory("out"), 3
    publish, request, mirror, serve, receive, metrics = (testbed.port() for _ in range(6))
    server = testbed.server({"hrit": server_section(feeder.folder, request)}, publish)
    relay = testbed.mirror(with_metrics({"m": mirror_section(publish, cache, serve)}, metrics), mirror)
    client = testbed.client({"c": client_section(mirror, target, receive, topic=MIRROR_TOPIC)})
    for process in (server, relay, client):
        process.start(wait=False)
    for process in (server, relay, client):
        process.wait_until_ready()
    feeder.feed(names)
    until(lambda: feeder.missing(target) == [], 60, "the files are delivered")
    page = scrape_until(metrics, "trollmoves_files_total", names, kind="push", result="delivered", chain="m")
    assert page.value("trollmoves_files_total", kind="fetch", result="received", endpoint=f"{HOST}:{request}") == names
    assert page.value("trollmoves_announced_files_total", chain="m") == names
    assert page.value("trollmoves_last_file_timestamp_seconds", chain="m", event="announced") > 0


def test_dispatcher(testbed: Testbed) -> None:
    """A dispatcher counts its deliveries, held messages and publishers; a YAML file has the options in DEFAULT."""
    port = testbed.port()
    targets = {
        "DEFAULT": {"metrics_port": port},
        "near": {"directory": "OUT", "topics": [TOPIC]},
        "wrong": {"directory": "OUT/{nosuchfield}", "topics": [TOPIC]},
    }
    d = DispatcherTestbed(testbed, targets).start()
    file = d.file("a", "12345")
    d.publisher.publish_file(file)
    d.wait_for("a")
    page = scrape_until(port, "trollmoves_held", 1, chain="wrong", kind="route", endpoint="this host")
    assert page.value("trollmoves_files_total", chain="near", kind="deliver", result="delivered") == 1
    assert page.value("trollmoves_bytes_total", chain="near") == 5
    scrape_until(port, "trollmoves_provider_up", 1, provider=d.publisher.address.removeprefix("tcp://"))


def test_no_secrets(testbed: Testbed) -> None:
    """A rejected login is counted as held for its host; the page contains neither user, password nor file names."""
    if why := pyftpd.missing():
        pytest.skip(f"missing: {why}")
    ftp = testbed.enter(pyftpd.PyFtpd(testbed.directory("ftpd"), testbed.directory("far")))
    pair = ServerClientPair(testbed, destination=f"ftp://{HOST}:{ftp.port}/", login=f"{pyftpd.USER}:wr0ng")
    ports = testbed.port(), testbed.port()
    pair.server.reconfigure(with_metrics(pair.server_sections, ports[0]))
    pair.client.reconfigure(with_metrics(pair.client_sections, ports[1]))
    pair.start()
    (name,) = pair.feeder.feed(1)
    endpoint = f"ftp://{HOST}:{ftp.port}"
    server = scrape_until(ports[0], "trollmoves_endpoint_up", 0, kind="push", endpoint=endpoint)
    assert server.value("trollmoves_files_total", endpoint=endpoint, result="held") >= 1
    client = scrape_until(ports[1], "trollmoves_waiting", 1)
    for page in (server, client):
        for word in (pyftpd.USER, "wr0ng", "@", name):
            assert word not in page.text


def test_slow_scrapers_are_cut(testbed: Testbed) -> None:
    """Connections that send nothing are closed, files move in the meantime, and scrapes work again."""
    pair = ServerClientPair(testbed)
    port = testbed.port()
    pair.server.reconfigure(with_metrics(pair.server_sections, port))
    pair.start()
    pair.server.wait_for_line("serving metrics on")
    idle = [testbed.close_at_end(socket.create_connection((HOST, port))) for _ in range(MAX_CONNECTIONS)]
    for connection in idle:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n")
    pair.feeder.feed(FILES)
    pair.wait_until_done()
    scrape_until(port, "trollmoves_files_total", FILES, result="delivered")
    for connection in idle:
        connection.settimeout(30)
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET /metrics", 200), ("HEAD /metrics", 200), ("GET /other", 404), ("POST /metrics", 405), ("x" * 20_000, 0)],
)
def test_requests(tmp_path: Path, request_line: str, status: int) -> None:
    """Only the page is served; a request that is too long closes its connection."""
    port = free_port()
    journal = open_journal(str(tmp_path / "x.journal"))
    service = MetricsService(ProcessOptions(metrics_port=port), FileCounters())
    service.start(reader(journal, service.counters), {"role": "client", "config": "a.ini"})
    try:
        until(lambda: answers(port), 20, "the port is open")
        with socket.create_connection((HOST, port), timeout=20) as connection:
            with suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            reply = b""
            with suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    reply += part
        head, _, body = reply.decode().partition("\r\n\r\n")
        assert head.partition("\r\n")[0].split()[1:2] == ([str(status)] if status else [])
        assert ("trollmoves_build_info" in body) == request_line.startswith("GET /metrics")
    finally:
        service.stop()
        journal.close()


def test_a_busy_port_and_a_file(testbed: Testbed) -> None:
    """If the port is in use, the daemon logs one error, moves files, and writes the metrics file nevertheless."""
    pair = ServerClientPair(testbed)
    busy = testbed.close_at_end(socket.create_server((HOST, 0)))
    port = busy.getsockname()[1]
    file = testbed.directory("textfile") / "server.prom"
    pair.server.reconfigure(with_metrics(pair.server_sections, port, metrics_file=file))
    pair.start()
    pair.feeder.feed(FILES)
    pair.wait_until_done()
    pair.server.wait_for_line(f"cannot serve metrics on 127.0.0.1:{port}: ")
    until(file.exists, 20, "the file is written")
    text = file.read_text()
    assert "trollmoves_provider_up" in text
    assert 'trollmoves_start_time_seconds{config="server.ini",role="server"}' in text
    assert "process_cpu_seconds_total" not in text
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_prometheus_finds_the_silent_chain(testbed: Testbed) -> None:
    """Prometheus scrapes server and client with the example's configuration; the alert for a silent chain fires."""
    if why := prometheus.missing():
        pytest.skip(f"missing: {why}")
    pair = ServerClientPair(testbed)
    ports = testbed.port(), testbed.port()
    pair.server.reconfigure(with_metrics(pair.server_sections, ports[0]))
    pair.client.reconfigure(with_metrics(pair.client_sections, ports[1]))
    pair.start()
    folder = testbed.directory("prometheus")
    for name in ("prometheus.yml", "alerts.yml"):
        text = (REPOSITORY / "examples" / "monitoring" / name).read_text()
        text = text.replace(":9101", f":{ports[0]}").replace(":9102", f":{ports[1]}").replace("localhost", HOST)
        text = re.sub(r"(?m)^ *- \S+:910[34] .*\n", "", text).replace(
            "scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s"
        )
        (folder / name).write_text(re.sub(r"for: \d+m", "for: 1s", text).replace("> 3600", "> 8"))
    prometheus.promtool("check", "config", folder / "prometheus.yml")
    server = prometheus.Prometheus(folder)
    with server:
        until(lambda: server.healthy_targets() == 2, 30, "both daemons are scraped")
        pair.feeder.feed(FILES)
        pair.wait_until_done()
        until(lambda: not server.firing("TrollmovesSilent"), 30, "a file ends the silence")
        until(lambda: len(server.firing("TrollmovesSilent")) == 2, 60, "both chains are silent")
        assert {(alert["role"], alert["chain"], alert["event"]) for alert in server.firing("TrollmovesSilent")} == {
            ("server", "hrit", "announced"),
            ("client", "hrit", "received"),
        }
        assert not server.firing("TrollmovesDown")


def test_example_rules() -> None:
    """The rules of the example are valid, and fire as their tests expect."""
    if why := prometheus.missing():
        pytest.skip(f"missing: {why}")
    example = REPOSITORY / "examples" / "monitoring"
    prometheus.promtool("check", "config", example / "prometheus.yml")
    assert "SUCCESS" in prometheus.promtool("test", "rules", example / "alerts_test.yml")


def test_without_the_library(testbed: Testbed) -> None:
    """Without prometheus_client the daemon logs one error with the remedy, and moves files."""
    (testbed.directory("stub") / "prometheus_client.py").write_text("raise ImportError('no prometheus_client')")
    pair = ServerClientPair(testbed)
    pair.server.environment = {
        **testbed.environment,
        "PYTHONPATH": f"{testbed.root / 'stub'}:{testbed.environment['PYTHONPATH']}",
    }
    pair.server.reconfigure(with_metrics(pair.server_sections, testbed.port()))
    pair.start()
    pair.feeder.feed(FILES)
    pair.wait_until_done()
    assert "running without metrics: no prometheus_client; install it: " in pair.server.lines()


def test_check(testbed: Testbed) -> None:
    """``--check`` warns about a missing directory for the file, and rejects a section with the metrics port."""
    port = testbed.port()
    section = server_section(testbed.directory("in"), port)
    other = section | {"request_port": testbed.port()}
    config = testbed.config(with_metrics({"a": section, "b": other}, port, metrics_file="/nowhere/x.prom"))
    done = testbed.run("move_it_server.py", config, "--check")
    assert "metrics_file: the directory /nowhere does not exist" in done.stdout
    assert f"request_port: port {port} is already used by [DEFAULT]" in done.stdout
    assert "not running: [a]" in done.stdout


def test_reload(testbed: Testbed) -> None:
    """A reload keeps the counters; another port takes effect after a restart, which a line says."""
    pair = ServerClientPair(testbed)
    port = testbed.port()
    pair.server.reconfigure(with_metrics(pair.server_sections, port))
    pair.start()
    pair.feeder.feed(FILES)
    pair.wait_until_done()
    scrape_until(port, "trollmoves_files_total", FILES, result="delivered")
    changed = {"hrit": pair.server_sections["hrit"] | {"station": "other"}}
    pair.server.reconfigure(with_metrics(changed, testbed.port()))
    pair.server.wait_for_line("changes in [DEFAULT] take effect after a restart: metrics_port")
    pair.server.wait_for_line("configuration reloaded: 0 added, 1 changed")
    pair.feeder.feed(FILES)
    pair.wait_until_done()
    scrape_until(port, "trollmoves_files_total", 2 * FILES, result="delivered")
