"""Serves the metrics of a daemon over HTTP, and writes them to a file, on one thread."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from trollmoves.config.options import ProcessOptions
from trollmoves.metrics.counters import FileCounters
from trollmoves.metrics.state import DaemonReader
from trollmoves.net.ports import listen_remedy
from trollmoves.utils.logs import LogThrottle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trollmoves.metrics.exporter import Exporter

logger = logging.getLogger(__name__)

INTERVAL = 15.0  # s between two writes of the file, and between two attempts to listen
CLIENT_TIMEOUT = 5.0  # s for a request and its reply; then the connection is cut
MAX_CONNECTIONS = 16  # further ones are closed
MAX_REQUEST_BYTES = 8192
STOP_TIMEOUT = 2.0  # s that ``stop`` waits for the thread
PATHS = ("/", "/metrics")


class MetricsService:
    """The thread that serves and writes metrics. A failure of it is logged, and never concerns the transfers."""

    _exporter: Exporter  # from the start

    def __init__(self, options: ProcessOptions, counters: FileCounters) -> None:
        self.counters = counters
        self._options = options
        self._throttle = LogThrottle(burst=1, pause=3600.0)
        self._connections = 0
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    @classmethod
    def create(cls, options: ProcessOptions) -> MetricsService | None:
        """Return the service that the options ask for; None without one, or with an error in the log."""
        if options.metrics_port is None and not options.metrics_file:
            return None
        try:
            import prometheus_client  # noqa: F401  (an optional dependency)
        except ImportError as error:
            logger.error("running without metrics: %s; install it: pip install 'trollmoves[metrics]'", error)
            return None
        return cls(options, FileCounters())

    def start(self, reader: DaemonReader, labels: Mapping[str, str]) -> None:
        """Start the thread. ``labels`` are added to each metric. Main thread."""
        from trollmoves.metrics.exporter import Exporter

        self._exporter = Exporter(reader, labels)
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and close the port. The file stays, for its age. Main thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(STOP_TIMEOUT)

    # -- metrics thread

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # its end also ends the connections
                runner.run(self._serve())
        except Exception:
            logger.exception("unexpected error, metrics end until a restart")

    async def _serve(self) -> None:
        server: asyncio.Server | None = None
        while not self._stopping.is_set():
            if server is None and self._options.metrics_port is not None:
                server = await self._listen(self._options.metrics_address, self._options.metrics_port)
            if self._options.metrics_file:
                self._write(self._options.metrics_file)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), INTERVAL)
        if server:
            server.close()

    async def _listen(self, address: str, port: int) -> asyncio.Server | None:
        host = None if address == "*" else address
        try:
            server = await asyncio.start_server(self._reply, host, port, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            if (suffix := self._throttle.admit("listen")) is not None:
                remedy = listen_remedy(error.errno, "metrics_port", "metrics_address")
                reason = f"{error.strerror or error}{remedy}"
                logger.error(
                    "cannot serve metrics on %s:%d: %s; trying again every %.0f s%s",
                    *(address, port, reason, INTERVAL, suffix),
                )
            return None
        logger.info("serving metrics on http://%s:%d/metrics", address, port)
        return server

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reply to one request and close the connection."""
        if self._connections >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head.decode("latin-1")))
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        except Exception:
            writer.transport.abort()
            logger.exception("unexpected error while replying to a scrape")
        finally:
            self._connections -= 1

    def _response(self, head: str) -> bytes:
        request, *headers = head.split("\r\n")
        method, _, rest = request.partition(" ")
        if method not in ("GET", "HEAD"):
            return _message("405 Method Not Allowed", "text/plain", b"use GET\n")
        if rest.partition(" ")[0].partition("?")[0] not in PATHS:
            return _message("404 Not Found", "text/plain", b"metrics are at /metrics\n")
        accept = next((line.partition(":")[2] for line in headers if line.lower().startswith("accept:")), "")
        content_type, page = self._exporter.page(accept.strip())
        reply = _message("200 OK", content_type, page)
        return reply if method == "GET" else reply[: -len(page)]

    def _write(self, path: str) -> None:
        """Replace the file, so that a reader never sees an incomplete one."""
        partial = f"{path}.{os.getpid()}.tmp"
        try:
            with open(partial, "wb") as file:
                file.write(self._exporter.textfile())
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(partial)
            if (suffix := self._throttle.admit("write")) is not None:
                logger.error(
                    "cannot write metrics to %s: %s; trying again every %.0f s%s",
                    *(path, error.strerror, INTERVAL, suffix),
                )


def _message(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return f"{head}\r\n".encode() + body
