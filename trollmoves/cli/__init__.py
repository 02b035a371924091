"""The command ``trollmoves``: see the state of the daemons, and act on it."""

from trollmoves.cli.command import main

__all__ = ["main"]
