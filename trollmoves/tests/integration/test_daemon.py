"""A daemon says in one line why it cannot start, runs what can run, and ends in order."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

from trollmoves.tests.helpers.daemons import (
    Process,
    ServerClientPair,
    Testbed,
    client_section,
    ini,
    script,
    server_section,
)
from trollmoves.tests.helpers.recording import send_request
from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR, until

COMMANDS = {"server": "move_it_server.py", "client": "move_it_client.py"}
PASSWORD = "gehe1m"

both = pytest.mark.parametrize("role", COMMANDS)


def section(testbed: Testbed, role: str, **options: object) -> dict[str, object]:
    """Return a section that can be used."""
    if role == "server":
        return server_section(testbed.directory("in"), testbed.port()) | options
    return client_section(testbed.port(), testbed.directory("out"), testbed.port()) | options


def port_option(role: str) -> str:
    """Return the option for the port that a section of this role opens."""
    return "request_port" if role == "server" else "publish_port"


def taken_port(testbed: Testbed) -> int:
    """Return a port that another socket listens on."""
    listener = testbed.close_at_end(socket.socket())
    listener.bind(("", 0))
    listener.listen()
    return int(listener.getsockname()[1])


def refused(ended: subprocess.CompletedProcess[str], *parts: object) -> None:
    """Check that a command ended with one line that says why."""
    assert ended.returncode == 1, ended
    assert not ended.stdout
    assert "Traceback" not in ended.stderr
    line = ended.stderr.splitlines()[-1]
    assert all(str(part) in line for part in parts), line
    assert ended.stderr.splitlines() == [line]


# -- what keeps a daemon from starting


@both
def test_no_configuration(testbed: Testbed, role: str) -> None:
    """A missing configuration file is reported."""
    refused(testbed.run(COMMANDS[role], testbed.root / "none.ini"), testbed.root / "none.ini", "No such file")


@both
def test_unreadable_configuration(testbed: Testbed, role: str) -> None:
    """An unreadable configuration file is reported."""
    refused(testbed.run(COMMANDS[role], testbed.root), testbed.root, "Is a directory")


UNUSABLE = {"empty": "", "no section": "topic = /x\n", "junk": "\x01\x02", "lacking": "[a]\ninfo = a=b\n"}


@pytest.mark.parametrize("text", UNUSABLE)
def test_unusable_configuration(testbed: Testbed, text: str) -> None:
    """A configuration without a usable section is reported, with the name of the section."""
    config = testbed.config(UNUSABLE[text])
    refused(testbed.run("move_it_server.py", config), config, "[a]" if text == "lacking" else "")


def test_missing_processors(testbed: Testbed) -> None:
    """A daemon reports processors that this host does not have, and those that it may use."""
    config = testbed.config({"DEFAULT": {"processors": "4095"}, "hrit": section(testbed, "server")})
    ended = testbed.run("move_it_server.py", config)
    refused(ended, "[DEFAULT] processors: cannot run on 4095", f"may use: {min(os.sched_getaffinity(0))}")


def test_processors(testbed: Testbed) -> None:
    """All threads of a daemon run on the processors of the option."""
    one = max(os.sched_getaffinity(0))
    server = testbed.server(
        {"DEFAULT": {"processors": one}, "hrit": section(testbed, "server")}, testbed.port()
    ).start()
    assert server.popen
    threads = [int(thread) for thread in os.listdir(f"/proc/{server.popen.pid}/task")]
    assert len(threads) > 5
    assert [os.sched_getaffinity(thread) for thread in threads] == [{one}] * len(threads)


def test_publish_port_is_taken(testbed: Testbed) -> None:
    """A server reports a publish port that is already in use."""
    port = taken_port(testbed)
    config = testbed.config({"hrit": section(testbed, "server")})
    ended = testbed.run("move_it_server.py", config, "-p", str(port))
    refused(ended, port, "Address already in use; end the process that uses it", "change the port of -p")


@both
def test_only_chain_cannot_start(testbed: Testbed, role: str) -> None:
    """A daemon exits if none of its chains can start, and reports the last error."""
    port = taken_port(testbed)
    config = testbed.config({"hrit": section(testbed, role, **{port_option(role): port})})
    arguments = ["-p", str(testbed.port())] if role == "server" else []
    ended = testbed.run(COMMANDS[role], config, "-l", testbed.root / "log", *arguments)
    refused(ended, config, "[hrit]", port, "Address already in use", f"or change {port_option(role)}")
    assert "Traceback" not in (testbed.root / "log").read_text()


@both
def test_no_place_for_the_journal(testbed: Testbed, role: str) -> None:
    """A daemon that has no place for its journal says what to set."""
    file = testbed.root / "file"
    file.touch()
    config = testbed.config({"DEFAULT": {"journal": file / "x.journal"}, "hrit": section(testbed, role)})
    refused(testbed.run(COMMANDS[role], config), f"cannot create the journal {file}/x.journal", "set 'journal'")


@both
def test_journal_path_with_other_content(testbed: Testbed, role: str) -> None:
    """A daemon does not write into a file that is not a journal."""
    file = testbed.root / "file"
    file.write_text("something that somebody needs\n" * 100)
    config = testbed.config({"DEFAULT": {"journal": file}, "hrit": section(testbed, role)})
    refused(testbed.run(COMMANDS[role], config), f"the journal {file} cannot be used")
    assert file.read_text().startswith("something that somebody needs\n")


def test_journal_is_in_use(testbed: Testbed) -> None:
    """A second process on the same configuration is refused, and the first one is not disturbed."""
    pair = ServerClientPair(testbed)
    pair.server.start()
    ended = testbed.run("move_it_server.py", pair.server.config, "-p", str(testbed.port()))
    refused(ended, "in use by another process")
    assert send_request(pair.request_port, "/", "ping").type == "pong"


@both
@pytest.mark.parametrize("argument", ["-l", "-c"])
def test_unwritable_log(testbed: Testbed, role: str, argument: str) -> None:
    """An unusable log file or logging configuration is reported."""
    config = testbed.config({"hrit": section(testbed, role)})
    refused(testbed.run(COMMANDS[role], config, argument, testbed.root / "none" / "x"), testbed.root / "none" / "x")


@both
def test_wrong_arguments(testbed: Testbed, role: str) -> None:
    """Invalid arguments are reported with the usage, with status 2."""
    ended = testbed.run(COMMANDS[role], "--no-such-option")
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: ")


# -- one chain and the others


@both
def test_one_broken_chain(testbed: Testbed, role: str) -> None:
    """Broken chains are reported, and the others run."""
    broken = section(testbed, role, **{port_option(role): taken_port(testbed)})
    sections = {
        "wrong": section(testbed, role) | {port_option(role): "many"},
        "blocked": broken | ({"topic": "/blocked"} if role == "server" else {}),
        "good": section(testbed, role),
    }
    process = _process(testbed, role, sections)
    process.start()
    process.wait_for_line("runs 1 chain")
    assert f"{process.config}: [wrong] {port_option(role)}: " in process.lines()
    assert "[blocked] cannot be started: cannot listen on" in process.lines()
    assert "Traceback" not in process.lines()
    assert process.terminate() == 0


def _process(testbed: Testbed, role: str, sections: dict[str, dict[str, object]], *arguments: str) -> Process:
    if role == "server":
        return testbed.server(sections, testbed.port(), *arguments)
    return testbed.client(sections, *arguments)


# -- how it starts and ends


@both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end(testbed: Testbed, role: str, number: signal.Signals) -> None:
    """A signal ends an idle daemon quickly, with status 0 and all ports released."""
    process = _process(testbed, role, {"hrit": section(testbed, role)})
    for _ in range(2 if number == signal.SIGTERM else 1):
        process.start()
        process.send(number)
        assert process.popen is not None
        assert process.popen.wait(5 * TIMEOUT_FACTOR) == 0
        assert "stopped" in process.lines()
        assert "Traceback" not in process.lines()


@both
def test_end_of_a_daemon_that_just_starts(testbed: Testbed, role: str) -> None:
    """A signal that comes while a daemon starts ends it too, without a traceback."""
    process = _process(testbed, role, {"hrit": section(testbed, role)})
    process.start(wait=False)
    until(lambda: "publishing as" in process.lines())
    assert process.terminate() in (0, -signal.SIGTERM)
    assert "Traceback" not in process.lines()


@both
def test_state_directory(testbed: Testbed, role: str) -> None:
    """The journal is where systemd wants it, readable for its owner only, and with a file for each configuration."""
    state = testbed.directory("systemd")
    process = _process(testbed, role, {"hrit": section(testbed, role)})
    process.environment = {**process.environment, "STATE_DIRECTORY": str(state)}
    process.start()
    (journal,) = state.glob("*.journal")
    assert journal.name.startswith(role)
    assert journal.stat().st_mode & 0o077 == 0
    assert process.terminate() == 0


# -- --check


@both
def test_check_of_a_good_configuration(testbed: Testbed, role: str) -> None:
    """--check shows what would run, without the secrets, and opens nothing."""
    login = {"login": f"sat:{PASSWORD}"} if role == "client" else {}
    options = {port_option(role): taken_port(testbed), **login}
    ended = testbed.run(COMMANDS[role], "--check", testbed.config({"hrit": section(testbed, role, **options)}))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "[hrit]" in ended.stdout
    assert str(options[port_option(role)]) in ended.stdout
    assert PASSWORD not in ended.stdout
    assert not (testbed.root / "state").exists()


@both
def test_check_of_a_doubtful_configuration(testbed: Testbed, role: str) -> None:
    """--check warns of an unknown option, asks whether another one was meant, and counts that as good."""
    name = "request_adress" if role == "server" else "heartbeats"
    ended = testbed.run(COMMANDS[role], "--check", testbed.config({"hrit": section(testbed, role, **{name: "5"})}))
    assert ended.returncode == 0
    assert f"did you mean {'request_address' if role == 'server' else 'heartbeat'}?" in ended.stdout


@both
def test_check_of_partly_broken_configuration(testbed: Testbed, role: str) -> None:
    """--check reports a broken section, and exits with status 1 although the others would run."""
    sections = {"good": section(testbed, role), "bad": section(testbed, role) | {port_option(role): "x"}}
    config = testbed.config(sections)
    ended = testbed.run(COMMANDS[role], "--check", config)
    assert ended.returncode == 1
    assert f"{config}: [bad] {port_option(role)}: " in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("text", UNUSABLE)
def test_check_of_unusable_configuration(testbed: Testbed, text: str) -> None:
    """--check reports in one line that no chain would run, with status 1."""
    config = testbed.config(UNUSABLE[text])
    refused(testbed.run("move_it_client.py", "--check", config), config)


# -- the log

LOG_CONFIG = """
version: 1
formatters:
  own:
    format: "OWN %(levelname)s %(message)s"
