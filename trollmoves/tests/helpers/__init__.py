"""Shared helpers of the tests: daemons, messages, networks, waiting."""
