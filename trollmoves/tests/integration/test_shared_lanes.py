"""Schedulers of several members run the tasks of one journal on PostgreSQL, within one limit for each lane."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from trollmoves.errors import TransferError
from trollmoves.journal import DONE, LaneDemand, Task
from trollmoves.journal.postgresql import PostgresJournal
from trollmoves.scheduler.lanes import Result, Scope
from trollmoves.scheduler.pauses import Pauses
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.scheduler.shared_lanes import LINGER
from trollmoves.tests.helpers.journals import new_schema, shared_server, task
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql

pytestmark = pytest.mark.skipif(bool(postgresql.missing()), reason=postgresql.missing())

LIMIT = 4
LANE = "fetch host"


class HostDown(TransferError):
    """The host of a lane does not respond."""

    temporary = True
    outage = True


class Host:
    """Runs the tasks of all members; counts them by key, by member, and those that run at the same time."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.by_member: Counter[str] = Counter()
        self.running = self.most = 0
        self.seconds = 0.01
        self.members = 1  # a task takes longer until this number of members works
        self.is_down = False
        self._lock = threading.Lock()

    def begin(self, member: str, one: Task) -> None:
        """Count a task that begins."""
        with self._lock:
            self.runs[one.key] += 1
            self.by_member[member] += 1
            self.running += 1
            self.most = max(self.most, self.running)

    def duration(self) -> float:
        """Return the time that a task takes, in seconds."""
        return self.seconds if len(self.by_member) >= self.members else 0.2

    def end(self) -> Result:
        """Count a task that ends; return its result."""
        with self._lock:
            self.running -= 1
        return Result(error=HostDown("down")) if self.is_down else Result()


class Member:
    """One member: its journal and its scheduler."""

    def __init__(self, url: str, host: Host, name: str = "") -> None:
        self.journal = PostgresJournal(url, name=name, sharing=True)
        assert self.journal.take("fleet")
        self.scheduler = Scheduler(self.journal)
        self._host = host
        self.scheduler.start()

    def register(self, scope: Scope = "fleet", *, is_async: bool = True, limit: int = LIMIT) -> Member:
        """Run the tasks of the chain."""
        if is_async:
            self.scheduler.register("chain", "fetch", limit=limit, async_handler=self._start, scope=scope)
        else:
            self.scheduler.register("chain", "fetch", limit=limit, handler=self._run, scope=scope)
        return self

    def _start(self, one: Task, finish: Callable[[Result], None]) -> None:
        self._host.begin(self.journal.life, one)
        timer = threading.Timer(self._host.duration(), lambda: finish(self._host.end()))
        timer.daemon = True
        timer.start()

    def _run(self, one: Task) -> Result:
        self._host.begin(self.journal.life, one)
        threading.Event().wait(self._host.duration())
        return self._host.end()

    def add(self, names: list[str]) -> None:
        """Store tasks and submit the new ones, as a receiver does."""
        found = self.journal.merge([task(name, LANE) for name in names], (), lambda *_: [])
        self.scheduler.submit(found)

    def request(self, names: list[str]) -> None:
        """Store tasks that only this member has received, with numbers, and submit them."""
        tasks = [task(name, LANE) for name in names]
        for one in tasks:
            one.announcement_number = int(one.key.rpartition(" ")[2])
        self.scheduler.submit([stored for stored, is_new in self.journal.add_tasks(tasks) if is_new])

    def kill(self, other: Member) -> None:
        """End the renewal of the lease and the scheduler; another member notices the end of the lease."""
        self.journal._membership._stop.set()
        self.journal._membership._thread.join()
        self.scheduler.stop(5)
        expire = "UPDATE members SET lease_until = 0 WHERE id = %s"
        self.journal._database.run_statement(lambda db: db.execute(expire, (int(self.journal.life),)))
        process = "UPDATE members SET process = regexp_replace(process, '[0-9]+$', '0') WHERE id = %s"
        self.journal._database.run_statement(lambda db: db.execute(process, (int(self.journal.life),)))
        other.journal._membership.bury_ended()

    def close(self) -> None:
        """Leave the fleet."""
        self.scheduler.stop(5)
        self.journal.close()


Join = Callable[..., Member]


@pytest.fixture
def host() -> Host:
    """Return the host to which all tasks go."""
    return Host()


@pytest.fixture
def join(host: Host) -> Iterator[Join]:
    """Return a function that starts a further member."""
    url = new_schema(shared_server())
    with ExitStack() as stack:

        def start(name: str = "") -> Member:
            member = Member(url, host, name)
            stack.callback(member.close)
            return member

        yield start


