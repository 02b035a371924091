"""All processes of the example: the daemons of this folder's configurations, and their destination servers."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # use the daemons and helpers of this checkout

from trollmoves.tests.helpers.daemons import Process, Testbed
from trollmoves.tests.helpers.recording import RecordingSubscriber
from trollmoves.tests.servers import openssh, pyftpd, seaweed
from trollmoves.tests.servers.process import ServerProcess, answers

HERE = Path(__file__).resolve().parent
ROOT = "/tmp/trollmoves-end-to-end"  # noqa: S108  (the directory in the configurations)
DAEMONS = {  # name: command, configuration, further arguments
    "server a": ("move_it_server.py", "server-a.ini", ["-p", "19010"]),
    "server b": ("move_it_server.py", "server-b.ini", ["-p", "19011"]),
    "mirror": ("move_it_mirror.py", "mirror.ini", ["-p", "19012"]),
    "client a": ("move_it_client.py", "client-a.ini", []),
    "client b": ("move_it_client.py", "client-b.ini", []),
    "dispatcher": ("dispatcher.py", "dispatch.yaml", ["-p", "19015", "-n", "false"]),
}
LEGACY = ("server b", "client b")  # run trollmoves 0.19.0 if it is given
REMOTE_TARGETS = ("ftp", "sftp", "s3")  # targets that need a server


class System:
    """All processes; they end with the test bed.

    ``daemons`` contains them by name; ``omitted`` contains, by target, the reason why it has no server.

    Args:
        testbed: the directory and ports that replace those in the configurations.
        legacy: the directory of the commands of trollmoves 0.19.0.
    """

    def __init__(self, testbed: Testbed, legacy: Path | None) -> None:
        self.testbed = testbed
        self.legacy = LEGACY if legacy else ()
        self.omitted = {name: why for name, why in zip(REMOTE_TARGETS, _missing(), strict=True) if why}
        self._ports: dict[str, str] = {}
        self.destination_servers = {
            name: self._destination_server(name) for name in REMOTE_TARGETS if name not in self.omitted
        }
        for name in ("reception-a", "reception-b", "forecast", "archive", "sent/file", "sent/ftp", "sent/sftp"):
            testbed.directory(name)
        self.daemons = {name: self._daemon(name, legacy if name in self.legacy else None) for name in DAEMONS}

    def start(self) -> None:
        """Start all processes."""
        for server in self.destination_servers.values():
            self.testbed.enter(server)
        for daemon in self.daemons.values():
            daemon.start(wait=False)
        for daemon in self.daemons.values():
            daemon.wait_until_ready()

    def subscriber(self, port: str) -> RecordingSubscriber:
        """Return a subscriber to the publisher on this port of the configurations."""
        return self.testbed.subscriber(int(self._port(port)))

    def stored(self) -> dict[str, bytes]:
        """Return the objects in the bucket, by the last part of their keys."""
        client = seaweed.client(self.destination_servers["s3"].port)
        names = [item["Key"] for item in client.list_objects_v2(Bucket=seaweed.BUCKET).get("Contents", ())]
        return {Path(name).name: client.get_object(Bucket=seaweed.BUCKET, Key=name)["Body"].read() for name in names}

    def _port(self, port: str) -> str:
        return self._ports.setdefault(port, str(self.testbed.port()))

    def _relocated(self, text: str) -> str:
        """Return a text of this folder with the directory and ports of this run."""
        return re.sub(r"\b19\d\d\d\b", lambda match: self._port(match[0]), text.replace(ROOT, str(self.testbed.root)))

    def _daemon(self, name: str, legacy: Path | None) -> Process:
        command, file, arguments = DAEMONS[name]
        text = (HERE / file).read_text()
        for target in self.omitted:
            text = re.sub(rf"^{target}:\n(  .*\n)*", "", text, flags=re.MULTILINE)
        config = self.testbed.config(self._relocated(text), file)
        arguments = [self._relocated(argument) for argument in arguments]
        label = name.replace(" ", "-")
        if not legacy:
            return self.testbed.process(label, self.testbed.command(command, config, *arguments), config)
        ports = [int(port) for port in re.findall(r"_port = (\d+)", config.read_text())]
        ours = {
            key: value for key, value in self.testbed.environment.items() if key not in ("PYTHONPATH", "PYTHONHOME")
        }
        line = [str(legacy / command), str(config), *arguments]
        return self.testbed.process(label, line, config, lambda _: all(map(answers, ports)), ours)

    def _destination_server(self, name: str) -> ServerProcess:
        """Return a server that is not started yet; store its credentials for the dispatcher."""
        home = self.testbed.directory("home")
        if name == "ftp":
            ftp = pyftpd.PyFtpd(self.testbed.directory("ftpd"), self.testbed.root)
            self._ports["19021"] = str(ftp.port)
            _write(home / ".netrc", f"machine 127.0.0.1 login {pyftpd.USER} password {pyftpd.PASSWORD}\n")
            return ftp
        if name == "sftp":
            ssh = openssh.OpenSsh(self.testbed.directory("sshd"))
            self._ports["19022"] = str(ssh.port)
            for file, as_name in ((ssh.user_key, "id_ed25519"), (ssh.known_hosts, "known_hosts")):
                shutil.copy(file, self.testbed.directory("home/.ssh") / as_name)
            return ssh
        s3 = seaweed.Seaweed(self.testbed.directory("s3"))
        self._ports["19333"] = str(s3.port)
        keys = f"[default]\naws_access_key_id = {seaweed.KEY}\naws_secret_access_key = {seaweed.SECRET}\n"
        _write(self.testbed.directory("home/.aws") / "credentials", keys)
        return s3


def _write(path: Path, secret: str) -> None:
    path.touch(mode=0o600)
    path.write_text(secret)


def _missing() -> tuple[str, str, str]:
    try:
        import boto3  # noqa: F401
    except ImportError:
        return pyftpd.missing(), openssh.missing(), "no boto3 (PyPI)"
    return pyftpd.missing(), openssh.missing(), seaweed.missing()
