"""SIGTERM drains under Gunicorn: unready, serving on for DRAIN_SECONDS, then the ordinary stop."""

import os
import signal
import time
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import poll
from tests.support.servers import Server, workers

APP = """
import os, time
from serving.wsgi import Service

def app(environ, start_response):
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]

application = Service(app)
"""
COMMANDS = {
    "gthread": ("app",),
    "sync": ("--worker-class", "sync", "--threads", "1", "app"),
    "stock gthread": ("--worker-class", "gthread", "app"),
    "without preload": ("app",),
    "fastapi-hybrid": ("--worker-class", "serving.uvicorn.worker.Worker", "asgi_app.main:app"),
}
# What the images run is enough for `make test`.
SLOW = dict.fromkeys(("sync", "stock gthread", "without preload"), pytest.mark.slow)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder with an application."""
    (tmp_path / "app.py").write_text(APP)
    return str(tmp_path)


def start(folder: str, name: str = "gthread", seconds: str = "6", **environ: str) -> Server:
    """A server of two workers with this time to drain."""
    environ = {"WEB_CONCURRENCY": "2", "PYTHONPATH": folder, "DRAIN_SECONDS": seconds} | environ
    if name == "without preload":
        environ["PRELOAD"] = "off"
    if name == "fastapi-hybrid":
        environ["WORKLOAD"] = "asyncio"
    server = Server("serving.gunicorn", *COMMANDS[name], **environ).wait()
    poll(lambda: len(workers(server)) == 2, log=server.log)
    return server


def ready(server: Server) -> int:
    """What /readyz answers."""
    return httpx2.get(server.url + "/readyz", trust_env=False, timeout=5).status_code


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in COMMANDS])
def test_sigterm_drains(name: str, folder: str) -> None:
    """Unready and alive for DRAIN_SECONDS, answering new requests; then exit 0."""
    with start(folder, name) as server:
        assert ready(server) == 200
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: ready(server) == 503, log=server.log)
        body = httpx2.get(server.url + "/readyz", trust_env=False).json()
        assert body == {"status": "unready", "failed": {"draining": "stopping"}}
        # One client, which is cheap, but a new connection for each request.
        with httpx2.Client(trust_env=False, headers={"connection": "close"}) as client:
            for _ in range(10):
                assert client.get(server.url + "/livez").status_code == 200
                assert client.get(server.url + "/").status_code == 200
        assert server.exit_code() == 0, server.log()
        assert 6 <= time.monotonic() - begun < 15
        assert "Traceback" not in server.log()


def test_a_request_of_the_drain_is_finished(folder: str) -> None:
    """It began before the stop and ends after it."""
    with start(folder, seconds="2") as server:
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: ready(server) == 503, log=server.log)
        assert httpx2.get(server.url + "/?3", trust_env=False, timeout=10).status_code == 200
        assert server.exit_code() == 0


def test_without_drain_seconds_sigterm_stops_as_gunicorn_does(folder: str) -> None:
    """The default, for servers without a proxy that asks whether they are ready."""
    with start(folder, seconds="0") as server:
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert time.monotonic() - begun < 3
        assert "Draining" not in server.log()


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_a_second_signal_ends_the_drain(second: str, folder: str) -> None:
    """An operator in a hurry need not wait for its end."""
    with start(folder, seconds="60") as server:
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: ready(server) == 503, log=server.log)
        begun = time.monotonic()
        server.process.send_signal(getattr(signal, second))
        assert server.exit_code() == 0
        assert time.monotonic() - begun < 5


def test_the_arbiter_supervises_while_it_drains(folder: str) -> None:
    """A worker that dies meanwhile is replaced, and its replacement is unready too."""
    with start(folder, seconds="60") as server:
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: ready(server) == 503, log=server.log)
        victim = min(workers(server))
        os.kill(victim, signal.SIGKILL)
        poll(lambda: len(workers(server) - {victim}) == 2, log=server.log)
        with httpx2.Client(trust_env=False, headers={"connection": "close"}) as client:
            assert {client.get(server.url + "/readyz").status_code for _ in range(20)} == {503}
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0, server.log()


def test_sighup_does_not_drain(folder: str) -> None:
    """New workers serve, and the server stays ready."""
    with start(folder, seconds="60") as server:
        before = workers(server)
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: len(now := workers(server)) == 2 and not now & before, log=server.log)
        assert ready(server) == 200
        begun = time.monotonic()
        server.process.send_signal(signal.SIGQUIT)
        assert server.exit_code() == 0
        assert time.monotonic() - begun < 5


@pytest.mark.slow
def test_a_drain_needs_no_file(folder: str, tmp_path: Path) -> None:
    """A full or missing /tmp cannot prevent it: nothing is written anywhere."""
    with start(folder, TMPDIR=str(tmp_path / "missing"), HOME="/nonexistent", seconds="4") as server:
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: ready(server) == 503, log=server.log)
        assert server.exit_code() == 0, server.log()


def test_a_wrong_time_stops_the_start(folder: str) -> None:
    """With one line, not when the server is to stop."""
    with Server("serving.gunicorn", "app", PYTHONPATH=folder, DRAIN_SECONDS="soon") as server:
        assert server.exit_code() == 1
        assert "DRAIN_SECONDS='soon': must be a whole number from 0 to 300" in server.log()
        assert "Traceback" not in server.log()
