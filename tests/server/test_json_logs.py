"""LOG_FORMAT=json: each event is one JSON object in one line, whatever the application and clients do."""

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import poll
from tests.support.processes import PROGRAMS
from tests.support.servers import Server

TRACE = "0af7651916cd43dd8448eb211c80319c"
APP = """
import gc, logging, threading, warnings
from serving import asgi, wsgi

log = logging.getLogger("app")
warnings.warn("at import")

class Unprintable:
    def __repr__(self): raise RuntimeError("no text")

def act(path):
    if path == "/raise":
        raise RuntimeError("intended\\n{}")
    if path == "/thread":
        threading.Thread(target=lambda: 1 / 0).start()
    if path == "/log":
        log.info('a\\nb\\0 \\udc80 "}', extra={"at": {1}, "nan": float("nan"), "bad": Unprintable()})
        log.info("%d", "no number")
        log.info("long" * 300_000)

def over_wsgi(environ, start_response):
    act(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    if environ["PATH_INFO"] == "/file":
        return environ["wsgi.file_wrapper"](open(__file__[:-6] + "two", "rb"))
    return [b"ok"]

async def over_asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    act(scope["path"])
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"12" if scope["path"] == "/file" else b"ok"})

application, app = wsgi.Service(over_wsgi), asgi.Service(over_asgi)
"""
COMMANDS = {
    "gthread": ("serving.gunicorn", "app"),
    "sync": ("serving.gunicorn", "--worker-class", "sync", "--threads", "1", "app"),
    "no preload": ("serving.gunicorn", "app"),
    "uvicorn": ("serving.uvicorn", "app:app"),
    "two uvicorn workers": ("serving.uvicorn", "--workers", "2", "app:app"),
    "fastapi-hybrid": ("serving.gunicorn", "--worker-class", "serving.uvicorn.worker.Worker", "app:app"),
}
# In `make test`, one of each kind.
SERVERS = [
    pytest.param(name, marks=[] if name in ("gthread", "uvicorn") else pytest.mark.slow) for name in COMMANDS
]
VARIABLES = {"LOG_FORMAT": "json", "SERVICE": "shop", "WEB_CONCURRENCY": "1", "DRAIN_SECONDS": "1"}


def start(name: str, folder: Path, source: str = APP) -> Server:
    """One of the servers with an application."""
    (folder / "app.py").write_text(source)
    (folder / "two").write_text("12")
    more = {"PRELOAD": "off"} if name == "no preload" else {}
    if name == "fastapi-hybrid":
        more = {"WORKLOAD": "asyncio"}
    return Server(*COMMANDS[name], PYTHONPATH=str(folder), **VARIABLES, **more)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each server with the application above; stopped by the last test."""
    with start(request.param, tmp_path_factory.mktemp("app")) as running:
        yield running.wait()


def events(server: Server, **fields: object) -> list[dict]:
    """The log's events that have these fields; fails at a line that is not an event."""
    found = []
    # The last line may not be complete yet.
    for line in server.log().splitlines(keepends=True):
        if line.endswith("\n"):
            event = json.loads(line)
            assert event.keys() >= {"time", "level", "logger", "message", "service", "worker"}, line
            assert len(line) <= 16 * 1024
            found.append(event)
    return [event for event in found if fields.items() <= event.items()]


def some(server: Server, **fields: object) -> list[dict]:
    """The same, once there is one."""
    return poll(lambda: events(server, **fields), log=server.log)


def ask(server: Server, path: str, **headers: str) -> httpx2.Response:
    """The response."""
    return httpx2.get(server.url + path, headers=headers, trust_env=False)


