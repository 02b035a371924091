"""The thread that watches a daemon: alarms, the daily summary, and its health."""
