"""Fetching of files that messages name to this host."""
