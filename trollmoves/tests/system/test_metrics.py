"""The metrics of each daemon, as Prometheus scrapes them."""

from __future__ import annotations

from contextlib import suppress

import pytest

from trollmoves.tests.helpers.daemons import (
    ServerClientPair,
    Testbed,
)
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.scraping import Scrape, scrape
from trollmoves.tests.helpers.waiting import until

FILES = 5


def with_metrics(sections: dict[str, dict[str, object]], port: int, **more: object) -> dict[str, dict[str, object]]:
    """Return sections with a metrics port for the process."""
    return {"DEFAULT": {"metrics_port": port, **more}, **sections}


def scrape_until(port: int, name: str, value: float, **labels: str) -> Scrape:
    """Scrape until a metric has a value; return that scrape."""
    found: list[Scrape] = []

    def has_value() -> bool:
        with suppress(ConnectionRefusedError):  # the daemon starts
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
    assert client.value("trollmoves_provider_up", provider=f"{HOST}:{pair.publish_port}") == 1


def test_a_server_that_is_down(testbed: Testbed) -> None:
    """A client reports a provider that is down, its waiting files and their age; its last file survives a restart."""
    pair = ServerClientPair(testbed)
    port = testbed.port()
    pair.client.reconfigure(with_metrics(pair.client_sections, port))
    pair.start()
    pair.feeder.feed(1)
    pair.wait_until_done()
    last = scrape_until(port, "trollmoves_files_total", 1, result="received").value(
        "trollmoves_last_file_timestamp_seconds"
    )
    pair.server.kill()
    scrape_until(port, "trollmoves_provider_up", 0)
    pair.client.kill()
    pair.client.start()
    restarted = scrape_until(port, "trollmoves_provider_up", 0)
    assert restarted.value("trollmoves_last_file_timestamp_seconds") == pytest.approx(last, abs=1)
