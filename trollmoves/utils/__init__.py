"""Helpers that know nothing of file transfer."""
