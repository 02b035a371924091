"""asyncssh's server, the second one for SFTP and SCP; it accepts passwords. Run as a module it is the server."""

from __future__ import annotations

import asyncio
import getpass
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from trollmoves.tests.servers.openssh import make_key
from trollmoves.tests.servers.process import HOST, PROXY_HOST, ServerProcess, free_port

PASSWORD = "s3cr3t/pass@word"
QUIRKS = {
    "no extensions": "it supports only version 3 of SFTP, where a rename does not replace a file",
    "posix-rename keeps": "posix-rename fails if the new name exists",
    "rename denied": "a rename to an existing name is answered by PERMISSION_DENIED",
    "no rename": "rename is not supported",
    "rename refused": "rename is answered by PERMISSION_DENIED",
    "rename fails": "rename is answered by FAILURE",
    "no remove": "files cannot be removed",
    "no hidden": "names that begin with a dot are refused",
    "only dat": "names that do not end with .dat are refused",
    "no exclusive": "the flag EXCL of OPEN is not supported",
    "no mode": "OPEN with permissions is refused",
    "must truncate": "OPEN without the flag TRUNC fails",
    "no stat": "attributes of paths are not reported",
    "late size": "until a file is closed its size is reported as 0",
    "no fstat": "attributes of open files are not reported",
}


def missing() -> str:
    """Return why the server cannot run, empty when it can."""
    return "" if importlib.util.find_spec("asyncssh") else "no asyncssh (PyPI)"


class AsyncSshd(ServerProcess):
    """A server on a free port that accepts this user by ``user_key`` or ``PASSWORD``.

    Its SFTP has the ``quirks``, some of ``QUIRKS``.
    """

    def __init__(self, folder: Path, *quirks: str) -> None:
        assert set(quirks) <= set(QUIRKS)
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.user = getpass.getuser()
        self.user_key = make_key(folder / "user_key")
        self.host_key = make_key(folder / "host_key")
        self.known_hosts = folder / "known_hosts"
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text("".join(f"[{host}]:{port} {kind} {key}\n" for host in (HOST, PROXY_HOST)))
        command = [sys.executable, "-m", __name__, str(port), str(folder), *quirks]
        super().__init__(port, command, folder / "asyncssh.log", {"SSH_TEST_PASSWORD": PASSWORD})


async def serve(port: int, folder: Path, quirks: set[str]) -> None:
    """Serve until ended."""
    import asyncssh

    class Server(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return password == os.environ["SSH_TEST_PASSWORD"]

    if "no extensions" in quirks:
        import asyncssh.sftp

        asyncssh.sftp.SFTPServerHandler._extensions = []
    from trollmoves.tests.servers.quirky_sftp import quirky_sftp

    settings: dict[str, Any] = {"server_factory": Server, "sftp_factory": quirky_sftp(quirks), "allow_scp": True}
    await asyncssh.listen(
        HOST,
        port,
        server_host_keys=[str(folder / "host_key")],
        authorized_client_keys=str(folder / "user_key.pub"),
        **settings,
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), set(sys.argv[3:])))
