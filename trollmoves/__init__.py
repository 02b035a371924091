"""Move files between hosts, driven by posttroll messages."""

__version__ = "1.0.0"
