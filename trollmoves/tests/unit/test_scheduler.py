"""Added tasks run once, in their lane, and no lane blocks another."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from trollmoves.errors import (
    ConnectionFailed,
    NameRejected,
    OriginChanged,
    OriginMissing,
    OriginUnreadable,
    TemporaryTransferError,
    TrollmovesError,
)
from trollmoves.journal import DONE, DROPPED, FAILED, WAITING, Outcome, Task, open_journal
from trollmoves.scheduler.circuit_breaker import BACKOFF_MAX, backoff
from trollmoves.scheduler.lanes import ASYNC_BURST_FACTOR, NEVER, ChainPolicy, Lane, Result, TaskKind
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.tests.helpers.journals import update_body
from trollmoves.tests.helpers.waiting import until
from trollmoves.utils import watched_threads

SOON = 5.0  # s; far more than anything here takes, far less than the longest sleep of the clerk

Handler = Callable[[Task], Result | None]


class SchedulerTestbed:
    """A journal and its scheduler, which can be restarted on the same file."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "a.journal")
        self.open_workers: list[Scheduler] = []
        self.open()

    def open(self) -> None:
        """Open the journal."""
        self.journal = open_journal(self.path)

    def workers(self, threads: int = 4) -> Scheduler:
        """Give workers that are started."""
        workers = Scheduler(self.journal, threads)
        self.open_workers.append(workers)
        workers.start()
        return workers

    def note(self, workers: Scheduler, *tasks: Task) -> list[Task]:
        """Note tasks and expect the new ones, as the rooms above do."""
        new = [task for task, is_new in self.journal.add_tasks(tasks) if is_new]
        workers.submit(new)
        return new

    def settle(self, workers: Scheduler) -> None:
        """Wait until the scheduler has started all that it can of the tasks noted before; this one needs no worker."""
        workers.register("chain", "mark", limit=1, async_handler=lambda _, finish: finish(Result()))
        self.note(workers, task("mark", "mark", kind="mark"))
        until(lambda: self.state("mark", "mark") == DONE, SOON)

    def state(self, key: str, kind: str = "work") -> int | None:
        """Return the state of a task in the journal, None when it is not there."""
        found = self.journal.find("chain", kind, key)
        return found.state if found else None

    def close(self) -> None:
        """Stop all."""
        for workers in self.open_workers:
            workers.stop(2)
        self.journal.close()


