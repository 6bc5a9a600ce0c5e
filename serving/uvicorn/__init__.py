"""Uvicorn as a production server: `python -m serving.uvicorn`.

launcher.py is the command line, supervisor.py the parent process and the server, websocket.py the
WebSocket protocol, and worker.py a Uvicorn worker that Gunicorn manages. docs/patches.md lists what
they override in Uvicorn and why.
"""
