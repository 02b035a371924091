"""File name patterns and metadata conditions."""
