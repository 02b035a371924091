"""Real servers for tests, each in a process of its own on a free loopback port."""
