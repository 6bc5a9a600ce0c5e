"""The servers' ceiling: applications without a framework."""

from typing import Any

BODY = b'{"hello":"world"}'


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer every request alike."""
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(BODY)))])
    return [BODY]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer every request alike."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})
