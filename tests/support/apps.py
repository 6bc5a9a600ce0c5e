"""Applications without a framework that wait, stream, count and block: what a server is judged by."""

import asyncio
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

VERSION = "one"
SECONDS_BLOCKED = 8
CHUNKS = (b"first ", b"last")

# Whether this process has run its lifespan's startup.
started = False


def say(event: str) -> None:
    """Tell the server's log, by which a test waits."""
    os.write(1, f"event: {event} [{os.getpid()}]\n".encode())  # print's lines mix with those of others


def block() -> None:
    """Occupy the thread; everything else in the process may go on."""
    say("block")
    time.sleep(SECONDS_BLOCKED)


def spin() -> None:
    """Occupy the interpreter: matching never lets go of its lock, and takes for ever."""
    say("spin")
    re.fullmatch("(a+)+b", "a" * 64)


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The WSGI application."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    match environ["PATH_INFO"]:
        case "/wait":
            say("wait")
            time.sleep(1)
        case "/block":
            block()
        case "/spin":
            spin()
        case "/stream":
            return stream()
        case "/client":
            return [environ["REMOTE_ADDR"].encode()]
        case "/upload":
            received = 0
            while chunk := environ["wsgi.input"].read(65536):
                received += len(chunk)
            return [str(received).encode()]
    return [VERSION.encode()]


def stream() -> Iterator[bytes]:
    """Two chunks, a second apart."""
    for chunk in CHUNKS:
        yield chunk
        time.sleep(1)


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    global started
    if scope["type"] == "lifespan":
        await receive()
        if os.environ.get("FAIL"):
            return await send({"type": "lifespan.startup.failed", "message": "told to"})
        await asyncio.sleep(0.5)  # long enough for a server that does not wait to answer before
        started = True
        say("startup")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        say("shutdown")
        return await send({"type": "lifespan.shutdown.complete"})
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass
        return None
    if not started:
        say("answer before startup")
    chunks: Iterable[bytes] = [VERSION.encode()]
    match scope["path"]:
        case "/wait":
            say("wait")
            await asyncio.sleep(1)
        case "/block":
            block()
        case "/stream":
            chunks = CHUNKS
        case "/client":
            chunks = [scope["client"][0].encode()]
        case "/upload":
            received, more = 0, True
            while more:
                message = await receive()
                received += len(message.get("body", b""))
                more = message.get("more_body", False)
            chunks = [str(received).encode()]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if scope["path"] == "/stream":
            await asyncio.sleep(1)
    await send({"type": "http.response.body", "body": b""})
