"""Move files with the ``move_it`` of the trollmoves that is installed for this Python: ours or 0.19.0. A program.

Arguments: URL of a directory, folder with the files f0, f1, ..., their number, number of threads, key file or "-",
value of ssh_transport or "", and "named" if each destination must end with the name of the file: 0.19.0 does not
support directories with all protocols.
Prints the seconds and the number of failed files. If there are many files, one more is moved before the measurement:
ours imports the library of the protocol then, 0.19.0 at its start.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time

from trollmoves.movers import move_it


def _numbered(count: int) -> queue.SimpleQueue[str]:
    names: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number in range(count):
        names.put(f"f{number}")
    return names


def _attributes(key: str, transport: str) -> dict[str, object]:
    login: dict[str, object] = {"ssh_key_filename": key, "connection_uptime": 30} if key != "-" else {}
    return login | ({"ssh_transport": transport} if transport else {})


def main() -> None:
    """Move the files and print the result."""
    url, folder, count, threads, key, transport, *named = sys.argv[1:]
    logging.basicConfig(level=logging.CRITICAL)
    attributes = _attributes(key, transport)
    failed: list[str] = []

    def work(names: queue.SimpleQueue[str]) -> None:
        while True:
            try:
                name = names.get_nowait()
            except queue.Empty:
                return
            try:
                move_it(os.path.join(folder, name), url + name if named else url, dict(attributes))
            except Exception as error:  # 0.19.0 raises many kinds
                failed.append(f"{type(error).__name__}: {error}")

    if int(count) > 1:
        work(_numbered(1))
    names = _numbered(int(count))
    began = time.perf_counter()
    workers = [threading.Thread(target=work, args=(names,), daemon=True) for _ in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    print(time.perf_counter() - began, len(failed), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
