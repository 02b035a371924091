"""Moves files with ``move_it``, ours or 0.19.0's: whichever this Python has. Run as a program of its own.

Arguments: URL of a directory, folder with the files f0, f1, ..., how many of them, threads, key file or "-", and
"named" if each destination is to end with the name of the file: 0.19.0 does not take a directory from every protocol.
Prints the seconds it took, and how many failed. Before many files goes one that is not timed: with it ours imports what
the protocol needs, which 0.19.0 has done by then.
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


def main() -> None:
    """Move, and say how it went."""
    url, folder, count, threads, key, *named = sys.argv[1:]
    logging.basicConfig(level=logging.CRITICAL)
    attributes = {"ssh_key_filename": key, "connection_uptime": 30} if key != "-" else {}
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
