"""Scrapes the metrics of a daemon."""

from __future__ import annotations

import http.client
from collections.abc import Mapping

from prometheus_client.openmetrics.parser import text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Scrape:
    """The samples of one scrape. ``text`` is the page."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        self._samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels; NaN if there is none."""
        found = [one.value for one in self._samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found) if found else float("nan")

    def labels(self, name: str) -> list[Mapping[str, str]]:
        """Return the labels of each sample of a metric."""
        return [one.labels for one in self._samples if one.name == name]


def scrape(port: int, accept: str = OPENMETRICS) -> Scrape:
    """Scrape the metrics port of a local daemon."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept})
        reply = connection.getresponse()
        assert (reply.status, reply.getheader("Content-Type", "")[:28]) == (200, OPENMETRICS[:28])
        return Scrape(reply.read().decode())
    finally:
        connection.close()
