"""What a client of FastAPI can do to the log, and to the file descriptors."""

import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.commands import poll
from tests.support.fastapi_websocket import FIN, TEXT, closing, frame, handshake
from tests.support.servers import Server

UVICORN = ("serving.uvicorn",)
HYBRID = ("serving.gunicorn", "--worker-class", "serving.uvicorn.worker.Worker", "asgi_app.main:app")
UPGRADE = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
ID = "[0-9a-f]{32}"


@pytest.fixture(scope="module", params=[UVICORN, HYBRID], ids=["uvicorn", "hybrid"])
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The FastAPI application under either of its servers, with one worker."""
    variables = {"HOST": "127.0.0.1", "WEB_CONCURRENCY": "1", "WORKLOAD": "asyncio"}
    with Server(*request.param, **variables) as server:
        yield server.wait()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The same, with a log that begins here; a client must not cause a traceback or an error."""
    before = len(running.log())
    with pytest.MonkeyPatch.context() as patch:
        whole = running.log
        patch.setattr(running, "log", lambda: whole()[before:])
        yield running
        assert not re.search("Traceback| ERROR ", running.log()), running.log()


def exchange(server: Server, request: str) -> bytes:
    """The answer to raw bytes, until the server closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(request.encode("latin-1"))
        while chunk := client.recv(65536):
            answer += chunk
    return answer


def test_text_that_is_not_utf_8_logs_one_line(server: Server) -> None:
    """1007 for the client; a warning with the request's id and no traceback for the log."""
    for count in (1, 2, 3):
        client, head = handshake(server.url)
        with client:
            client.sendall(frame(FIN | TEXT, b"\xff\xfe"))
            assert closing(client) == 1007
        identity = re.search(f"x-request-id: ({ID})", head)[1]
        poll(lambda count=count: server.log().count("not UTF-8") >= count, log=server.log)
        lines = [line for line in server.log().splitlines() if "not UTF-8" in line]
        assert len(lines) == count, server.log()
        assert re.search(rf" WARNING \[\d+\] \[{identity}\] ", lines[-1]), lines[-1]


@pytest.mark.parametrize(
    "request_text",
    [
        f"POST /ws HTTP/1.1\r\n{UPGRADE}Content-Length: 3\r\n\r\nabc",
        f"GET /ws HTTP/1.1\r\n{UPGRADE}X: {'a' * 20_000}\r\n\r\n",
        f"GET /ws HTTP/1.1\r\n{UPGRADE}{'X: a\r\n' * 300}\r\n",
        f"GET /ws?{'a' * 20_000} HTTP/1.1\r\n{UPGRADE}\r\n",
    ],
    ids=["a body", "a long header", "many headers", "a long address"],
)
def test_a_malformed_upgrade_is_answered(server: Server, request_text: str) -> None:
    """400 and the end of the connection, instead of silence that holds it."""
    assert exchange(server, request_text).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_leaves_before_its_echo_logs_nothing(server: Server) -> None:
    """A connection that is reset with messages underway is no error of the application."""
    for _ in range(20):
        client, _ = handshake(server.url)
        client.sendall(frame(FIN | TEXT, b"a" * 1000) * 50)
        # Zero seconds to linger: closing resets the connection.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    assert httpx2.get(server.url, trust_env=False).status_code == 200
    poll(lambda: server.log().count("101 - ") == 20, log=server.log)
    assert "WARNING" not in server.log()


def test_a_refused_handshake_names_the_origin(server: Server) -> None:
    """One warning with the origin, and an access line with 403."""
    with (
        pytest.raises(InvalidStatus),
        connect(f"ws://127.0.0.1:{server.port}/ws", origin="https://evil.example", proxy=None),
    ):
        pass
    warning = rf"WARNING \[\d+\] \[{ID}\] WebSocket refused: origin 'https://evil.example' is not allowed"
    poll(lambda: re.search(warning, server.log()), log=server.log)
    poll(lambda: re.search(rf'\[{ID}\] 127.0.0.1 "GET /ws" 403 ', server.log()), log=server.log)


@pytest.mark.parametrize("path", ["/ws", "/nothing"])
def test_a_websocket_has_one_access_line(server: Server, path: str) -> None:
    """Uvicorn's own lines about a WebSocket contain the query: they are off."""
    with suppress(InvalidStatus), connect(f"ws://127.0.0.1:{server.port}{path}?n=1", proxy=None) as client:
        client.close()
    poll(lambda: f'"GET {path}?' in server.log(), log=server.log)
    assert "WebSocket /" not in server.log()
    assert "connection open" not in server.log()


@pytest.mark.parametrize("path", ["/", "/events?count=100", "/openapi.json", "/livez"])
def test_head_answers_as_get_without_a_body(server: Server, path: str) -> None:
    """Also where FastAPI alone answers 405, and where GET would stream for minutes."""
    with httpx2.Client(trust_env=False, timeout=5) as client:
        for _ in range(2):  # the connection can be used again
            head = client.head(server.url + path)
            with client.stream("GET", server.url + path) as get:
                drop = {"date", "x-request-id", "transfer-encoding"}
                wanted = {name: value for name, value in get.headers.items() if name not in drop}
            assert head.status_code == 200
            assert wanted == {name: value for name, value in head.headers.items() if name not in drop}
            assert head.content == b""


def test_head_does_not_hide_a_wrong_method(server: Server) -> None:
    """A route without GET still answers 405, and one with GET says that HEAD is allowed."""
    refused = httpx2.head(server.url + "/echo", trust_env=False)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    refused = httpx2.put(server.url, trust_env=False)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.slow
def test_missing_file_descriptors_have_one_log_line() -> None:
    """With a limit of 100: surplus connections are closed, CPU time is not burnt, the line is clear."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        server = Server("serving.uvicorn", HOST="127.0.0.1", WEB_CONCURRENCY="1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    line = "All 100 file descriptors are in use: raise NOFILE or add replicas"
    with server.wait():
        before = cpu_seconds(server)
        with ExitStack() as idle:
            for _ in range(110):
                idle.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            poll(lambda: line in server.log(), log=server.log)
            time.sleep(3)
            assert server.log().count(line) == 1, server.log()
        assert cpu_seconds(server) - before < 1
        assert httpx2.get(server.url + "/livez", trust_env=False).status_code == 200
        assert len(server.log()) < 10_000


def cpu_seconds(server: Server) -> float:
    """The CPU time that the process has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
