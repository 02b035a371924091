"""Tells of whole files as they appear in directories that come and go."""

from trollmoves.watch.offering import FoundFile
from trollmoves.watch.single import FileWatch
from trollmoves.watch.watcher import DirectoryWatch

__all__ = ["DirectoryWatch", "FileWatch", "FoundFile"]
