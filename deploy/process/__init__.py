"""Process mode: the servers as local processes under supervisor, without a container engine."""
