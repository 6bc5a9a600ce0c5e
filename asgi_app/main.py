"""A small service in FastAPI: JSON, server-sent events and a WebSocket."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Body, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi_offline import FastAPIOffline
from pydantic import AfterValidator, JsonValue
from starlette.exceptions import HTTPException

from serving import settings
from serving.asgi import Service

DOMAIN = settings.text("DOMAIN", "localhost")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Bytes. A longer body is answered with 413.
MAX_BODY = settings.size("MAX_BODY", 1024 * 1024)

PROBLEM_SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "status": {"type": "integer"}, "detail": {}},
    "required": ["title", "status", "detail"],
}
# Documents in /openapi.json what `problem` below sends.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "Problem document",
        "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA}},
    }
}

logger = logging.getLogger(__name__)
# FastAPI whose /docs and /redoc get their scripts from here, not from a CDN.
api = FastAPIOffline(title="fastapi", max_body_size=MAX_BODY, responses=ERROR_RESPONSES)
app = Service(api)


@api.get("/")
async def index(request: Request) -> dict[str, str]:
    """Name this service, and the client as the service sees it."""
    client = request.client.host if request.client else ""
    return {"service": "fastapi", "client": client, "scheme": request.url.scheme}


def require_encodable(document: JsonValue) -> JsonValue:
    """Reject an unpaired surrogate: JSON can contain one, but the response's UTF-8 cannot."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("text with an unpaired surrogate") from None
    return document


@api.post("/echo")
async def echo(
    document: Annotated[JsonValue, AfterValidator(require_encodable), Body()],
) -> dict[str, JsonValue]:
    """Return the request's JSON document."""
    return {"echo": document}


@api.get("/events", response_class=EventSourceResponse)
async def events(
    count: Annotated[int, Query(ge=1, le=100)] = 10,
    interval: Annotated[float, Query(ge=0, le=10, description="seconds")] = 1,
) -> AsyncIterator[ServerSentEvent]:
    """Send `count` numbered events, `interval` seconds apart, and end."""
    for number in range(count):
        await asyncio.sleep(interval if number else 0)
        yield ServerSentEvent(data=number, id=str(number))


# Origins whose pages may open the WebSocket. Unset: pages on this machine, and pages that our
# domain or its subdomains serve over TLS.
ORIGINS = settings.origins("WEBSOCKET_ORIGINS")


def is_allowed(origin: str) -> bool:
    """Whether a page of this origin may open the WebSocket.

    A browser sends the origin of the page, and no page can change it (RFC 6455, section 10.2).
    """
    if ORIGINS:
        return origin in ORIGINS
    try:
        scheme, host = urlsplit(origin).scheme, urlsplit(origin).hostname or ""
    except ValueError:
        return False
    return host in LOOPBACK or (scheme == "https" and f".{host}".endswith(f".{DOMAIN}"))


@api.websocket("/ws")
async def websocket(socket: WebSocket) -> None:
    """Echo text and binary messages; uvicorn.json limits their size and the idle time."""
    origin = socket.headers.get("origin")
    # A client without an origin is not a browser, so there is no foreign page to protect against.
    if origin is not None and not is_allowed(origin):
        logger.warning("WebSocket refused: origin %.200r is not allowed", origin)
        await socket.close()  # before `accept`: the handshake is answered with 403
        return
    await socket.accept()
    with suppress(WebSocketDisconnect):  # a client may leave before its echo
        while (message := await socket.receive())["type"] == "websocket.receive":
            await socket.send({**message, "type": "websocket.send"})


def problem(status: int, detail: Any, headers: Any = None) -> JSONResponse:
    """An error as a problem document (RFC 9457)."""
    content = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


@api.exception_handler(HTTPException)
async def http_error(request: Request, error: HTTPException) -> JSONResponse:
    """404, 405, 413 and every HTTPException of a route."""
    return problem(error.status_code, error.detail, error.headers)


@api.exception_handler(RequestValidationError)
async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    """400 for a body that is not JSON, 422 for the wrong shape, without repeating the input."""
    errors = [{"at": ".".join(map(str, item["loc"])), "is": item["msg"]} for item in error.errors()]
    malformed = any(item["type"] == "json_invalid" for item in error.errors())
    return problem(400 if malformed else 422, errors)


@api.exception_handler(Exception)
async def server_error(request: Request, error: Exception) -> JSONResponse:
    """Any other exception. Starlette raises it again, and the server logs the traceback."""
    return problem(500, "The server could not answer this request.")
