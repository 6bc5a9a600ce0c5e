"""The service contract for any ASGI application: probes, trusted peers, request ids.

Uvicorn's own `proxy_headers` is off, so that the peer's address arrives here unchanged.
"""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from time import perf_counter
from typing import Any

from serving import health, logs, metrics, peers, routes

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_FORWARDED = frozenset(name.encode() for name in peers.FORWARDED)
_REQUEST_ID = b"x-request-id"
_REQUEST_START = b"x-request-start"
_RESPONSES = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_WEBSOCKET_STATUS = {"websocket.accept": 101, "websocket.close": 403}
_SECURE = {"http": "https", "websocket": "wss"}
# Bytes of a body that no framework writes to a temporary file.
_SMALL_BODY = 500 * 1024

logger = logging.getLogger(__name__)


class Service:
    """Wrap `app`; `checks` maps a dependency's name to a coroutine function that raises when it is away."""

    def __init__(self, app: Application, checks: Mapping[str, Callable[[], Awaitable[Any]]] | None = None):
        self.app = app
        self.checks = health.AsyncChecks(checks or {})
        self.trusted = peers.trusted()
        self.metrics = metrics.load()
        self.mounts = frozenset(routes.mounts(app))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a probe, or let the application answer."""
        kind = scope["type"]
        if self.metrics:
            self.metrics.loop.watch()
        if kind not in _SECURE:
            try:
                return await self.app(scope, receive, send)
            finally:
                if self.metrics:
                    self.metrics.write()
        if kind == "http" and scope["path"] in health.PATHS:
            return await self.probe(scope, send)
        if not self.metrics:
            return await self.serve(scope, receive, send)
        self.metrics.loop.requests[kind] += 1
        try:
            return await self.serve(scope, receive, send)
        finally:
            self.metrics.loop.requests[kind] -= 1

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer."""
        kind = scope["type"]
        start = perf_counter()
        identity = await self.identify(scope)
        peers.request_id.set(identity)
        header = (_REQUEST_ID, identity.encode())
        scope["headers"].append(header)
        head = scope.get("method") == "HEAD"
        # HEAD is GET without a body (RFC 9110, section 9.3.2), also where a framework answers it with
        # 405. The server keeps the original scope.
        seen = {**scope, "method": "GET"} if head else scope
        routes.current.set("")
        logged = failed = False
        status = 0  # of a response that has begun and not ended

        async def respond(message: Message) -> None:
            nonlocal logged, failed, status
            event = message["type"]
            if event in _RESPONSES:
                failed = message.get("status", 101) >= 400
                if self.metrics or logs.JSON:
                    routes.current.set(routes.of_scope(seen, self.mounts))
                message["headers"] = [*message.get("headers", ()), header]
                if message.get("status") == 405:
                    message["headers"] = [allow_head(*pair) for pair in message["headers"]]
            # `websocket.close` without `websocket.accept` before it is a refused handshake.
            if not logged and (event in _RESPONSES or event == "websocket.close"):
                logged = True
                log(scope, message, perf_counter() - start)
            if event == "http.response.start":
                status = message["status"]
            await send(message)
            if status and event == "http.response.body" and not message.get("more_body"):
                ended()

        def ended() -> None:
            nonlocal status
            if self.metrics:
                route = routes.current.get()
                self.metrics.answered(scope["method"], route, str(status), perf_counter() - start)
            status = 0

        complete = gone = False

        async def listen() -> Message:
            nonlocal complete, gone
            message = await receive()
            if message["type"] == "http.request":
                complete = not message.get("more_body")
            elif message["type"] == "http.disconnect":
                # Servers report it after the response as well, where an exception is a fault.
                gone = not complete
            return message

        try:
            await self.app(seen, listen, without_body(respond) if head else respond)
        except Exception:
            if gone:
                # Frameworks raise when a client leaves in the middle of its body. No client may fill
                # the log with tracebacks.
                logger.warning("the client left before its request was complete")
                return None
            # The server logs the exception. Its own 500 would have no request id and no access line.
            if kind == "http" and not logged:
                await internal_error(without_body(respond) if head else respond)
            raise
        finally:
            if status:  # the client has left, or the application stopped in the middle
                ended()
            if failed and has_large_body(scope):
                # A framework's exception and the half file of an upload may refer to each other:
                # the file would stay in /tmp until a collection.
                gc.collect()

    async def identify(self, scope: Scope) -> str:
        """Correct address and scheme in place from a trusted peer's headers; the request's id."""
        client = scope.get("client")
        peer = client[0] if client else ""
        hops, scheme, sent, candidate, headers, traces = [], b"", b"", None, [], []
        for name, value in scope["headers"]:
            if name == _REQUEST_ID:
                candidate = value.decode("latin-1")
                continue
            if name == b"x-forwarded-for":
                hops.append(value.decode("latin-1"))
            elif name == b"x-forwarded-proto":
                scheme = value
            elif name == b"traceparent":
                traces.append(value.decode("latin-1"))
            elif name == _REQUEST_START:
                sent = value
            headers.append((name, value))
        scope["headers"] = headers
        peers.trace_id.set(peers.trace_id_for(",".join(traces)))
        if hops and (lookup := self.trusted.lookup(peer)):
            await asyncio.wait([asyncio.wrap_future(lookup)], timeout=peers.LOOKUP_WAIT)
        if client:
            scope["client"] = (peers.plain(peer), client[1])
        if peer not in self.trusted:
            scope["headers"] = [pair for pair in headers if pair[0] not in _FORWARDED]
            return peers.request_id_for(None)
        if hops:
            # Port 0: the forwarded header does not carry the client's port.
            scope["client"] = (self.trusted.client(peers.plain(peer), ",".join(hops)), 0)
        if scheme in (b"http", b"https"):
            plain = "ws" if scope["type"] == "websocket" else "http"
            scope["scheme"] = _SECURE[scope["type"]] if scheme == b"https" else plain
        if sent and self.metrics:
            self.metrics.queued(sent.decode("latin-1"))
        return peers.request_id_for(candidate)

    async def probe(self, scope: Scope, send: Send) -> None:
        """Answer /livez or /readyz."""
        if scope["method"] in health.METHODS:
            path, query = scope["path"], scope["query_string"].decode("latin-1")
            failures = await self.checks.failures() if path == health.READY else {}
            status, headers, body = health.answer(path, failures, query)
        else:
            status, headers, body = health.not_allowed()
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": status.value, "headers": encoded})
        await send({"type": "http.response.body", "body": body})


