"""Keys as people make them, and the settings of posttroll that name them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import zmq
from posttroll.message import Message
from zmq.auth import load_certificate

from trollmoves.tests.helpers.daemons import Process
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR

T = TypeVar("T", bound=Process)


class Keys:
    """A folder of keys: ``server`` for listening sockets, others by name; those in ``clients`` may connect."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clients = folder / "clients"
        self.clients.mkdir(parents=True)
        self.make("server")

    def make(self, name: str) -> None:
        """Make a pair with the command that people use, and have only its owner read the secret half."""
        command = Path(sys.executable).with_name("posttroll-generate-keys")
        subprocess.run([command, name, "-d", self.folder], check=True, timeout=30)
        self.secret(name).chmod(0o600)

    def secret(self, name: str) -> Path:
        """Return the file with the secret key of this name."""
        return self.folder / f"{name}.key_secret"

    def authorize(self, name: str) -> None:
        """Allow connections with the keys of this name."""
        shutil.copy(self.folder / f"{name}.key", self.clients)

    def settings(self, client: str) -> dict[str, str]:
        """Return posttroll's settings, as environment, of a process that connects under this name."""
        if not self.secret(client).exists():
            self.make(client)
        return {
            "POSTTROLL_BACKEND": "secure_zmq",
            "POSTTROLL_SERVER_SECRET_KEY_FILE": str(self.secret("server")),
            "POSTTROLL_CLIENTS_PUBLIC_KEYS_DIRECTORY": str(self.clients),
            "POSTTROLL_CLIENT_SECRET_KEY_FILE": str(self.secret(client)),
            "POSTTROLL_SERVER_PUBLIC_KEY_FILE": str(self.folder / "server.key"),
        }

    def give(self, process: T, client: str, **changed: str) -> T:
        """Make a process use these keys at its next start."""
        process.environment = {**process.environment, **self.settings(client), **changed}
        return process

    def can_connect(self, port: int, name: str | None, seconds: float = 5.0 * TIMEOUT_FACTOR) -> bool:
        """Return True if a peer with the keys of this name, or with none, can connect to a port."""
        context = zmq.Context()
        try:
            monitors = zmq.Poller()
            # the port accepts one of the two types
            peers = [self._peer(context, kind, name) for kind in (zmq.SUB, zmq.DEALER)]
            for peer in peers:
                monitors.register(peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED), zmq.POLLIN)
                peer.connect(f"tcp://{HOST}:{port}")
            return bool(monitors.poll(int(seconds * 1000)))
        finally:
            context.destroy(0)

    def ping(self, port: int, name: str, seconds: float = 5.0 * TIMEOUT_FACTOR) -> str:
        """Send a ping with the keys of this name; return the reply, empty if there is none."""
        context = zmq.Context()
        try:
            peer = self._peer(context, zmq.REQ, name)
            peer.connect(f"tcp://{HOST}:{port}")
            peer.send_string(str(Message("/ping", "ping")))
            return peer.recv_string() if peer.poll(int(seconds * 1000)) else ""
        finally:
            context.destroy(0)

    def _peer(self, context: zmq.Context[zmq.Socket[bytes]], kind: int, name: str | None) -> zmq.Socket[bytes]:
        peer: zmq.Socket[bytes] = context.socket(kind)
        peer.linger = 0
        if name is not None:
            public, secret = load_certificate(self.secret(name))
            assert secret
            peer.curve_publickey, peer.curve_secretkey = public, secret
            peer.curve_serverkey = load_certificate(self.folder / "server.key")[0]
        return peer
