"""Every service, in containers and as local processes."""
