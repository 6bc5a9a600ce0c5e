"""METRICS=on: what the exporter shows of a server, whatever the server and its clients do."""

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import free_port, poll
from tests.support.exporter import Measured
from tests.support.servers import Server

APP = """
import sys, time
from serving import routes
from serving.wsgi import Service

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise ValueError("told to")
    if environ["PATH_INFO"] in ("/", "/known"):
        routes.current.set(environ["PATH_INFO"])
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start_response("200 OK" if routes.current.get() else "404 Not Found", [("Content-Type", "text/plain")])
    return [str("prometheus_client" in sys.modules).encode()]

application = Service(app)
"""
SERVERS = {
    "gunicorn": ("serving.gunicorn", "app"),
    "without preload": ("serving.gunicorn", "app"),
    "sync": ("serving.gunicorn", "--worker-class", "sync", "--threads", "1", "app"),
    "uvicorn": ("serving.uvicorn", "tests.support.measured_fastapi:app"),
    "fastapi-hybrid": (
        "serving.gunicorn",
        "--worker-class",
        "serving.uvicorn.worker.Worker",
        "tests.support.measured_fastapi:app",
    ),
}
# One of each is enough for `make test`.
SLOW = dict.fromkeys(SERVERS.keys() - {"gunicorn", "uvicorn"}, pytest.mark.slow)
BOTH = [name for name in ("gunicorn", "uvicorn") if name in SERVERS]
# Gunicorn with more than one kind of worker.
FORKING = ["gunicorn", "without preload"]
FORKING += ["fastapi-hybrid"]
REQUESTS = "http_server_request_duration_seconds_count"
QUEUED = "http_server_queue_duration_seconds"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def start(folder: Path, name: str = "gunicorn", *options: str, **environ: str) -> Measured:
    """A server of two workers."""
    module, *command = SERVERS[name]
    environ = {"WEB_CONCURRENCY": "2", "PYTHONPATH": str(folder)} | environ
    environ |= {"PRELOAD": "off"} if name == "without preload" else {}
    server = Measured(module, *options, *command, **environ).wait()
    poll(lambda: server.scrape().total("server_workers") == int(environ["WEB_CONCURRENCY"]), log=server.log)
    return server


def get(server: Server, target: str = "/", method: str = "GET", **headers: str) -> int:
    """The status of one request, on a connection of its own."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers |= {"connection": "close"}
    return httpx2.request(
        method, server.url + target, headers=headers, trust_env=False, timeout=30
    ).status_code


def files(server: Measured) -> set[str]:
    """The names of the workers' files."""
    return {path.name for path in server.directory().iterdir()}


def kill_workers(server: Measured) -> None:
    """As the kernel does when memory is short."""
    for worker in server.workers():
        os.kill(worker, signal.SIGKILL)


@contextmanager
def holding(server: Server, target: str, number: int = 1) -> Iterator[None]:
    """So many requests whose responses are not read."""
    with ExitStack() as clients:
        for _ in range(number):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in SERVERS])
def test_requests_are_counted_by_method_route_and_status(name: str, folder: Path) -> None:
    """No request can create a series: unknown paths, methods and routes have one value."""
    with start(folder, name) as server:
        assert get(server) == get(server, "/known") == get(server, method="HEAD") == 200
        for number in range(20):
            assert get(server, f"/{number}") == 404
            get(server, method=f"M{'X' * number}")
        poll(lambda: server.scrape().total(REQUESTS, http_response_status_code="404") >= 20, log=server.log)
        poll(lambda: server.scrape().total(REQUESTS, http_route="/known") == 1, log=server.log)
        poll(lambda: server.scrape().total("http_server_active_requests") == 0, log=server.log)
        figures = server.scrape()
        assert figures.values(REQUESTS, "http_route") == {"/", "/known", "_OTHER"}
        assert figures.values(REQUESTS, "http_request_method") <= {"GET", "HEAD", "_OTHER"}
        assert figures.total(REQUESTS, http_route="/known", http_response_status_code="200") == 1
        assert figures.total(REQUESTS, http_route="_OTHER", http_response_status_code="404") == 20
        assert figures.total("http_server_request_duration_seconds_sum", http_route="/") < 5
        assert figures.values("server_worker_memory_bytes", "worker") == {"0", "1"}
        assert figures.total("server_worker_memory_bytes") > 5e6
        assert figures.total("server_ready") == 1
        # The server itself has no such address.
        assert get(server, "/metrics") == 404