handlers:
  file:
    class: logging.FileHandler
    formatter: own
    filename: {file}
root:
  level: INFO
  handlers: [file]
"""


@both
@pytest.mark.parametrize("verbose", [False, True])
def test_log_options_together(testbed: Testbed, role: str, verbose: bool) -> None:
    """-c, -l and -v work together: both files get every line, with -v the details too, and stderr gets none."""
    own, log = testbed.root / "own.log", testbed.root / "l.log"
    config = testbed.root / "log.yaml"
    config.write_text(LOG_CONFIG.format(file=own))
    arguments = ["-c", str(config), "-l", str(log), *(["-v"] if verbose else [])]
    process = _process(testbed, role, {"hrit": section(testbed, role)}, *arguments)
    process.start(wait=False)
    until(lambda: log.exists() and " runs 1 chain" in log.read_text())
    process.send(signal.SIGHUP)
    until(lambda: "configuration reloaded" in log.read_text())
    assert process.terminate() == 0
    assert process.lines() == ""
    for file in (own, log):
        text = file.read_text()
        assert "[hrit] started" in text
        assert "[hrit] stopped" in text
        assert ("DEBUG" in text) == verbose
    assert own.read_text().startswith("OWN ")


def policies(process: Process) -> set[int]:
    """Return the scheduling policies of the threads of a daemon."""
    found = set()
    assert process.popen
    for thread in os.listdir(f"/proc/{process.popen.pid}/task"):
        with suppress(ProcessLookupError):  # it has already ended
            found.add(os.sched_getscheduler(int(thread)))
    return found


def test_an_operators_choice_of_a_policy_stays(testbed: Testbed) -> None:
    """A daemon that was started with a scheduling policy keeps it."""
    pair = ServerClientPair(testbed)
    pair.server.command = ["chrt", "--idle", "0", *pair.server.command]
    pair.start()
    pair.feeder.feed(50)
    pair.wait_until_done()
    assert policies(pair.server) == {os.SCHED_IDLE}


def test_a_module_is_a_command_too(testbed: Testbed) -> None:
    """``python -m trollmoves.server`` is the same as the command."""
    shown = [
        subprocess.run(
            [sys.executable, *command, "--version"], env=testbed.environment, capture_output=True, text=True, check=True
        ).stdout
        for command in (["-m", "trollmoves.server"], [script("move_it_server.py")])
    ]
    assert shown[0] == shown[1]
    assert shown[0].startswith("trollmoves ")


def test_old_configuration_runs(testbed: Testbed) -> None:
    """A section with old spellings and a percent sign runs, with warnings."""
    old = server_section(testbed.directory("in"), testbed.port()) | {
        "publisher_port": 9010,
        "ssh_key_filename": "/home/x/.ssh/id_rsa",
        "connection_uptime": 60,
        "origin_inotify_base_dir_skip_levels": -2,
        "info": "sensor=seviri;stream=low%;;x=a=b",
        "Compression": "False",
    }
    process = testbed.server(
        {"hrit": old}, testbed.port(), "--chain-check-interval", "5", "--max-notifier-restarts", "3"
    )
    process.start()
    lines = [line for line in process.lines().splitlines() if "is the old spelling of" in line]
    assert lines
    assert all("INFO" in line for line in lines)
    assert process.terminate() == 0


def test_two_configurations_of_one_user(testbed: Testbed) -> None:
    """Two configuration files of the same name in different folders have a journal each."""
    processes = []
    for number in range(2):
        folder = testbed.directory(f"etc{number}")
        config = folder / "server.ini"
        config.write_text(ini({"hrit": server_section(testbed.directory(f"in{number}"), testbed.port())}))
        command = [sys.executable, script("move_it_server.py"), str(config), "-p", str(testbed.port())]
        processes.append(testbed.process(f"server{number}", command, config).start(wait=False))
    for process in processes:
        process.wait_until_ready()
    journals = [name for name in os.listdir(testbed.root / "state" / "trollmoves") if name.endswith(".journal")]
    assert len(journals) == 2
