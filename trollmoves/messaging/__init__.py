"""The wire: messages and the sockets that carry them."""