@pytest.fixture
def runtime() -> Iterator[SchedulerTestbed]:
    """Return a journal with workers, in memory where that can be."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        runtime = SchedulerTestbed(folder)
        yield runtime
        runtime.close()


def task(key: object, lane: str = "lane", *, kind: str = "work", due: float = 0.0, rank: int = 0) -> Task:
    """Make a task."""
    return Task("chain", kind, str(key), lane, "", due, rank)


def tasks(numbers: range, lane: str = "lane") -> list[Task]:
    """Make several tasks of one lane."""
    return [task(f"{lane} {n}", lane) for n in numbers]


class Gauge:
    """A handler that records its tasks and their number per lane; they end on request."""

    def __init__(self, *, open_: bool = True) -> None:
        self.begun: list[str] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.releases: dict[str, threading.Event] = {}
        self._open = open_

    def block(self, lane: str) -> threading.Event:
        """Let nothing of a lane end until the event is set."""
        return self.releases.setdefault(lane, threading.Event())

    def __call__(self, task: Task) -> Result | None:
        """Run one."""
        with self._lock:
            self.begun.append(task.key)
            self.running[task.lane] += 1
            self.most[task.lane] = max(self.most[task.lane], self.running[task.lane])
        if release := self.releases.get(task.lane):
            release.wait(60)
        with self._lock:
            self.running[task.lane] -= 1
        return None

    def began(self, lane: str) -> int:
        """Count the started tasks of a lane."""
        return sum(key.startswith(f"{lane} ") for key in self.begun)


# -- running


def test_added_task_runs(runtime: SchedulerTestbed) -> None:
    """A task runs when it is added, and is stored as done with its reply."""
    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=lambda _: Result(reply="the reply"))
    runtime.note(workers, task("a"))
    until(lambda: runtime.state("a") == DONE, SOON)
    found = runtime.journal.find("chain", "work", "a")
    assert found is not None
    assert (found.reply, found.tries) == ("the reply", 1)


def test_workers_are_started_for_work(runtime: SchedulerTestbed) -> None:
    """A worker is started when all others are busy, up to the maximum."""
    gauge = Gauge()
    workers = runtime.workers(threads=3)
    workers.register("chain", "work", limit=1, handler=gauge)
    releases = [gauge.block(f"lane{n}") for n in range(5)]
    for n, expected in enumerate((1, 2, 3, 3, 3)):
        assert f" {min(n, 3)} workers" in repr(workers)
        runtime.note(workers, task(f"lane{n} 0", f"lane{n}"))
        _wait_for_workers(workers, expected)
    assert len(gauge.begun) <= 3
    for release in releases:
        release.set()
    until(lambda: all(runtime.state(f"lane{n} 0") == DONE for n in range(5)), SOON)
    assert " 3 workers" in repr(workers)


def _wait_for_workers(workers: Scheduler, count: int) -> None:
    until(lambda: f" {count} workers" in repr(workers), SOON)


def test_stored_tasks_run(runtime: SchedulerTestbed) -> None:
    """Tasks of an earlier process run when their kind is registered, before or after the start."""
    runtime.journal.add_tasks([task("a"), task("b", kind="other")])
    workers = Scheduler(runtime.journal, 2)
    runtime.open_workers.append(workers)
    workers.register("chain", "work", limit=1, handler=lambda _: None)
    workers.start()
    workers.register("chain", "other", limit=1, handler=lambda _: None)
    until(lambda: runtime.state("a") == runtime.state("b", "other") == DONE, SOON)


def test_unknown_kinds_wait(runtime: SchedulerTestbed) -> None:
    """A task of an unregistered kind stays in the journal until the kind is registered."""
    workers = runtime.workers()
    runtime.note(workers, task("a"))
    assert runtime.state("a") == WAITING
    workers.register("chain", "work", limit=1, handler=lambda _: None)
    until(lambda: runtime.state("a") == DONE, SOON)


def test_order_within_a_lane(runtime: SchedulerTestbed) -> None:
    """Tasks run in the order of their addition, after all tasks of a better rank."""
    gauge = Gauge()
    runtime.journal.add_tasks([task(f"late {n}", rank=1) for n in range(30)])
    runtime.journal.add_tasks([task(f"first {n}") for n in range(50)])
    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=gauge)
    until(lambda: len(gauge.begun) == 80, SOON)
    assert gauge.begun == [f"first {n}" for n in range(50)] + [f"late {n}" for n in range(30)]


def test_order_of_tasks_added_live(runtime: SchedulerTestbed) -> None:
    """Hundreds of tasks added during the run are run in order."""
    gauge = Gauge()
    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=gauge)
    for start in range(0, 600, 20):
        runtime.note(workers, *tasks(range(start, start + 20)))
    until(lambda: len(gauge.begun) == 600, SOON)
    assert gauge.begun == [f"lane {n}" for n in range(600)]


def test_a_lane_keeps_its_limit(runtime: SchedulerTestbed) -> None:
    """A lane runs tasks up to its limit in parallel, and no more."""
    gauge = Gauge()
    releases = [gauge.block("one"), gauge.block("two")]
    workers = runtime.workers(8)
    workers.register("chain", "work", limit=3, handler=gauge)
    runtime.note(workers, *tasks(range(20), "one"), *tasks(range(20), "two"))
    until(lambda: gauge.running == {"one": 3, "two": 3}, SOON)
    for release in releases:
        release.set()
    until(lambda: len(gauge.begun) == 40, SOON)
    assert gauge.most == {"one": 3, "two": 3}


def test_a_lane_is_used_up_to_its_limit(runtime: SchedulerTestbed) -> None:
    """Tasks added while others of the lane run are started immediately, up to the limit."""
    gauge = Gauge()
    gauge.block("lane")
    workers = runtime.workers(8)
    workers.register("chain", "work", limit=4, handler=gauge)
    for n in range(4):
        runtime.note(workers, task(f"lane {n}"))
        until(lambda n=n: gauge.running["lane"] == n + 1, SOON)  # type: ignore[misc]
    runtime.note(workers, task("lane 5"))
    runtime.settle(workers)
    assert gauge.running["lane"] == 4
    gauge.block("lane").set()


def test_a_slow_lane_holds_up_no_other(runtime: SchedulerTestbed) -> None:
    """With fewer threads than lanes, and a limit above them, a lane in which nothing ends leaves the others free."""
    gauge = Gauge()
    gauge.block("slow")
    workers = runtime.workers(4)
    workers.register("chain", "work", limit=8, handler=gauge)
    runtime.note(workers, *tasks(range(500), "slow"))
    until(lambda: gauge.running["slow"] > 0, SOON)
    lanes = [f"lane-{n}" for n in range(10)]
    runtime.note(workers, *itertools.chain.from_iterable(tasks(range(20), lane) for lane in lanes))
    until(lambda: all(gauge.began(lane) == 20 for lane in lanes), SOON)
    gauge.block("slow").set()


def test_many_hanging_lanes_hold_up_none_that_is_at_work(runtime: SchedulerTestbed) -> None:
    """However many hosts hang at one moment, a lane in which tasks end goes on; soon those that begin do as well."""
    hung, down, mended = (threading.Event() for _ in range(3))
    hanging = Counter[str]()
    failed = set[str]()

    def work(task: Task) -> None:
        if task.key == "alive 100":
            hung.wait(60)

    def hang(task: Task) -> None:
        release = mended if task.lane in failed else down
        hanging[task.lane] += 1
        release.wait(60)
        hanging[task.lane] -= 1
        if release is down:
            failed.add(task.lane)
            raise ConnectionFailed("no route")

    workers = runtime.workers(8)
    workers.register("chain", "work", limit=1, handler=work)
    workers.register("chain", "hang", limit=4, handler=hang)
    runtime.note(workers, *tasks(range(1000), "alive"))
    runtime.note(workers, *(task(f"dead {n}", f"dead {n % 20}", kind="hang") for n in range(100)))
    until(lambda: hanging.total() == 7, SOON)
    hung.set()
    until(lambda: runtime.state("alive 999") == DONE, SOON)
    assert hanging.total() == 7
    down.set()
    until(lambda: len(failed) == 20 and hanging.total() == 6, 2 * SOON, "all are known to be down, and probed")
    for n in range(30):
        runtime.note(workers, *tasks(range(2), f"new-{n}"))
        until(lambda n=n: runtime.state(f"new-{n} 1") == DONE, SOON)  # type: ignore[misc]
    assert hanging.total() == 6
    mended.set()
    until(lambda: runtime.journal.count() == {"waiting": 0, "done": 1160, "failed": 0}, 2 * SOON)


@pytest.mark.parametrize(("lanes", "running"), [(1, 12), (2, 13), (4, 15), (9, 15)])
def test_hanging_lanes_leave_workers(runtime: SchedulerTestbed, lanes: int, running: int) -> None:
    """Lanes in which nothing ended yet have three quarters of the workers, but each gets its first from the rest."""
    gauge = Gauge()
    release = threading.Event()
    workers = runtime.workers(16)
    workers.register("chain", "work", limit=15, handler=gauge)
    for n in range(lanes):
        gauge.releases[f"lane-{n}"] = release
        runtime.note(workers, *tasks(range(30), f"lane-{n}"))
        until(lambda: gauge.running.total() >= min(12 + n, 15), SOON)  # noqa: B023
    runtime.settle(workers)
    assert gauge.running.total() == running
    runtime.note(workers, task("new"))  # one more lane
    if running < 15:
        until(lambda: runtime.state("new") == DONE, SOON)
    release.set()
    until(lambda: runtime.state("new") == DONE and runtime.journal.count()["waiting"] == 0, SOON)


def owned(owner: str, *submitted: Task) -> list[Task]:
    """Give tasks an owner."""
    return [replace(task, owner=owner) for task in submitted]


def test_one_owner_leaves_workers(runtime: SchedulerTestbed) -> None:
    """However many lanes hang, of one owner or of several, the lanes of another owner begin immediately."""
    gauge, release = Gauge(), threading.Event()
    workers = runtime.workers(16)
    workers.register("chain", "work", limit=15, handler=gauge, by_owner=True)
    for n, (owner, running) in enumerate((("a", 8), ("b", 12), ("c", 14))):
        gauge.releases |= {f"{owner}-{m}": release for m in range(30)}
        runtime.note(workers, *owned(owner, *(task(f"{owner}-{m} 0", f"{owner}-{m}") for m in range(30))))
        until(lambda: gauge.running.total() >= running, SOON)  # noqa: B023
        runtime.note(workers, *owned("other", *tasks(range(5), f"new-{n}")))
        until(lambda n=n: runtime.state(f"new-{n} 4") == DONE, SOON)  # type: ignore[misc]
        assert gauge.running.total() == running
    release.set()
    until(lambda: runtime.journal.count() == {"waiting": 0, "done": 105, "failed": 0}, SOON)


def test_lane_that_worked_before_it_was_idle(runtime: SchedulerTestbed) -> None:
    """A lane that was idle gets the last worker, if its tasks finished before."""
    gauge, release = Gauge(), threading.Event()
    workers = runtime.workers(8)
    workers.register("chain", "work", limit=1, handler=gauge)
    runtime.note(workers, *tasks(range(1), "known"))
    until(lambda: "0 tasks in 0 lanes" in repr(workers), SOON, "the lane is dropped")
    gauge.releases = {f"hung-{n}": release for n in range(20)}
    runtime.note(workers, *(task(f"hung-{n} 0", f"hung-{n}") for n in range(20)))
    until(lambda: gauge.running.total() == 7, SOON)
    runtime.note(workers, task("known 1", "known"), task("unknown 0", "unknown"))
    until(lambda: runtime.state("known 1") == DONE, SOON)
    assert runtime.state("unknown 0") == WAITING
    release.set()
    until(lambda: runtime.state("unknown 0") == DONE, SOON)


def test_lanes_of_one_owner_take_turns(runtime: SchedulerTestbed) -> None:
    """Many busy lanes of one owner all progress, though the owner does not get all workers."""
    done = Counter[str]()

    def work(task: Task) -> None:
        time.sleep(0.004)
        done[task.lane] += 1

    workers = runtime.workers(8)
    workers.register("chain", "work", limit=1, handler=work, by_owner=True)
    runtime.note(workers, *owned("a", *(task(f"{n % 20} {n}", f"lane-{n % 20}") for n in range(4000))))
    until(lambda: done.total() > 1000, 2 * SOON)
    assert len(done) == 20
    assert max(done.values()) < 5 * min(done.values())


def test_a_dead_lane_holds_up_no_other(runtime: SchedulerTestbed) -> None:
    """A lane in which every try fails is tried ever more seldom, while the others run."""
    tried: list[float] = []

    def handle(task: Task) -> None:
        if task.lane == "dead":
            tried.append(time.monotonic())
            raise ConnectionFailed("no route")

    workers = runtime.workers(2)
    workers.register("chain", "work", limit=2, handler=handle)
    runtime.note(workers, *tasks(range(2000), "dead"))
    runtime.note(workers, *tasks(range(2000), "alive"))
    until(lambda: runtime.state("alive 1999") == DONE, SOON)
    until(lambda: workers.pause_remaining("chain", "dead") > 0, SOON)
    assert len(tried) < 8
    assert workers.pause_remaining("chain", "alive") == 0


def test_resume_ends_a_pause(runtime: SchedulerTestbed) -> None:
    """A paused lane is tried immediately when it is resumed."""
    tried: list[str] = []

    def handle(task: Task) -> None:
        tried.append(task.key)
        if task.key == "first":
            raise ConnectionFailed("no route")

    workers = runtime.workers(2)
    workers.register("chain", "work", limit=2, handler=handle)
    runtime.note(workers, task("first", "lane"))
    until(lambda: workers.pause_remaining("chain", "lane") > 0, SOON)
    runtime.note(workers, task("second", "lane"))
    workers.resume_lane("chain", "lane")
    until(lambda: runtime.state("second") == DONE, SOON)
    workers.resume_lane("chain", "unknown")


def test_lanes_take_turns(runtime: SchedulerTestbed) -> None:
    """With one thread, no lane waits until another one is through."""
    begun: list[str] = []
    release = threading.Event()

    def handle(task: Task) -> None:
        release.wait(60)
        begun.append(task.lane)
        time.sleep(0.005)  # the work

    workers = runtime.workers(1)
    workers.register("chain", "work", limit=2, handler=handle)
    runtime.note(workers, task("begin", "begin"), *tasks(range(15), "one"), *tasks(range(15), "two"))
    until(lambda: workers.in_flight() == 31, SOON)
    release.set()
    until(lambda: len(begun) == 31, SOON)
    assert begun.index("two") < len(begun) - 1 - begun[::-1].index("one")


# -- failing


def test_a_failure_that_may_pass_is_tried_again(runtime: SchedulerTestbed) -> None:
    """A task that fails for a reason that may pass is tried again after a while, and then the lane works again."""
    tries: list[tuple[str, int, float]] = []

    def handle(task: Task) -> None:
        tries.append((task.key, task.tries, time.monotonic()))
        if task.key == "a" and task.tries < 3:
            raise TemporaryTransferError("busy")

    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=handle)
    runtime.note(workers, task("a"))
    until(lambda: runtime.state("a") == DONE, 10)
    times = [at for key, _, at in tries if key == "a"]
    assert [n for key, n, _ in tries if key == "a"] == [1, 2, 3]
    assert times[1] - times[0] > 0.45
    assert times[2] - times[1] > 0.95
    runtime.note(workers, *tasks(range(50)))
    until(lambda: runtime.state("lane 49") == DONE, SOON)
    assert workers.pause_remaining("chain", "lane") == 0


def test_a_permanent_failure_is_tried_once(runtime: SchedulerTestbed) -> None:
    """A permanent failure is tried once, and does not pause its lane."""
    tries: list[str] = []

    def handle(task: Task) -> None:
        tries.append(task.key)
        if task.key == "bad":
            raise NameRejected("never")

    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=handle)
    runtime.note(workers, task("bad"), task("good"))
    until(lambda: runtime.state("good") == DONE, SOON)
    assert runtime.state("bad") == FAILED
    assert tries == ["bad", "good"]


def test_trouble_with_files_tells_nothing_about_the_lane(runtime: SchedulerTestbed) -> None:
    """Files that cannot be sent neither pause the lane of those that can, nor end the pause of one that is down."""
    down = threading.Event()

    def handle(task: Task) -> None:
        kind = task.key.split()[0]
        if kind == "lane" and down.is_set():
            raise ConnectionFailed("no route")
        if kind != "lane":
            raise {"changed": OriginChanged, "missing": OriginMissing, "unreadable": OriginUnreadable}[kind](task.key)

    workers = runtime.workers(2)
    workers.register("chain", "work", limit=1, handler=handle)
    bad = [task(f"{kind} {n}") for n in range(5) for kind in ("changed", "missing", "unreadable")]
    runtime.note(workers, *bad, *tasks(range(20)))
    until(lambda: runtime.state("lane 19") == DONE, SOON)
    assert workers.pause_remaining("chain", "lane") == 0
    assert runtime.state("missing 4") == FAILED
    down.set()
    runtime.note(workers, *tasks(range(20, 22)))
    until(lambda: workers.pause_remaining("chain", "lane") > 1, 10)
    for n in range(5, 10):
        runtime.note(workers, task(f"missing {n}"))
        workers.resume_lane("chain", "lane")
        until(lambda n=n: runtime.state(f"missing {n}") == FAILED, SOON)  # type: ignore[misc]
    assert workers._lanes["chain", "lane"].breaker.failures > 1


def test_final_failure_is_not_retried(runtime: SchedulerTestbed) -> None:
    """A handler may fail a task finally after a temporary error; its lane is paused, with a known end."""
    tries: list[str] = []

    def handle(task: Task) -> Result:
        tries.append(task.key)
        return Result(reply="failed", error=ConnectionFailed("down"), final=True)

    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=handle)
    runtime.note(workers, task("a"), task("b"))
    until(lambda: runtime.state("b") == FAILED, SOON)
    assert tries == ["a", "b"]
    assert workers.pause_remaining("chain", "lane") > 0  # although nothing is left that could be tried


def test_failures_of_one_outage_count_once(runtime: SchedulerTestbed) -> None:
    """Many tries that were begun together and fail one after the other pause their lane once, for a second."""
    release = threading.Event()
    tried: list[float] = []

    def handle(task: Task) -> None:
        tried.append(time.monotonic())
        if task.tries == 1 and not release.is_set():
            release.wait(60)
            time.sleep(int(task.key.split()[1]) * 0.2)
            raise ConnectionFailed("down")

    workers = runtime.workers(11)
    workers.register("chain", "work", limit=8, handler=handle)
    runtime.note(workers, *tasks(range(8)))
    until(lambda: len(tried) == 8, SOON)
    release.set()
    until(lambda: all(runtime.state(f"lane {n}") == DONE for n in range(8)), 10)


def test_long_run_does_not_block_a_paused_lane(runtime: SchedulerTestbed) -> None:
    """When one task fails during another's long run, the lane is probed and resumed."""
    release = threading.Event()

    def handle(task: Task) -> None:
        if task.key == "long":
            release.wait(60)
        if task.key == "fails once" and task.tries == 1:
            raise TemporaryTransferError("it changed")

    workers = runtime.workers()
    workers.register("chain", "work", limit=2, handler=handle)
    runtime.note(workers, task("long"), task("fails once"))
    runtime.note(workers, *tasks(range(20)))
    until(lambda: runtime.state("fails once") == runtime.state("lane 19") == DONE, 10)
    assert runtime.state("long") == WAITING
    release.set()
    until(lambda: runtime.state("long") == DONE, SOON)


