"""The log never blocks the work; log files can be rotated; lines that are lost are counted."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import (
    DaemonPair,
    Process,
    Testbed,
    client_section,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR, until
from trollmoves.utils.log_writer import MAX_QUEUED, LogFile, LogWriter

DROPPED = re.compile(r"\[WARNING: .*\] (\d+) log lines? dropped: (.*)")
TARGETS = {"target": {"host": "", "directory": "OUT", "dispatch_configs": [{"topics": [TOPIC], "conditions": []}]}}


def run(code: str, *arguments: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a process that runs some code, with pipes to stdin, stdout and stderr."""
    text = f"import sys, logging, os\nfrom trollmoves.utils import logs\nlog = logging.getLogger('x')\n{code}"
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return the stdout and stderr of a process after its end."""
    out, err = process.communicate(timeout=30 * TIMEOUT_FACTOR)
    assert process.returncode == 0, err
    return out, err


def full_pipe() -> tuple[int, int]:
    """Return the ends of a pipe that does not accept one byte more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"." * 4096)
    except BlockingIOError:
        pass
    try:
        while True:
            os.write(writer, b".")
    except BlockingIOError:
        os.set_blocking(writer, True)
        return reader, writer


# -- a log that is not read


def test_a_blocked_pipe_costs_lines_only(testbed: Testbed) -> None:
    """A server delivers all files, and ends on SIGTERM, although its stderr accepts nothing."""
    pair = DaemonPair(testbed)
    reader, writer = full_pipe()
    server = subprocess.Popen(
        pair.server.command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env=testbed.environment
    )
    testbed.call_at_end(server.kill)
    pair.client.start()
    pair.feeder.feed(5)
    until(lambda: pair.feeder.missing(pair.target) == [], 30, "all files are there")
    server.terminate()
    assert server.wait(20 * TIMEOUT_FACTOR) == 0
    os.close(writer)
    os.close(reader)


def test_dropped_lines_are_counted_in_their_place() -> None:
    """Lines that do not fit into the queue are counted; all others are written, in order."""
    code = """
writer = logs.set_up()
for n in range(int(sys.argv[1])):
    log.info("line %d", n)
print("done", flush=True)
sys.stdin.read()
for n in range(10):
    log.info("late %d", n)
assert writer.close()
"""
    count = MAX_QUEUED + 5_000
    reader, pipe = full_pipe()  # else the writer may empty the queue several times, with a count for each time
    process = run(code, count, stderr=pipe)
    os.close(pipe)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "done\n"  # although the pipe is full
    with os.fdopen(reader) as log:
        lines = [log.readline().lstrip(".")]
        while "dropped" not in lines[-1]:
            lines.append(log.readline())
        process.stdin.close()
        lines += log.readlines()
    assert process.wait(20 * TIMEOUT_FACTOR) == 0
    (index,) = [index for index, line in enumerate(lines) if "dropped" in line]
    found = DROPPED.match(lines[index])
    assert found is not None
    assert index + int(found[1]) == count
    assert [line.split()[-1] for line in lines[:index]] == list(map(str, range(index)))
    assert [line.split("] ")[1] for line in lines[index + 1 :]] == [f"late {n}\n" for n in range(10)]


def test_the_end_waits_a_bounded_time_for_the_log() -> None:
    """A log that cannot be flushed at the end is reported to the caller within seconds."""
    reader, pipe = full_pipe()
    code = "writer = logs.set_up()\nlog.info('a')\nprint(writer.close(), flush=True)\nos._exit(0)"
    assert ended(run(code, stderr=pipe))[0] == "False\n"
    os.close(reader)
    os.close(pipe)


def test_a_record_is_written_as_it_was_when_logged() -> None:
    """A line shows its arguments and its traceback as they were when it was logged."""
    code = """
writer = logs.set_up()
names = ["before"]
log.info("names %s", names)
names[0] = "after"
try:
    raise ValueError("odd")
except ValueError:
    log.exception("failed")
assert writer.close()
"""
    lines = ended(run(code))[1].splitlines()
    assert lines[0].endswith("] names ['before']")
    assert lines[1].endswith("] failed")
    assert lines[-1] == "    ValueError: odd"


# -- a disk that is full


def test_lines_that_the_disk_does_not_accept_are_counted(tmp_path: Path) -> None:
    """Lines that a full disk does not accept are counted; the next line is complete, and begins a new line."""
    file = tmp_path / "log"
    code = """
import resource
from trollmoves.utils.log_writer import LogFile
handler = LogFile(sys.argv[1])
def write(*lines):
    for line in lines:
        handler.handle(logging.makeLogRecord({"msg": line}))
    handler.flush()
write("first")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(sys.argv[1]) + len("complete\\ninc"), hard))
write("complete", "incomplete")
write("lost", "lost")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
write("after")
write("last")
"""
    _, err = ended(run(code, file))
    assert err == f"cannot write to the log file {file}: File too large; lines are dropped and counted\n"
    lines = ["first", "complete", "inc", "3 log lines dropped: File too large", "after", "last"]
    assert file.read_text().splitlines() == lines


def test_a_line_shows_its_arguments_at_the_call(tmp_path: Path) -> None:
    """The line is formatted later, but an argument that changes in between appears as it was."""
    log = Log(tmp_path / "log")
    logger = logging.Logger("here")
    logger.addHandler(log.queued)
    names = ["a"]
    logger.info("%s and %s", names, "constant")
    names.append("b")
    logger.info("%(count)d files", {"count": 2})
    log.close()
    assert log.file.read_text() == "['a'] and constant\n2 files\n"


