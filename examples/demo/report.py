"""Formats the results as a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from observers import Outcome

Row = tuple[str, str, str]  # name, value, remark


def rows(
    outcome: Outcome, size: int, appeared: Mapping[str, float], receipts: Mapping[str, list[float]], killed_at: float
) -> list[Row]:
    """Return the table.

    Args:
        outcome: the delivered files.
        size: bytes of all files.
        appeared: completion time of each file, in seconds.
        receipts: times of the client's receipts of each file, on the same clock.
        killed_at: time of the kill of the client.
    """
    latencies = {name: times[0] - appeared[name] for name, times in receipts.items() if name in appeared}
    before_kill = [latency for name, latency in latencies.items() if receipts[name][0] < killed_at]
    return [
        ("sent", f"{len(appeared):,}", f"files, {size / 1e6:.1f} MB"),
        ("delivered", f"{len(outcome.whole):,}", "complete, with the SHA-256 of the created file"),
        ("damaged", f"{len(outcome.damaged):,}", ""),
        ("lost", f"{len(outcome.lost):,}", ""),
        ("receipts", f"{len(receipts):,}", _remark_on_receipts(len(outcome.whole), receipts)),
        ("rate", _rate(appeared, receipts), "files/s, including the downtime of the client"),
        ("latency p50", _percentile(before_kill, 0.50), "from completion to the client's receipt, before the kill"),
        ("        p99", _percentile(before_kill, 0.99), ""),
        (
            "latency p50",
            _percentile(latencies.values(), 0.50),
            "the same for all files, including the downtime",
        ),
        ("        p99", _percentile(latencies.values(), 0.99), ""),
    ]


def _remark_on_receipts(delivered: int, receipts: Mapping[str, list[float]]) -> str:
    more = sum(1 for times in receipts.values() if len(times) > 1)
    remarks = ["files with a receipt"]
    if more:
        remarks.append(f"{more:,} repeated after the kill")
    if len(receipts) < delivered:
        remarks.append(f"{delivered - len(receipts):,} receipts are missing")
    return "; ".join(remarks)


def _rate(appeared: Mapping[str, float], receipts: Mapping[str, list[float]]) -> str:
    if not receipts:
        return "-"
    return f"{len(receipts) / (max(times[0] for times in receipts.values()) - min(appeared.values())):,.0f}"


def _percentile(seconds: Collection[float], part: float) -> str:
    if not seconds:
        return "-"
    milliseconds = sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * part))] * 1000
    return f"{milliseconds:,.1f} ms" if milliseconds < 100 else f"{milliseconds:,.0f} ms"