def test_exceptions_kill_no_thread(runtime: SchedulerTestbed) -> None:
    """Whatever a handler raises, all threads stay, and the task is tried again."""
    workers = runtime.workers(2)

    def handle(task: Task) -> None:
        if task.tries == 1:
            raise (RuntimeError, KeyError, TrollmovesError)[int(task.key) % 3]("a bug")

    workers.register("chain", "work", limit=1, handler=handle)
    runtime.note(workers, *(task(n, f"lane {n}") for n in range(12)))
    until(lambda: all(runtime.state(str(n)) == (FAILED if n % 3 == 2 else DONE) for n in range(12)), 10)


def test_postponed_is_not_failed(runtime: SchedulerTestbed) -> None:
    """A postponed task runs again at its time, and its lane continues until then."""
    runs: list[tuple[str, float]] = []

    def handle(task: Task) -> Result | None:
        runs.append((task.key, time.monotonic()))
        return Result(retry_in=0.3) if task.key == "a" and task.tries == 1 else None

    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=handle)
    runtime.note(workers, task("a"), task("b"))
    until(lambda: runtime.state("a") == runtime.state("b") == DONE, SOON)
    assert [key for key, _ in runs] == ["a", "b", "a"]
    assert runs[2][1] - runs[0][1] >= 0.3


