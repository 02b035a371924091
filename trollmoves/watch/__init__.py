"""Tells of whole files as they appear in directories that come and go."""

from trollmoves.watch.offering import Found
from trollmoves.watch.single import FileWatch
from trollmoves.watch.watcher import Watch

__all__ = ["FileWatch", "Found", "Watch"]
