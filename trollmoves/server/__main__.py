"""``python -m trollmoves.server``."""

import sys

from trollmoves.server.daemon import main

sys.exit(main())
