"""The giving half of a conversation: announces the files of a chain, and delivers them to those who ask."""
