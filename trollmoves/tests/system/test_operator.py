"""An operator asks the command ``trollmoves`` about a site with problems, while the daemons run and after a kill."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from trollmoves.cli import main
from trollmoves.messaging.messages import Message
from trollmoves.tests.helpers.daemons import TOPIC, Process, Testbed, client_section, script, server_section
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3


class Site:
    """A server with a silent section, a client with a dead destination, and a dispatcher with a wrong target."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        publish, receipts = testbed.port(), testbed.port()
        self.dead_port = testbed.port()  # reserved, and nothing listens
        self.feeder = testbed.feeder()
        self.target, dispatched = testbed.directory("out"), testbed.directory("dispatched")
        server = {
            "hrit": server_section(self.feeder.folder, testbed.port()),
            "quiet": server_section(testbed.directory("quiet"), testbed.port(), topic="/quiet", expect_every=1),
        }
        client = {
            "good": client_section(publish, self.target, receipts),
            "bad": client_section(publish, f"sftp://nobody@{HOST}:{self.dead_port}/in/", testbed.port()),
        }
        subscriber = {"addresses": [f"tcp://{HOST}:{receipts}"], "nameserver": False}
        targets = {
            "right": {"directory": str(dispatched), "dispatch_configs": [{"topics": [TOPIC]}]},
            "wrong": {"directory": f"{dispatched}/{{no_such_field}}", "dispatch_configs": [{"topics": [TOPIC]}]},
        }
        config = testbed.config(yaml.safe_dump({"posttroll_subscriber": subscriber, **targets}), "dispatcher.yaml")
        self.processes: list[Process] = [
            testbed.server(server, publish),
            testbed.client(client),
            testbed.process("dispatcher", [sys.executable, script("dispatcher.py"), str(config)], config),
        ]
        self.configs = [process.config for process in self.processes]

    def start(self) -> None:
        """Start all daemons, and deliver three files as far as possible."""
        for process in self.processes:
            process.start(wait=False)
        for process in self.processes:
            process.wait_until_ready()
        self.processes[2].wait_for_line("connected to")
        self.processes[1].wait_for_line("connected to", 2)
        self.names = self.feeder.feed(3)
        until(lambda: self.json("held")["total"] == len(self.names), 60, "the files of the wrong target are held")
        until(lambda: len(self.reasons("Connection refused")) >= len(self.names), 60, "the dead destination is known")

    def kill(self) -> None:
        """Kill all daemons."""
        for process in self.processes:
            process.kill()

    def ask(self, *arguments: str | Path) -> tuple[int, str]:
        """Return the exit code and the output of the command; it runs in this process, which is faster."""
        environment = {name: text for name, text in self.testbed.environment.items() if name != "PYTHONPATH"}
        out, errors = io.StringIO(), io.StringIO()
        with mock.patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(errors):
            code = main([str(argument) for argument in arguments])
        assert errors.getvalue() == ""
        return code, out.getvalue()

    def json(self, *arguments: str | Path, code: int | None = None) -> dict[str, Any]:
        """Return the output of the command as JSON."""
        found, text = self.ask(*arguments, "--json")
        assert code in (None, found), text
        answer: dict[str, Any] = json.loads(text)
        assert answer["code"] == found
        assert answer["verdict"]
        return answer

    def reasons(self, part: str) -> list[str]:
        """Return the waiting files with a reason that contains a text."""
        return [file["file"] for file in self.json("queue")["files"] if part in file["reason"]]

    def chains(self) -> dict[str, dict[str, Any]]:
        """Return the sections of all daemons from ``status``, by name."""
        return {chain["name"]: chain for daemon in self.json("status")["daemons"] for chain in daemon["chains"]}

    def fingerprints(self) -> dict[str, str]:
        """Return the digests of all files of the journals, without the shared memory of SQLite."""
        paths = [path for path in (self.testbed.root / "state").rglob("*") if path.is_file()]
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if not path.name.endswith("-shm")
        }


