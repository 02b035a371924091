"""The measured figures, one per line, with those of 0.19.0, the bare limit and the promised value."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from dataclasses import asdict, dataclass
from typing import Any

HEADS = ("work", "ours", "0.19.0", "ratio", "bare limit", "promised", "")


@dataclass(slots=True)
class Figure:
    """One figure. ``more``: higher is better; ``limit``: the figure of the machine without trollmoves."""

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
        """The ratio to 0.19.0, above 1 if better; None without a figure of 0.19.0."""
        if not self.old or not self.value:
            return None
        return self.value / self.old if self.more else self.old / self.value

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the line in the table."""
        return (
            self.work,
            f"{short(self.value)} {self.unit}",
            f"{short(self.old)} {self.unit}" if self.old is not None else "",
            f"{short(self.ratio)}x" if self.ratio else "",
            f"{short(self.limit)} {self.unit} ({self.limit_of})" if self.limit is not None else "",
            self.promise,
            "" if self.kept is None else "kept" if self.kept else "NOT KEPT",
        )


def python_build() -> str:
    """Return the version of this Python, and whether it was built with profile-guided optimization (PGO)."""
    return f"Python {platform.python_version()} {'with' if has_pgo() else 'without'} PGO ({sys.executable})"


def has_pgo() -> bool:
    """Return True if this Python was built with profile-guided optimization.

    Distributions build theirs with it, but do not all state it in the arguments of their ``configure``.
    """
    return sys.base_prefix == "/usr" or "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")


def short(number: float | None) -> str:
    """Return a number with two or three significant figures."""
    if number is None:
        return "-"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def table(figures: list[Figure]) -> str:
    """Return the table as Markdown, aligned for a terminal."""
    rows = [HEADS, *(figure.cells() for figure in figures)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEADS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def as_data(figures: list[Figure]) -> dict[str, Any]:
    """Return figures and machine as data for a file."""
    return {
        "machine": {
            "processors": os.cpu_count(),
            "python": python_build(),
            "kernel": platform.release(),
            "load": os.getloadavg()[0],
        },
        "figures": [asdict(figure) | {"ratio": figure.ratio} for figure in figures],
    }
