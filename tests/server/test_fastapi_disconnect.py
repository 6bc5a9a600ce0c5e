"""serving/asgi.py tells a client that leaves from a fault of the application, under both servers."""

import re
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.commands import poll
from tests.support.servers import Server

APP = """
from serving.asgi import Service

async def answer(scope, receive, send):
    if scope["type"] != "http":
        return
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RuntimeError("as frameworks do")
        more = message.get("more_body")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
    if scope["path"] == "/fault":
        assert (await receive())["type"] == "http.disconnect"
        raise RuntimeError("a background task failed")

app = Service(answer)
"""
COMMANDS = {
    "fastapi": ("serving.uvicorn", "--lifespan", "off"),
    "fastapi-hybrid": ("serving.gunicorn", "--worker-class", "serving.uvicorn.worker.Worker"),
}


@pytest.fixture(params=COMMANDS, scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker of each server."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "app.py").write_text(APP)
    command = (*COMMANDS[request.param], "--workers", "1", "app:app")
    # Gunicorn's worker reads `lifespan` from uvicorn.json, which the application then gets.
    with Server(*command, PYTHONPATH=str(folder), WORKLOAD="asyncio") as server:
        yield server.wait()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"], ids=["length", "chunked"]
)
def test_a_client_that_leaves_in_its_body_has_one_line(server: Server, framing: bytes) -> None:
    """A warning with the request's id and without a traceback."""
    before = len(server.log())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n1")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    line = r" WARNING \[\d+\] \[[0-9a-f]{32}\] the client left before its request was complete\n"
    poll(lambda: re.search(line, server.log()[before:]), log=server.log)
    assert httpx2.get(server.url, trust_env=False).status_code == 200
    said = server.log()[before:]
    assert "Traceback" not in said, said
    assert said.count(" WARNING ") == 1


def test_a_fault_after_the_response_is_logged(server: Server) -> None:
    """Servers report a disconnect then, too; it must not hide the traceback."""
    before = len(server.log())
    assert httpx2.post(server.url + "/fault", content=b"whole", trust_env=False).text == "ok"
    poll(lambda: "RuntimeError: a background task failed" in server.log()[before:], log=server.log)
    assert "the client left" not in server.log()[before:]
