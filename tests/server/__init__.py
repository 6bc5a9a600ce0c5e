"""Single servers, started as local processes."""
