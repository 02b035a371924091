"""Authentication and connection limits of the ZeroMQ sockets."""