@pytest.mark.slow
def test_an_exception_is_a_500(folder: Path) -> None:
    """The application has not answered, so that its route is unknown."""
    with start(folder) as server:
        assert get(server, "/fail") == 500
        labels = {"http_response_status_code": "500", "http_route": "_OTHER"}
        poll(lambda: server.scrape().total(REQUESTS, **labels) == 1, log=server.log)
        poll(lambda: server.scrape().total("http_server_active_requests") == 0, log=server.log)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_only_a_trusted_proxy_tells_when_a_request_was_sent(name: str, folder: Path) -> None:
    """And what is no time counts as nothing."""
    second_ago = str(int(time.time() * 1000) - 1000)
    with start(folder, name) as server:
        values = ("soon", "-1", "1e9", "nan", "", "9" * 400, second_ago)
        for value in values:
            get(server, x_request_start=value)
        poll(lambda: server.scrape().total(REQUESTS) == len(values), log=server.log)
        assert server.scrape().total(f"{QUEUED}_count") == 1
        assert 1 <= server.scrape().total(f"{QUEUED}_sum") < 60
    with start(folder, name, FORWARDED_ALLOW_IPS="192.0.2.1") as server:
        get(server, x_request_start=second_ago)
        poll(lambda: server.scrape().total(REQUESTS) == 1, log=server.log)
        assert server.scrape().total(f"{QUEUED}_count") == 0


@pytest.mark.slow
def test_the_exporter_answers_while_every_thread_is_busy(folder: Path) -> None:
    """It shows so, and that others wait."""
    with start(folder, "gunicorn", "--threads", "2") as server, ExitStack() as clients:
        # One after another: of a burst, a worker may take more than it has threads.
        for count in range(1, 5):
            clients.enter_context(holding(server, "/?20", 1))
            poll(lambda count=count: server.scrape().total("server_threads_busy") == count, log=server.log)
        with holding(server, "/", 5):
            poll(lambda: server.scrape().total("server_backlog_connections") == 5, log=server.log)
            # Long enough for the workers to accept some, which still have no thread.
            time.sleep(2)
            begun = time.monotonic()
            figures = server.scrape()
            assert time.monotonic() - begun < 2
            assert figures.total("server_backlog_connections") == 5
            assert figures.total("server_threads") == figures.total("server_threads_busy") == 4
            assert figures.total("http_server_active_requests") == 4
            assert figures.total("server_ready") == 1
            kill_workers(server)


def test_a_client_that_goes_leaves_no_traceback(folder: Path) -> None:
    """Prometheus does after its scrape_timeout."""
    with start(folder) as server:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.exporter_port)) as client:
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert server.scrape().total("server_ready") == 1
        assert "Traceback" not in server.log()


HANG = """
from serving.wsgi import Service
from tests.support import apps
application = Service(apps.wsgi)
"""


def test_the_exporter_answers_while_every_worker_hangs(folder: Path) -> None:
    """No Python runs in the worker, and its connections wait."""
    (folder / "hang.py").write_text(HANG)
    environ = {"WEB_CONCURRENCY": "1", "PYTHONPATH": str(folder)}
    with Measured("serving.gunicorn", "hang", **environ).wait() as server, holding(server, "/spin"):
        poll(lambda: "event: spin" in server.log(), log=server.log)
        with holding(server, "/", 3):
            poll(lambda: server.scrape().total("server_backlog_connections") >= 3, log=server.log)
            figures = server.scrape()
            assert figures.total("server_ready") == 0
            assert figures.total("server_backlog_connections") >= 3
            assert figures.total("http_server_active_requests") == 1
            kill_workers(server)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SERVERS.keys() - {"without preload", "sync"}))
def test_a_killed_worker_leaves_its_counters_only(name: str, folder: Path) -> None:
    """What it was doing is not shown any more, and its successor goes on counting in the same files."""
    with start(folder, name) as server:
        for _ in range(10):
            assert get(server) == 200
        # At most a second of observations is lost with a worker that is killed.
        poll(lambda: server.scrape().total(REQUESTS, http_route="/") == 10, log=server.log)
        before = files(server)
        with holding(server, "/wait?20", 2):
            poll(lambda: server.scrape().total("http_server_active_requests") == 2, log=server.log)
            kill_workers(server)
        poll(lambda: server.scrape().total("server_worker_exits_total", cause="SIGKILL") == 2, log=server.log)
        poll(lambda: server.scrape().total("server_workers") == 2, 30, log=server.log)
        assert get(server) == 200
        poll(lambda: server.scrape().total(REQUESTS, http_route="/") == 11, log=server.log)
        poll(lambda: server.scrape().total("http_server_active_requests") == 0, log=server.log)
        assert server.scrape().values("server_worker_memory_bytes", "worker") == {"0", "1"}
        assert files(server) == before


