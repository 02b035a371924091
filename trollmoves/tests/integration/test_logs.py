"""Promises of the log lines."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trollmoves.errors import ConfigError, StartError
from trollmoves.net import urls
from trollmoves.utils import log_format, logs

LINE = re.compile(r"\[(DEBUG|INFO|WARNING|ERROR): \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} : [\w.]+\] ")
SAY = """
import logging
from trollmoves.utils import logs
{before}
logging.getLogger("trollmoves.early")
writer = logs.set_up(**{arguments!r})
for name in ("trollmoves.server", "trollmoves.early", "posttroll", "paramiko.transport", "botocore", "pyinotify"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)(level + " to ftp://me:s3cret@host/in by " + name)
{more}
assert writer.close()
"""


def said(more: str = "", before: str = "", **arguments: Any) -> list[str]:
    """Run a process that sets up logging and logs at each level; return its stderr."""
    script = SAY.format(arguments=arguments, before=before, more=more)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == ""
    assert "s3cret" not in run.stderr
    return run.stderr.splitlines()


def received(lines: list[str], name: str) -> list[str]:
    """Return the levels that a logger logged."""
    return [found[1] for line in lines if (found := re.search(rf"(\w+) to ftp://me@host/in by {name}$", line))]


def formatted(message: object, *args: object, inner: logging.Formatter | None = None, **more: Any) -> str:
    """Return the line that the formatter makes of a message."""
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, message, args, None)
    vars(record).update(more)
    return log_format.RedactingFormatter(inner).format(record)


def configuration(path: Path, text: str) -> str:
    """Write a logging configuration and return its name."""
    path.write_text(text)
    return str(path)


def test_stderr_by_default() -> None:
    """By default lines go to stderr in one format, starting at INFO, and at WARNING for other packages."""
    lines = said()
    assert all(LINE.match(line) for line in lines)
    for name in ("trollmoves.server", "trollmoves.early"):
        assert received(lines, name) == ["info", "warning", "error"]
    for name in ("posttroll", "paramiko.transport", "botocore", "pyinotify"):
        assert received(lines, name) == ["warning", "error"]


def test_verbose_excludes_verbose_libraries() -> None:
    """-v shows DEBUG lines, but not those of packages that would show packets and keys."""
    lines = said(verbose=True)
    for name in ("trollmoves.server", "trollmoves.early", "posttroll"):
        assert received(lines, name) == ["debug", "info", "warning", "error"]
    for name in ("paramiko.transport", "botocore", "pyinotify"):
        assert received(lines, name) == ["info", "warning", "error"]


def test_lines_go_to_a_file(tmp_path: Path) -> None:
    """-l appends to the file, in UTF-8 whatever the name of a file, and writes nothing to stderr; -v works with it."""
    file = tmp_path / "daemon.log"
    file.write_text("before\n")
    assert said(file=str(file)) == []
    lines = file.read_text().splitlines()
    assert lines[0] == "before"
    assert received(lines, "trollmoves.server") == ["info", "warning", "error"]
    more = "logging.getLogger('x').info('é %s', '\\udcff')"
    assert said(more, file=str(file), verbose=True) == []
    lines = file.read_text("utf-8").splitlines()[len(lines) :]
    assert received(lines, "trollmoves.server") == ["debug", "info", "warning", "error"]
    assert lines[-1].endswith("] é \\udcff")


CONSOLE = """
version: 1
formatters: {short: {format: "%(levelname)s|%(message)s"}}
handlers:
  console: {class: logging.StreamHandler, level: INFO, formatter: short}
  errors: {class: logging.FileHandler, level: ERROR, filename: FILE, formatter: short}
  buffer: {class: logging.handlers.MemoryHandler, capacity: 1, target: console}
