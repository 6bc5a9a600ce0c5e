"""Functions and files: no server starts."""
