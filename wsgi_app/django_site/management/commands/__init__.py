"""One module per Django command."""
