"""``python -m trollmoves.dispatcher``."""

import sys

from trollmoves.dispatcher.daemon import main

sys.exit(main())
