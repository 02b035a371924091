"""Several members with one journal on PostgreSQL store rows at the same time, and take over those of dead members."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial

import psycopg
import pytest

from trollmoves.errors import JournalError, JournalUnusable
from trollmoves.journal import (
    DONE,
    FAILED,
    WAITING,
    AnnouncementRecord,
    Outcome,
    Retention,
    Task,
    TaskEditor,
    Version,
    record_offline,
    running_pid,
)
from trollmoves.journal.postgresql import PostgresJournal
from trollmoves.journal.postgresql.members import _bury
from trollmoves.tests.helpers.journals import (
    LATER,
    announced,
    append_announcements,
    keys,
    new_schema,
    new_schema_of,
    shared_server,
    task,
)
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql
from trollmoves.tests.servers.postgresql import Postgresql

pytestmark = pytest.mark.skipif(bool(postgresql.missing()), reason=postgresql.missing())

KILLS = int(os.environ.get("TROLLMOVES_TEST_KILLS", "20"))  # of the engine in one test; 1000 for a release

Join = Callable[[], PostgresJournal]


@pytest.fixture
def join() -> Iterator[Join]:
    """Return a function that opens the journal of a fleet as a further member."""
    url = new_schema(shared_server())
    with ExitStack() as stack:

        def open_again() -> PostgresJournal:
            journal = PostgresJournal(url)
            stack.callback(journal.close)
            return journal

        yield open_again


def execute(journal: PostgresJournal, statement: str) -> None:
    """Change the database of a journal as an operator could."""
    with psycopg.connect(shared_server().url, autocommit=True) as db:
        db.execute(f"SET search_path TO {journal._membership._database.location.schema}".encode())
        db.execute(statement.encode())


def bury(journal: PostgresJournal, other: PostgresJournal) -> None:
    """Make a member bury another one, as if the process of that had ended."""
    execute(journal, f"UPDATE members SET process = regexp_replace(process, '[0-9]+$', '0') WHERE id = {other.life}")

    def is_buried() -> bool:
        journal._membership.bury_ended()
        return other.life not in {member.life for member in journal.members()}

    until(is_buried)


def suspend(journal: PostgresJournal) -> None:
    """End the thread of a member, so that it neither renews its lease nor learns of its burial."""
    journal._membership._stop.set()
    journal._membership._thread.join()


def test_members_have_one_identity_and_different_lives(join: Join) -> None:
    """All members have the identity of the journal, and each one its life."""
    one, two = join(), join()
    assert one.identity == two.identity
    assert one.life != two.life
    assert one.still()
    assert [member.life for member in one.members()] == [one.life, two.life]


def test_each_key_is_new_for_one_member(join: Join) -> None:
    """Members that note the same keys in any order, at the same time, agree which of them stored each one."""
    journals = [join(), join()]
    names = [f"{n:04}" for n in range(200)]
    new: Counter[str] = Counter()

    def note(number: int) -> list[str]:
        order = random.Random(number)
        stored = []
        for start in range(0, len(names), 40):
            batch = names[start : start + 40]
            order.shuffle(batch)
            added = journals[number % 2].add_tasks([task(name) for name in batch])
            assert [one.key for one, _ in added] == batch
            stored += [one.key for one, is_new in added if is_new]
        return stored

    with ThreadPoolExecutor(4) as pool:
        for stored in pool.map(note, range(4)):
            new.update(stored)
    assert new == Counter(names)


def test_a_task_is_claimed_by_one_member(join: Join) -> None:
    """Members that claim from one lane at the same time get different tasks, and all together."""
    one, two = join(), join()
    one.add_tasks([task(f"{n:03}", due=1.0) for n in range(300)])
    execute(one, "UPDATE tasks SET holder = NULL")

    def claim(journal: PostgresJournal) -> list[str]:
        mine: dict[int, str] = {}
        while claimed := journal.claim("chain", "lane", 16, LATER, in_flight=mine.keys()):
            mine |= {one.id: one.key for one in claimed}
        return list(mine.values())

    with ThreadPoolExecutor(4) as pool:
        claimed = [key for keys in pool.map(claim, [one, two]) for key in keys]
    assert sorted(claimed) == [f"{n:03}" for n in range(300)]


def test_new_tasks_belong_to_their_member(join: Join) -> None:
    """A member that stores a task holds it: others do not claim it, and do not expect it."""
    one, two = join(), join()
    ((stored, _),) = one.add_tasks([task("a")])
    assert stored.held
    ((known, is_new),) = two.add_tasks([task("a")])
    assert (known.held, is_new) == (False, False)
    assert two.claim("chain", "lane", 5, LATER) == []
    assert keys(one.claim("chain", "lane", 5, LATER)) == ["a"]
    assert two.reset_tasks([known]) == []
    assert two.fail_pending("chain", "lane") == []
    assert one.reset_tasks([stored])


def test_tasks_that_cannot_be_claimed_now_are_due_soon(join: Join) -> None:
    """A task that a transaction changes is skipped, but not forgotten, and neither is one that another member holds."""
    one, two = join(), join()
    stored = [
        t for t, _ in one.add_tasks([task("locked", due=1.0), task("running", due=1.0), task("later", due=100.0)])
    ]
    begun, end = threading.Event(), threading.Event()

    def merge() -> None:
        def how(_editor: TaskEditor, _asked: Task, _stored: Task) -> list[Task]:
            begun.set()
            assert end.wait(30)
            return []

        one.merge([task("locked")], (), how)

    thread = threading.Thread(target=merge)
    thread.start()
    try:
        assert begun.wait(30)
        running = one.claim("chain", "lane", 5, 2.0)
        assert keys(running) == ["running"]
        soon = one.next_due("chain", "lane", 2.0, in_flight=[running[0].id])
        assert soon is not None
        assert 2 < soon < 3
    finally:
        end.set()
        thread.join()
    assert keys(one.claim("chain", "lane", 5, 2.0, in_flight=[running[0].id])) == ["locked"]
    assert one.next_due("chain", "lane", 2.0, in_flight=[t.id for t in stored]) == 100
    assert two.claim("chain", "lane", 5, 2.0) == []
    assert two.next_due("chain", "lane", 2.0) == 3


def test_a_member_gets_the_tasks_of_one_that_died(join: Join) -> None:
    """The tasks of a member without a lease become free, and its results no longer count."""
    one, two = join(), join()
    suspend(one)
    one.add_tasks([task("a"), task("b"), task("done")])
    ours = {t.key: t for t in one.claim("chain", "lane", 5, LATER)}
    one.finish([Outcome(ours["done"], DONE)])
    bury(two, one)
    theirs = two.claim("chain", "lane", 5, LATER)
    assert keys(theirs) == ["a", "b"]
    assert [t.tried_by for t in theirs] == [(one.life,)] * 2
    finished = one.finish([Outcome(ours["a"], DONE, follow_ups=[task("next")])])
    assert [outcome.task.key for outcome in finished.lost] == ["a"]
    assert finished.new == []
    assert two.find("chain", "fetch", "next") is None
    assert two.finish([Outcome(theirs[0], DONE)]).lost == []
    assert keys(two.finished_before_kill("chain", ["fetch"], 1000.0)) == ["done"]


@pytest.mark.parametrize("call", ["finish", "take", "add"])
def test_a_call_at_the_instant_of_a_burial(join: Join, call: str) -> None:
    """A member that is being buried adds no task and takes no lease that would never become free."""
    one, two = join(), join()
    suspend(one)
    ((stored, _),) = one.add_tasks([task("a")])
    calls: dict[str, Callable[[], object]] = {
        "finish": lambda: one.finish([Outcome(stored, DONE, follow_ups=[task("next")])]),
        "take": lambda: one.take("fleet"),
        "add": lambda: one.add_tasks([task("next")]),
    }
    member = int(one.life)
    with two._membership._database.connect() as db, ThreadPoolExecutor(1) as pool:
        with db.transaction():
            db.execute("SELECT 1 FROM members WHERE id = %s FOR UPDATE", (member,))
            _bury(db, [member], killed=True)
            result = pool.submit(calls[call])
            until(lambda: result.done() or _waits_for_a_lock(db))
            assert not result.done()
        wait([result])
    assert two.take("fleet")
    assert keys(two.claim("chain", "lane", 5, LATER)) == ["a"]
    assert two.find("chain", "fetch", "next") is None


def _waits_for_a_lock(db: psycopg.Connection) -> bool:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    return db.execute(waiting, (db.info.backend_pid,)).fetchone() is not None


TURN = "0" * 32


def in_turn(key: str, turn: str = TURN) -> Task:
    """Make a task with a turn."""
    one = task(key)
    one.turn = turn
    return one


def test_members_take_turns(join: Join) -> None:
    """Of the tasks with one turn, a member holds the first one; after its end another one can be claimed."""
    one, two = join(), join()
    ((a, _),) = one.add_tasks([in_turn("a")])
    added = two.add_tasks([in_turn("b"), in_turn("c"), in_turn("other", "1" * 32)])
    assert [stored.held for stored in (a, *(stored for stored, _ in added))] == [True, False, False, True]
    assert keys(two.claim("chain", "lane", 5, two.now())) == ["other"]
    one.finish([Outcome(a, DONE)])
    (b,) = two.claim("chain", "lane", 1, two.now(), in_flight=[added[2][0].id])
    assert (b.key, b.overtaken) == ("b", False)
    assert one.claim("chain", "lane", 5, one.now()) == []
    two.finish([Outcome(b, WAITING, "failed", due=two.now() + 1000)])
    (c,) = one.claim("chain", "lane", 5, one.now())
    assert (c.key, c.overtaken) == ("c", False)
    one.finish([Outcome(c, DONE)])
    (b,) = one.claim("chain", "lane", 5, LATER)
    assert (b.key, b.overtaken) == ("b", True)


def test_a_held_task_precedes_the_first_of_its_turn(join: Join) -> None:
    """A member can claim a task that it holds although an earlier one of the turn is free."""
    one = join()
    a, b = (stored for stored, _ in one.add_tasks([in_turn("a"), in_turn("b")]))
    assert (a.held, b.held) == (True, False)
    execute(one, "UPDATE tasks SET holder = NULL")
    execute(one, f"UPDATE tasks SET holder = {one.life} WHERE key = 'b'")
    assert keys(one.claim("chain", "lane", 5, LATER)) == ["b"]


def test_a_turn_while_another_task_restarts(join: Join) -> None:
    """A task that is restarted or renewed while another one of its turn is held waits for that."""
    one, two = join(), join()
    a, b = (stored for stored, _ in one.add_tasks([in_turn("a"), in_turn("b", "1" * 32)]))
    one.finish([Outcome(a, FAILED, "failed"), Outcome(b, DONE)])
    others = [stored for stored, _ in two.add_tasks([in_turn("c"), in_turn("d", "1" * 32)])]
    assert all(other.held for other in others)
    a.state = WAITING
    assert keys(one.reset_tasks([a])) == ["a"]
    one.renew_tasks([b])
    assert (a.held, b.held) == (False, False)
    assert one.claim("chain", "lane", 5, LATER) == []
    two.finish([Outcome(other, DONE) for other in others])
    assert keys(one.claim("chain", "lane", 5, LATER)) == ["a", "b"]


def test_turns_at_the_same_time(join: Join) -> None:
    """Members that add and claim tasks of few turns at the same time never run two tasks of one turn together."""
    rng = random.Random(1)
    turns = {f"{number} {n}": str(rng.randrange(4)) * 32 for number in range(3) for n in range(60)}
    running: set[str] = set()
    done: Counter[str] = Counter()
    lock = threading.Lock()
    deadline = time.monotonic() + 60

    def work(number: int, journal: PostgresJournal) -> None:
        rest = [in_turn(key, turn) for key, turn in turns.items() if key.startswith(f"{number} ")]
        while (rest or len(done) < len(turns)) and time.monotonic() < deadline:
            batch, rest = rest[:5], rest[5:]
            mine = [one for one, _ in journal.add_tasks(batch) if one.held]
            mine += journal.claim("chain", "lane", 8, journal.now(), in_flight=[one.id for one in mine])
            began = [turns[one.key] for one in mine]
            with lock:
                assert len(set(began)) == len(began)
                assert running.isdisjoint(began)
                running.update(began)
            time.sleep(0.002)  # other members claim now
            with lock:
                running.difference_update(began)
                done.update(one.key for one in mine)
            assert not journal.finish([Outcome(one, DONE) for one in mine]).lost

    members = [join() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3), members))
    assert done == Counter(turns.keys())


def test_a_file_of_several_hosts() -> None:
    """Tasks stay on the host that has stored them, until another host has stored them too."""
    url = new_schema(shared_server())
    with ExitStack() as stack:
        here, there = (PostgresJournal(url, name=name, sharing=True) for name in ("here", "there"))
        stack.callback(here.close)
        stack.callback(there.close)
        for journal in (here, there):
            journal.keep_on_host("chain", "fetch", until_shared=True)
        here.add_tasks([task("both"), task("here")])
        execute(here, "UPDATE tasks SET holder = NULL")
        assert there.claim("chain", "lane", 5, LATER) == []
        there.add_tasks([task("both")])
        assert keys(there.claim("chain", "lane", 5, LATER)) == ["both"]
        assert keys(here.claim("chain", "lane", 5, LATER)) == ["here"]


def test_files_of_one_member() -> None:
    """A member with other files has an own log with numbers of the common one, and the only one that runs its tasks."""
    url = new_schema(shared_server())
    with ExitStack() as stack:
        one, two = (PostgresJournal(url, sharing=True) for _ in range(2))
        stack.callback(one.close)
        stack.callback(two.close)
        for journal, port in ((one, 1), (two, 2)):
            assert journal.sharing
            assert journal.sharing.keep_files("chain", port).endswith(f":{port}")
        seen: list[Mapping[str, Version]] = []

        def announce(journal: PostgresJournal, *uris: str) -> None:
            def make(versions: Mapping[str, Version], number: int) -> list[AnnouncementRecord]:
                seen.append(dict(versions))
                return [announced(n, uri) for n, uri in enumerate(uris, number)]

            journal.append("chain", uris, make)

        announce(one, "/a", "/b")
        announce(two, "/a", "/c")
        announce(one, "/a")
        assert seen == [{}, {}, {"/a": (5, 7)}]
        assert [journal.last_number("chain") for journal in (one, two)] == [5, 4]
        for journal, numbers in ((one, [1, 2, 5]), (two, [3, 4])):
            assert [a.number for a in journal.announcements_after("chain", 0, 9)] == numbers
            assert [a.number for a in journal.undelivered_announcements("chain", ("push",), 0, 9)] == numbers
            assert [uid for _, uid in journal.newest_files("chain", 9)] == [str(n) for n in reversed(numbers)]
            assert (latest := journal.latest_announcement("chain", "/a"))
            assert latest.number in numbers
        assert one.latest_announcement("chain", "/c") is None
        assert one.get_announcement("chain", 4) == two.get_announcement("chain", 4)

        pushes = [replace(task(f"{n}", kind="push"), announcement_number=n) for n in (2, 4)]
        here, there = (stored for stored, _ in one.add_tasks(pushes))  # an order may name the file of another member
        assert here.held
        assert not there.held
        execute(one, "UPDATE tasks SET holder = NULL")
        assert keys(one.claim("chain", "lane", 5, LATER)) == ["2"]
        assert keys(two.claim("chain", "lane", 5, LATER)) == ["4"]
        bury(two, one)
        assert keys(two.claim("chain", "lane", 5, LATER)) == ["4"]
        again = PostgresJournal(url, sharing=True)
        stack.callback(again.close)
        assert again.sharing
        again.sharing.keep_files("chain", 1)
        assert again.last_number("chain") == 5
        assert keys(again.claim("chain", "lane", 5, LATER)) == ["2"]


def test_one_member_prunes(join: Join) -> None:
    """Pruning is the work of one member at a time; another one continues when it leaves."""
    one, two = join(), join()
    ((stored, _),) = one.add_tasks([task("a")])
    one.finish([Outcome(stored, DONE)])
    nothing_kept = Retention(0.0, 0.0, 0, 0)
    assert one.take("pruning")
    assert list(two.prune(nothing_kept, {}, 0.0)) == []
    one.close()
    assert sum(two.prune(nothing_kept, {}, 0.0)) > 0
    assert two.find("chain", "fetch", "a") is None


def test_a_buried_member_learns_of_it(join: Join) -> None:
    """A member that was buried by mistake finds out, and can no longer use the journal."""
    one, two = join(), join()
    bury(two, one)
    until(lambda: one.damage)
    assert not one.still()
    with pytest.raises(JournalError):
        one.find("chain", "fetch", "a")


@pytest.mark.parametrize("cause", ["the engine is a standby", "the process was suspended"])
def test_a_lost_transaction_is_repeated(join: Join, cause: str) -> None:
    """A transaction that the engine rejects as a standby, or ends because it was idle, is repeated and stored."""
    journal = join()
    journal.add_tasks([task("a")])
    pids: list[int] = []

    def work(db: psycopg.Connection) -> None:
        if not pids and cause == "the engine is a standby":
            db.execute("SET TRANSACTION READ ONLY")
        elif not pids:
            db.execute("SET LOCAL idle_in_transaction_session_timeout TO '50ms'")
        pids.append(db.info.backend_pid)
        if len(pids) == 1 and cause == "the process was suspended":
            with psycopg.connect(shared_server().url, autocommit=True) as other:
                alive = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
                until(lambda: not other.execute(alive, (pids[0],)).fetchone())
        db.execute("UPDATE tasks SET tries = 9")

    journal._membership._database.run(work)
    assert len(pids) == 2
    found = journal.find("chain", "fetch", "a")
    assert found is not None
    assert found.tries == 9


def test_a_lost_comparison_of_clocks_is_repeated(join: Join) -> None:
    """If the connection is lost, the clock is compared with that of the engine on a new one."""
    database = join()._membership._database
    ((pid,),) = database.read("SELECT pg_backend_pid()")
    with psycopg.connect(shared_server().url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        until(lambda: not other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone())
    database.measure_clock()


@pytest.mark.parametrize("within", ["no transaction", pytest.param("a transaction", marks=pytest.mark.slow)])
def test_a_suspended_member_loses_its_tasks(join: Join, within: str) -> None:
    """A member that does not renew its lease fences itself; another one frees its tasks, and it stores no more.

    The engine soon ends a transaction of a suspended member, so that its locks do not delay this.
    """
    one = join()
    two = PostgresJournal(one.path, lease=1.0)
    stack = ExitStack()
    try:
        one.add_tasks([task("a")])
        if within == "a transaction":
            db = stack.enter_context(one._membership._database.connect())
            db.execute("BEGIN")
            db.execute("UPDATE tasks SET tries = 9")
        suspend(one)
        until(lambda: not one.still())
        execute(one, f"UPDATE members SET lease_until = 0 WHERE id = {one.life}")
        until(lambda: keys(two.claim("chain", "lane", 5, LATER)) == ["a"], 30)
        until(two.still)
        with pytest.raises(JournalError):
            one.add_tasks([task("late")])
    finally:
        with suppress(psycopg.Error):  # the transaction was ended
            stack.close()
        two.close()


def test_seconds_after_the_kill_of_another_member(join: Join) -> None:
    """A member that was killed counts, for one of the others; one that left does not."""
    one, killed, left = join(), join(), join()
    suspend(killed)
    left.close()
    bury(one, killed)
    assert one.seconds_after_kill() > 0
    assert join().seconds_after_kill() == 0


def test_a_member_that_leaves_gives_its_tasks_back(join: Join) -> None:
    """After a normal end the tasks and leases are free immediately, and nothing counts as lost."""
    one, two = join(), join()
    one.add_tasks([task("a")])
    assert one._membership.take("fleet")
    assert not two._membership.take("fleet")
    one.close()
    assert two._membership.take("fleet")
    assert keys(two.claim("chain", "lane", 5, LATER)) == ["a"]
    assert two.finished_before_kill("chain", ["fetch"], 1000.0) == []


def test_orders_for_a_daemon_that_does_not_run(join: Join) -> None:
    """An order is stored only while no daemon has the journal open; the next one finds it."""
    one = join()
    url = one.path
    one.add_tasks([task("a", "a lane")])
    assert running_pid(url) == os.getpid()
    with pytest.raises(JournalError, match=f"in use by process {os.getpid()}"):
        record_offline(url, "key", "an order")
    execute(one, f"UPDATE members SET process = 'elsewhere 1 1', name = 'hostb' WHERE id = {one.life}")
    with pytest.raises(JournalUnusable, match="in use by hostb: give the order on that host"):
        record_offline(url, "key", "an order")
    assert running_pid(url) is None
    one.close()
    record_offline(url, "key", "an order")
    record_offline(url, "key", "a later one")
    assert [(order.key, order.body) for order in join().waiting_orders()] == [("key", "a later one")]


def test_readers_miss_no_number(join: Join) -> None:
    """Four threads of two members append; a reader that asks for later numbers gets each one, in order."""
    one, two = join(), join()
    per_thread, batch = 100, 5
    done = threading.Event()

    def append(number: int) -> None:
        for start in range(0, per_thread, batch):
            uris = [f"/in/{number}/{n}" for n in range(start, start + batch)]

            def make(_: object, first: int, uris: list[str] = uris) -> list[AnnouncementRecord]:
                return [announced(first + n, uri) for n, uri in enumerate(uris)]

            [one, two][number % 2].append("chain", uris, make)

    def read() -> list[AnnouncementRecord]:
        found: list[AnnouncementRecord] = []
        while not done.is_set() or two.last_number("chain") > len(found):
            found += two.announcements_after("chain", len(found), 50)
        return found

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        list(pool.map(append, range(4)))
        done.set()
        found = reader.result()
    assert [record.number for record in found] == list(range(1, 4 * per_thread + 1))
    assert len({record.uri for record in found}) == 4 * per_thread


def test_a_file_is_announced_by_one_member(join: Join) -> None:
    """Members that find the same files announce each one once: the versions are read under the lock of the log."""
    journals = [join(), join()]
    uris = [f"/in/{n}" for n in range(50)]

    def announce(number: int) -> None:
        for start in range(0, len(uris), 10):
            chosen = uris[start : start + 10]

            def make(
                versions: Mapping[str, Version], first: int, chosen: list[str] = chosen
            ) -> list[AnnouncementRecord]:
                new = [uri for uri in chosen if versions.get(uri) != (5, 7)]
                return [announced(first + n, uri) for n, uri in enumerate(new)]

            journals[number % 2].append("chain", chosen, make)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(announce, range(4)))
    records = journals[0].announcements_after("chain", 0, 1000)
    assert sorted(record.uri for record in records) == sorted(uris)
    assert [record.number for record in records] == list(range(1, len(uris) + 1))


def test_merging_loses_nothing(join: Join) -> None:
    """Members that add to the body of one task at the same time all find their part in it."""
    journals = [join(), join()]
    journals[0].add_tasks([task("a", body="")])

    def merge(number: int) -> None:
        def how(editor: TaskEditor, asked: Task, known: Task) -> list[Task]:
            known.body += asked.body
            editor.update_body(known)
            return []

        for n in range(10):
            journals[number % 2].merge([task("a", body=f"{number}-{n} ")], (), how)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(merge, range(4)))
    found = journals[0].find("chain", "fetch", "a")
    assert found
    assert sorted(found.body.split()) == sorted(f"{number}-{n}" for number in range(4) for n in range(10))


def test_random_batches_end(join: Join) -> None:
    """Batches of all kinds on the same rows, in random orders, all end, and each finished task is finished once."""
    journals = [join(), join()]
    names = [f"{n:03}" for n in range(60)]
    finished: Counter[str] = Counter()
    lock = threading.Lock()

    def work(number: int) -> None:
        chance, journal = random.Random(number), journals[number % 2]
        for _ in range(25):
            chosen = chance.sample(names, 10)
            journal.add_tasks([task(name, chance.choice(["one", "two"])) for name in chosen])
            journal.merge([task(name) for name in chosen], (), lambda editor, asked, known: [])
            with lock:  # the tasks in flight of one process are claimed by its one scheduler
                claimed = journal.claim("chain", chance.choice(["one", "two"]), 5, LATER, in_flight=flying[number % 2])
                flying[number % 2] |= {one.id for one in claimed}
            chance.shuffle(claimed)
            states = [chance.choice([DONE, WAITING, FAILED]) for _ in claimed]
            outcomes = [Outcome(one, state, due=1.0) for one, state in zip(claimed, states, strict=True)]
            lost = {id(outcome) for outcome in journal.finish(outcomes).lost}
            with lock:
                flying[number % 2] -= {one.id for one in claimed}
                finished.update(o.task.key for o in outcomes if o.state != WAITING and id(o) not in lost)

    flying: list[set[int]] = [set(), set()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    counts = journals[0].count("chain")
    assert set(finished.values()) <= {1}
    assert counts["done"] + counts["failed"] == len(finished)


def test_unusual_texts(join: Join) -> None:
    """NUL, invalid UTF-8 and texts of a megabyte are stored, also in keys; the texts are found again."""
    journal = join()
    large = random.Random(1).randbytes(500_000).hex()
    names = ["a\0b", "a\0c", "\udcff", "雲" * 1000, large, f"{large}x"]
    added = journal.add_tasks([task(name, body=large) for name in names])
    assert all(is_new for _, is_new in added)
    assert not any(is_new for _, is_new in journal.add_tasks([task(name) for name in names]))
    found = [journal.find("chain", "fetch", name) for name in names]
    assert [one.id for one in found if one] == [one.id for one, _ in added]
    assert {one.body for one in found if one} == {large}


def test_a_gap_after_a_fail_over(join: Join) -> None:
    """On another timeline of the engine, numbers and ids continue after a gap, so that none is given twice."""
    one = join()
    append_announcements(one, "chain", [announced(1)])
    ((before, _),) = one.add_tasks([task("a")])
    execute(one, "UPDATE meta SET value = '00000000' WHERE key = 'timeline'")
    two = join()
    number = two.append("chain", (), lambda _, first: [announced(first)])[0].number
    ((after, _),) = two.add_tasks([task("b")])
    assert number == 1_000_002
    assert after.id > before.id + 1_000_000


def test_a_failed_call_before_a_fail_over(join: Join) -> None:
    """An announcement that was stored, although its call failed, is returned by the next call for publication."""
    one = join()
    append_announcements(one, "chain", [announced(1)])
    ((created,),) = one._membership._database.read("SELECT created FROM announcements")
    one._doubtful_appends["chain"] = [created]
    execute(one, "UPDATE logs SET last = last + 1000000")
    assert [record.number for record in one.append("chain", (), lambda _, first: [announced(first)])] == [1, 1_000_002]


@pytest.mark.parametrize("with_key", [True, False])
def test_logins_are_not_in_the_database(tmp_path: pytest.TempPathFactory, with_key: bool) -> None:
    """A password in the body of a task is encrypted; another member finds it only with the key file."""
    key = f"{tmp_path}/fleet.key"
    with open(key, "w", encoding="ascii") as file:
        file.write("k" * 40)
    url = new_schema(shared_server()) + (f"&key_file={key}" if with_key else "")
    body = '{"destination": "ftp://user:secret@host/in", "other": "http://host/a@b:c"}'
    one, two = PostgresJournal(url), PostgresJournal(url)
    try:
        one.add_tasks([task("a", body=body)])
        with psycopg.connect(shared_server().url) as db:
            schema = one._membership._database.location.schema
            rows = db.execute(f"SELECT body FROM {schema}.tasks".encode()).fetchall()
        assert "secret" not in str(rows)
        here, there = one.find("chain", "fetch", "a"), two.find("chain", "fetch", "a")
        assert here
        assert here.body == body
        assert there
        assert there.body == (body if with_key else body.replace("user:secret@", ""))
    finally:
        two.close()
        one.close()


def test_no_password_in_texts() -> None:
    """The path and the errors of a journal have no password; a wrong one is not tried again."""
    server = shared_server()
    url = f"postgresql://nobody-here:hush@/postgres?host={server.folder}&port={server.port}"
    with pytest.raises(JournalUnusable) as caught:
        PostgresJournal(url)
    assert "hush" not in str(caught.value)
    assert not caught.value.temporary
    with pytest.raises(JournalUnusable) as invalid:
        PostgresJournal("postgresql://u:hush%zz@host/db")
    assert "hush" not in str(invalid.value)


class Writer:
    """Stores, finishes and announces tasks on an engine that crashes, and repeats each call that failed."""

    def __init__(self, journal: PostgresJournal) -> None:
        self.journal = journal
        self.new: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.numbers: dict[tuple[str, int], str] = {}  # announcements that were acknowledged, by chain and number
        self.stopping = threading.Event()

    def repeat(self, call: Callable[[], None]) -> None:
        """Repeat a call until it succeeds."""
        while True:
            try:
                return call()
            except JournalError as error:
                if not error.temporary:
                    raise

    def run(self, number: int) -> None:
        """Work until the end of the test."""
        for n in itertools.count():
            if self.stopping.is_set():
                return
            for step in (self._add, self._append):
                self.repeat(partial(step, number, f"{number}-{n}"))

    def _add(self, _: int, name: str) -> None:
        for one, is_new in self.journal.add_tasks([task(name)]):
            self.new[name] += is_new
            self.repeat(partial(self._finish, one))

    def _finish(self, one: Task) -> None:
        assert self.journal.finish([Outcome(one, DONE)]).lost == []
        self.finished[one.key] += 1

    def _append(self, number: int, name: str) -> None:
        def make(versions: Mapping[str, Version], first: int) -> list[AnnouncementRecord]:
            return [] if name in versions else [announced(first, name)]

        for record in self.journal.append(f"chain{number}", [name], make):
            assert self.numbers.setdefault((f"chain{number}", record.number), record.uri) == record.uri

    @contextmanager
    def working(self) -> Iterator[Callable[[], None]]:
        """Work on three threads during the block, and check the tasks and announcements afterwards.

        The block gets a function that waits until some tasks more are finished.
        """
        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(self.run, number) for number in range(3)]
            try:
                yield partial(self._wait_for_more, running)
                self._wait_for_more(running)
            finally:
                self.stopping.set()
            for one in running:
                one.result()
        assert set(self.new.values()) == set(self.finished.values()) == {1}
        assert self.journal.count() == {"waiting": 0, "done": len(self.finished), "failed": 0}
        assert log_of(self.journal, self) == self.numbers

    def _wait_for_more(self, running: list[Future[None]]) -> None:
        enough = len(self.finished) + 20
        until(lambda: len(self.finished) > enough or any(one.done() for one in running), 30)


def log_of(journal: PostgresJournal, writer: Writer) -> dict[tuple[str, int], str]:
    """Return all announcements of the chains of a writer, by chain and number."""
    stored: dict[tuple[str, int], str] = {}
    for chain in {chain for chain, _ in writer.numbers}:
        after = 0
        while page := journal.announcements_after(chain, after, 10_000):
            stored |= {(chain, record.number): record.uri for record in page}
            after = page[-1].number
    return stored


@pytest.mark.slow
def test_the_engine_is_killed_and_restarted() -> None:
    """The engine crashes between and during calls of the journal: each task is new once, and finished once."""
    with Postgresql() as server:
        journal = PostgresJournal(new_schema(server))
        writer = Writer(journal)
        with writer.working() as wait_for_more:
            for _ in range(KILLS):
                wait_for_more()
                server.kill()
                server.start()
        for number in range(3):
            uris = [uri for (chain, _), uri in writer.numbers.items() if chain == f"chain{number}"]
            assert (f"chain{number}", len(uris)) in writer.numbers
            assert len(set(uris)) == len(uris)
        journal.close()


def execute_on(server: Postgresql, *statements: str) -> None:
    """Execute statements on a server."""
    with psycopg.connect(server.url, autocommit=True) as db:
        for statement in statements:
            db.execute(statement.encode())


def wait_until_replicated(server: Postgresql) -> None:
    """Wait until the standby of a server has all its present commits."""
    with psycopg.connect(server.url, autocommit=True) as db:
        ((last,),) = db.execute("SELECT pg_current_wal_lsn()").fetchall()
        until(lambda: db.execute("SELECT 1 FROM pg_stat_replication WHERE replay_lsn >= %s", (last,)).fetchone(), 30)


def is_streaming(server: Postgresql, state: str) -> bool:
    """Return True if the standby of a server is in this state of synchronization."""
    with psycopg.connect(server.url, autocommit=True) as db:
        return db.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = %s", (state,)).fetchone() is not None


@pytest.fixture
def pair() -> Iterator[tuple[Postgresql, Postgresql]]:
    """Return a running primary and its standby."""
    with Postgresql() as primary, Postgresql(primary=primary) as standby:
        until(lambda: is_streaming(primary, "async"), 30, "the standby follows the primary")
        yield primary, standby


@pytest.mark.slow
def test_fail_over_to_a_synchronous_standby(pair: tuple[Postgresql, Postgresql]) -> None:
    """The primary is killed and its standby promoted during calls: all that was acknowledged is there, and once."""
    primary, standby = pair
    execute_on(primary, "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'", "SELECT pg_reload_conf()")
    until(lambda: is_streaming(primary, "quorum"), 30, "the standby is synchronous")
    journal = PostgresJournal(new_schema_of(primary.url_with(standby)), synchronous="full")
    writer = Writer(journal)
    with writer.working() as wait_for_more:
        wait_for_more()
        primary.kill()
        standby.promote()
    assert max(number for _, number in writer.numbers) > 1_000_000
    journal.close()


@pytest.mark.slow
def test_fail_over_that_loses_commits(pair: tuple[Postgresql, Postgresql]) -> None:
    """A standby that lacks the last commits is promoted: their numbers and ids are not given again."""
    primary, standby = pair
    journal = PostgresJournal(new_schema_of(primary.url_with(standby)))
    ids: list[int] = []
    numbers: list[int] = []

    def work(name: str) -> None:
        ((added, _),) = journal.add_tasks([task(name)])
        ids.append(added.id)
        numbers.append(journal.append("chain", (), lambda _, first: [announced(first, name)])[0].number)

    work("kept")
    wait_until_replicated(primary)
    with psycopg.connect(standby.url, autocommit=True) as db:
        db.execute("ALTER SYSTEM SET primary_conninfo = ''")
        db.execute("SELECT pg_reload_conf()")
        until(lambda: not db.execute("SELECT 1 FROM pg_stat_wal_receiver").fetchone(), 30, "the standby is cut off")
    work("lost")
    primary.kill()
    standby.promote()
    assert journal.find("chain", "fetch", "kept")
    assert not journal.find("chain", "fetch", "lost")
    work("lost")
    work("new")
    assert len(set(ids)) == len(set(numbers)) == 4
    assert sorted(numbers) == numbers
    journal.close()
