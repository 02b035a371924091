"""Limits of this process: open files and processors."""

from __future__ import annotations

import os
import resource

from trollmoves.errors import StartError

MAX_OPEN_FILES = 65_536


def raise_fd_limit() -> None:
    """Raise the soft limit of file descriptors, because each open request needs a socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MAX_OPEN_FILES and soft != hard:
        limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def use_processors(processors: tuple[int, ...]) -> None:
    """Run all threads on these processors; raise StartError if this process may use none of them."""
    for thread in os.listdir("/proc/self/task") if processors else ():
        try:
            os.sched_setaffinity(int(thread), processors)
        except ProcessLookupError:  # the thread has ended
            pass
        except OSError as error:
            available = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise StartError(
                f"[DEFAULT] processors: cannot run on {', '.join(map(str, processors))} ({error.strerror}); "
                f"this process may use: {available}"
            ) from None
