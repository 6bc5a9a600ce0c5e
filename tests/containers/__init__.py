"""Images, containers, process mode and `make dev`."""
