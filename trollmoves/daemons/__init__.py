"""Base classes of the daemons, by the sockets that all chains of a process share."""
