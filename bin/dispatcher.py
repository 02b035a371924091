#!/usr/bin/env python
"""Command of the trollmoves dispatcher; see trollmoves/dispatcher/daemon.py."""

import sys

from trollmoves.dispatcher import main

if __name__ == "__main__":
    sys.exit(main())
