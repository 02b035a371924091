"""Creates files in a directory, one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from segments import Segment


class Feeder:
    """Writes files at a constant rate on a thread.

    ``appeared`` contains, by name, the time of completion (``time.monotonic``); only that thread writes it.
    """

    def __init__(self, folder: Path, files: Sequence[Segment], seconds: float) -> None:
        self.appeared: dict[str, float] = {}
        self._folder = folder
        self._files = files
        self._interval = seconds / len(files)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="feeder", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop writing files, and wait for the thread."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def done(self) -> bool:
        """Return True if all files were written."""
        return len(self.appeared) == len(self._files)

    def _feed(self) -> None:
        start = time.monotonic()
        for number, segment in enumerate(self._files):
            if self._ended.wait(max(0.0, start + number * self._interval - time.monotonic())):
                return
            with open(self._folder / segment.name, "wb", buffering=0) as file:
                file.write(segment.content)
                # The file is complete now; the server detects it when the file is closed.
                self.appeared[segment.name] = time.monotonic()
