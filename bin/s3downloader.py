#!/usr/bin/env python
"""Command ``s3downloader.py``; see trollmoves/s3downloader.py."""

import sys

from trollmoves.s3downloader import main

if __name__ == "__main__":
    sys.exit(main())
