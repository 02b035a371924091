"""The client daemon: fetches announced files and publishes receipts."""

from trollmoves.client.daemon import main

__all__ = ["main"]
