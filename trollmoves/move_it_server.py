"""The server under the name of its command: ``python -m trollmoves.move_it_server``."""

import sys

from trollmoves.server import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
