"""The client under the name of its command: ``python -m trollmoves.move_it_client``."""

import sys

from trollmoves.client import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
