#!/usr/bin/env python
"""Command that copies new files to several destinations; see trollmoves/move_it.py."""

import sys

from trollmoves.move_it import main

if __name__ == "__main__":
    sys.exit(main())
