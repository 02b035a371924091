"""Formats the counters and the state of a daemon for Prometheus, with prometheus_client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector

from trollmoves import __version__
from trollmoves.metrics.counters import LATENCY_BUCKETS
from trollmoves.metrics.state import DaemonReader, DaemonState

CACHE_SECONDS = 1.0  # s for which a page serves further scrapes
_ENDPOINT = ("chain", "kind", "endpoint")

Rows = Iterable[tuple[tuple[str, ...], float]]


class Exporter:
    """The pages of one daemon. Metrics thread.

    ``labels`` are added to each metric: they distinguish the daemons of a host.
    """

    def __init__(self, reader: DaemonReader, labels: Mapping[str, str]) -> None:
        collector = _DaemonCollector(reader, labels)
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._own = CollectorRegistry()
        self._own.register(collector)
        self._pages: dict[str, tuple[float, bytes]] = {}  # by content type: when it was built (monotonic), the page

    def page(self, accept: str) -> tuple[str, bytes]:
        """Return content type and text of the page, in the best format for an ``Accept`` header."""
        encode, content_type = choose_encoder(accept)
        built, page = self._pages.get(content_type, (float("-inf"), b""))
        if time.monotonic() - built > CACHE_SECONDS:
            page = encode(self._registry)
            if len(self._pages) > 10:  # a client may ask for any variant of a format
                self._pages.clear()
            self._pages[content_type] = time.monotonic(), page
        return content_type, page

    def textfile(self) -> bytes:
        """Return the page for the textfile collector of node_exporter, without the metrics about the process."""
        return generate_latest(self._own)


class _DaemonCollector(Collector):
    def __init__(self, reader: DaemonReader, labels: Mapping[str, str]) -> None:
        self._reader = reader
        self._names = tuple(labels)
        self._values = tuple(labels.values())
        self._started = time.time()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are not checked for duplicates at the registration, which would read the journal."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return all metrics."""
        state = self._reader.read()
        info = InfoMetricFamily("trollmoves_build", "Version of trollmoves.", labels=self._names)
        info.add_metric(self._values, {"version": __version__})
        yield info
        yield self._gauge("start_time_seconds", "When the daemon started.", (), [((), self._started)])
        yield from self._counters()
        yield self._latencies()
        yield from self._endpoints(state)
        yield from self._chains(state)
        yield self._gauge("journal_bytes", "Size of the files of the journal.", (), [((), state.journal_size)])
        yield self._gauge("journal_up", "1 if the journal can be read.", (), [((), state.journal_readable)])
        dropped = "Log lines that were dropped, because the log was not written fast enough."
        yield self._counter("log_lines_dropped", dropped, (), [((), self._reader.lines_dropped())])

    def _counters(self) -> Iterator[Metric]:
        counters = self._reader.counters
        results = counters.results.copy()
        files: Rows = [(key, count.files) for key, count in results.items()]
        yield self._counter("files", "Files by the result of each attempt.", (*_ENDPOINT, "result"), files)
        size = [(key[:3], count.size) for key, count in results.items() if key[3] in ("delivered", "received")]
        yield self._counter("bytes", "Bytes that were delivered or received.", _ENDPOINT, size)
        announced = counters.announced.copy()
        files = [((chain,), count.files) for chain, count in announced.items()]
        yield self._counter("announced_files", "Files that were announced.", ("chain",), files)
        bytes_: Rows = [((chain,), count.size) for chain, count in announced.items()]
        yield self._counter("announced_bytes", "Bytes of the files that were announced.", ("chain",), bytes_)

    def _latencies(self) -> Metric:
        text = "Time from the modification of a file until the event."
        family = HistogramMetricFamily("trollmoves_latency_seconds", text, labels=(*self._names, "chain", "event"))
        for key, histogram in self._reader.counters.latencies.copy().items():
            bounds = [*map(str, LATENCY_BUCKETS), "+Inf"]
            buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
            family.add_metric((*self._values, *key), buckets, histogram.total)
        return family

    def _endpoints(self, state: DaemonState) -> Iterator[Metric]:
        endpoints = state.endpoints.items()
        rows: dict[str, Rows] = {
            "waiting": [(key, one.waiting) for key, one in endpoints],
            "in_flight": [(key, one.in_flight) for key, one in endpoints],
            "held": [(key, one.held) for key, one in endpoints],
            "oldest_age_seconds": [(key, one.oldest) for key, one in endpoints],
            "endpoint_up": [(key, not one.failing) for key, one in endpoints],
        }
        texts = {
            "waiting": "Tasks that wait or run.",
            "in_flight": "Tasks that are claimed and not finished.",
            "held": "Waiting tasks of a destination that an operator must repair.",
            "oldest_age_seconds": "Age of the oldest task that waits or runs; 0 if there is none.",
            "endpoint_up": "0 after an outage, until a task succeeds.",
        }
        for name, text in texts.items():
            if state.journal_readable or name in ("in_flight", "endpoint_up"):
                yield self._gauge(name, text, _ENDPOINT, rows[name])

    def _chains(self, state: DaemonState) -> Iterator[Metric]:
        if state.journal_readable:
            text = "Tasks that failed and were not repeated since."
            yield self._gauge("failed", text, ("chain", "kind"), state.failed.items())
        text = "When the chain announced, received or delivered its last file; 0 if none is known."
        yield self._gauge("last_file_timestamp_seconds", text, ("chain", "event"), state.last.items())
        text = "1 if the provider or publisher is connected."
        up = [
            ((chain, address), is_up) for chain, states in self._reader.providers() for address, is_up in states.items()
        ]
        yield self._gauge("provider_up", text, ("chain", "provider"), up)
        text = "Announcements that were missed, and requested from their source."
        rows: Rows = [((chain,), count) for chain, count in self._reader.replayed().items()]
        yield self._counter("replayed_announcements", text, ("chain",), rows)
        text = "1 while the alarm of this option is active."
        yield self._gauge("alarm", text, ("chain", "alarm"), self._reader.alarms().items())

    def _gauge(self, name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
        family = GaugeMetricFamily(f"trollmoves_{name}", text, labels=(*self._names, *labels))
        return self._filled(family, rows)

    def _counter(self, name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
        family = CounterMetricFamily(f"trollmoves_{name}", text, labels=(*self._names, *labels))
        return self._filled(family, rows)

    def _filled(self, family: CounterMetricFamily | GaugeMetricFamily, rows: Rows) -> Metric:
        for values, number in rows:
            family.add_metric((*self._values, *values), float(number))
        return family
