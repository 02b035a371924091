"""What was measured: one figure a line, beside 0.19.0, beside the bare limit, beside what is promised."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

HEADS = ("work", "ours", "0.19.0", "ratio", "bare limit", "promised", "")


@dataclass(slots=True)
class Figure:
    """One figure. ``more`` tells whether more of it is better; ``limit`` is what the machine does without us."""

    work: str
    value: float
    unit: str
    more: bool = True
    old: float | None = None
    limit: float | None = None
    limit_of: str = ""
    promise: str = ""
    kept: bool | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better than 0.19.0; None where there is nothing to compare with."""
        if not self.old or not self.value:
            return None
        return self.value / self.old if self.more else self.old / self.value

    def cells(self) -> tuple[str, ...]:
        """Give the line of the table."""
        return (
            self.work,
            f"{short(self.value)} {self.unit}",
            f"{short(self.old)} {self.unit}" if self.old is not None else "",
            f"{short(self.ratio)}x" if self.ratio else "",
            f"{short(self.limit)} {self.unit} ({self.limit_of})" if self.limit is not None else "",
            self.promise,
            "" if self.kept is None else "kept" if self.kept else "NOT KEPT",
        )


def short(number: float | None) -> str:
    """Give a number as people read it: two or three figures."""
    if number is None:
        return "-"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def table(figures: list[Figure]) -> str:
    """Give the table as Markdown, which is also calm to read in a terminal."""
    rows = [HEADS, *(figure.cells() for figure in figures)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEADS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def as_data(figures: list[Figure]) -> dict[str, Any]:
    """Give all of it for a file: figures, and what the machine is."""
    return {
        "machine": {
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "load": os.getloadavg()[0],
        },
        "figures": [asdict(figure) | {"ratio": figure.ratio} for figure in figures],
    }