def test_backoff_doubles_up_to_a_limit() -> None:
    """Waits double from a second to minutes, with jitter, whatever the count."""
    for tries, most in ((1, 1.0), (2, 2.0), (5, 16.0), (50, BACKOFF_MAX), (10_000, BACKOFF_MAX)):
        waits = [backoff(tries) for _ in range(50)]
        assert most / 2 <= min(waits) < max(waits) <= most


# -- what follows


def test_following_tasks_run(runtime: SchedulerTestbed) -> None:
    """The following tasks of a task run in their own lanes and kinds."""
    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=lambda t: Result(follow_ups=[task(t.key, "other", kind="next")]))
    workers.register("chain", "next", limit=1, handler=lambda _: None)
    runtime.note(workers, *(task(n) for n in range(50)))
    until(lambda: all(runtime.state(str(n), "next") == DONE for n in range(50)), SOON)


def test_after_is_called_when_stored(runtime: SchedulerTestbed) -> None:
    """The callback at the end of a task finds it in the journal with its following tasks; its errors do no harm."""
    seen: list[tuple[Any, ...]] = []

    def handle(one: Task) -> Result:
        def after() -> None:
            seen.append((runtime.state(one.key), runtime.state(one.key, "next"), threading.current_thread().name))
            raise RuntimeError("error in a callback")

        return Result(follow_ups=[task(one.key, kind="next")], on_committed=after)

    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=handle)
    runtime.note(workers, task("a"), task("b"))
    until(lambda: len(seen) == 2, SOON)
    assert seen == [(DONE, WAITING, "scheduler")] * 2


