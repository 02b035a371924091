"""The queries of a journal that are the same in all engines."""
