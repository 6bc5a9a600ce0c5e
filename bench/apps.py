"""Applications without a framework: the servers' upper limit, and pages that compute, wait or both."""

import asyncio
import time
from typing import Any

BODY = b'{"hello":"world"}'

# Page -> (milliseconds of CPU, seconds of waiting).
PAGES = {"/cpu": (4, 0.0), "/wait": (0, 0.05), "/mixed": (2, 0.02)}

# An empty loop of this many rounds takes about a millisecond.
ROUNDS = 40_000


def work(path: str) -> float:
    """Use the page's CPU time and return its waiting time in seconds."""
    milliseconds, seconds = PAGES.get(path, (0, 0.0))
    for _ in range(milliseconds * ROUNDS):
        pass
    return seconds


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer every request with the same document, after the page's work."""
    if seconds := work(environ["PATH_INFO"]):
        time.sleep(seconds)
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(BODY)))])
    return [BODY]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer every request with the same document, after the page's work."""
    if seconds := work(scope["path"]):
        await asyncio.sleep(seconds)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})
