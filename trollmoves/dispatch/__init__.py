"""A message tells of a file: which targets it concerns, and where it goes there."""
