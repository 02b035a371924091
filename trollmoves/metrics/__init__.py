"""Metrics for Prometheus: counters of files, the state of a daemon, and how both are served or written to a file.

Only ``trollmoves.metrics.exporter`` imports prometheus_client, which is an optional dependency.
"""
