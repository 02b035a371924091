"""The counters behind the metrics, and the metrics that the example and the page name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trollmoves.errors import AccessDenied, RequestRejected, Superseded, TemporaryTransferError, TransferError
from trollmoves.journal import DONE, FAILED, Journal, Outcome, Task, open_journal
from trollmoves.metrics.counters import MAX_ENDPOINTS, OTHER, FileCounters
from trollmoves.metrics.exporter import Exporter
from trollmoves.metrics.state import DaemonReader
from trollmoves.scheduler.lanes import FileStats, Result
from trollmoves.scheduler.scheduler import LaneState
from trollmoves.tests.helpers.scraping import Scrape

REPOSITORY = Path(__file__).parents[3]
EXAMPLE = REPOSITORY / "examples" / "monitoring"
NAME = re.compile(r"\btrollmoves_[a-z_]+\b")


def task(kind: str = "push", endpoint: str = "sftp://sat@host:22", chain: str = "hrit") -> Task:
    """Return a task in a lane."""
    return Task(chain, kind, "1 key", f"{kind} {endpoint}", "")


def reader(journal: Journal, counters: FileCounters, *lanes: LaneState) -> DaemonReader:
    """Return the reader of a daemon with one chain and these lanes."""
    return DaemonReader(
        journal=journal,
        counters=counters,
        event="received",
        chains=lambda: ["hrit"],
        lanes=lambda: list(lanes),
        providers=lambda: [("hrit", {"a:9010": True, "b:9010": False})],
        replayed=lambda: {"hrit": 2},
        alarms=lambda: {("hrit", "max_age"): False, ("hrit", "max_failed"): True},
        lines_dropped=lambda: 3,
    )


def export(read: DaemonReader) -> Scrape:
    """Return the page of a daemon."""
    content_type, page = Exporter(read, {"role": "client", "config": "a.ini"}).page("application/openmetrics-text")
    assert content_type.startswith("application/openmetrics-text")
    return Scrape(page.decode())


@pytest.mark.parametrize(
    ("kind", "result", "outcome"),
    [
        ("push", Result(files=FileStats(3, 30, 0)), "delivered"),
        ("deliver", Result(files=FileStats(3, 30, 0)), "delivered"),
        ("fetch", Result(files=FileStats(3, 30, 0)), "received"),
        ("fetch", Result(), "skipped"),
        ("push", Result(error=Superseded("a newer one"), final=True), "skipped"),
        ("push", Result(error=TemporaryTransferError("down"), final=True), "retried"),
        ("deliver", Result(error=TemporaryTransferError("down")), "retried"),
        ("deliver", Result(error=TemporaryTransferError("down"), final=True), "failed"),
        ("fetch", Result(reply="host: down", retry_in=1.0), "retried"),
        ("push", Result(error=AccessDenied("not allowed"), final=True), "held"),
        ("push", Result(error=TransferError("bad name"), final=True), "failed"),
        ("fetch", Result(error=RequestRejected("gone")), "failed"),
        ("fetch", Result(retry_in=1.0), None),
        ("remove", Result(), None),
    ],
)
def test_outcomes(kind: str, result: Result, outcome: str | None) -> None:
    """Each end of an attempt about files counts once; waiting, and tasks about other things, count nothing."""
    counters = FileCounters()
    counters.count_result(task(kind), result)
    expected = {("hrit", kind, "sftp://host:22", outcome): (3, 30) if result.files else (1, 0)} if outcome else {}
    assert {key: (count.files, count.size) for key, count in counters.results.items()} == expected
    assert bool(counters.last) == bool(counters.latencies) == bool(result.files)


def test_endpoints_are_bounded() -> None:
    """The number of endpoints is limited; the users of a host are counted together."""
    counters = FileCounters()
    for number in range(3 * MAX_ENDPOINTS):
        for user in ("a", "b"):
            result = Result(files=FileStats(1, 1, 0))
            counters.count_result(task(endpoint=f"sftp://{user}:geheim@host{number}"), result)
    endpoints = {endpoint for _, _, endpoint, _ in counters.results}
    assert len(endpoints) == MAX_ENDPOINTS + 1
    assert OTHER in endpoints
    assert "@" not in "".join(endpoints)
    assert counters.results["hrit", "push", "sftp://host0", "delivered"].files == 2
    assert sum(count.files for count in counters.results.values()) == 6 * MAX_ENDPOINTS


def test_state(tmp_path: Path) -> None:
    """Waiting, held and failed tasks, ages, lanes and providers are read from the journal and the scheduler."""
    journal = open_journal(str(tmp_path / "x.journal"))
    added = [one for one, _ in journal.add_tasks([task("fetch", f"s{n % 2}:9094") for n in range(1)])]
    added += [
        one for one, _ in journal.add_tasks([Task("hrit", "fetch", f"k{n}", "fetch s1:9094", "") for n in range(4)])
    ]
    journal.finish([Outcome(added[1], FAILED, "no")])
    journal.set_aside("hrit", "a bad message", "ValueError")
    lanes = LaneState("hrit", "fetch s1:9094", 2, 5.0, failing=True, held=True)
    page = export(reader(journal, FileCounters(), lanes))
    first, second = {"endpoint": "s0:9094"}, {"endpoint": "s1:9094"}
    assert [page.value("trollmoves_waiting", **one) for one in (first, second)] == [1, 3]
    assert [page.value("trollmoves_held", **one) for one in (first, second)] == [0, 3]
    assert [page.value("trollmoves_in_flight", **one) for one in (first, second)] == [0, 2]
    assert [page.value("trollmoves_endpoint_up", **one) for one in (first, second)] == [1, 0]
    assert 0 <= page.value("trollmoves_oldest_age_seconds", **second) < 60
    assert page.value("trollmoves_failed", kind="fetch") == page.value("trollmoves_failed", kind="set_aside") == 1
    assert page.value("trollmoves_provider_up", provider="a:9010") == 1
    assert page.value("trollmoves_provider_up", provider="b:9010") == 0
    assert [page.value("trollmoves_alarm", alarm=name) for name in ("max_age", "max_failed")] == [0, 1]
    assert page.value("trollmoves_log_lines_dropped_total") == 3
    assert page.value("trollmoves_replayed_announcements_total", chain="hrit") == 2
    assert page.value("trollmoves_last_file_timestamp_seconds", chain="hrit", event="received") == 0
    journal.close()


def test_endpoint_stays_down_without_a_lane(tmp_path: Path) -> None:
    """A destination that failed is down until a success, also when its lane was forgotten, as after a reload."""
    journal = open_journal(str(tmp_path / "x.journal"))
    ((one, _),) = journal.add_tasks([task()])
    journal.finish([Outcome(one, FAILED, "down", failure="outage", error="down")])
    assert export(reader(journal, FileCounters())).value("trollmoves_endpoint_up", kind="push") == 0
    journal.finish([Outcome(one, DONE)])
    counters = FileCounters()
    counters.count_result(one, Result(files=FileStats(1, 1, 0)))
    assert export(reader(journal, counters)).value("trollmoves_endpoint_up", kind="push") == 1
    journal.close()


def test_last_times(tmp_path: Path) -> None:
    """The last file of an earlier process is known from the journal."""
    journal = open_journal(str(tmp_path / "x.journal"))
    ((one, _),) = journal.add_tasks([task("fetch")])
    journal.finish([Outcome(one, 1)])
    found = journal.last_times()
    assert found["hrit", "fetch"] == pytest.approx(journal.now(), abs=60)
    page = export(reader(journal, FileCounters()))
    assert page.value("trollmoves_last_file_timestamp_seconds") == pytest.approx(found["hrit", "fetch"])
    journal.close()


def test_an_unreadable_journal(tmp_path: Path) -> None:
    """Without a readable journal its metrics are missing, and the others are served."""
    journal = open_journal(str(tmp_path / "x.journal"))
    read = reader(journal, FileCounters())
    journal.close()
    (tmp_path / "x.journal").write_bytes(b"no journal" * 1000)
    page = export(read)
    assert page.value("trollmoves_journal_up") == 0
    assert "trollmoves_waiting" not in page.text
    assert page.value("trollmoves_provider_up", provider="a:9010") == 1


@pytest.mark.skipif(not EXAMPLE.exists(), reason="no checkout")
@pytest.mark.parametrize("page", ["alerts.yml", "alerts_test.yml", "dashboard.json", "../../doc/monitoring.md"])
def test_named_metrics_exist(tmp_path: Path, page: str) -> None:
    """Each metric in the example and on the page is exported, and the page names all."""
    journal = open_journal(str(tmp_path / "x.journal"))
    counters = FileCounters()
    counters.count_result(task("fetch"), Result(files=FileStats(1, 1, 0)))
    counters.count_announced("hrit", [FileStats(1, 1, 0)])
    journal.add_tasks([task("fetch")])
    journal.set_aside("hrit", "x", "y")
    lines = export(reader(journal, counters)).text.splitlines()
    exported = set(NAME.findall("\n".join(lines)))
    samples = set(NAME.findall("\n".join(line for line in lines if not line.startswith("#"))))
    text = (EXAMPLE / page).read_text()
    named = {name for name in NAME.findall(text) if not name.endswith("_")}
    assert named - exported == set()
    if page.endswith(".md"):
        assert {name for name in samples if not re.search("_(bucket|sum|count)$", name)} - named == set()
    if page.endswith(".json"):
        assert len(json.loads(text)["panels"]) > 10
    journal.close()
