"""The providing half of a conversation: announces the files of a chain, and pushes them on request."""
