"""`python -m serving.metrics`: the exporter, which the server starts."""

from serving.metrics.exporter import main

main()
