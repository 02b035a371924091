"""The benchmark, in short: it fails when something has become many times slower, whatever the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import flow, plot, scale
from benchmarks.figures import Figure, as_data, table

CPU_OF_A_FILE = 650.0  # us of both processes in a burst, calibrated; recorded on 2026-11-29 on the slowest machine
SLOWER = 1.25  # times that, at which a change has made files more expensive
SLOWER_IF_BUSY = 2.5  # the same while other programs use the machine: batches are smaller, and caches cold
ROUNDS = 3
SLOWER_THAN_BARE = 100  # times; it is some 20 on an idle machine


@pytest.mark.alone
def test_files_at_once(tmp_path: Path) -> None:
    """Two thousand files take at most a hundred times a bare loop, and not three times what half of them take."""
    rate, times, *_ = flow.burst(tmp_path, count=2000, old=False)
    assert rate.limit
    assert rate.value > rate.limit / SLOWER_THAN_BARE
    assert times.value <= 3


@pytest.mark.alone
def test_cpu_of_a_file(tmp_path: Path) -> None:
    """A file in a burst takes at most 25 % more processor time than recorded: the least of several rounds counts."""
    costs: list[float] = []
    limit = SLOWER_IF_BUSY
    for number in range(ROUNDS):
        directory = tmp_path / str(number)
        directory.mkdir()
        cost, is_quiet = flow.cost_of_a_file(directory)
        costs.append(cost)
        limit = SLOWER if is_quiet else limit
        if cost <= SLOWER * CPU_OF_A_FILE:
            return
    assert min(costs) <= limit * CPU_OF_A_FILE


@pytest.mark.alone
def test_sections_cost_little(tmp_path: Path) -> None:
    """A file costs the same with one section and with fifty, and little more when files are spread over them."""
    beside, spread = scale.sections(tmp_path, count=2100, most=50)
    assert beside.value <= 2
    assert spread.value <= 4


def test_results(tmp_path: Path) -> None:
    """The table, the file and the picture show the measured, compared, limiting and promised values."""
    figures = [
        Figure("rate", 1234.5, "files/s", old=10, limit=25_000, limit_of="bare", promise=">= 1,000", kept=True),
        Figure("delay", 4.0, "ms", more=False, old=100, promise="<= 3", kept=False),
        Figure("alone", 7, "us"),
    ]
    head, _, rate, delay, alone = table(figures).splitlines()
    assert [cell.strip() for cell in head.split("|")[1:4]] == ["work", "ours", "0.19.0"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (rate, delay, alone)]
    assert cells == [
        ["rate", "1,234 files/s", "10 files/s", "123x", "25,000 files/s (bare)", ">= 1,000", "kept"],
        ["delay", "4 ms", "100 ms", "25x", "", "<= 3", "NOT KEPT"],
        ["alone", "7 us", "", "", "", "", ""],
    ]
    assert [one["ratio"] for one in json.loads(json.dumps(as_data(figures)))["figures"]] == [123.45, 25, None]
    assert not plot.draw(figures[2:], tmp_path / "none.svg")
