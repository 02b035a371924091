"""``python -m trollmoves.mirror``."""

import sys

from trollmoves.mirror.daemon import main

sys.exit(main())
