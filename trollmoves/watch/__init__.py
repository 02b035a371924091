"""Tells of whole files as they appear in directories that come and go."""

from trollmoves.watch.file_watch import FileWatch
from trollmoves.watch.found_file import FoundFile
from trollmoves.watch.watcher import DirectoryWatch

__all__ = ["DirectoryWatch", "FileWatch", "FoundFile"]
