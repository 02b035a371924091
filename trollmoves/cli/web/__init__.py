"""The status page: one screen for the daemons of one or several hosts."""
