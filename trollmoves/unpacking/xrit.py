"""Unpacks one xRIT segment with EUMETSAT's program.

The program takes the path of the packed file as its argument and writes the result to its working directory, under the
name with the suffix ``C_`` replaced by ``__``. It runs without a shell in a new empty directory: each file there is a
result.
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
_TAIL = 4096  # bytes at the end of the program's output that are read
_MAX_SHOWN = 300  # characters of its last line in an error text
ENVIRONMENT = {"PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR", "TZ"}
"""The variables that the program gets; others may contain secrets."""
_EXTERNAL_SIGNALS = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}


def unpack_xrit(staging: StagingDirectory, program: str, timeout: float) -> list[str]:
    """Unpack ``staging.packed`` by the program; return the path of the result.

    Args:
        staging: the staging directory.
        program: its path, or its name in ``$PATH``.
        timeout: seconds after which it is killed, with its child processes.

    Raises:
        TemporaryUnpackError: the program is missing or was killed, or the disk is full.
        UnpackFailed: the program rejected the file, or wrote no result.
        OSError: the result cannot be renamed.
    """
    # The program opens the file by a name; this one leads to the descriptor, which it inherits.
    packed = os.path.join(staging.path, os.path.basename(staging.packed))
    command = [_find_program(program), packed]
    os.symlink(f"/proc/self/fd/{staging.source.fd}", packed)
    work = os.path.join(staging.path, "work")
    os.mkdir(work)
    with (
        open(os.path.join(staging.path, "stdout"), "w+b") as stdout,
        open(os.path.join(staging.path, "stderr"), "w+b") as stderr,
    ):
        status = _run(command, work, stdout, stderr, timeout, staging)
        last_line = _last_line(stderr) or _last_line(stdout)
        result = _result(work, os.path.basename(staging.packed), _tail(stdout))
    _check(staging, status, result, f"{command[0]} on {staging.packed}", last_line)
    path = os.path.join(work, result)
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & FILE_MODE)
    return staging.commit({result: path})


def _find_program(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        where = "is not a program" if "/" in program else "is not in $PATH"
        raise TemporaryUnpackError(
            f"{program} {where}: the option prog (server) or xritdecompressor (client) sets its path"
        )
    return os.path.abspath(found)


def _run(
    command: list[str], directory: str, stdout: BinaryIO, stderr: BinaryIO, timeout: float, staging: StagingDirectory
) -> int:
    """Return the exit status; the output goes to files, as an unread pipe would block the program."""
    try:
        process = subprocess.Popen(  # noqa: S603  (a list, no shell)
            command,
            cwd=directory,
            pass_fds=(staging.source.fd,),
            env={name: value for name, value in os.environ.items() if name in ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise TemporaryUnpackError(
            f"cannot run {command[0]}: {getattr(error, 'strerror', None) or error}; "
            "see the option prog (server) or xritdecompressor (client)"
        ) from error
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise TemporaryUnpackError(f"{command[0]} on {staging.packed}: killed after {timeout:g} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _result(directory: str, packed: str, output: bytes) -> str:
    """Return the name of the result, "" without one."""
    with os.scandir(directory) as entries:
        made = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    reported = [os.path.basename(os.fsdecode(line.partition(OUTPUT_PREFIX)[2].strip())) for line in output.splitlines()]
    expected = packed.removesuffix(SUFFIX) + _UNPACKED_SUFFIX
    likely = [name for name in (expected, *reported) if name in made]
    return (likely or made or [""])[0]


def _check(staging: StagingDirectory, status: int, result: str, action: str, last_line: str) -> None:
    if status == 0 and result and os.stat(os.path.join(staging.path, "work", result)).st_size == 0:
        result = ""
    if status or not result:
        # Programs often do not report a full disk.
        staging.check_free_space(staging.source.status.st_size)
    else:
        staging.check_free_space(1)  # on a full disk the result may be truncated without an error
    if status in _EXTERNAL_SIGNALS:
        raise TemporaryUnpackError(f"{action}: was killed by signal {-status}")
    if status:
        raise UnpackFailed(f"{action}: {last_line or 'no reason given'} (exit status {status})")
    if not result:
        raise UnpackFailed(f"{action}: made no file" + (f"; its output: {last_line}" if last_line else ""))


def _tail(file: BinaryIO) -> bytes:
    file.seek(0, os.SEEK_END)
    file.seek(max(file.tell() - _TAIL, 0))
    return file.read(_TAIL)


def _last_line(file: BinaryIO) -> str:
    lines = _tail(file).decode(errors="replace").strip().splitlines()
    return redact_text(lines[-1].strip()[-_MAX_SHOWN:]) if lines else ""
