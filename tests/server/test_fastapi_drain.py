"""SIGTERM drains: Uvicorn serves on, unready, for DRAIN_SECONDS and then stops gracefully."""

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.commands import poll
from tests.support.servers import Server

# The drain of every service is tested in services/; these are the details.
pytestmark = pytest.mark.slow

LONG = "60"  # a drain that only a second signal can end within the time limits below


def start(workers: int, drain: str, *flags: str, **environ: str) -> Server:
    """The FastAPI application with a drain of so many seconds, ready to serve."""
    variables = {"HOST": "127.0.0.1", "WEB_CONCURRENCY": str(workers), "DRAIN_SECONDS": drain} | environ
    server = Server("serving.uvicorn", *flags, **variables)
    server.wait("/readyz")
    poll(lambda: server.log().count("Application startup complete") == workers, log=server.log)
    return server


def ask(server: Server, path: str) -> int:
    """The status of a request on a connection of its own."""
    return httpx2.get(server.url + path, trust_env=False).status_code


def unready(server: Server) -> bool:
    """Whether each of several connections, which different workers accept, gets a 503."""
    with httpx2.Client(trust_env=False, headers={"connection": "close"}) as client:
        return {client.get(server.url + "/readyz").status_code for _ in range(10)} == {503}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_serves_while_it_drains(workers: int) -> None:
    """New requests succeed, /readyz fails, a WebSocket stays open; then 1012 and exit code 0."""
    with start(workers, "8") as server, connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None) as socket:
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: unready(server), 5, log=server.log)
        assert "draining" in httpx2.get(server.url + "/readyz", trust_env=False).json()["failed"]
        while time.monotonic() < begin + 6:
            assert {200} == {ask(server, "/"), ask(server, "/livez")}, server.log()
            socket.send("still here")
            assert socket.recv(timeout=5) == "still here"
            time.sleep(0.5)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
        assert time.monotonic() >= begin + 8
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert server.exit_code() == 0, server.log()
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_drain(workers: int, second: signal.Signals) -> None:
    """A second SIGTERM, or SIGINT, stops the server at once; the exit code stays 0."""
    with start(workers, LONG) as server:
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: unready(server), 5, log=server.log)
        server.process.send_signal(second)
        assert server.exit_code(5) == 0, server.log()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("drain", "first"), [("0", signal.SIGTERM), ("", signal.SIGTERM), (LONG, signal.SIGINT)]
)
def test_a_stop_without_drain(workers: int, drain: str, first: signal.Signals) -> None:
    """Without DRAIN_SECONDS, and on SIGINT, the server stops immediately."""
    with start(workers, drain) as server:
        server.process.send_signal(first)
        assert server.exit_code(5) == 0, server.log()


def test_reload_does_not_drain() -> None:
    """A developer does not wait for a proxy."""
    with start(1, LONG, "--reload", UVICORN_RELOAD_DIRS="asgi_app") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code(5) == 0, server.log()


def test_a_worker_that_dies_during_the_drain_is_replaced() -> None:
    """The parent process goes on supervising, and the new worker knows about the drain."""
    with start(2, LONG) as server:
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: unready(server), 5, log=server.log)
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        workers = [
            int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        poll(lambda: server.log().count("Application startup complete") == 4, log=server.log)
        assert unready(server)
        assert ask(server, "/") == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_the_request_timeout_limits_the_stop(workers: int) -> None:
    """REQUEST_TIMEOUT overrides uvicorn.json: an event stream of 100 s ends after 1 s."""
    with start(workers, "0", REQUEST_TIMEOUT="1") as server:
        command = ["curl", "-sN", f"{server.url}/events?count=100"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
            client.stdout.readline()
            server.process.send_signal(signal.SIGTERM)
            assert server.exit_code(6) == 0, server.log()
        assert "timeout graceful shutdown exceeded" in server.log()


@pytest.mark.parametrize("value", ["-1", "301", "2s"])
def test_a_wrong_drain_is_refused(value: str) -> None:
    """At the start, with one line."""
    with Server("serving.uvicorn", DRAIN_SECONDS=value) as server:
        assert server.exit_code() == 1
        assert server.log() == f"DRAIN_SECONDS={value!r}: must be a whole number from 0 to 300\n"
