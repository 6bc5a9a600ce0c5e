"""The ASGI application (main.py) and what starts Uvicorn for it (launcher.py)."""
