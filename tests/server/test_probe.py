"""The container's health check, and probes while every thread of a server is busy."""

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, free_port, poll
from tests.support.servers import Server

APP = """
import os, time
from pathlib import Path
from serving.wsgi import Service

HERE = Path(__file__).parent

def app(environ, start_response):
    while environ["PATH_INFO"] == "/hang" and not (HERE / "go").exists():
        time.sleep(0.05)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]

def database():
    while (HERE / "hung").exists():
        time.sleep(0.05)
    if (HERE / "away").exists():
        raise ConnectionError

application = Service(app, checks={"database": database})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application whose dependency and requests hang on demand."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    """One worker, with six threads."""
    with Server("serving.gunicorn", "app", PYTHONPATH=str(folder), WEB_CONCURRENCY="1") as server:
        yield server.wait()
        (folder / "go").touch()
        (folder / "hung").unlink(missing_ok=True)
        for marker in markers(server.port):
            marker.unlink(missing_ok=True)


def markers(port: int) -> list[Path]:
    """Where the probe may leave its note."""
    return [Path(folder) / f"was-ready-{port}" for folder in ("/dev/shm", "/tmp")]


def probe(port: int, **environ: str) -> tuple[int, str]:
    """Exit code and output of the health check, as an engine runs it."""
    done = subprocess.run(
        [sys.executable, "-IS", "serving/probe.py"],
        cwd=ROOT,
        env={"PORT": str(port)} | environ,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def get(server: Server, path: str) -> httpx2.Response:
    """One request on a connection of its own."""
    return httpx2.get(server.url + path, trust_env=False, timeout=5)


def test_ready_once_from_then_on_alive(server: Server, folder: Path) -> None:
    """Before the first success it asks /readyz; afterwards an outage of a dependency is no reason to fail."""
    (folder / "away").touch()
    code, output = probe(server.port)
    assert code == 1
    assert output == f"127.0.0.1:{server.port}/readyz: HTTP/1.1 503 Service Unavailable\n"
    (folder / "away").unlink()
    poll(lambda: get(server, "/readyz").status_code == 200)
    assert probe(server.port) == (0, "")
    (folder / "away").touch()
    poll(lambda: get(server, "/readyz").status_code == 503)
    assert probe(server.port) == (0, "")
    once = get(server, "/readyz?once")
    assert (once.status_code, once.json()["failed"]) == (200, {"database": "ConnectionError"})


def test_a_server_that_is_gone_fails_in_one_line() -> None:
    """Nothing listens, so the check fails whatever it has noted."""
    port = free_port()
    code, output = probe(port)
    assert code == 1
    assert output == f"127.0.0.1:{port}/readyz: [Errno 111] Connection refused\n"


@pytest.mark.slow
def test_a_server_that_is_silent_fails_in_time() -> None:
    """Within 4 s, which is less than what the engine waits."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        code, output = probe(silent.getsockname()[1])
        assert (code, output.partition(": ")[2]) == (1, "timed out\n")
        assert 3.5 < time.monotonic() - begun < 6


@pytest.mark.parametrize(("host", "listens"), [("::", "::1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.1")])
def test_the_probe_asks_the_address_of_host(host: str, listens: str) -> None:
    """Also a server that listens on IPv6 only."""
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    with socket.create_server((listens, 0), family=family) as server:
        port = server.getsockname()[1]
        server.settimeout(10)

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert probe(port, HOST=host) == (0, "")
        thread.join()
    for marker in markers(port):
        marker.unlink(missing_ok=True)


def test_the_probe_is_cheaper_than_an_interpreter_with_modules(server: Server) -> None:
    """At most a fifth of what `python -m serving.health` takes; measured alone it is a tenth."""

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(5):
            subprocess.run([sys.executable, *command], cwd=ROOT, env={"PORT": str(server.port)}, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert seconds("-IS", "serving/probe.py") < seconds("-m", "serving.health") / 5


def test_probes_answer_while_every_thread_hangs(server: Server, folder: Path) -> None:
    """Ten requests hold six threads; /livez and /readyz have their own, also on a connection in use."""
    clients = []
    used = httpx2.Client(base_url=server.url, trust_env=False, timeout=5)
    assert used.get("/").status_code == 200
    for _ in range(10):
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
        clients.append(client)
    time.sleep(0.5)
    for path in ("/livez", "/readyz", "/readyz?once"):
        assert get(server, path).status_code == 200
    with httpx2.Client(base_url=server.url, trust_env=False, timeout=5) as kept:  # as a proxy does
        assert {kept.get("/livez").status_code for _ in range(5)} == {200}
    assert {used.get("/livez").status_code for _ in range(5)} == {200}
    used.close()
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(server.url + "/", trust_env=False, timeout=1)
    (folder / "go").touch()
    for client in clients:
        assert client.recv(12) == b"HTTP/1.1 200"
        client.close()


def test_a_hung_dependency_takes_no_thread(server: Server, folder: Path) -> None:
    """As many probes as a proxy sends in half a minute: requests and /livez go on, /readyz answers 503."""
    (folder / "hung").touch()
    time.sleep(1.1)  # the last result is too old
    waiting = threading.Thread(target=get, args=(server, "/readyz"))
    waiting.start()
    time.sleep(0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
    assert waiting.is_alive(), "/livez waited for /readyz"
    waiting.join()
    assert get(server, "/readyz").json()["failed"] == {"database": "no answer within 3 s"}
    begun = time.monotonic()
    with httpx2.Client(trust_env=False, timeout=5, headers={"connection": "close"}) as client:
        for _ in range(20):
            assert client.get(server.url + "/readyz").status_code == 503
            assert client.get(server.url + "/livez").status_code == 200
            assert client.get(server.url + "/").status_code == 200
    # A wait of 3 s for each of the 20 results would take a minute.
    assert time.monotonic() - begun < 20, "only the first probe may wait"
    (folder / "hung").unlink()
    poll(lambda: get(server, "/readyz").status_code == 200, log=server.log)


def test_half_a_probe_holds_up_no_other(server: Server) -> None:
    """A client that sends the beginning of a probe and then nothing does not get the probes' thread."""
    halves = []
    for rest in (b"Host:", b"Host: a\r\nContent-Length: 9\r\n\r\n"):
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(b"GET /livez HTTP/1.1\r\n" + rest)
        halves.append(client)
    time.sleep(0.3)
    begun = time.monotonic()
    assert {get(server, "/livez").status_code for _ in range(5)} == {200}
    # A thread that waits for the rest gives up only after 5 s.
    assert time.monotonic() - begun < 4
    for client in halves:
        client.close()


def test_the_old_way_to_drain_names_the_new_one() -> None:
    """A `pre_stop` that is still in a Compose file fails with one line that helps."""
    done = subprocess.run(
        [sys.executable, "-m", "serving.health", "--drain"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "SIGTERM drains without it" in done.stderr.splitlines()[-1]
