"""Uvicorn: every signal that ends the server does so gracefully, and none is lost during the import."""

import signal
import subprocess
import threading
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, poll
from tests.support.servers import Server

pytestmark = pytest.mark.slow

APP = """
import asyncio

async def app(scope, receive, send):
    if scope["path"] == "/slow":
        print("asked", flush=True)
        await asyncio.sleep(2)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application, and one that takes a minute to import."""
    (tmp_path / "quick.py").write_text(APP)
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    return tmp_path


def start(folder: Path, app: str, workers: int, *flags: str, **environ: str) -> Server:
    """A server of so many workers, without a lifespan."""
    flags = (app, "--lifespan", "off", "--workers", str(workers), *flags)
    return Server("serving.uvicorn", *flags, PYTHONPATH=str(folder), **environ)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_request_in_flight_is_finished(number: signal.Signals, workers: int, folder: Path) -> None:
    """Exit code 0 after its response; two workers survive SIGHUP, which replaces them."""
    with start(folder, "quick:app", workers).wait("/") as server:
        statuses = []

        def ask() -> None:
            statuses.append(httpx2.get(server.url + "/slow", trust_env=False, timeout=10).status_code)

        client = threading.Thread(target=ask)
        client.start()
        poll(lambda: "asked" in server.log(), log=server.log)
        server.process.send_signal(number)
        if number == signal.SIGHUP and workers == 2:
            poll(lambda: server.log().count("Finished server process") == 2, log=server.log)
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGTERM)
        client.join()
        assert statuses == [200], server.log()
        assert server.exit_code(8) == 0, server.log()


def test_sighup_drains_a_single_process(folder: Path) -> None:
    """As SIGTERM does, because the proxy has to learn of it."""
    with start(folder, "quick:app", 1, DRAIN_SECONDS="2").wait("/") as server:
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: "draining for 2 s" in server.log(), log=server.log)
        assert httpx2.get(server.url, trust_env=False).status_code == 200
        assert server.exit_code(8) == 0


def test_nohup_protects_a_single_process(folder: Path) -> None:
    """A signal that the caller ignores stays ignored."""
    (folder / "ignoring.py").write_text(
        "import runpy, signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        'runpy.run_module("serving.uvicorn", run_name="__main__", alter_sys=True)\n'
    )
    flags = ("quick:app", "--workers", "1", "--lifespan", "off")
    with Server("ignoring", *flags, PYTHONPATH=f"{folder}:{ROOT}") as server:
        server.wait("/")
        server.process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(1)
        assert httpx2.get(server.url, trust_env=False).status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_during_the_import_ends_the_server(workers: int, folder: Path) -> None:
    """Immediately, with exit code 0, and also the process that tries the import."""
    with start(folder, "slow:app", workers, DRAIN_SECONDS="60") as server:
        poll(lambda: "importing" in server.log(), log=server.log)
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code(5) == 0, server.log()
        assert "Traceback" not in server.log()


def test_sigterm_during_the_import_of_a_worker_ends_the_server(folder: Path) -> None:
    """The trial loads it quickly, the workers do not; the parent process drains, as it may serve."""
    (folder / "second.py").write_text(
        "import pathlib, time\n"
        f"mark = pathlib.Path({str(folder / 'mark')!r})\n"
        "if mark.exists():\n    print('importing', flush=True)\n    time.sleep(60)\n"
        "mark.touch()\n"
        "async def app(scope, receive, send): pass\n"
    )
    with start(folder, "second:app", 2, DRAIN_SECONDS="1") as server:
        poll(lambda: "importing" in server.log(), log=server.log)
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code(5) == 0, server.log()
