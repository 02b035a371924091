"""The control socket of a daemon: a Unix socket for its owner and for root."""
