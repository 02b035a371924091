"""The server daemon: announces new files and pushes them to clients on request."""

from trollmoves.server.daemon import main

__all__ = ["main"]