def test_an_access_line_has_every_field(server: Server) -> None:
    """Those of the edge's log, under the same names; the values of the query are not among them."""
    answer = ask(server, "/x?token=hunter2", traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    (event,) = some(server, request_id=answer.headers["x-request-id"])
    expected = {"level": "info", "service": "shop", "trace_id": TRACE, "client": "127.0.0.1"}
    expected |= {"method": "GET", "path": "/x", "status": 200, "bytes": 2, "message": "handled request"}
    assert expected.items() <= event.items()
    assert isinstance(event["duration"], float)
    assert "hunter2" not in server.log()


def test_a_malformed_trace_is_left_out(server: Server) -> None:
    """Also that of the request before."""
    ask(server, "/", traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    answer = ask(server, "/", traceparent=f"00-{'0' * 32}-b7ad6b7169203331-01")
    (event,) = some(server, request_id=answer.headers["x-request-id"])
    assert "trace_id" not in event


def test_a_file_has_its_size(server: Server) -> None:
    """Gunicorn does not count what the kernel sends (sendfile)."""
    answer = ask(server, "/file")
    (event,) = some(server, request_id=answer.headers["x-request-id"])
    assert (answer.text, event["bytes"]) == ("12", 2)


def test_what_a_client_writes_stays_in_its_field(server: Server) -> None:
    """Line ends, quotes and bytes that are not UTF-8."""
    answer = ask(server, "/%0A%22%7D,%00%FF%C3%A9")
    (event,) = some(server, request_id=answer.headers["x-request-id"])
    assert event["path"].startswith('/\n"},\0')
    assert event["status"] == 200


def test_what_the_application_logs_is_one_line(server: Server) -> None:
    """Strange characters, values that JSON has not, wrong arguments, and a message of a megabyte."""
    answer = ask(server, "/log")
    identity = answer.headers["x-request-id"]
    poll(lambda: len(events(server, request_id=identity)) == 4, log=server.log)
    first, second, third, _ = events(server, request_id=identity)
    assert first["message"] == 'a\nb\0 ? "}'
    assert (first["at"], first["nan"], first["bad"]) == ("{1}", "nan", "<Unprintable>")
    assert second["message"].startswith("%d")
    assert third["message"].startswith("longlong")
    some(server, logger="py.warnings", level="warning")


def test_a_traceback_is_a_field(server: Server) -> None:
    """Of a request, with its id; and of a thread that ends with an exception."""
    answer = ask(server, "/raise")
    assert answer.status_code == 500
    errors = poll(lambda: [event for event in events(server, level="error") if "exception" in event])
    assert "RuntimeError: intended\n{}" in errors[-1]["exception"]
    assert errors[-1]["request_id"] == answer.headers["x-request-id"]
    ask(server, "/thread")
    (event,) = some(server, message="uncaught exception")
    assert "ZeroDivisionError" in event["exception"]


def test_a_malformed_request_has_an_id(server: Server) -> None:
    """In the response that the server itself writes, and in the log."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n")
        head = client.recv(65536).decode()
    assert head.startswith("HTTP/1.1 400 ")
    identity = head.lower().partition("x-request-id: ")[2].split()[0]
    some(server, request_id=identity)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_probe_has_two_methods(server: Server, path: str) -> None:
    """405 with those that are allowed."""
    answer = httpx2.post(server.url + path, trust_env=False)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.json()["status"] == 405


def test_a_stop_is_logged_in_events(server: Server) -> None:
    """The last test of a server."""
    server.process.send_signal(signal.SIGTERM)
    server.exit_code()
    assert events(server)


@pytest.mark.parametrize("name", SERVERS)
def test_an_application_that_cannot_be_imported_is_an_event(name: str, tmp_path: Path) -> None:
    """Its traceback is one field of one line."""
    with start(name, tmp_path, "raise ValueError('intended')\n") as server:
        assert server.exit_code() != 0
        errors = [event for event in events(server) if "intended" in event.get("exception", "")]
        assert errors, server.log()


@pytest.mark.parametrize("service", PROGRAMS)
def test_the_route_is_a_field(service: str, tmp_path: Path) -> None:
    """The pattern that the application matched; none for a path that it does not know."""
    variables = VARIABLES | {"DATA_DIR": str(tmp_path), "WORKLOAD": "mixed"}
    with Server(*PROGRAMS[service], **variables).wait() as server:
        for path, route in {"/": "/", "/nothing/at/all": None}.items():
            identity = ask(server, path).headers["x-request-id"]
            (event,) = some(server, request_id=identity, message="handled request")
            assert event.get("route") == route