def ask_about_state(site: Site, *, running: bool) -> None:
    """Ask for destinations that are behind, held files, and silent sections."""
    code, text = site.ask("status")
    verdict, *lines = text.splitlines()
    assert code == CRITICAL
    assert verdict.startswith("CRITICAL: ")
    assert "1 lane held" in verdict
    assert "silent: quiet" in verdict
    assert ("not running: " in verdict) is not running
    assert any("Connection refused" in line for line in lines)
    assert any(line.startswith("[quiet] silent: a file is expected every ") for line in lines)
    assert not any("is unavailable, next attempt in" in line for line in lines), "that delay is of an earlier time"
    assert "1 lane held" in site.ask("status", *site.configs)[1].splitlines()[0]
    chains = site.chains()
    assert {daemon["running"] for daemon in site.json("status")["daemons"]} == {running}
    assert chains["quiet"]["state"] == "silent"
    assert chains["wrong"]["state"] == "held"
    assert chains["wrong"]["held"] == len(site.names)
    assert chains["right"]["state"] in ("ok", "idle")
    (dead,) = [one for one in chains["hrit"]["destinations"] if str(site.dead_port) in one["name"]]
    assert dead["state"] in ("backing off", "down")
    assert "Connection refused" in dead["error"]
    assert dead["last_time"] is None
    (good,) = chains["good"]["destinations"]
    assert good["total_files"] == len(site.names)
    assert good["total_bytes"] == 1000 * len(site.names)
    assert good["last_file"] in site.names
    assert chains["bad"]["waiting"] + chains["bad"]["in_flight"] == len(site.names)
    assert chains["bad"]["oldest_age"] > 0
    assert chains["hrit"]["last_number"] == len(site.names)


def ask_about_files(site: Site) -> None:
    """Ask for waiting, held and failed files, and for the history of one."""
    held = site.json("held", code=CRITICAL)
    assert {file["file"] for file in held["files"]} == set(site.names)
    assert {file["chain"] for file in held["files"]} == {"wrong"}
    assert all("no_such_field" in file["reason"] for file in held["files"])
    assert "no_such_field" in site.ask("held")[1]
    assert set(site.names) <= set(site.reasons("Connection refused"))
    assert "Connection refused" in site.ask("queue")[1]
    assert site.json("failed", code=OK)["files"] == []
    name = site.names[0]
    steps = site.json("history", name, code=CRITICAL)["steps"]
    times = [step["time"] for step in steps if step["time"] is not None]
    assert times == sorted(times)
    found = {(step["kind"], step["chain"], step["event"]) for step in steps}
    assert {
        *(("server", "hrit", event) for event in ("written", "announced", "requested", "delivered")),
        *(("client", "good", event) for event in ("received", "fetched", "receipt published")),
        *(("dispatcher", "right", event) for event in ("received", "delivered")),
        ("client", "bad", "waiting"),
        ("dispatcher", "wrong", "held"),
    } <= found
    (fetched,) = [step for step in steps if step["event"] == "fetched"]
    assert (fetched["destination"], fetched["size"], fetched["attempts"]) == (str(site.target), 1000, 1)
    (delivered,) = [step for step in steps if (step["kind"], step["event"]) == ("server", "delivered")]
    assert delivered["peer"]
    assert delivered["number"] == 1
    assert f"number {delivered['number']}" in site.ask("history", name)[1]
    assert len(site.json("history", "H-000*")["steps"]) >= 3 * len(times)
    assert site.ask("history", "no-such-file")[0] == UNKNOWN


def ask_about_a_file_that_matches_nothing(site: Site) -> None:
    """Ask why a file was not sent."""
    path = site.feeder.folder / "strange.bin"
    code, text = site.ask("explain", path)
    assert code == OK  # the dispatcher delivers any file that a message names
    assert "strange.bin does not match" in text
    answer = site.json("explain", path, "-c", site.configs[0], code=WARNING)
    assert [one["matches"] for one in answer["explanations"]] == [False, False]
    assert "not below" in answer["explanations"][1]["reason"]
    (found, _) = site.json("explain", site.feeder.folder / site.names[0], "-c", site.configs[0])["explanations"]
    assert (found["matches"], found["topic"]) == (True, TOPIC)
    (found, _) = site.json("explain", site.names[0], "-c", site.configs[0])["explanations"]
    assert found["matches"], "a name alone is looked for in the directory of the origin"
    assert "nominal_time" in found["fields"]


