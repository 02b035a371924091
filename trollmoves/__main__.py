"""``python -m trollmoves``."""

import sys

from trollmoves.cli import main

if __name__ == "__main__":
    sys.exit(main())