def is_done(member: Member, count: int) -> Callable[[], bool]:
    """Return a condition: ``count`` tasks are done, and none waits."""
    return lambda: member.journal.count("chain") == {"waiting": 0, "done": count, "failed": 0}


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("number", [2, 3])
def test_members_share_one_limit(join: Join, host: Host, number: int, is_async: bool) -> None:
    """All members store the same tasks: each runs once, never more than the limit at a time, and all members work."""
    host.members = number
    members = [join().register(is_async=is_async) for _ in range(number)]
    names = [f"{n:03}" for n in range(400)]
    threads = [threading.Thread(target=member.add, args=(names,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(is_done(members[0], len(names)), 60)
    assert set(host.runs.values()) == {1}
    assert 1 < host.most <= LIMIT
    assert len(host.by_member) == number


def test_member_without_announcements_works(join: Join, host: Host) -> None:
    """Tasks that the member with their announcement cannot run soon are run by others."""
    host.members = 2
    members = [join().register() for _ in range(2)]
    members[0].add([f"{n:03}" for n in range(200)])
    until(is_done(members[0], 200), 60)
    assert set(host.runs.values()) == {1}
    assert host.most <= LIMIT
    assert len(host.by_member) == 2


def test_a_survivor_gets_all(join: Join, host: Host) -> None:
    """The part and the tasks of a killed member become those of the other one."""
    host.members = 2
    one, two = (join().register() for _ in range(2))
    one.add([f"{n:03}" for n in range(200)])
    until(lambda: host.by_member[one.journal.life] and host.by_member[two.journal.life])
    one.kill(two)
    until(is_done(two, 200), 60)
    assert host.most <= LIMIT
    two.add([f"more {n:03}" for n in range(100)])
    until(is_done(two, 300), 60)
    held = {member.life: member.lanes for member in two.journal.members()}
    assert held == {two.journal.life: [f"[chain] {LANE} {LIMIT}"]}


def test_an_outage_holds_for_all(join: Join, host: Host) -> None:
    """One member finds that a host is down: the other one pauses too, and later tasks are tried one at a time."""
    one, two = (join().register() for _ in range(2))
    host.is_down = True
    one.add([f"{n:03}" for n in range(20)])
    until(lambda: all(any(lane.failing for lane in m.scheduler.lane_states()) for m in (one, two)), 30)
    first = sum(host.runs.values())
    assert first <= 2 * LIMIT
    until(lambda: not host.running)
    host.most = 0
    until(lambda: sum(host.runs.values()) >= first + 2, 30)
    assert host.most == 1
    host.is_down = False
    until(is_done(one, 20), 60)
    until(lambda: one.journal.sharing and not one.journal.sharing.outages(), 30)
    until(lambda: not any(lane.failing for m in (one, two) for lane in m.scheduler.lane_states()), 30)


def test_an_operator_pauses_all(join: Join, host: Host) -> None:
    """A pause that one member stores is in effect at the others, and so is its end."""
    one, two = (join().register() for _ in range(2))
    one.journal.add_pause("chain", "{}")
    one.scheduler.set_pauses(Pauses(["chain"]))
    until(lambda: two.scheduler.pauses.names == {"chain"})
    two.add([f"{n:03}" for n in range(10)])
    one.journal.end_pause("chain")
    until(is_done(one, 10), 30)
    assert set(host.runs.values()) == {1}


def test_tasks_stay_on_their_host(join: Join, host: Host) -> None:
    """Tasks about local files go to members on the same host, also after the death of the one that stored them."""
    here, there = (join(name).register("host") for name in ("here", "there"))
    host.seconds = 60
    here.add(["a"])
    until(lambda: host.by_member[here.journal.life] == 1)
    here.kill(there)
    host.seconds = 0.01
    there.add(["b"])
    until(lambda: host.by_member[there.journal.life] == 1)
    again = join("here").register("host")
    until(is_done(again, 2), 30)
    assert host.by_member[again.journal.life] == 1
    assert host.by_member[there.journal.life] == 1


def test_one_member_alone_or_several(join: Join) -> None:
    """A member that works alone excludes those that share, and they exclude it."""
    sharing = join()
    alone = PostgresJournal(sharing.journal._url)
    assert not alone.take("fleet")
    sharing.close()
    assert alone.take("fleet")
    late = PostgresJournal(sharing.journal._url, sharing=True)
    assert not late.take("fleet")
    alone.close()
    assert late.take("fleet")
    late.close()


def test_parts_never_exceed_the_limit(join: Join) -> None:
    """A part is given back when its tasks have ended; until then others get only the rest."""
    one, two = (join().journal.sharing for _ in range(2))
    assert one
    assert two
    for sharing in (one, two):
        sharing.refresh()

    def demand(used: int, *, wants: bool = True) -> list[LaneDemand]:
        return [LaneDemand("other", "lane", 5, used, wants)]

    assert one.divide(demand(0), ()) == [3]  # the first part
    assert one.divide(demand(0), ()) == [5]
    assert two.divide(demand(0), ()) == [0]
    assert one.divide(demand(4), ()) == [2]
    assert two.divide(demand(0), ()) == [1]
    assert one.divide(demand(3), ()) == [2]
    assert two.divide(demand(1), ()) == [2]
    assert one.divide(demand(0, wants=False), ()) == [2]
    assert two.divide(demand(2), ()) == [3]
    assert one.divide([], [("other", "lane")]) == []
    assert two.divide(demand(3), ()) == [5]


def test_no_member_waits_for_a_remainder(join: Join) -> None:
    """The parts of three members differ by one at most."""
    members = [sharing for _ in range(3) if (sharing := join().journal.sharing)]
    parts = [0, 0, 0]
    for _ in range(3):
        for n, sharing in enumerate(members):
            sharing.refresh()
            (parts[n],) = sharing.divide([LaneDemand("other", "lane", 4, parts[n], True)], ())
            for _ in range(2):  # the tasks that exceed the part have ended
                (parts[n],) = sharing.divide([LaneDemand("other", "lane", 4, parts[n], True)], ())
    assert sorted(parts) == [1, 1, 2]


def test_a_repeated_announcement_is_not_new(join: Join, host: Host) -> None:
    """A member that stores tasks which others have done gets none of them back."""
    one, two = (join().register() for _ in range(2))
    names = [f"{n:03}" for n in range(20)]
    one.add(names)
    until(is_done(one, 20), 30)
    two.add(names)
    assert [stored.state for stored, _ in two.journal.add_tasks([task(name, LANE) for name in names])] == [DONE] * 20
    assert set(host.runs.values()) == {1}


@pytest.mark.parametrize("limit", [1, LIMIT])
def test_requested_tasks_share_one_limit(join: Join, host: Host, limit: int) -> None:
    """Each member runs the tasks that are requested there, within one limit; with a limit of 1, also another one."""
    host.members = 2 if limit > 1 else 1
    one, two = (join().register("requested", is_async=False, limit=limit) for _ in range(2))
    for n in range(100):
        one.request([f"one {n:03}"])
        two.request([f"two {n:03}"])
    until(is_done(one, 200), 60)
    assert set(host.runs.values()) == {1}
    assert host.most <= limit
    assert len(host.by_member) >= host.members


def test_an_idle_member_gives_parts_back(join: Join, host: Host) -> None:
    """A member with files that others do not have gets a part of a limit that an idle member has, in a few seconds."""
    one = join().register("requested", is_async=False)
    one.request(["1"])
    until(is_done(one, 1))
    until(lambda: one.journal._database.read("SELECT number, wanted FROM slots") == [(LIMIT, False)])
    two = join()
    assert two.journal.sharing
    two.journal.sharing.keep_files("chain", 2)
    two.register("requested", is_async=False).request(["2"])
    until(is_done(two, 2), LINGER / 2, timeout_factor=1)
    assert host.by_member[two.journal.life] == 1


def test_requested_tasks_of_a_killed_member(join: Join, host: Host) -> None:
    """Tasks that were requested at a killed member are run by the other one, which knows the unanswered requests."""
    one = join().register("requested", is_async=False)
    one.request(["0"])
    until(is_done(one, 1))
    two = join().register("requested", is_async=False)
    host.seconds = 0.2
    one.request([f"{n:03}" for n in range(1, 41)])
    until(lambda: host.running)
    one.kill(two)
    until(is_done(two, 41), 60)
    sharing = two.journal.sharing
    assert sharing
    assert len(sharing.interrupted_numbers("chain", "fetch")) == host.by_member[two.journal.life] > 0


def test_addresses_of_members(join: Join) -> None:
    """Each member knows the addresses of all that work; those of a killed one are given to one other member."""
    one, two = join(), join()
    first, second = one.journal.sharing, two.journal.sharing
    assert first
    assert second
    first.set_address("chain", "one:1")
    second.set_address("chain", "two:1")
    second.set_address("other", "two:2")
    assert first.is_first()
    assert not second.is_first()
    assert first.addresses("chain") == second.addresses("chain") == ["one:1", "two:1"]
    assert first.addresses("other") == ["two:2"]
    second.set_address("other", None)
    first.refresh()
    assert first.addresses("other") == []
    one.kill(two)
    assert second.is_first()
    assert second.addresses("chain") == ["two:1"]
    assert second.killed_addresses("chain") == {"one:1"}
    assert second.killed_addresses("other") == set()
