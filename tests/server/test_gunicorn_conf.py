"""gunicorn.conf.py alone and with serving/ beside it, under a real master and its workers."""

import os
import re
import shutil
import signal
import socket
import sys
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, poll, run
from tests.support.servers import Server, workers

APP = """
import gc, os, time

OBJECTS = [[] for _ in range(100_000)]

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d %d" % (os.getpid(), gc.get_freeze_count())]
"""


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A directory with gunicorn.conf.py and an application, nothing else."""
    shutil.copy(ROOT / "gunicorn.conf.py", tmp_path)
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def together(alone: Path) -> Path:
    """The same, with serving/ beside them."""
    (alone / "serving").symlink_to(ROOT / "serving")
    return alone


def ask(server: Server) -> tuple[int, int]:
    """The worker that answered, and how many objects its collector leaves alone."""
    pid, frozen = httpx2.get(server.url, trust_env=False).raise_for_status().text.split()
    return int(pid), int(frozen)


@pytest.mark.parametrize("count", [2, 3])
def test_the_file_alone_serves(count: int, alone: Path) -> None:
    """Two workers or WEB_CONCURRENCY's, an access line for each request, and no complaint."""
    environ = {"PYTHONPATH": ""} | ({"WEB_CONCURRENCY": str(count)} if count != 2 else {})
    with Server("gunicorn", "app:app", cwd=alone, **environ) as server:
        server.wait()
        poll(lambda: len(workers(server)) == count, log=server.log)
        assert ask(server)[0] in workers(server)
        # A worker writes its access line after the response.
        poll(lambda: '"GET / HTTP/1.1" 200' in server.log(), log=server.log)
        log = server.log()
        assert not re.search("warning|error|critical|traceback", log, re.IGNORECASE), log


def test_a_flag_beats_the_variable(together: Path) -> None:
    """`--workers 3` starts three, whatever WEB_CONCURRENCY says, and the log says where that came from."""
    with Server("gunicorn", "app:app", "--workers", "3", cwd=together, WEB_CONCURRENCY="2") as server:
        server.wait()
        poll(lambda: len(workers(server)) == 3, log=server.log)
        assert server.log().count("workers=3 (command line)") == 1, server.log()


@pytest.mark.parametrize("name", ["app:app", "app:create()"])
def test_an_application_is_wrapped_by_its_name(name: str, together: Path) -> None:
    """`serving.wsgi:service('app:app')` gives probes to an application or a factory that knows of none."""
    with (together / "app.py").open("a") as module:
        module.write("\ndef create(): return app\n")
    with Server("serving.gunicorn", f"serving.wsgi:service({name!r})", cwd=together) as server:
        server.wait()
        assert httpx2.get(server.url + "/readyz", trust_env=False).json() == {"status": "ok", "failed": {}}
        assert ask(server)[0] in workers(server)


@pytest.mark.parametrize(("flags", "preloaded"), [([], "True"), (["--reload"], "False")])
def test_reload_is_the_only_switch_that_development_needs(
    flags: list[str], preloaded: str, alone: Path
) -> None:
    """Preloaded code would stay as it is, and no flag of Gunicorn's turns preloading off."""
    settings = run(sys.executable, "-m", "gunicorn", *flags, "--print-config", "app:app", cwd=alone)
    assert re.search(r"^preload_app += (\w+)$", settings, re.MULTILINE)[1] == preloaded


def test_workers_share_a_frozen_heap(together: Path) -> None:
    """The master loads the application, and no collector copies what it holds."""
    with Server("gunicorn", "app:app", cwd=together, WEB_CONCURRENCY="1") as server:
        server.wait()
        assert ask(server)[1] > 100_000, server.log()


def test_a_recycled_worker_drops_no_request(together: Path) -> None:
    """Every twenty requests the worker is replaced, and all of two hundred are answered."""
    flags = ("--max-requests", "20", "--max-requests-jitter", "0")
    with Server("gunicorn", "app:app", *flags, cwd=together, WEB_CONCURRENCY="2") as server:
        server.wait()
        with httpx2.Client(trust_env=False) as client:  # keeps its connection, as a proxy does
            responses = [client.get(server.url) for _ in range(200)]
        assert {response.status_code for response in responses} == {200}
        pids = {response.text.split()[0] for response in responses}
        assert len(pids) >= 5, server.log()
        poll(lambda: len(workers(server)) == 2, log=server.log)


def test_a_killed_worker_is_replaced(together: Path) -> None:
    """The other workers answer meanwhile, and the master forks a new one."""
    with Server("gunicorn", "app:app", cwd=together, WEB_CONCURRENCY="2") as server:
        server.wait()
        before = poll(lambda: len(pids := workers(server)) == 2 and pids, log=server.log)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        after = poll(lambda: len(pids := workers(server) - {victim}) == 2 and pids, log=server.log)
        assert len(before & after) == 1
        assert {ask(server)[0] for _ in range(20)} <= after, server.log()
        assert server.process.poll() is None


@pytest.mark.parametrize("work", ["sum(range(20_000))", "time.sleep(0.05)"])
def test_a_burst_of_connections_is_shared(together: Path, work: str) -> None:
    """Of 64 connections that open at once and stay open, each of two workers holds a fair part."""
    busy = APP.replace("    start", f"    {work}\n    start")
    (together / "app.py").write_text(
        busy.replace('"text/plain")', '"text/plain"), ("X-Worker", str(os.getpid()))')
    )
    with Server("gunicorn", "app:app", cwd=together, WEB_CONCURRENCY="2") as server:
        poll(lambda: len(workers(server)) == 2, log=server.log)
        shares = []
        for _ in range(3):
            burst = [socket.socket() for _ in range(64)]
            for connection in burst:
                connection.settimeout(20)
                connection.connect(("127.0.0.1", server.port))
            for connection in burst:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered = Counter(
                re.search(rb"X-Worker: (\d+)", connection.recv(4096))[1] for connection in burst
            )
            shares.append(min(answered.values()) if len(answered) == 2 else 0)
            for connection in burst:
                connection.close()
    assert sorted(shares)[1] >= 16, shares