# -- starters


def test_starters_finish_from_another_thread(runtime: SchedulerTestbed) -> None:
    """A starter starts up to its limit, and more while tasks end quickly; any thread may report the end."""
    begun: list[tuple[Task, Callable[[Result], None]]] = []
    workers = runtime.workers(1)
    workers.register("chain", "work", limit=32, async_handler=lambda task, finish: begun.append((task, finish)))
    runtime.note(workers, *tasks(range(100)))
    until(lambda: len(begun) == 32, SOON)
    assert workers.in_flight() == 32
    assert workers.in_flight_ids("chain", "lane") == {task.id for task, _ in begun}
    ended = 0
    while ended < 100:
        until(lambda: len(begun) > ended, SOON)  # noqa: B023
        threading.Thread(target=begun[ended][1], args=(Result(reply="r"),)).start()
        ended += 1
        assert len(begun) - ended <= 32 * ASYNC_BURST_FACTOR
    until(lambda: runtime.journal.count()["done"] == 100, SOON)
    assert [task.key for task, _ in begun] == [f"lane {n}" for n in range(100)]


def test_a_working_host_is_not_probed(runtime: SchedulerTestbed) -> None:
    """When the host of a failing lane works, its other tasks start, although the probe has not ended."""
    started: dict[str, Callable[[Result], None]] = {}
    workers = runtime.workers(1)
    workers.register("chain", "work", limit=4, async_handler=lambda task, finish: started.update({task.key: finish}))
    runtime.note(workers, task("a"))
    until(lambda: "a" in started, SOON)
    started.pop("a")(Result(error=ConnectionFailed("down")))
    until(lambda: [lane.failing for lane in workers.lane_states()] == [True], SOON)
    runtime.note(workers, task("b"), task("c"))
    until(lambda: started, 10)
    assert workers.in_flight() == 1
    workers.close_breaker("chain", "lane")
    until(lambda: set(started) == {"a", "b", "c"}, SOON)
    assert not any(lane.failing for lane in workers.lane_states())


def test_a_lane_that_has_become_slow_sleeps(runtime: SchedulerTestbed) -> None:
    """A lane that has more under way than may begin by now, since its tasks ended fast before, waits for an end."""
    lane = Lane(
        "chain",
        "lane",
        TaskKind(2, async_handler=lambda task, finish: None),
        runtime.journal.now,
        {},
        journal_pending=True,
    )
    added = [one for one, _ in runtime.journal.add_tasks(tasks(range(6)))]
    lane.in_flight = {one.id: one for one in added[:4]}
    assert lane.seconds_until_ready() == NEVER
    assert lane.claim(runtime.journal) == []
    for one in added[:3]:
        del lane.in_flight[one.id]
        runtime.journal.finish([Outcome(one, DONE)])
    assert lane.seconds_until_ready() == 0
    assert [one.id for one in lane.claim(runtime.journal)] == [added[4].id]


def test_a_starter_that_raises_has_failed(runtime: SchedulerTestbed) -> None:
    """An exception of a starter is the failure of its task."""

    def start(task: Task, finish: Callable[[Result], None]) -> None:
        if task.tries == 1:
            raise RuntimeError("a bug")
        if task.key == "bad":
            raise NameRejected("never")
        finish(Result())

    workers = runtime.workers()
    workers.register("chain", "work", limit=5, async_handler=start)
    runtime.note(workers, task("bad"), task("good"))
    until(lambda: runtime.state("good") == DONE, 10)
    until(lambda: runtime.state("bad") == FAILED, 10)


def test_a_task_ends_once(runtime: SchedulerTestbed) -> None:
    """The first reported end of a task counts; later ones are ignored."""

    def start(_: Task, finish: Callable[[Result], None]) -> None:
        finish(Result(reply="first"))
        finish(Result(error=NameRejected("second")))

    workers = runtime.workers()
    workers.register("chain", "work", limit=1, async_handler=start)
    runtime.note(workers, *tasks(range(5)))
    until(lambda: runtime.journal.count()["done"] == 5, SOON)
    assert workers.in_flight() == 0
    found = runtime.journal.find("chain", "work", "lane 0")
    assert found is not None
    assert found.reply == "first"


