"""The edge, replicas behind it, and rolling updates."""
