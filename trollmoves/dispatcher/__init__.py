"""The dispatcher daemon: delivers local files to the targets that a message matches."""

from trollmoves.dispatcher.daemon import main

__all__ = ["main"]
