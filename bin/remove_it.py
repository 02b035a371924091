#!/usr/bin/env python
"""Command that removes old files; see trollmoves/remove_it.py."""

import sys

from trollmoves.remove_it import main

if __name__ == "__main__":
    sys.exit(main())
