"""Movers: one file, one try, one destination, one protocol each."""