def has_large_body(scope: Scope) -> bool:
    """Whether the request's body is large, or has no length."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    return b"transfer-encoding" in headers or (length.isdigit() and int(length) > _SMALL_BODY)


def allow_head(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The header; where it allows GET, it allows HEAD as well, which is answered as GET."""
    methods = [method.strip() for method in value.split(b",")]
    if name.lower() != b"allow" or b"GET" not in methods or b"HEAD" in methods:
        return name, value
    return name, value + b", HEAD"


async def internal_error(send: Send) -> None:
    """Answer with 500."""
    body = b"Internal Server Error"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def without_body(send: Send) -> Send:
    """Send the status and the headers, end the response where its body begins, and drop the body.

    The server then reports a disconnect, which ends an application that streams.
    """
    ended = False

    async def send_head(message: Message) -> None:
        nonlocal ended
        if message["type"] != "http.response.body":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b""})

    return send_head


def log(scope: Scope, message: Message, seconds: float) -> None:
    """Write the access line when the response starts: a stream may have no end."""
    client = scope["client"][0] if scope.get("client") else "-"
    query = scope["query_string"].decode("latin-1")
    status = message.get("status") or _WEBSOCKET_STATUS[message["type"]]
    headers, route = message.get("headers", ()), routes.current.get()
    size = next((value.decode("latin-1") for name, value in headers if name == b"content-length"), "-")
    logs.access(client, scope.get("method", "GET"), scope["path"], query, status, size, seconds, route)
