#!/usr/bin/env python
"""Command of the trollmoves mirror; see trollmoves/mirror/daemon.py."""

import sys

from trollmoves.mirror import main

if __name__ == "__main__":
    sys.exit(main())
