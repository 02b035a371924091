"""Tests: each docstring is one promise."""
