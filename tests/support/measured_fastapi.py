"""A FastAPI application with each way to a route, for tests of the metrics."""

import asyncio
import sys
import time

from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse

from serving.asgi import Service

api = FastAPI()
inner, outer = APIRouter(prefix="/inner"), APIRouter()
mounted = FastAPI()


@api.get("/")
async def index() -> PlainTextResponse:
    """Whether the library is loaded."""
    return PlainTextResponse(str("prometheus_client" in sys.modules))


@api.get("/known")
async def known() -> None:
    """Nothing."""


@api.get("/wait")
async def wait(request: Request) -> None:
    """Wait for as many seconds as the query says."""
    await asyncio.sleep(float(request.url.query))


@api.get("/block")
async def block() -> None:
    """Block the event loop."""
    time.sleep(1)


@inner.get("/{number}")
async def numbered(number: int) -> None:
    """In a router that a router includes."""


@mounted.get("/{number}")
async def of_mounted(number: int) -> None:
    """In an application that is mounted."""


@outer.websocket("/socket")
async def socket(connection: WebSocket) -> None:
    """Wait until the client leaves."""
    await connection.accept()
    await connection.receive()


outer.include_router(inner)
api.include_router(outer, prefix="/outer")
api.mount("/mounted", mounted)
api.mount("/tenants/{name}", mounted)
app = Service(api)
