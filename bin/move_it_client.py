#!/usr/bin/env python
"""Command of the trollmoves client; see trollmoves/client/daemon.py."""

import sys

from trollmoves.client import main

if __name__ == "__main__":
    sys.exit(main())
