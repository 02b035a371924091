"""``trollmoves web``: the status page."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import stat
import threading
from contextlib import suppress
from typing import Any

from trollmoves.cli.selection import DaemonFiles, add_config_arguments, daemon_of, known_daemons
from trollmoves.cli.web.site import Remote, Site
from trollmoves.errors import ConfigError, StartError
from trollmoves.net.ports import listen_remedy

PORT = 9080
BACKLOG = 64  # connections that wait
TOKEN_VARIABLE = "TROLLMOVES_WEB_TOKEN"  # noqa: S105
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    text = "serve the status page"
    parser = subparsers.add_parser("web", help=text, description=f"{text.capitalize()} until Ctrl-C.")
    add_config_arguments(parser)
    parser.add_argument(
        *("-d", "--daemon"), action="append", default=[], metavar="URL",
        help="page of another host to include, as http://host:9080; repeatable",
    )  # fmt: skip
    parser.add_argument("-b", "--bind", default="127.0.0.1", metavar="ADDRESS", help="address (%(default)s)")
    parser.add_argument("-p", "--port", type=int, default=PORT, help="port (%(default)s)")
    parser.add_argument("--host-name", action="append", default=[], metavar="NAME", help="further name of this host")
    parser.add_argument(
        "--socket",
        default="",
        metavar="PATH",
        help="Unix socket for its owner, who may give orders, in place of the port",
    )
    parser.add_argument(
        "--token-file", default="", metavar="FILE",
        help=f"file with the token for orders (default: ${TOKEN_VARIABLE}; without it the page is read-only)",
    )  # fmt: skip
    parser.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)  # for a daemon that is its parent
    parser.set_defaults(run=run, json=False)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand until SIGINT or SIGTERM."""
    try:
        import uvicorn

        from trollmoves.cli.web.app import make_app
    except ImportError as error:
        raise StartError(f"{error}; install the extra: pip install 'trollmoves[web]'") from None
    token = _read_token(arguments.token_file)
    site = Site(lambda: _daemons(arguments.config, arguments.kind), [Remote(url) for url in arguments.daemon])
    names = {*LOCAL_NAMES, arguments.bind, socket.gethostname(), socket.getfqdn(), *arguments.host_name}
    app = make_app(site, token=token, hosts=sorted(names), is_local=bool(arguments.socket))
    for path in arguments.config:
        daemon_of(path, arguments.kind)  # reports an error before the page is served
    listener = _listen(arguments)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    site.start()
    if arguments.until_eof:
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    where = arguments.socket or f"http://{arguments.bind}:{arguments.port}/"
    print(f"status page at {where}{'' if token or arguments.socket else ', read-only: no token'}", flush=True)  # noqa: T201
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        site.stop()
        if arguments.socket:
            with suppress(OSError):
                os.unlink(arguments.socket)
    return 0


def _end_with_parent() -> None:
    """End this process when its standard input does: a pipe from the daemon that has started it."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _listen(arguments: argparse.Namespace) -> socket.socket:
    """Return the listening socket; a Unix socket is for its owner only, replacing one that no process uses."""
    path = arguments.socket
    try:
        if not path:
            family = socket.AF_INET6 if ":" in arguments.bind else socket.AF_INET
            return socket.create_server((arguments.bind, arguments.port), family=family, backlog=BACKLOG)
        listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(path) and listener.connect_ex(path):
            os.unlink(path)
            listener = socket.socket(socket.AF_UNIX)
        os.fchmod(listener.fileno(), 0o600)  # the kernel creates the file with these permissions
        listener.bind(path)
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        raise StartError(_listen_error(arguments, error)) from None
    return listener


def _listen_error(arguments: argparse.Namespace, error: OSError | OverflowError) -> str:
    """Return the text for a port or a Unix socket that cannot be opened."""
    number = (error.errno or 0) if isinstance(error, OSError) else errno.EINVAL
    reason = os.strerror(number) if number > 0 else str(error)  # Python adds the address to its own text
    if arguments.socket:
        return f"cannot listen on {arguments.socket}: {reason}; change --socket to a path that this user can write"
    options = ("web_port", "web_address") if arguments.until_eof else ("--port", "--bind")
    return f"cannot listen on {arguments.bind}:{arguments.port}: {reason}{listen_remedy(number, *options)}"


def _daemons(configs: list[str], kind: str | None) -> list[DaemonFiles]:
    return [daemon_of(path, kind) for path in configs] or known_daemons()


def _read_token(path: str) -> str:
    if not path:
        return os.environ.get(TOKEN_VARIABLE, "")
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"other users can read it: chmod 600 {path}", file=path)
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token cannot be read: {error}", file=path) from None
    if not token:
        raise ConfigError("it contains no token", file=path)
    return token