# -- rotation


class Log:
    """A log file behind a writer."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.writer = LogWriter()
        self.handler = LogFile(str(file))
        self.queued = self.writer.queued(self.handler)

    def write(self, line: str) -> None:
        """Log a line."""
        self.queued.handle(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Write all lines."""
        assert self.writer.close()
        self.handler.close()


def _rename(file: Path) -> None:
    file.rename(file.with_name("log.1"))


def _recreate_directory(file: Path) -> None:
    file.unlink()
    file.parent.rmdir()
    file.parent.mkdir()


@pytest.mark.parametrize("rotate", [_rename, Path.unlink, _recreate_directory])
def test_a_file_is_opened_again(tmp_path: Path, rotate: Callable[[Path], None]) -> None:
    """A log file that was renamed or removed, also with its directory, is created again, and no line is lost."""
    directory = tmp_path / "logs"
    directory.mkdir()
    log = Log(directory / "log")
    log.write("before")
    until(lambda: log.file.read_text() == "before\n")
    rotate(log.file)
    log.writer.reopen()
    log.write("after")
    log.close()
    assert log.file.read_text() == "after\n"
    if rotate is _rename:
        assert log.file.with_name("log.1").read_text() == "before\n"


def test_a_file_that_cannot_be_opened_again_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """If the new log file cannot be opened, stderr reports it, and the previous file receives the lines."""
    log = Log(tmp_path / "log")
    _rename(log.file)
    log.file.mkdir()
    log.writer.reopen()
    log.write("still here")
    log.close()
    assert (tmp_path / "log.1").read_text() == "still here\n"
    report = (
        f"cannot open the log file {log.file} again: Is a directory; continuing in the previous file until SIGHUP\n"
    )
    assert capfd.readouterr().err == report


def test_a_file_is_rotated_at_midnight(tmp_path: Path) -> None:
    """Each day has its own log file, and seven old files are kept."""
    file = tmp_path / "log"
    for day in range(10):
        file.with_name(f"log.2020-01-{day + 1:02d}").touch()
    handler = LogFile(str(file))
    for line in ("yesterday", "today"):
        handler.handle(logging.makeLogRecord({"msg": line}))
        handler.flush()
        handler.rolloverAt = 0
    handler.close()
    assert file.read_text() == "today\n"
    assert len(list(tmp_path.glob("log.*"))) == 7


def test_a_day_that_cannot_be_rotated_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """If the log file cannot be rotated at midnight, stderr reports it once, and the lines go to the previous file."""
    directory = tmp_path / "logs"
    directory.mkdir()
    log = Log(directory / "log")
    directory.rename(tmp_path / "moved")
    log.handler.rolloverAt = 0
    log.write("one")
    log.write("two")
    log.close()
    assert (tmp_path / "moved" / "log").read_text() == "one\ntwo\n"
    assert capfd.readouterr().err.count("cannot rotate the log file") == 1


def test_a_configured_file_is_opened_again(tmp_path: Path) -> None:
    """A log file of a logging configuration is opened again too, with its own format, and is not truncated."""
    config, file = tmp_path / "log.yaml", tmp_path / "log"
    config.write_text(
        "version: 1\nformatters: {short: {format: '%(levelname)s|%(message)s'}}\n"
        f"handlers: {{file: {{class: logging.FileHandler, filename: {file}, mode: w, formatter: short}}}}\n"
        "root: {level: WARNING, handlers: [file]}\n"
    )
    code = """
writer = logs.set_up(config=sys.argv[1])
log.warning("one")
writer.reopen()
log.warning("two")
assert writer.close()
"""
    assert ended(run(code, config)) == ("", "")
    assert file.read_text() == "WARNING|one\nWARNING|two\n"


@pytest.mark.parametrize("role", ["server", "client", "mirror", "dispatcher"])
def test_hang_up_opens_the_log_again(testbed: Testbed, role: str) -> None:
    """SIGHUP makes each daemon open its log file again, as logrotate expects it."""
    file = testbed.directory("logs") / "log"
    process = _daemon(testbed, role, "-l", str(file))
    process.ready = lambda _: file.exists() and ", journal " in file.read_text()
    process.start()
    file.rename(file.with_name("log.1"))
    process.send(signal.SIGHUP)
    until(lambda: file.exists() and "configuration reloaded" in file.read_text(), 20, "a new log file")
    assert "configuration reloaded" not in file.with_name("log.1").read_text()
    assert process.terminate() == 0
    assert "stopped" in file.read_text()


def _daemon(testbed: Testbed, role: str, *arguments: str) -> Process:
    port = testbed.port()
    if role == "server":
        return testbed.server({"hrit": server_section(testbed.directory("in"), port)}, testbed.port(), *arguments)
    if role == "client":
        return testbed.client({"hrit": client_section(port, testbed.directory("out"), testbed.port())}, *arguments)
    if role == "mirror":
        section = mirror_section(port, testbed.directory("out"), testbed.port())
        return testbed.mirror({"hrit": section}, testbed.port(), *arguments)
    return DispatcherTestbed(testbed, TARGETS, *arguments).process
