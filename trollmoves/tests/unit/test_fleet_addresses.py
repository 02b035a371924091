"""Tests of the addresses of servers that share their work."""

from __future__ import annotations

import pytest

from trollmoves.receiver.fleet_addresses import MAX_LOGS, MAX_MEMBERS, FleetAddresses

LOG = "3f9a1c0b7d21/hrit"


def test_others() -> None:
    """The other members are those that all providers name, without the ones that left."""
    fleets = FleetAddresses()
    assert not fleets
    fleets.update("one", LOG, ["a:1", "b:1"])
    fleets.update("two", LOG, ["a:1", "b:1", "c:1"])
    assert fleets
    assert fleets.others("a:1", LOG) == ["b:1", "c:1"]
    assert fleets.others("old:1", LOG) == ["a:1", "b:1", "c:1"]
    assert fleets.others("a:1", "another") == []
    assert fleets.update("one", LOG, ["b:1"]) == ("b:1",)
    assert fleets.update("two", LOG, ["b:1"]) == ("b:1",)
    assert fleets.others("a:1", LOG) == ["b:1"]


@pytest.mark.parametrize("members", [None, "a:1", 5, {"a:1": 1}, [], [None, 1, "a", ["a:1"]]])
def test_invalid_members(members: object) -> None:
    """A heartbeat with invalid members changes nothing."""
    fleets = FleetAddresses()
    assert fleets.update("one", LOG, members) == ()
    assert not fleets


def test_bounds() -> None:
    """The number of logs and members is limited, whatever heartbeats name."""
    fleets = FleetAddresses()
    assert len(fleets.update("one", LOG, [f"a:{n}" for n in range(1, 1000)])) == MAX_MEMBERS
    for n in range(MAX_LOGS + 10):
        fleets.update("two", str(n), ["a:1"])
    assert not fleets.others("b:1", str(MAX_LOGS + 5))
    fleets.update("one", LOG, ["b:1"])
    assert fleets.others("a:1", LOG) == ["b:1"]
