"""Measure the server modes side by side: `make bench`."""