# -- time


def test_a_task_runs_when_it_is_due(runtime: SchedulerTestbed) -> None:
    """A task due in the future runs then, without being asked for, and no earlier."""
    ran: dict[str, float] = {}
    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=lambda task: ran.update({task.key: time.time()}))
    due = time.time() + 0.4
    runtime.note(workers, task("b", due=due + 0.3), task("a", due=due))
    runtime.note(workers, task("c", "other", due=due + 0.1))
    until(lambda: len(ran) == 3, SOON)
    for key, at in (("a", due), ("b", due + 0.3), ("c", due + 0.1)):
        assert at <= ran[key] < at + 2 * SOON


def test_due_later_after_restart(runtime: SchedulerTestbed) -> None:
    """A task due in the future runs when due, also if an earlier process added it."""
    ran: list[float] = []
    due = time.time() + 0.3
    runtime.journal.add_tasks([task("a", due=due)])
    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=lambda _: ran.append(time.time()))
    until(lambda: runtime.state("a") == DONE, SOON)
    assert ran[0] >= due


def test_start_delay(runtime: SchedulerTestbed) -> None:
    """A kind with a start delay starts after that delay."""
    ran: list[float] = []
    workers = runtime.workers()
    started = time.monotonic()
    workers.register("chain", "work", limit=1, handler=lambda _: ran.append(time.monotonic()), delay=0.3)
    runtime.note(workers, task("a"))
    until(lambda: ran, SOON)
    assert ran[0] - started >= 0.29


def test_no_wakeup_is_lost(runtime: SchedulerTestbed) -> None:
    """Of thousands noted from four threads, while their lanes run dry and fill again, each runs once within seconds."""
    ran: Counter[str] = Counter()
    workers = runtime.workers(4)
    workers.register("chain", "work", limit=2, handler=lambda task: ran.update([task.key]))

    def note(n: int) -> None:
        for turn in range(500):
            runtime.note(workers, *(task(f"{n} {turn} {k}", f"lane {turn * k % 7}") for k in range(turn % 5)))
            if turn % 50 == 0:
                time.sleep(0.01)

    threads = [threading.Thread(target=note, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: runtime.journal.count()["waiting"] == 0, 2 * SOON)
    assert runtime.journal.count()["done"] == len(ran) == 4 * 1000
    assert set(ran.values()) == {1}


def test_no_worker_is_lost(runtime: SchedulerTestbed) -> None:
    """Lanes that run dry and fill again thousands of times do not come to a halt."""
    workers = runtime.workers(3)
    workers.register("chain", "work", limit=1, handler=lambda _: None)
    for turn in range(400):
        runtime.note(workers, *(task(f"{turn} {n}", f"lane {turn % 3}") for n in range(17)))
    until(lambda: runtime.journal.count()["waiting"] == 0, 2 * SOON)


@pytest.mark.alone
def test_waiting_costs_nothing(runtime: SchedulerTestbed) -> None:
    """While slow tasks run and others wait behind them, or nothing is there, hardly any time is used."""
    gauge = Gauge()
    gauge.block("slow")
    workers = runtime.workers(4)
    workers.register("chain", "work", limit=8, handler=gauge)
    runtime.note(workers, *tasks(range(500), "slow"), *tasks(range(5), "quick"))
    until(lambda: gauge.running["slow"] == 3 and gauge.began("quick") == 5, SOON)
    time.sleep(0.1)
    used = time.process_time()
    time.sleep(0.8)  # this is the time that is measured
    assert time.process_time() - used < 0.08
    gauge.block("slow").set()


@pytest.mark.alone
def test_running_costs_little(runtime: SchedulerTestbed) -> None:
    """Noting and running a task takes no longer than ten commits of one row."""
    started = time.perf_counter()
    for n in range(500):
        runtime.journal.add_tasks([task(n, kind="nobody's")])
    commit = (time.perf_counter() - started) / 500
    workers = runtime.workers()
    workers.register("chain", "work", limit=4, handler=lambda _: None)
    started = time.perf_counter()
    for start in range(0, 3000, 50):
        runtime.note(workers, *tasks(range(start, start + 50)))
    until(lambda: runtime.state("lane 2999") == DONE, 2 * SOON)
    assert (time.perf_counter() - started) / 3000 < 10 * commit


# -- stop


def test_stop_waits_for_running_tasks(runtime: SchedulerTestbed) -> None:
    """Stopping waits for running tasks, stores their end, starts no other, and leaves no thread."""
    before = set(threading.enumerate())
    gauge = Gauge()
    release = gauge.block("lane")
    workers = runtime.workers()
    workers.register("chain", "work", limit=2, handler=gauge)
    runtime.note(workers, *tasks(range(50)))
    until(lambda: gauge.running["lane"] == 2, SOON)
    threading.Timer(0.2, release.set).start()
    assert workers.stop(60)
    assert len(gauge.begun) == 2
    assert runtime.journal.count() == {"waiting": 48, "done": 2, "failed": 0}
    until(lambda: set(threading.enumerate()) <= before, SOON, "threads end")


def test_stop_keeps_to_its_time(runtime: SchedulerTestbed) -> None:
    """Stopping returns when its time is over although something still runs, and that is done again after a restart."""
    gauge = Gauge()
    release = gauge.block("lane")
    workers = runtime.workers(16)
    workers.register("chain", "work", limit=10, handler=gauge)
    runtime.note(workers, *tasks(range(50)))
    until(lambda: gauge.running["lane"] == 10, SOON)
    started = time.monotonic()
    assert not workers.stop(0.3)
    assert 0.3 <= time.monotonic() - started < 30
    release.set()
    runtime.journal.close()
    runtime.open()
    assert runtime.journal.count()["waiting"] == 50
    again = runtime.workers()
    again.register("chain", "work", limit=10, handler=lambda _: None)
    until(lambda: runtime.journal.count()["done"] == 50, SOON)


def test_stop_in_a_burst_loses_no_task(runtime: SchedulerTestbed) -> None:
    """With repeated stops and restarts in a burst on one journal every task runs exactly once."""
    ran: Counter[str] = Counter()
    runtime.journal.add_tasks(tasks(range(3000)))
    for _ in range(5):
        workers = runtime.workers()
        workers.register("chain", "work", limit=4, handler=lambda task: ran.update([task.key]))
        count = len(ran)
        until(lambda: len(ran) > min(count + 100, 2999), SOON)  # noqa: B023
        assert workers.stop(60)
        runtime.journal.close()
        runtime.open()
        assert runtime.journal.count()["done"] == len(ran)
    runtime.workers().register("chain", "work", limit=4, handler=lambda task: ran.update([task.key]))
    until(lambda: runtime.journal.count()["done"] == 3000, SOON)
    assert set(ran.values()) == {1}


def test_stop_before_the_start_and_twice(runtime: SchedulerTestbed) -> None:
    """Workers that never started can be stopped, and so can those that are stopped."""
    workers = Scheduler(runtime.journal, 2)
    assert workers.stop(1)
    started = runtime.workers()
    assert started.stop(1)
    assert started.stop(1)


def test_stop_ends_although_the_journal_cannot_be_written(runtime: SchedulerTestbed) -> None:
    """A journal that does not take the last ends does not keep the threads."""
    before = set(threading.enumerate())
    gauge = Gauge()
    release = gauge.block("lane")
    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=gauge)
    runtime.note(workers, task("a"))
    until(lambda: gauge.running["lane"], SOON)
    runtime.journal.close()
    release.set()
    workers.stop(0.2)
    until(lambda: set(threading.enumerate()) <= before, 2 * SOON, "threads end")
    runtime.open()
    assert runtime.state("a") == WAITING


