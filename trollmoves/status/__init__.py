"""The state of daemons as one snapshot, for the command ``trollmoves``, the control socket and other viewers."""
