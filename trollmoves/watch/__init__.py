"""Reports new files once they are complete, in directories that may appear and disappear."""

from trollmoves.watch.file_watch import FileWatch
from trollmoves.watch.found_file import FoundFile
from trollmoves.watch.watcher import DirectoryWatch

__all__ = ["DirectoryWatch", "FileWatch", "FoundFile"]
