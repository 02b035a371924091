"""URLs, hosts and allow lists."""
