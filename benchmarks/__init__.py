"""Times the whole suite on this machine, beside an installed 0.19.0 and beside the bare limit."""