root: {level: INFO, handlers: [HANDLER, errors]}
loggers: {trollmoves.early: {level: WARNING}, posttroll: {level: ERROR}}
"""


@pytest.mark.parametrize("handler", ["console", "buffer"])
def test_configured_handlers(tmp_path: Path, handler: str) -> None:
    """-c directs lines as its file defines, redacted on each handler; existing loggers stay enabled."""
    errors = tmp_path / "errors.log"
    text = CONSOLE.replace("FILE", str(errors)).replace("HANDLER", handler)
    config = configuration(tmp_path / "log.yaml", text)
    lines = said(config=config)
    assert lines[0] == "INFO|info to ftp://me@host/in by trollmoves.server"
    assert received(lines, "trollmoves.server") == ["info", "warning", "error"]
    assert received(lines, "trollmoves.early") == ["warning", "error"]
    assert received(lines, "posttroll") == ["error"]
    assert received(lines, "pyinotify") == ["warning", "error"]
    assert received(errors.read_text().splitlines(), "trollmoves.server") == ["error"]
    assert "s3cret" not in errors.read_text()


def test_all_options_work_together(tmp_path: Path) -> None:
    """-v opens the console of -c but not its file for errors, and -l gets the lines too."""
    errors, file = tmp_path / "errors.log", tmp_path / "daemon.log"
    text = CONSOLE.replace("FILE", str(errors)).replace("HANDLER", "console")
    lines = said(config=configuration(tmp_path / "log.yaml", text), file=str(file), verbose=True)
    for place in (lines, file.read_text().splitlines()):
        for name in ("trollmoves.server", "trollmoves.early"):
            assert received(place, name) == ["debug", "info", "warning", "error"]
        assert received(place, "posttroll") == ["error"]
    assert received(errors.read_text().splitlines(), "trollmoves.server") == ["error"]


QUEUE = """
version: 1
handlers:
  queue: {(): __main__.queue}
root: {level: INFO, handlers: [queue]}
"""
QUEUE_FACTORY = """
import logging.handlers, queue as queues
def queue():
    handler = logging.handlers.QueueHandler(queues.Queue())
    console = logging.StreamHandler()
    console.setFormatter(logging.Formatter("%(levelname)s|%(message)s"))
    handler.listener = logging.handlers.QueueListener(handler.queue, console)
    return handler
"""


def test_lines_through_a_queue_are_masked(tmp_path: Path) -> None:
    """Handlers behind a queue write lines once, in their form, without secrets."""
    more = "queue = logging.getLogger().handlers[0].target\nlogging.info('a\\nftp://u:s3cret@h')\n"
    more += "writer.close()\nqueue.listener.start()\nqueue.listener.stop()"
    lines = said(more, before=QUEUE_FACTORY, config=configuration(tmp_path / "log.yaml", QUEUE))
    assert lines[-1] == "INFO|a\\nftp://u@h"
    assert received(lines, "trollmoves.server") == ["info", "warning", "error"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a: [", "invalid YAML: while parsing a flow"),
        ("\x00", "invalid YAML"),
        ("", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("a: b", "invalid logging configuration"),
        ("version: 2", "Unsupported version: 2"),
        ("version: 1\nhandlers: {x: {class: no.such.Class}}", "Unable to configure handler 'x'"),
        ("version: 1\nhandlers: {x: {class: logging.FileHandler, filename: /no/such/dir/x}}", "No such file"),
        ("version: 1\nhandlers: [x]", "invalid logging configuration"),
        ("version: 1\nroot: {level: LOUD}", "Unknown level: 'LOUD'"),
    ],
)
def test_unusable_configuration_is_reported(tmp_path: Path, text: str | None, says: str) -> None:
    """A missing or broken logging configuration is reported in one line with the file name."""
    config = tmp_path / "log.yaml"
    if text is not None:
        config.write_text(text)
    script = (
        "import sys\nfrom trollmoves import errors\nfrom trollmoves.utils import logs\n"
        "try:\n    logs.set_up(config=sys.argv[1])\nexcept errors.ConfigError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(config)], capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    assert run.stdout.count("\n") == 1
    assert run.stdout.startswith(f"{config}: ")
    assert says in run.stdout


def test_unwritable_log_file_is_reported(tmp_path: Path) -> None:
    """A log file in a missing directory is a ConfigError that names it, and a daemon that cannot start."""
    level, handlers = logging.getLogger().level, list(logging.getLogger().handlers)
    try:
        with pytest.raises(ConfigError, match=r"no/log: cannot be opened: No such file or directory") as refusal:
            logs.set_up(file=str(tmp_path / "no" / "log"))
    finally:
        logging.getLogger().setLevel(level)
    assert isinstance(refusal.value, StartError)
    assert refusal.value.file == str(tmp_path / "no" / "log")
    assert logging.getLogger().handlers == handlers


def test_setup_replaces_earlier_setup() -> None:
    """A second call leaves one handler, so that no line is written twice."""
    more = "writer = logs.set_up(verbose=True); logging.info('once')"
    assert sum("once" in line for line in said(more)) == 1


def test_a_failing_handler_tells_nothing_and_stops_nothing() -> None:
    """A full disk, a form that does not fit and arguments that do not fit neither raise nor show secrets."""
    more = """
