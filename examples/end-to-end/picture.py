"""The whole picture as processes: the daemons of this folder's configurations, and the servers that they deliver to."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the daemons and helpers of this checkout

from trollmoves.tests.helpers.daemons import Process, Testbed
from trollmoves.tests.helpers.recording import RecordingSubscriber
from trollmoves.tests.servers import openssh, pyftpd, seaweed
from trollmoves.tests.servers.process import ServerProcess, answers

HERE = Path(__file__).resolve().parent
ROOT = "/tmp/trollmoves-end-to-end"  # noqa: S108  (where the configurations say everything is)
DAEMONS = {  # name: command, configuration, further arguments
    "server a": ("move_it_server.py", "server-a.ini", ["-p", "19010"]),
    "server b": ("move_it_server.py", "server-b.ini", ["-p", "19011"]),
    "mirror": ("move_it_mirror.py", "mirror.ini", ["-p", "19012"]),
    "client a": ("move_it_client.py", "client-a.ini", []),
    "client b": ("move_it_client.py", "client-b.ini", []),
    "dispatcher": ("dispatcher.py", "dispatch.yaml", ["-p", "19015", "-n", "false"]),
}
EARLIER = ("server b", "client b")  # are of trollmoves 0.19.0 when there is one
FAR = ("ftp", "sftp", "s3")  # targets that need a server


class Picture:
    """All processes, which end with the site; ``daemons`` are by name, ``left_out`` says which targets lack a server.

    Args:
        site: a folder and ports of our own, in place of those in the configurations.
        earlier: the folder of the commands of trollmoves 0.19.0.
    """

    def __init__(self, site: Testbed, earlier: Path | None) -> None:
        self.site = site
        self.earlier = EARLIER if earlier else ()
        self.left_out = {name: why for name, why in zip(FAR, _missing(), strict=True) if why}
        self._ports: dict[str, str] = {}
        self.far = {name: self._far_end(name) for name in FAR if name not in self.left_out}
        for name in ("reception-a", "reception-b", "forecast", "archive", "sent/file", "sent/ftp", "sent/sftp"):
            site.directory(name)
        self.daemons = {name: self._daemon(name, earlier if name in self.earlier else None) for name in DAEMONS}

    def start(self) -> None:
        """Start everything."""
        for server in self.far.values():
            self.site.enter(server)
        for daemon in self.daemons.values():
            daemon.start(wait=False)
        for daemon in self.daemons.values():
            daemon.wait_until_ready()

    def ear(self, port: str) -> RecordingSubscriber:
        """Hear whoever publishes on this port of the configurations."""
        return self.site.subscriber(int(self._port(port)))

    def stored(self) -> dict[str, bytes]:
        """Give what is in the bucket."""
        client = seaweed.client(self.far["s3"].port)
        names = [item["Key"] for item in client.list_objects_v2(Bucket=seaweed.BUCKET).get("Contents", ())]
        return {Path(name).name: client.get_object(Bucket=seaweed.BUCKET, Key=name)["Body"].read() for name in names}

    def _port(self, port: str) -> str:
        return self._ports.setdefault(port, str(self.site.port()))

    def _moved(self, text: str) -> str:
        """Give a text of this folder with the folder and ports of this run."""
        return re.sub(r"\b19\d\d\d\b", lambda match: self._port(match[0]), text.replace(ROOT, str(self.site.root)))

    def _daemon(self, name: str, earlier: Path | None) -> Process:
        command, file, arguments = DAEMONS[name]
        text = (HERE / file).read_text()
        for target in self.left_out:
            text = re.sub(rf"^{target}:\n(  .*\n)*", "", text, flags=re.MULTILINE)
        config = self.site.config(self._moved(text), file)
        arguments = [self._moved(argument) for argument in arguments]
        label = name.replace(" ", "-")
        if not earlier:
            return self.site.process(label, self.site.command(command, config, *arguments), config)
        ports = [int(port) for port in re.findall(r"_port = (\d+)", config.read_text())]
        ours = {key: value for key, value in self.site.environment.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        line = [str(earlier / command), str(config), *arguments]
        return self.site.process(label, line, config, lambda _: all(map(answers, ports)), ours)

    def _far_end(self, name: str) -> ServerProcess:
        """Give a server that is not started yet; what it takes to log in is left where the dispatcher looks for it."""
        home = self.site.directory("home")
        if name == "ftp":
            ftp = pyftpd.PyFtpd(self.site.directory("ftpd"), self.site.root)
            self._ports["19021"] = str(ftp.port)
            _write(home / ".netrc", f"machine 127.0.0.1 login {pyftpd.USER} password {pyftpd.PASSWORD}\n")
            return ftp
        if name == "sftp":
            ssh = openssh.OpenSsh(self.site.directory("sshd"))
            self._ports["19022"] = str(ssh.port)
            for file, as_name in ((ssh.user_key, "id_ed25519"), (ssh.known_hosts, "known_hosts")):
                shutil.copy(file, self.site.directory("home/.ssh") / as_name)
            return ssh
        s3 = seaweed.Seaweed(self.site.directory("s3"))
        self._ports["19333"] = str(s3.port)
        keys = f"[default]\naws_access_key_id = {seaweed.KEY}\naws_secret_access_key = {seaweed.SECRET}\n"
        _write(self.site.directory("home/.aws") / "credentials", keys)
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