# -- reload


def test_a_forgotten_chain_rests(runtime: SchedulerTestbed) -> None:
    """Nothing more is begun of a chain that was forgotten, what runs goes on, and its lanes are let go of."""
    gauge = Gauge()
    release = gauge.block("lane")
    workers = runtime.workers()
    workers.register("chain", "work", limit=1, handler=gauge)
    runtime.note(workers, *tasks(range(10)))
    until(lambda: gauge.running["lane"] == 1, SOON)
    workers.unregister("chain")
    release.set()
    until(lambda: runtime.journal.count() == {"waiting": 9, "done": 1, "failed": 0}, SOON)
    until(lambda: "0 tasks in 0 lanes" in repr(workers), SOON)
    assert gauge.begun == ["lane 0"]
    found = runtime.journal.find("chain", "work", "lane 5")
    assert found is not None
    assert found.tries == 0


def test_reloading_runs_nothing_twice_at_once(runtime: SchedulerTestbed) -> None:
    """A chain forgotten and registered again and again, while it is fed, runs each task, and none twice at one time."""
    running: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    twice: list[str] = []
    lock = threading.Lock()

    def handle(task: Task) -> None:
        with lock:
            running[task.key] += 1
            ran[task.key] += 1
            if running[task.key] > 1:
                twice.append(task.key)
        time.sleep(0.001)
        with lock:
            running[task.key] -= 1

    workers = runtime.workers()
    for turn in range(100):
        workers.register("chain", "work", limit=3, handler=handle)
        runtime.note(workers, *(task(f"{turn} {n}", f"lane {n % 2}") for n in range(10)))
        time.sleep(0.002)
        workers.unregister("chain")
    workers.register("chain", "work", limit=3, handler=handle)
    until(lambda: runtime.journal.count()["done"] == 1000, 2 * SOON)
    assert not twice
    assert set(ran.values()) == {1}


def test_reloading_with_starters(runtime: SchedulerTestbed) -> None:
    """A task in flight in the old starter is started by the new one only after it has failed there."""
    first: list[tuple[Task, Callable[[Result], None]]] = []
    second: list[str] = []

    def start_again(task: Task, finish: Callable[[Result], None]) -> None:
        second.append(task.key)
        finish(Result())

    workers = runtime.workers()
    workers.register("chain", "work", limit=2, async_handler=lambda task, finish: first.append((task, finish)))
    runtime.note(workers, *tasks(range(4)))
    until(lambda: len(first) == 2, SOON)
    workers.unregister("chain")
    workers.register("chain", "work", limit=4, async_handler=start_again)
    until(lambda: len(second) == 2, SOON)
    assert second == ["lane 2", "lane 3"]
    for _, finish in first:
        finish(Result(error=ConnectionFailed("this side stops")))
    until(lambda: runtime.journal.count()["done"] == 4, 10)


def test_task_added_during_a_reload_runs(runtime: SchedulerTestbed) -> None:
    """A task added while its chain is being registered is not left pending."""
    workers = runtime.workers()
    workers.register("other", "work", limit=1, handler=lambda _: None)
    for turn in range(60):
        chain = f"chain {turn}"
        noting = threading.Thread(
            target=lambda chain=chain: runtime.note(workers, Task(chain, "work", "a", "lane", ""))
        )
        noting.start()
        workers.register(chain, "work", limit=1, handler=lambda _: None)
        noting.join()
    until(lambda: runtime.journal.count()["done"] == 60, SOON)


def test_task_submitted_late_runs_once(runtime: SchedulerTestbed) -> None:
    """A task that ran from the journal before it was submitted, or that is submitted again, runs once."""
    ran: Counter[str] = Counter()
    workers = runtime.workers()
    ((early, _),) = runtime.journal.add_tasks([task("early")])
    workers.register("chain", "work", limit=1, handler=lambda task: ran.update([task.key]))
    until(lambda: runtime.state("early") == DONE, SOON)
    until(lambda: "in 0 lanes" in repr(workers), SOON)
    workers.submit([early])
    late = runtime.note(workers, task("late"))
    until(lambda: runtime.state("late") == DONE, SOON)
    workers.submit([early, *late])
    runtime.note(workers, task("last"))
    until(lambda: runtime.state("last") == DONE, SOON)
    assert ran == {"early": 1, "late": 1, "last": 1}