@pytest.mark.slow
def test_a_hundred_recycled_workers_leave_nothing_behind(folder: Path) -> None:
    """Each request ends its worker; no counter ever goes back, and there are never more files."""
    with start(folder, "gunicorn", "--max-requests", "1", "--max-requests-jitter", "0") as server:
        figures, sent = server.scrape(), 0
        while figures.total("server_worker_exits_total", cause="recycled") < 100:
            assert get(server) == 200
            sent += 1
            before, figures = figures, server.scrape()
            for name in (REQUESTS, "server_worker_exits_total"):
                assert figures.total(name) >= before.total(name)
        poll(lambda: server.scrape().total(REQUESTS) == sent, log=server.log)
        assert {name.rpartition("_")[2] for name in files(server)} <= {"parent.db", "0.db", "1.db"}
        for cause in ("exit", "timeout", "SIGKILL"):
            assert server.scrape().total("server_worker_exits_total", cause=cause) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FORKING)
def test_a_reload_has_both_generations_for_a_while(name: str, folder: Path) -> None:
    """Each worker has files of its own; afterwards the slots of the old ones are free."""
    with start(folder, name) as server, holding(server, "/wait?3", 2):
        poll(lambda: server.scrape().total("http_server_active_requests") == 2, log=server.log)
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: len(server.scrape().values("server_worker_memory_bytes", "worker")) > 2)
        poll(lambda: server.scrape().total("server_workers") == 2, 30, log=server.log)
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: server.scrape().total("server_worker_exits_total") == 4, 30, log=server.log)
        assert {file for file in files(server) if file.startswith("histogram_")} <= {
            f"histogram_{slot}.db" for slot in ("parent", 0, 1, 2, 3)
        }
        poll(lambda: server.scrape().total(REQUESTS) == 2, log=server.log)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", BOTH)
def test_the_exporter_lives_as_long_as_the_server(name: str, workers: str, folder: Path) -> None:
    """It is started again when it ends, and is gone after the server has been killed."""
    with start(folder, name, WEB_CONCURRENCY=workers) as server:
        first, directory = server.exporter(), server.directory()
        for ignored in (signal.SIGTERM, signal.SIGINT):
            os.kill(first, ignored)
        os.kill(first, signal.SIGKILL)
        poll(lambda: server.exporter() not in (0, first) and server.answers(), log=server.log)
        second, children = server.exporter(), server.workers()
        server.process.kill()
        server.process.wait()
        poll(lambda: not Path(f"/proc/{second}").exists(), log=server.log)
        assert not directory.exists()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_a_stop_takes_no_longer_and_leaves_nothing(name: str, folder: Path) -> None:
    """Also during a drain, the exporter answers until the server ends."""
    with start(folder, name, DRAIN_SECONDS="2") as server:
        exporter, directory = server.exporter(), server.directory()
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: server.scrape().total("server_ready") == 0, log=server.log)
        assert server.exit_code() == 0
        assert time.monotonic() - begun < 6
        assert not Path(f"/proc/{exporter}").exists()
        assert not directory.exists()
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("name", BOTH)
def test_off_costs_nothing(name: str, folder: Path) -> None:
    """No process, no directory and not even an import."""
    module, *command = SERVERS[name]
    environ = {"WEB_CONCURRENCY": "2", "PYTHONPATH": str(folder)}
    with Server(module, *command, **environ).wait() as server:
        assert httpx2.get(server.url, trust_env=False).text == "False"
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert not any(b"serving.metrics" in Path(f"/proc/{c}/cmdline").read_bytes() for c in children)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"METRICS_PORT": "many"}, "METRICS_PORT='many': must be a whole number from 1 to 65535"),
        ({"METRICS_PORT": "taken"}, "HOST and METRICS_PORT='127.0.0.1:{}': must be free to listen on"),
    ],
)
def test_a_wrong_value_is_one_line(name: str, environ: dict[str, str], line: str, folder: Path) -> None:
    """The server does not start."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        environ = {"METRICS": "on"} | environ
        environ |= {"METRICS_PORT": taken} if environ.get("METRICS_PORT") == "taken" else {}
        module, *command = SERVERS[name]
        environ |= {"WEB_CONCURRENCY": "1", "PYTHONPATH": str(folder)}
        with Server(module, *command, **environ) as server:
            assert server.exit_code() == 1
            assert line.format(taken) in server.log()
            assert "Traceback" not in server.log()


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_the_port_of_the_server_is_refused(name: str, folder: Path) -> None:
    """It may not be taken yet when the exporter starts."""
    port = str(free_port())
    module, *command = SERVERS[name]
    environ = {"WEB_CONCURRENCY": "1", "PYTHONPATH": str(folder), "METRICS": "on", "METRICS_PORT": port}
    with Server(module, *command, **environ | {"PORT": port}) as server:
        assert server.exit_code() == 1
        assert f"METRICS_PORT={port}: must be another port than that of the server" in server.log()
        assert "Traceback" not in server.log()
