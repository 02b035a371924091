"""Runs the status page of a daemon, ``trollmoves web``, as a child process that is started again when it ends."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress

from trollmoves.config.options import ProcessOptions
from trollmoves.monitor.commands import OF_THE_SERVICE
from trollmoves.utils.logs import LogThrottle

logger = logging.getLogger(__name__)

RESTART_DELAY = 15.0  # s between the end of the process and its next start
STOP_TIMEOUT = 3.0  # s that ``stop`` waits for the process, before it is killed


class StatusPage:
    """The status page of one daemon. A failure of it is logged, and never concerns the transfers.

    The process ends with the daemon, also if that is killed: its standard input is a pipe from here.
    """

    def __init__(self, options: ProcessOptions, role: str, config: str) -> None:
        address = options.web_address
        self._command = [
            *(sys.executable, "-m", "trollmoves", "web", "--until-eof", f"--config={config}", f"--kind={role}"),
            *(f"--port={options.web_port}", f"--bind={'0.0.0.0' if address == '*' else address}"),  # noqa: S104
            *([f"--token-file={options.web_token_file}"] if options.web_token_file else []),
        ]
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()  # guards the process, so that none is started after the stop
        self._stopping = threading.Event()
        self._throttle = LogThrottle(burst=1, pause=3600.0)
        self._thread = threading.Thread(target=self._run, name="status-page", daemon=True)

    def start(self) -> None:
        """Start the process."""
        self._thread.start()

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                reason = self._run_once()
            except OSError as error:
                reason = f"cannot start: {error.strerror or error}"
            if not self._stopping.is_set() and (more := self._throttle.admit(reason)) is not None:
                logger.warning("the status page ended: %s; starting it every %.0f s%s", reason, RESTART_DELAY, more)
            self._stopping.wait(RESTART_DELAY)

    def _run_once(self) -> str:
        """Run the process until it ends; return the reason."""
        environment = {name: value for name, value in os.environ.items() if name not in OF_THE_SERVICE}
        with self._lock:
            if self._stopping.is_set():
                return ""
            self._process = process = subprocess.Popen(  # noqa: S603  (our own command)
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                text=True,
                errors="backslashreplace",
            )
        last = ""
        with process:
            for line in process.stdout or ():
                last = line.strip() or last
                if last.startswith("status page at "):
                    logger.info("%s", last)
            with suppress(BrokenPipeError):
                process.wait()
        return last if process.returncode > 0 and last else f"exit status {process.returncode}"
