"""Pauses by an operator: which names select a lane, and which pauses a resume ends."""

from __future__ import annotations

import pytest

from trollmoves.scheduler.pauses import ended_by

LANES = {
    ("hrit", "push sftp://sat@far:22"),
    ("hrit", "push ftp://near:21"),
    ("lrit", "push ftp://far:21"),
    ("lrit", "remove"),
}
SECTIONS = {"hrit", "lrit"}


@pytest.mark.parametrize(
    ("name", "pause", "is_ended"),
    [
        ("sftp://sat@far:22", "sftp://sat@far:22", True),
        ("far:22", "sftp://sat@far:22", True),
        ("far", "sftp://far", True),
        ("sftp://sat@far:22", "sftp://far", True),
        ("sftp://sat@far:22", "far:22", True),
        ("near:21", "near", True),
        ("sftp://far", "far", False),  # which also pauses the FTP server of that host
        ("near", "sftp://far", False),
        ("near", "hrit", False),
        ("hrit", "near", False),
        ("hrit", "hrit", True),
        ("lrit", "hrit", False),
        ("gone:22", "sftp://gone:22", True),  # the journal knows no task of it any longer
        ("gone", "far", False),
    ],
)
def test_resume(name: str, pause: str, is_ended: bool) -> None:
    """A resume ends the pauses of all destinations that it names, and those of no other lane."""
    assert ended_by(name, [pause], SECTIONS, LANES) == ([pause] if is_ended else [])
