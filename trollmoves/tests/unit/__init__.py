"""Tests without a process or a socket."""
