"""Runs due tasks of the journal on worker threads, by lane."""
