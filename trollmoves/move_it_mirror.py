"""The mirror under the name of its command: ``python -m trollmoves.move_it_mirror``."""

import sys

from trollmoves.mirror import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
