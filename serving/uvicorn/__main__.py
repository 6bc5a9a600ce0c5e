"""`python -m serving.uvicorn`: see launcher.py, which the worker processes can import."""

import os
import signal
import sys

# Process 1 of a container has no default action for a signal: the kernel would drop SIGTERM while
# Uvicorn and the application are imported.
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

try:
    from serving.uvicorn.launcher import main
except ImportError as error:
    if not (error.name or "").startswith("uvicorn"):
        raise
    # A part of Uvicorn that serving/uvicorn/ overrides was renamed or removed.
    sys.exit(f"{error}; serving/uvicorn supports Uvicorn 0.54")

main()
