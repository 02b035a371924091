#!/usr/bin/env python
"""Copy or move files to any destination; see ``trollmoves.move_file``."""

import sys

from trollmoves.move_file import main

if __name__ == "__main__":
    sys.exit(main())
