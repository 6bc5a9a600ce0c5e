"""One file per promise; conftest.py starts the real servers."""
