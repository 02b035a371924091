"""Says in a table what became of the files."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from witness import Outcome

Row = tuple[str, str, str]  # what, how much, a remark


def rows(
    outcome: Outcome, size: int, appeared: Mapping[str, float], told: Mapping[str, list[float]], killed_at: float
) -> list[Row]:
    """Give the table.

    Args:
        outcome: what lies where it should.
        size: bytes of all files.
        appeared: when each file was complete, in seconds.
        told: when each file was told of by the client, on the same clock.
        killed_at: when the client was killed.
    """
    latencies = {name: times[0] - appeared[name] for name, times in told.items() if name in appeared}
    calm = [latency for name, latency in latencies.items() if told[name][0] < killed_at]
    return [
        ("sent", f"{len(appeared):,}", f"files, {size / 1e6:.1f} MB"),
        ("delivered", f"{len(outcome.whole):,}", "whole: the SHA-256 of what was sent"),
        ("damaged", f"{len(outcome.damaged):,}", ""),
        ("lost", f"{len(outcome.lost):,}", ""),
        ("receipts", f"{len(told):,}", _remark_on_receipts(len(outcome.whole), told)),
        ("rate", _rate(appeared, told), "files/s, as they appeared, with the time without client"),
        ("latency p50", _percentile(calm, 0.50), "from appearance to the client's receipt, before the kill"),
        ("        p99", _percentile(calm, 0.99), ""),
        (
            "latency p50",
            _percentile(latencies.values(), 0.50),
            "the same of all, with those that waited for the client",
        ),
        ("        p99", _percentile(latencies.values(), 0.99), ""),
    ]


def _remark_on_receipts(delivered: int, told: Mapping[str, list[float]]) -> str:
    more = sum(1 for times in told.values() if len(times) > 1)
    remarks = ["files the client told of"]
    if more:
        remarks.append(f"{more:,} again after the kill, as they might not have left")
    if len(told) < delivered:
        remarks.append(f"{delivered - len(told):,} more were not heard")
    return "; ".join(remarks)


def _rate(appeared: Mapping[str, float], told: Mapping[str, list[float]]) -> str:
    if not told:
        return "-"
    return f"{len(told) / (max(times[0] for times in told.values()) - min(appeared.values())):,.0f}"


def _percentile(seconds: Collection[float], part: float) -> str:
    if not seconds:
        return "-"
    milliseconds = sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * part))] * 1000
    return f"{milliseconds:,.1f} ms" if milliseconds < 100 else f"{milliseconds:,.0f} ms"
