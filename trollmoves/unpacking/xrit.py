"""Unpacks one xRIT segment with EUMETSAT's program.

The program takes the path of the packed file as its argument and writes its result to the directory in which it runs,
under the name with ``C_`` at the end replaced by ``__``. It is run by an argument list, without a shell, in a new empty
directory, so that whatever appears there is its result.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from typing import BinaryIO

from trollmoves.errors import TemporaryUnpackError, UnpackFailed
from trollmoves.net.urls import redact_text
from trollmoves.unpacking.staging import FILE_MODE, StagingDirectory

PROGRAM = "xRITDecompress"
SUFFIX = "C_"
_UNPACKED_SUFFIX = "__"
OUTPUT_PREFIX = b"Decompressed file:"
_TAIL = 4096  # bytes of what the program printed that are looked at, and
_LONGEST_SHOWN = 300  # characters of its last line that are repeated
_ENDED_BY_OTHERS = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}


def unpack_xrit(place: StagingDirectory, program: str | None, timeout: float) -> list[str]:
    """Install what the program makes of ``place.packed``.

    Args:
        place: where, and of what.
        program: its path, or its name in ``$PATH``; ``xRITDecompress`` when None.
        timeout: seconds after which it is ended, with all that it started.

    Raises:
        TemporaryUnpackError: the program is missing, was ended, or left no room on the disk.
        UnpackFailed: it refused the file, or made nothing of it.
        OSError: the result cannot be installed.
    """
    command = [_find_program(program), os.path.abspath(place.packed)]
    work = os.path.join(place.path, "work")
    os.mkdir(work)
    with (
        open(os.path.join(place.path, "stdout"), "w+b") as said,
        open(os.path.join(place.path, "stderr"), "w+b") as complained,
    ):
        status = _run(command, work, said, complained, timeout)
        last_line = _last_line(complained) or _last_line(said)
        result = _result(work, os.path.basename(place.packed), _tail(said))
    _check(place, status, result, f"{command[0]} on {place.packed}", last_line)
    path = os.path.join(work, result)
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & FILE_MODE)
    return place.commit({result: path})


def _find_program(program: str | None) -> str:
    found = shutil.which(program or PROGRAM)
    if found is None:
        where = "is no program" if program and "/" in program else "is not in $PATH"
        raise TemporaryUnpackError(
            f"{program or PROGRAM} {where}: the option prog (server) or xritdecompressor (client) tells where it is"
        )
    return os.path.abspath(found)


def _run(command: list[str], directory: str, stdout: BinaryIO, stderr: BinaryIO, timeout: float) -> int:
    """Return the exit status; files take the output, as a pipe that nobody reads would stop the program."""
    try:
        process = subprocess.Popen(  # noqa: S603  (a list, no shell)
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise TemporaryUnpackError(
            f"cannot run {command[0]}: {getattr(error, 'strerror', None) or error}; "
            "see the option prog (server) or xritdecompressor (client)"
        ) from error
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise TemporaryUnpackError(f"{command[0]} on {command[1]}: ended after {timeout:g} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _result(directory: str, packed: str, said: bytes) -> str:
    """Return the name of the file that the program made, "" without one."""
    with os.scandir(directory) as entries:
        made = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    told = [os.path.basename(os.fsdecode(line.partition(OUTPUT_PREFIX)[2].strip())) for line in said.splitlines()]
    expected = packed.removesuffix(SUFFIX) + _UNPACKED_SUFFIX
    likely = [name for name in (expected, *told) if name in made]
    return (likely or made or [""])[0]


def _check(place: StagingDirectory, status: int, result: str, what: str, last_line: str) -> None:
    if status == 0 and result and os.stat(os.path.join(place.path, "work", result)).st_size == 0:
        result = ""
    if status or not result:
        # Programs often do not tell why they could not write.
        place.check_free_space(os.stat(place.packed).st_size)
    else:
        place.check_free_space(1)  # on a full disk the result may have been cut, unnoticed
    if status in _ENDED_BY_OTHERS:
        raise TemporaryUnpackError(f"{what}: was ended by signal {-status}")
    if status:
        raise UnpackFailed(f"{what}: {last_line or 'no reason given'} (exit status {status})")
    if not result:
        raise UnpackFailed(f"{what}: made no file" + (f"; it said: {last_line}" if last_line else ""))


def _tail(file: BinaryIO) -> bytes:
    file.seek(0, os.SEEK_END)
    file.seek(max(file.tell() - _TAIL, 0))
    return file.read(_TAIL)


def _last_line(file: BinaryIO) -> str:
    lines = _tail(file).decode(errors="replace").strip().splitlines()
    return redact_text(lines[-1].strip()[-_LONGEST_SHOWN:]) if lines else ""
