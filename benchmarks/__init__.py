"""Benchmarks of all daemons on this machine, compared with an installed 0.19.0 and with the bare limit."""
