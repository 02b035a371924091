"""Configuration: options, sections, files and dispatcher targets."""
