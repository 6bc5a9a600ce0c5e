"""`python -m serving.uvicorn`: see launcher.py, which the worker processes can import."""

import sys

try:
    from serving.uvicorn.launcher import main
except ImportError as error:
    if not (error.name or "").startswith("uvicorn"):
        raise
    # A part of Uvicorn that serving/uvicorn/ overrides was renamed or removed.
    sys.exit(f"{error}; serving/uvicorn supports Uvicorn 0.54")

main()