class Full:
    def write(self, text): raise OSError(28, "No space left on device")
    def flush(self): pass
logging.getLogger().addHandler(logging.StreamHandler(Full()))
logging.info("to %s", "ftp://u:s3cret@h")
logging.info("to %s %s", "ftp://u:s3cret@h")
logging.info("end")
"""
    lines = said(more)
    assert [LINE.sub("", line) for line in lines[-3:]] == [
        "to ftp://u@h",
        "'to %s %s' (TypeError in its arguments)",
        "end",
    ]
    assert formatted("ftp://u:s3cret@h", inner=logging.Formatter("%(chain)s %(message)s")).endswith("] ftp://u@h")


@pytest.mark.parametrize(
    ("message", "args", "line"),
    [
        ("plain", (), "plain"),
        ("to %s", ("sftp://me:pw@host/in",), "to sftp://me@host/in"),
        ("%s", (urls.parse("ftp://u:pw@h/x"),), repr(urls.parse("ftp://u@h/x"))),
        ("%(a)s", ({"a": "ftp://u:pw@h"},), "ftp://u@h"),
        ({"destination": "ftp://u:pw@h"}, (), "{'destination': 'ftp://u@h'}"),
        ("name %s", ("x\n[INFO: 2025-01-01 : y] forged",), "name x\\n[INFO: 2025-01-01 : y] forged"),
        ("%s", ("\r\x1b[31m\t\x85\u2028\x00",), "\\r\\x1b[31m\\t\\x85\\u2028\\x00"),
        ("été %s €", ("\udcff",), "été \\udcff €"),
        ("100%", (), "100%"),
    ],
)
def test_a_message_is_one_line_without_secrets(message: object, args: tuple[object, ...], line: str) -> None:
    """Secrets go, control characters become escapes, and all else stays as it is."""
    assert formatted(message, *args) == line


def test_an_endless_message_is_cut() -> None:
    """A message of a million characters is cut, with its secrets gone before."""
    line = formatted("%s", "x" * (log_format.MAX_MESSAGE_LENGTH - 10) + " ftp://u:" + "s3cret" * 200_000 + "@h")
    assert len(line) < log_format.MAX_MESSAGE_LENGTH + 100
    assert "s3cret" not in line
    assert line.endswith("characters)")


def test_traceback_is_redacted() -> None:
    """A traceback stays readable, contains no password, and no line looks like another record."""
    try:
        raise ValueError("bad ftp://u:s3cret@host/x\n[ERROR: now] forged\x1b")
    except ValueError:
        text = formatted("failed", exc_info=sys.exc_info(), inner=logging.Formatter("[%(levelname)s] %(message)s"))
    lines = text.split("\n")
    assert lines[:2] == ["[INFO] failed", "    Traceback (most recent call last):"]
    assert "    ValueError: bad ftp://u@host/x" in lines
    assert lines[-1] == "    [ERROR: now] forged\\x1b"
    assert "s3cret" not in text


def test_a_record_is_not_changed() -> None:
    """Other handlers see the record as it was made."""
    record = logging.makeLogRecord({"msg": "a %s", "args": ("ftp://u:p@h\n",)})
    log_format.RedactingFormatter().format(record)
    assert (record.msg, record.args) == ("a %s", ("ftp://u:p@h\n",))


@pytest.mark.alone
def test_care_costs_little() -> None:
    """A usual line takes less than twice the time of Python's own formatter."""
    record = logging.makeLogRecord(
        {"msg": "[%s] delivered %s to %s", "args": ("hrit", "H-000-MSG4__", "sftp://host/in")}
    )
    plain = logging.Formatter(log_format.FORMAT)

    def seconds(formatter: logging.Formatter) -> float:
        best = 1e9
        for _ in range(7):
            begin = time.thread_time()
            for _ in range(300):
                formatter.format(record)
            best = min(best, time.thread_time() - begin)
        return best

    assert seconds(log_format.FastRedactingFormatter()) < 2 * seconds(plain)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        *((0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.0 kB"), (2_100_000, "2.1 MB"), (999_949, "999.9 kB")),
        *((999_950, "1.0 MB"), (999_999, "1.0 MB"), (10**9, "1.0 GB"), (10**12, "1.0 TB"), (5 * 10**18, "5000.0 PB")),
    ],
)
def test_size_is_short(n_bytes: int, text: str) -> None:
    """Sizes are shown with three or four figures and a unit."""
    assert logs.format_bytes(n_bytes) == text