def test_contexts_are_kept_for_waiting_tasks(runtime: SchedulerTestbed) -> None:
    """Tasks in a backlog find the contexts of their makers, unless they were changed since."""
    workers = runtime.workers(8)
    open_, found = threading.Event(), dict[str, Any]()

    def run(task: Task) -> None:
        open_.wait(20)
        found[task.key] = task.context

    workers.register("chain", "work", limit=4, handler=run)
    many = tasks(range(150))
    for one in many:
        one.context = one.key.upper()
    runtime.note(workers, *many)
    until(lambda: workers.in_flight() >= 64, SOON)
    changed = replace(many[-1], body="changed", context=None)
    update_body(runtime.journal, changed)
    open_.set()
    until(lambda: len(found) == 150, SOON)
    assert found == {one.key: None if one.key == changed.key else one.key.upper() for one in many}


# -- what goes first


def test_priority(runtime: SchedulerTestbed) -> None:
    """A free worker takes the waiting task of the chain with the highest priority, in any order of arrival."""
    gauge = Gauge()
    release = gauge.block("lane blocker")
    workers = runtime.workers(threads=1)
    chains = {"usual": 0, "low": -1, "high": 7, "higher": 8}
    for chain, priority in chains.items():
        workers.set_policy(chain, ChainPolicy(priority))
        workers.register(chain, "work", limit=1, handler=gauge)
    runtime.note(workers, Task("usual", "work", "first", "lane blocker", ""))
    until(lambda: gauge.begun == ["first"], SOON)
    for chain in ("low", "usual", "high", "higher"):
        runtime.note(workers, *(Task(chain, "work", f"{chain} {n}", f"lane of {chain}", "") for n in range(3)))
    until(lambda: workers._workers._tokens._waiting.qsize() == len(chains), SOON, "every lane waits for the worker")
    release.set()
    until(lambda: len(gauge.begun) == 13, SOON)
    assert gauge.begun[1:] == [f"{chain} {n}" for chain in ("higher", "high", "usual", "low") for n in range(3)]


def test_failed_tasks_do_not_delay_new_ones(runtime: SchedulerTestbed) -> None:
    """Failed tasks wait behind new ones, however long they are due."""
    begun: list[str] = []
    mended = threading.Event()

    def handler(task: Task) -> Result | None:
        begun.append(task.key)
        return None if mended.is_set() else Result(retry_in=0.2)

    workers = runtime.workers(threads=1)
    workers.register("chain", "work", limit=1, handler=handler)
    old = [task.key for task in runtime.note(workers, *tasks(range(100)))]
    until(lambda: len(begun) >= 100, SOON)
    workers.unregister("chain")
    until(lambda: not workers.in_flight(), SOON)
    mended.set()
    begun.clear()
    until(
        lambda: len(runtime.journal.claim("chain", "lane", 200, runtime.journal.now())) == 100,
        SOON,
        "all are due again",
    )
    new = [task.key for task in runtime.note(workers, *tasks(range(100, 110)))]
    workers.register("chain", "work", limit=1, handler=handler)
    until(lambda: len(begun) == 110, SOON)
    assert begun[:10] == new
    assert sorted(begun[10:]) == sorted(old)


def test_restart_of_a_dropped_task(runtime: SchedulerTestbed) -> None:
    """A task that was dropped before it was claimed is not run, and runs after a restart."""
    journal, workers, gauge = runtime.journal, runtime.workers(), Gauge()
    dropped, other = (task for task, _ in journal.add_tasks(tasks(range(2))))
    assert workers.drop([dropped]) == ([dropped], [])
    workers.register("chain", "work", limit=1, handler=gauge)
    workers.submit([dropped, other])
    until(lambda: runtime.state(other.key) == DONE, SOON)
    until(lambda: workers.drop([other]) == ([], []), SOON, "it has finished, and is not in flight")
    assert gauge.begun == [other.key]
    restarted = replace(dropped, created=journal.now(), state=WAITING)
    journal.reset_tasks([restarted])
    assert workers.drop([dropped]) == ([], [])  # as it was before the restart
    workers.submit([restarted])
    until(lambda: runtime.state(restarted.key) == DONE, SOON)


def test_drop_during_claims(runtime: SchedulerTestbed) -> None:
    """Of the tasks that are dropped while others are claimed, each one is either dropped or run."""
    workers, gauge = runtime.workers(), Gauge()
    workers.register("chain", "work", limit=4, handler=gauge)
    added = [task for lane in ("a", "b") for task in runtime.note(workers, *tasks(range(1500), lane))]
    dropped = [task.key for n in range(len(added) - 1, -1, -40) for task in workers.drop(added[max(0, n - 9) : n])[0]]
    until(lambda: runtime.journal.count()["waiting"] == 0, 6 * SOON)
    assert sorted([*gauge.begun, *dropped]) == sorted(task.key for task in added)
    assert {runtime.state(key) for key in dropped} <= {DROPPED}


class Stillborn(threading.Thread):
    """A thread that has no memory for its first call."""

    def _bootstrap(self) -> None:
        raise MemoryError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_thread_that_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of a thread ends with an error if it cannot begin; CPython waits without end."""
    monkeypatch.setattr(watched_threads, "START_TIMEOUT", 0.1)
    with pytest.raises(RuntimeError, match="no memory"):
        watched_threads.start_thread(Stillborn(daemon=True))
    begun = threading.Event()
    watched_threads.start_thread(threading.Thread(target=begun.set))
    assert begun.wait(SOON)
