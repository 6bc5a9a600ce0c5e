"""What is measured besides the applications: pages that compute or wait, and no framework at all."""

import asyncio
import time
from importlib import import_module
from typing import Any

BODY = b'{"hello":"world"}'

# Page -> (milliseconds of CPU, seconds of waiting).
PAGES = {"/cpu": (4, 0.0), "/wait": (0, 0.05), "/mixed": (2, 0.02)}

# A page that only waits, for the mix of fast and slow requests.
SLOW = {"/slow": (0, 0.1)}
# Application -> its module and name. `bench.apps:flask` is the same with the slow page.
APPLICATIONS = {
    "flask": ("wsgi_app.flask_site", "application"),
    "django": ("wsgi_app.django_site.wsgi", "application"),
    "fastapi": ("asgi_app.main", "app"),
}

# An empty loop of this many rounds takes about a millisecond.
ROUNDS = 40_000


def work(path: str) -> float:
    """Use the page's CPU time and return its waiting time in seconds."""
    milliseconds, seconds = (PAGES | SLOW).get(path, (0, 0.0))
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


def __getattr__(name: str) -> Any:
    """An application of APPLICATIONS with the slow page; loaded only when a server asks for it."""
    if name not in APPLICATIONS:
        raise AttributeError(name)
    module, attribute = APPLICATIONS[name]
    app = getattr(import_module(module), attribute)

    def with_slow_page(environ: dict[str, Any], start_response: Any) -> Any:
        return (wsgi if environ["PATH_INFO"] in SLOW else app)(environ, start_response)

    async def asgi_with_slow_page(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await (asgi if scope.get("path") in SLOW else app)(scope, receive, send)

    return asgi_with_slow_page if name == "fastapi" else with_slow_page
