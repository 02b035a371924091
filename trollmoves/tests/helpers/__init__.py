"""What tests share: daemons, messages, networks, waiting."""
