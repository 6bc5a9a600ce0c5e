"""The former name of the command that starts Uvicorn for the FastAPI application."""

import sys

print("python -m asgi_app is now: python -m serving.uvicorn", file=sys.stderr)
sys.exit(2)
