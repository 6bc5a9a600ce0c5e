"""The deployment on Docker Swarm."""
