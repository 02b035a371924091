#!/usr/bin/env python
"""Command of the trollmoves server; see trollmoves/server/daemon.py."""

import sys

from trollmoves.server import main

if __name__ == "__main__":
    sys.exit(main())
