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


def missing() -> str:
    """Return why the server cannot run, empty when it can."""
    return "" if importlib.util.find_spec("asyncssh") else "no asyncssh (PyPI)"


class AsyncSshd(ServerProcess):
    """A server on a free port that accepts this user by ``user_key`` or ``PASSWORD``.

    Without ``extensions`` it supports only version 3 of SFTP, where a rename cannot replace a file.
    """

    def __init__(self, folder: Path, *, extensions: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.user = getpass.getuser()
        self.user_key = make_key(folder / "user_key")
        self.host_key = make_key(folder / "host_key")
        self.known_hosts = folder / "known_hosts"
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text("".join(f"[{host}]:{port} {kind} {key}\n" for host in (HOST, PROXY_HOST)))
        command = [sys.executable, "-m", __name__, str(port), str(folder), *([] if extensions else ["plain"])]
        super().__init__(port, command, folder / "asyncssh.log", {"SSH_TEST_PASSWORD": PASSWORD})


async def serve(port: int, folder: Path) -> None:
    """Serve until ended."""
    import asyncssh

    class Server(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return password == os.environ["SSH_TEST_PASSWORD"]

    settings: dict[str, Any] = {"server_factory": Server, "sftp_factory": True, "allow_scp": True}
    await asyncssh.listen(
        HOST,
        port,
        server_host_keys=[str(folder / "host_key")],
        authorized_client_keys=str(folder / "user_key.pub"),
        **settings,
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    if "plain" in sys.argv:
        import asyncssh.sftp

        asyncssh.sftp.SFTPServerHandler._extensions = []
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