def ask_about_journals(site: Site, tmp_path: Path, *, running: bool) -> None:
    """Ask for the contents of the journals, and copy one."""
    journals = site.json("journal", code=OK)["journals"]
    assert len(journals) == len(site.processes)
    assert {journal["pid"] for journal in journals} == (
        {p.popen.pid for p in site.processes if p.popen} if running else {None}
    )
    copy = tmp_path / f"copy-{running}"
    assert site.ask("journal", site.configs[1], "--backup", copy)[0] == OK
    assert (copy.stat().st_mode & 0o777) == 0o600
    opened = sqlite3.connect(f"file:{copy}?mode=ro", uri=True)
    assert opened.execute("SELECT count(*) FROM tasks WHERE kind = 'fetch'").fetchone() == (2 * len(site.names),)
    opened.close()
    assert site.ask("journal", site.configs[1], "--backup", copy)[0] == UNKNOWN  # it exists


def check_tables(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for tables on terminals of several widths."""
    for columns in (80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        for arguments in (["status"], ["queue"], ["held"], ["history", site.names[0]]):
            text = site.ask(*arguments)[1]
            table = [line for line in text.splitlines()[1:] if not line.startswith(("[", "CRITICAL"))]
            assert max(map(len, table)) <= columns
            assert "\x1b" not in text


@pytest.mark.slow
def test_an_operator_asks(testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question has an answer in text and JSON, also while the daemons are down; the journals do not change.

    The rows of tables are not longer than the terminal is wide, and without a terminal they have no colour.
    """
    monkeypatch.delenv("COLUMNS", raising=False)  # the tests run with one, and without a terminal nothing is cut then
    site = Site(testbed)
    site.start()
    until(lambda: site.chains()["quiet"]["state"] == "silent", 20, "the section is silent")
    ask_about_state(site, running=True)
    ask_about_files(site)
    ask_about_a_file_that_matches_nothing(site)
    ask_about_journals(site, tmp_path, running=True)
    code, text = site.ask("logs")
    assert code == CRITICAL
    assert "Connection refused" in text
    for config in site.configs:
        assert testbed.run("trollmoves", "check", config).returncode == OK
    check_tables(site, monkeypatch)
    monkeypatch.delenv("COLUMNS")
    site.kill()
    before = site.fingerprints()
    ask_about_state(site, running=False)
    ask_about_files(site)
    ask_about_a_file_that_matches_nothing(site)
    ask_about_journals(site, tmp_path, running=False)
    assert site.ask("logs")[0] == UNKNOWN
    assert site.fingerprints() == before


def test_explain_a_message(testbed: Testbed, tmp_path: Path) -> None:
    """For each section, a message is explained with its destination, or with the reason why it does not match."""
    site = Site(testbed)
    data = {"uri": "/in/a.dat", "uid": "a.dat", "request_address": f"{HOST}:9094"}
    message = tmp_path / "message"
    message.write_text(Message(TOPIC, "file", data).encode())
    configs = [argument for config in site.configs for argument in ("-c", config)]
    found = {one["section"]: one for one in site.json("explain", message, *configs, code=OK)["explanations"]}
    assert found["good"]["matches"]
    assert found["good"]["destination"].endswith(str(site.target))
    assert found["bad"]["destination"] == f"sftp://nobody@{HOST}:{site.dead_port}/in/"
    assert found["right"]["destination"].endswith("/dispatched/a.dat")
    assert "no_such_field" in found["wrong"]["reason"]
    assert not found["hrit"]["matches"]
    remote = data | {"uri": f"ssh://{HOST}{site.feeder.folder / site.feeder.feed()[0]}"}
    message.write_text(Message(TOPIC, "file", remote).encode())
    found = {one["section"]: one for one in site.json("explain", message, *configs)["explanations"]}
    assert found["hrit"]["matches"], found["hrit"]["reason"]
    message.write_text(Message("/other", "file", data).encode())
    found = {one["section"]: one for one in site.json("explain", message, *configs)["explanations"]}
    assert not any(one["matches"] for one in found.values())
    assert "does not begin with" in found["good"]["reason"]


@pytest.mark.parametrize("command", ["status", "queue", "failed", "held", "journal"])
def test_a_daemon_that_never_ran(testbed: Testbed, command: str) -> None:
    """Without a journal the answer is unknown, in one line, and no journal is created."""
    site = Site(testbed)
    done = testbed.run("trollmoves", command, site.configs[0])
    assert done.returncode in ((CRITICAL, UNKNOWN) if command == "status" else (UNKNOWN,))
    assert "does not exist" in done.stdout
    assert done.stderr == ""
    assert not list((testbed.root / "state").rglob("*.journal*"))
    assert site.ask(command)[0] == UNKNOWN
