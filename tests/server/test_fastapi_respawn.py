"""A worker that cannot start ends the server only while no worker has ever been ready."""

import json
import os
import re
import signal
import time
from datetime import datetime
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, free_port, poll
from tests.support.servers import Server

pytestmark = pytest.mark.slow

# An application whose lifespan needs a dependency: a file that may be missing.
NEEDY = """
import os, pathlib

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if not pathlib.Path("dependency").exists():
            await send({"type": "lifespan.startup.failed", "message": "the dependency is away"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % os.getpid()})
"""


# The same with a check instead.
CHECKED = """
import os, pathlib
from serving.asgi import Service

async def dependency():
    pathlib.Path("dependency").stat()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % os.getpid()})

app = Service(app, checks={"dependency": dependency})
"""


def start(directory: Path, code: str = NEEDY) -> Server:
    """The application with two workers."""
    (directory / "needy.py").write_text(code)
    flags = ("needy:app", "--workers", "2", "--lifespan", "on", "--timeout-worker-healthcheck", "30")
    flags += ("--log-config", str(ROOT / "serving/logging.json"))
    return Server("serving.uvicorn", *flags, cwd=directory, HOST="127.0.0.1", PYTHONPATH=str(ROOT))


def pids(server: Server) -> set[int]:
    """The workers that answer."""
    # A connection for each request, so that each worker gets some.
    with httpx2.Client(trust_env=False, headers={"connection": "close"}) as client:
        return {int(client.get(server.url).text) for _ in range(30)}


def times(server: Server, line: str) -> list[float]:
    """When the log had this line, in seconds."""
    found = re.findall(rf"^(\S+) ERROR .*{line}", server.log(), re.MULTILINE)
    return [datetime.fromisoformat(text).timestamp() for text in found]


def test_a_replacement_that_cannot_start_does_not_end_the_others(tmp_path: Path) -> None:
    """It is started again after 1, 2, 4 s with one line each, until the dependency is back."""
    (tmp_path / "dependency").touch()
    with start(tmp_path) as server:
        server.wait("/")
        poll(lambda: server.log().count("Started server process") == 2, log=server.log)
        poll(lambda: len(pids(server)) == 2, log=server.log)
        time.sleep(1)  # the parent asks every half second whether a worker is ready
        (tmp_path / "dependency").unlink()
        victim = pids(server).pop()
        os.kill(victim, signal.SIGKILL)
        line = "before it was ready; next start in"
        poll(lambda: len(times(server, line)) == 3, 30, log=server.log)
        assert server.process.poll() is None
        assert victim not in pids(server)
        assert re.findall(rf"{line} (\d+) s", server.log()) == ["1", "2", "4"]
        first, second, third = times(server, line)
        assert second - first >= 1
        assert third - second >= 2
        (tmp_path / "dependency").touch()
        poll(lambda: len(pids(server)) == 2, 30, log=server.log)
        # A later failure starts with the shortest pause again.
        time.sleep(1)
        (tmp_path / "dependency").unlink()
        os.kill(pids(server).pop(), signal.SIGKILL)
        poll(lambda: len(times(server, line)) == 4, 30, log=server.log)
        assert re.findall(rf"{line} (\d+) s", server.log())[-1] == "1"
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0, server.log()


def test_a_server_whose_workers_never_start_ends(tmp_path: Path) -> None:
    """Exit code 3, so that an engine or a person notices."""
    with start(tmp_path) as server:
        assert server.exit_code() == 3, server.log()
        assert "failed to start" in server.log()


def test_a_rolling_restart_that_fails_changes_nothing(tmp_path: Path) -> None:
    """SIGHUP while the dependency is away: the old workers stay, and the server still drains."""
    (tmp_path / "dependency").touch()
    with start(tmp_path) as server:
        server.wait("/")
        poll(lambda: len(pids(server)) == 2, log=server.log)
        before = pids(server)
        (tmp_path / "dependency").unlink()
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: "was not ready in time; the others stay" in server.log(), log=server.log)
        assert pids(server) == before
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0, server.log()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ipv6_serves_ipv4_as_well(workers: str) -> None:
    """HOST=:: listens on both families, whatever the number of workers."""
    with Server("serving.uvicorn", HOST="::", WEB_CONCURRENCY=workers) as server:
        server.wait()
        assert httpx2.get(f"http://[::1]:{server.port}/livez", trust_env=False).status_code == 200


@pytest.mark.parametrize(("value", "host"), [("", "0.0.0.0"), ("127.0.0.1", "127.0.0.1")])
def test_a_platform_that_sets_port_alone_can_connect(value: str, host: str) -> None:
    """PORT without HOST listens on every address; HOST wins."""
    with Server("serving.uvicorn", WEB_CONCURRENCY="1", HOST=value) as server:
        server.wait()
        assert f"running on http://{host}:{server.port} " in server.log()


def test_a_unix_socket_is_removed(tmp_path: Path) -> None:
    """--uds serves without a port, takes over a stale socket and leaves none."""
    path = tmp_path / "socket"
    with Server("serving.uvicorn", "--uds", str(path), "--workers", "1", PORT=str(free_port())) as server:
        poll(path.is_socket, log=server.log)
        transport = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(transport=transport) as client:
            assert client.get("http://localhost/livez").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0, server.log()
    assert not path.exists()


def test_a_worker_that_cannot_import_the_application_logs_one_line_of_json(tmp_path: Path) -> None:
    """Although the trial before it could: multiprocessing itself would print a traceback."""
    (tmp_path / "second.py").write_text(
        "import pathlib\n"
        "if pathlib.Path('tried').exists():\n    raise ValueError('intended')\n"
        "pathlib.Path('tried').touch()\n"
        "async def app(scope, receive, send): pass\n"
    )
    flags = ("second:app", "--workers", "2", "--log-config", str(ROOT / "serving/logging.json"))
    environ = {"LOG_FORMAT": "json", "HOST": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    with Server("serving.uvicorn", *flags, cwd=tmp_path, **environ) as server:
        assert server.exit_code(60) == 3, server.log()
        events = [json.loads(line) for line in server.log().splitlines()]
        assert any("ValueError: intended" in event.get("exception", "") for event in events), server.log()


def statuses(server: Server, path: str) -> set[int]:
    """What the workers answer."""
    with httpx2.Client(trust_env=False, headers={"connection": "close"}) as client:
        return {client.get(server.url + path).status_code for _ in range(30)}


def test_every_worker_knows_that_the_server_was_ready_once(tmp_path: Path) -> None:
    """Also one that was never asked before, and one that started while the dependency was away."""
    (tmp_path / "dependency").touch()
    with start(tmp_path, CHECKED) as server:
        server.wait("/")
        poll(lambda: len(pids(server)) == 2, log=server.log)
        assert httpx2.get(server.url + "/readyz", trust_env=False).status_code == 200
        (tmp_path / "dependency").unlink()
        poll(lambda: statuses(server, "/readyz") == {503}, log=server.log)
        poll(lambda: statuses(server, "/readyz?once") == {200}, 5, log=server.log)
        victim = pids(server).pop()
        os.kill(victim, signal.SIGKILL)
        poll(lambda: len(pids(server) - {victim}) == 2, 30, log=server.log)
        poll(lambda: statuses(server, "/readyz?once") == {200}, 5, log=server.log)
