"""The mirror daemon: re-announces files from upstream servers and fetches them on demand."""

from trollmoves.mirror.daemon import main

__all__ = ["main"]
