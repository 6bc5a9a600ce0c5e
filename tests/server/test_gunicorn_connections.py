"""The worker whose threads share all connections: what one client, or the application, does to others."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support.servers import Server, workers

# Before the listeners: their descriptors are beyond 1024, the limit of select().
APP = """
import os, sys, threading, time
from serving.wsgi import Service

open_files = [open(os.devnull) for _ in range(int(os.environ.get("OPEN_FILES", "0")))]

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    time.sleep(float(query or 0))
    if path == "/fork" and os.fork() == 0:
        sys.exit()
    if path == "/close":
        threading.Timer(0.05, environ["gunicorn.socket"].close).start()
    body = threading.current_thread().name.encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

application = Service(app)
"""


@contextmanager
def start(folder: Path, *flags: str, app: str = "app", **environ: str) -> Iterator[Server]:
    """A server of one worker with this application, or with another one of the folder."""
    (folder / "app.py").write_text(APP)
    environ |= {"PYTHONPATH": str(folder), "WEB_CONCURRENCY": "1"}
    with Server("serving.gunicorn", *flags, app, **environ).wait() as server:
        yield server


def connect(server: Server) -> socket.socket:
    """A client that waits for at most 20 seconds."""
    return socket.create_connection(("127.0.0.1", server.port), 20)


def get(path: str) -> bytes:
    """A request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def responses(client: socket.socket, count: int) -> bytes:
    """So many responses to requests that were sent at once."""
    received = b""
    while received.count(b"HTTP/1.1 ") < count or not received.rpartition(b"\r\n\r\n")[2]:
        part = client.recv(65536)
        assert part, received
        received += part
    return received


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_what_follows_a_probe_does_not_hold_up_the_next_one(path: str, tmp_path: Path) -> None:
    """It is a request like any other, in a thread for requests; an empty line is none at all."""
    with start(tmp_path) as server, connect(server) as client, connect(server) as other:
        client.sendall(get(path) + get("/?4"))
        other.sendall(get(path) + b"\r\n")
        begun = time.monotonic()
        responses(other, 1)
        assert httpx2.get(server.url + path, trust_env=False).status_code == 200
        assert time.monotonic() - begun < 3
        assert b"serve-" in responses(client, 2)


def test_requests_sent_at_once_wait_behind_those_of_others(tmp_path: Path) -> None:
    """A client that does not wait for responses gets one thread's turn, not the thread."""
    with start(tmp_path, "--threads", "1") as server, connect(server) as greedy:
        sent = 200
        greedy.sendall(get("/?0.02") * sent)
        for _ in range(3):
            begun = time.monotonic()
            assert httpx2.get(server.url, trust_env=False).status_code == 200
            assert time.monotonic() - begun < 1
        assert responses(greedy, sent).count(b"200 OK") == sent


def test_a_listener_may_have_a_high_descriptor(tmp_path: Path) -> None:
    """The look at the backlog while all threads hang works with any number."""
    with start(tmp_path, "--threads", "1", OPEN_FILES="1100") as server, connect(server) as client:
        before = workers(server)
        client.sendall(get("/?2"))
        assert b"200 OK" in responses(client, 1)
        assert workers(server) == before, server.log()


def test_a_child_of_the_application_takes_no_request(tmp_path: Path) -> None:
    """Although it has a copy of the thread and shares the set of connections."""
    with start(tmp_path) as server:
        with connect(server) as client:
            client.sendall(get("/fork"))
            responses(client, 1)
        for _ in range(40):
            assert httpx2.get(server.url, trust_env=False, timeout=5).status_code == 200


def test_a_socket_that_the_application_closes_is_counted_once(tmp_path: Path) -> None:
    """Otherwise the worker would be full after some of them."""
    with start(tmp_path, "--threads", "1", "--worker-connections", "6") as server:
        for _ in range(14):
            with connect(server) as client:
                client.sendall(get("/close"))
                responses(client, 1)
                assert client.recv(1) == b""
        assert httpx2.get(server.url, trust_env=False, timeout=5).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0


def test_a_closed_connection_makes_room_for_the_next_one(tmp_path: Path) -> None:
    """Clients that open a connection for each request wait for threads, not for pauses in accepting."""
    (tmp_path / "longer.py").write_text(f"from serving.gunicorn import worker\nworker.BUSY_PAUSE = 30\n{APP}")
    request = b"GET /?0.05 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with start(tmp_path, "--threads", "2", app="longer") as server:
        begun = time.monotonic()
        clients = [connect(server) for _ in range(20)]
        for client in clients:
            client.sendall(request)
        for client in clients:
            with client:
                responses(client, 1)
        assert time.monotonic() - begun < 15, server.log()


def test_accepting_goes_on_after_a_pause_whenever_it_ends(tmp_path: Path) -> None:
    """Also if it ends after the worker has looked, and before it waits for a second."""
    late = "worker.Worker.show_busy = lambda self: time.sleep(10 * worker.PAUSE)"
    (tmp_path / "late.py").write_text(f"import time\nfrom serving.gunicorn import worker\n{late}\n{APP}")
    with start(tmp_path, "--threads", "2", app="late") as server, ExitStack() as stack:
        begun = time.monotonic()
        for _ in range(20):
            client = stack.enter_context(connect(server))
            client.sendall(get("/"))
            responses(client, 1)
        assert time.monotonic() - begun < 6, server.log()
