"""The snapshots of daemons: from the process if it runs, else from the journal."""

from __future__ import annotations

from functools import partial
from typing import Any

from trollmoves.cli.selection import DaemonFiles
from trollmoves.control import client
from trollmoves.control.client import ControlError, NotRunning
from trollmoves.journal import open_reader, running_pid
from trollmoves.status import model
from trollmoves.status.snapshot import sections_of, snapshot


def snapshot_of(files: DaemonFiles) -> dict[str, Any]:
    """Return the snapshot of a daemon as JSON types, as doc/operating.md documents them. It never raises."""
    problem = files.problem
    try:
        return client.request(files.control, "snapshot")
    except NotRunning:
        if pid := running_pid(files.where):
            problem = f"the process {pid} runs, and has no control socket: is it starting or stopping?"
    except ControlError as error:
        problem = f"the daemon does not reply: {error}"
    daemon = model.Daemon(files.name, files.kind, files.config, files.journal, problem=problem)
    sections = sections_of(files.configuration, files.sections, files.problem) if files.config else None
    return snapshot(daemon, sections, None, partial(open_reader, files.where)).as_dict()
