"""Tests of one daemon, one command or one library boundary against real servers."""
