#!/usr/bin/env python
"""Copy or move files to any destination; see ``trollmoves.move_file``."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules are loaded ends without a traceback

from trollmoves.move_file import main

if __name__ == "__main__":
    sys.exit(main())
