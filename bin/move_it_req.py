#!/usr/bin/env python
"""Command that queries a server; see trollmoves/move_it_req.py."""

import sys

from trollmoves.move_it_req import main

if __name__ == "__main__":
    sys.exit(main())
