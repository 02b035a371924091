"""Draws the ratio of each figure to that of 0.19.0."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import Figure


def draw(figures: list[Figure], file: Path) -> bool:
    """Write a picture of the ratios; return False without ratios or without matplotlib."""
    compared = [(figure.work, figure.ratio) for figure in figures if figure.ratio]
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    if not compared:
        return False
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "trollmoves"  # the same picture for the same figures
    from matplotlib import pyplot

    works, ratios = zip(*reversed(compared), strict=True)
    picture, axes = pyplot.subplots(figsize=(9, 0.5 + 0.45 * len(works)))
    bars = axes.barh(works, ratios, color="#33658a")
    axes.bar_label(bars, labels=[f" {ratio:.3g}x" for ratio in ratios])
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times as good as 0.19.0, in the same run")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0.8, max(ratios) * 3)
    picture.savefig(file, bbox_inches="tight", metadata={"Date": None})
    return True
