"""``python -m trollmoves.client``."""

import sys

from trollmoves.client.daemon import main

sys.exit(main())
