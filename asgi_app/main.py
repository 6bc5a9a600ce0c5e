"""A small service in FastAPI: JSON, server-sent events and a WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Body, FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import AfterValidator, JsonValue
from starlette.exceptions import HTTPException

from serving import settings
from serving.asgi import Receive, Scope, Send, Service

# Pages that may open the WebSocket: a browser names its page's origin, and no page can forge
# it (RFC 6455, section 10.2). Unset: pages that this machine or, over TLS, our domain serves.
ORIGINS = settings.words("WEBSOCKET_ORIGINS", "")
DOMAIN = settings.text("DOMAIN", "localhost")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

MAX_BODY = 1024 * 1024  # bytes; a longer body gets 413

# What every route answers to a request that it does not take; `problem` below writes it.
MEMBERS = {"title": {"type": "string"}, "status": {"type": "integer"}, "detail": {}}
PROBLEM = {"schema": {"type": "object", "properties": MEMBERS, "required": [*MEMBERS]}}
REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Problem document", "content": {"application/problem+json": PROBLEM}}
}

api = FastAPI(title="fastapi", max_body_size=MAX_BODY, responses=REFUSED)


@api.get("/")
async def index(request: Request) -> dict[str, str]:
    """Say what this is and who is asking."""
    client = request.client.host if request.client else ""
    return {"service": "fastapi", "client": client, "scheme": request.url.scheme}


def encodable(document: JsonValue) -> JsonValue:
    """Refuse half of a surrogate pair: JSON can write one, and the answer's UTF-8 can not."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("text with an unpaired surrogate") from None
    return document


@api.post("/echo")
async def echo(document: Annotated[JsonValue, AfterValidator(encodable), Body()]) -> dict[str, JsonValue]:
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


@api.websocket("/ws")
async def websocket(socket: WebSocket) -> None:
    """Echo text and binary messages; uvicorn.json bounds their size and the silence."""
    origin = socket.headers.get("origin")
    # No origin: no browser, so there is no foreign page to protect a user from.
    if origin is not None and not allowed(origin):
        return await socket.close()  # before accepting: the handshake is answered with 403
    await socket.accept()
    while (message := await socket.receive())["type"] == "websocket.receive":
        await socket.send({**message, "type": "websocket.send"})


def allowed(origin: str) -> bool:
    """Whether a page of this origin may open the WebSocket."""
    if ORIGINS:
        return origin in ORIGINS
    try:
        scheme, host = urlsplit(origin).scheme, urlsplit(origin).hostname or ""
    except ValueError:
        return False
    return host in LOOPBACK or (scheme == "https" and f".{host}".endswith(f".{DOMAIN}"))


def problem(status: int, detail: Any, headers: Any = None) -> JSONResponse:
    """An error as a problem document (RFC 9457)."""
    content = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


@api.exception_handler(HTTPException)
async def refused(request: Request, error: HTTPException) -> JSONResponse:
    """404, 405, 413 and whatever a route raises."""
    return problem(error.status_code, error.detail, error.headers)


@api.exception_handler(RequestValidationError)
async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """400 for what is no JSON, 422 for the wrong shape; never the refused input itself."""
    errors = [{"at": ".".join(map(str, item["loc"])), "is": item["msg"]} for item in error.errors()]
    malformed = any(item["type"] == "json_invalid" for item in error.errors())
    return problem(400 if malformed else 422, errors)


@api.exception_handler(Exception)
async def failed(request: Request, error: Exception) -> JSONResponse:
    """Anything unforeseen; Starlette raises it again, and the server logs its traceback."""
    return problem(500, "The server could not answer this request.")


async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a body that announces itself as too long; FastAPI alone would do it in plain text."""
    if scope["type"] == "http":
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if length.isdigit() and int(length) > MAX_BODY:
            return await problem(413, f"At most {MAX_BODY} bytes.")(scope, receive, send)
    await api(scope, receive, send)


app = Service(bounded)
