"""A signal is never lost: not before a worker has its handlers, while it starts a thread, or imports."""

import signal
import time
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, poll
from tests.support.servers import Server, workers

pytestmark = pytest.mark.slow

APP = """
import threading, time
from serving.wsgi import Service

start = threading.Thread.start

def slow_start(thread):
    # A thread that serves runs before the main thread goes on: as on a busy machine, but always.
    start(thread)
    if thread.name.startswith(("ThreadPool", "probe")):
        time.sleep(1)

threading.Thread.start = slow_start

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]

application = Service(app)
"""
# A worker that keeps the arbiter's handlers for longer than usual.
SLOW_FORK = """
import time

post_fork_of_serving = post_fork

def post_fork(server, worker):
    time.sleep(1)
    post_fork_of_serving(server, worker)
"""
SLOW_IMPORT = "import time\nprint('importing', flush=True)\ntime.sleep(60)\napplication = app = None\n"
COMMANDS = {
    "gthread": ("app",),
    "sync": ("--worker-class", "sync", "--threads", "1", "app"),
    "fastapi-hybrid": ("--worker-class", "serving.uvicorn.worker.Worker", "asgi_app.main:app"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application, one that takes a minute to import, and a configuration."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "slow.py").write_text(SLOW_IMPORT)
    (tmp_path / "conf.py").write_text((ROOT / "gunicorn.conf.py").read_text() + SLOW_FORK)
    return tmp_path


def start(folder: Path, *command: str, **environ: str) -> Server:
    """A server of two workers."""
    environ = {"WEB_CONCURRENCY": "2", "PYTHONPATH": str(folder), "WORKLOAD": "asyncio"} | environ
    return Server("serving.gunicorn", *command, **environ)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_a_stop_without_drain(name: str, number: signal.Signals, folder: Path) -> None:
    """Within seconds, whatever the worker class, also when the server would drain for a minute."""
    with start(folder, *COMMANDS[name], DRAIN_SECONDS="60").wait() as server:
        poll(lambda: len(workers(server)) == 2, log=server.log)
        server.process.send_signal(number)
        assert server.exit_code(5) == 0, server.log()
        assert "SIGKILL" not in server.log()


@pytest.mark.parametrize("path", ["/", "/readyz"])
def test_a_stop_while_a_thread_starts(path: str, folder: Path) -> None:
    """An exception raised there leaves a thread that the end of the process waits for."""
    with start(folder, "app") as server:
        # Without a probe before: it would already have started the thread.
        poll(lambda: len(workers(server)) == 2, log=server.log)
        httpx2.get(server.url + path, trust_env=False)
        server.process.send_signal(signal.SIGQUIT)
        assert server.exit_code(8) == 0, server.log()
        assert "SIGKILL" not in server.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_before_the_handlers_is_not_lost(number: signal.Signals, folder: Path) -> None:
    """A worker that was just forked has the arbiter's handlers, which do nothing there."""
    with start(folder, "--config", str(folder / "conf.py"), "app") as server:
        poll(lambda: "Booting worker" in server.log(), log=server.log)
        begun = time.monotonic()
        server.process.send_signal(number)
        assert server.exit_code() == 0, server.log()
        assert time.monotonic() - begun < 8, server.log()
        assert "SIGKILL" not in server.log()


@pytest.mark.parametrize("preload", ["on", "off"])
def test_sigterm_during_the_import_ends_the_server(preload: str, folder: Path) -> None:
    """Immediately, with exit code 0: there is no request to finish."""
    with start(folder, "slow", PRELOAD=preload) as server:
        poll(lambda: "importing" in server.log(), log=server.log)
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code(5) == 0, server.log()
        assert "Traceback" not in server.log()
