"""Tests of several daemons together."""
