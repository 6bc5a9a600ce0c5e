"""What is said of a server mode is so, good or bad: a limit that an upstream fix lifts turns red here."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from math import ceil
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from bench import modes
from bench.modes import Mode, Running
from serving import sizing
from tests.support import apps
from tests.support.commands import ROOT, free_port, poll, run
from tests.support.servers import Server

pytestmark = pytest.mark.alone

MODES = {mode.name: mode for mode in modes.MODES}
MEBIBYTE = 1024 * 1024
CONFIGURATION = (ROOT / "gunicorn.conf.py").read_text()

THREADS = sizing.SERVING_THREADS["mixed"]

# Mode, its workers, and how many requests one of them can wait for at a time.
SLOTS = {
    "flask gthread": (2, THREADS),
    "flask sync": (4, 1),
    "flask gevent": (2, 1000),
    "fastapi uvicorn": (2, 1000),
    "fastapi hybrid": (2, 1000),
    "fastapi gunicorn asgi": (2, 1000),
}
ASGI = ["fastapi uvicorn", "fastapi hybrid", "fastapi gunicorn asgi"]


def bare(name: str, module: str = "tests.support.apps") -> Mode:
    """The mode of that name, with the application of apps.py instead of its own."""
    mode = MODES[name]
    app = f"{module}:{'wsgi' if mode.app == 'flask' else 'asgi'}"
    command = mode.command if "{app}" in mode.command else mode.command + " {app}"
    return replace(mode, command=command.replace("{app}", app))


def without_preload(directory: Path) -> tuple[str, str]:
    """The flags for gunicorn.conf.py, but without `preload_app`, which no flag turns off."""
    changed = directory / "changed.conf.py"
    # Last, because what serving/ adds comes last.
    changed.write_text(f"{CONFIGURATION}\npreload_app = False\n")
    return "--config", str(changed)


def get(url: str, **headers: str) -> str:
    """The answer's text, over a connection of its own."""
    with urlopen(Request(url, headers=headers), timeout=30) as answer:
        return str(answer.read(), "utf-8")


def client(server: Running) -> HTTPConnection:
    """A client that keeps its connection."""
    return HTTPConnection(urlsplit(server.url).netloc, timeout=30)


def events(server: Running, event: str) -> int:
    """How many times the application said so."""
    return server.log.read_text().count(f"event: {event} [")


def ready(server: Running, workers: int) -> None:
    """Return when every worker runs: a signal that comes earlier may be lost."""
    poll(lambda: events(server, "startup") == workers, log=server.log.read_text)


def lost(server: Running, done: Callable[[], object]) -> int:
    """How many requests failed of those that eight clients, which keep their connections, made until then."""
    over = Event()

    def ask(_: int) -> int:
        connection, failures = client(server), 0
        while not over.is_set():
            try:
                connection.request("GET", "/")
                assert connection.getresponse().read() in (b"one", b"two")
            except (OSError, HTTPException):
                connection.close()
                failures += 1
        connection.close()
        return failures

    with ThreadPoolExecutor(8) as pool:
        failures = pool.map(ask, range(8))
        try:
            poll(done, log=server.log.read_text)
        finally:
            over.set()
        return sum(failures)


@pytest.fixture(scope="module", params=SLOTS)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Running]]:
    """Each of the modes in turn, for what leaves it as it was."""
    with bare(request.param).running("--workers", str(SLOTS[request.param][0])) as running:
        yield request.param, running


def test_thirty_two_waits_take_what_workers_and_threads_allow(server: tuple[str, Running]) -> None:
    """A second for as many as there are slots: one with asyncio and gevent, eight with four sync workers."""
    name, running = server
    count, each = SLOTS[name]
    least = ceil(32 / (count * each))
    with ThreadPoolExecutor(32) as pool:
        start = time.monotonic()
        answers = list(pool.map(get, [running.url + "/wait"] * 32))
        seconds = time.monotonic() - start
    assert answers == ["one"] * 32
    assert least <= seconds < least + 4, running.log.read_text()


def test_a_connection_is_kept(server: tuple[str, Running]) -> None:
    """A second request goes over the first one's connection. Known limit (gunicorn 27.0.1): not with sync."""
    name, running = server
    connection = client(running)
    for _ in range(2):
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.read(), answer.will_close) == (b"one", name == "flask sync")
    connection.close()


def test_the_first_chunk_does_not_wait_for_the_last(server: tuple[str, Running]) -> None:
    """The application makes two chunks, a second apart; so they arrive."""
    connection = client(server[1])
    connection.request("GET", "/stream")
    answer = connection.getresponse()
    first, here = answer.read(len(apps.CHUNKS[0])), time.monotonic()
    assert (first, answer.read(len(apps.CHUNKS[1]))) == apps.CHUNKS
    assert time.monotonic() - here > 0.5
    connection.close()


def test_a_large_body_passes_through(server: tuple[str, Running]) -> None:
    """Fifty mebibytes are counted right, and all but the last byte of them take less than ten."""
    body, running = 50 * MEBIBYTE, server[1]
    connection = client(running)
    connection.putrequest("POST", "/upload")
    connection.putheader("Content-Length", str(body))
    connection.endheaders()
    before = running.memory()
    connection.send(bytes(body - 1))
    growth = running.memory() - before
    connection.send(b"x")
    assert connection.getresponse().read() == str(body).encode()
    assert growth < 10 * MEBIBYTE
    connection.close()


def test_an_application_alone_sees_the_proxy(server: tuple[str, Running]) -> None:
    """Known limit (gunicorn 27.0.1): none of its workers corrects the address; uvicorn.json forbids it."""
    assert get(server[1].url + "/client", **{"X-Forwarded-For": "203.0.113.7"}) == "127.0.0.1"


@pytest.mark.parametrize("name", ["django gthread", "django asgi", "fastapi hybrid", "fastapi gunicorn asgi"])
def test_an_application_in_our_wrapper_sees_the_client(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What serving/ does for the modes that test_peers.py knows, it does for every other one."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with MODES[name].running("--workers", "1") as running:
        connection = client(running)
        connection.request("GET", "/any-client", headers={"X-Forwarded-For": "203.0.113.7"})
        assert connection.getresponse().read()
        connection.close()
        poll(lambda: '203.0.113.7 "GET /any-client"' in running.log.read_text(), log=running.log.read_text)


def test_django_is_served_as_flask_is() -> None:
    """Both recommended WSGI modes are one command: what is shown of Flask's holds for Django's."""
    assert MODES["django gthread"].command == MODES["flask gthread"].command


@pytest.mark.parametrize("name", ASGI)
def test_the_lifespan_encloses_the_service(name: str) -> None:
    """In every worker the startup ends before the first answer, and the shutdown runs on SIGTERM."""
    with bare(name).running("--workers", "2") as running:
        ready(running, 2)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0, running.log.read_text()
        assert events(running, "answer before startup") == 0
        assert events(running, "shutdown") == 2, running.log.read_text()


@pytest.mark.parametrize("name", ["flask sync", "fastapi gunicorn asgi"])
def test_a_stop_finishes_what_was_begun(name: str) -> None:
    """A request in flight is answered, and the exit code is 0, in the modes that no service uses too."""
    with bare(name).running("--workers", "1") as running, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(get, running.url + "/wait")
        poll(lambda: events(running, "wait"), log=running.log.read_text)
        running.process.send_signal(signal.SIGTERM)
        assert answer.result() == "one", running.log.read_text()
        assert running.process.wait(20) == 0, running.log.read_text()


def test_a_stop_of_gunicorns_asgi_worker_forgets_websockets() -> None:
    """Known limit (gunicorn 27.0.1): one WebSocket takes the whole grace, gets no close, ends no lifespan."""
    grace = 3
    with bare("fastapi gunicorn asgi").running("--workers", "1", "--graceful-timeout", str(grace)) as running:
        start = time.monotonic()
        assert stop_with_a_websocket(running) is None
        assert time.monotonic() - start > grace
        assert events(running, "shutdown") == 0


def stop_with_a_websocket(running: Running) -> int | None:
    """The close code that an idle WebSocket gets on SIGTERM, when the server has ended."""
    with connect(running.url.replace("http", "ws"), close_timeout=1) as websocket:
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=20)
        assert running.process.wait(20) == 0, running.log.read_text()
    return closed.value.rcvd.code if closed.value.rcvd else None


def reload(mode: Mode, directory: Path, *flags: str) -> str:
    """What the mode answers after new code and SIGHUP; no request in flight may be lost by it."""
    source = directory / "application.py"
    shutil.copy(apps.__file__, source)
    flags += ("--app-dir" if "-m serving.uvicorn" in mode.command else "--pythonpath", str(directory))
    with mode.running("--workers", "2", *flags) as running, ThreadPoolExecutor(5) as pool:
        if mode.app == "fastapi":
            ready(running, 2)
        old = poll(lambda: len(found := workers(running)) == 2 and found, log=running.log.read_text)
        answers = [pool.submit(get, running.url + "/wait") for _ in range(4)]
        poll(lambda: events(running, "wait") == 4, log=running.log.read_text)
        source.write_text(source.read_text().replace('"one"', '"two"'))
        running.process.send_signal(signal.SIGHUP)
        if mode.app == "flask":
            # Only threads also lose nothing of what comes meanwhile: asyncio workers close idle
            # connections at once, and now and then one of those is just being used.
            assert lost(running, lambda: not old & workers(running)) == 0, running.log.read_text()
        assert [answer.result() for answer in answers] == ["one"] * 4, running.log.read_text()
        poll(lambda: not old & workers(running), log=running.log.read_text)
        text = get(running.url)
        assert running.process.poll() is None
    return text


def workers(running: Running) -> set[int]:
    """Its processes, but for the first and for Python's resource tracker, which both stay."""
    found = set()
    for pid in running.tree()[1:]:
        with suppress(OSError):  # ended meanwhile
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


@pytest.mark.parametrize("name", ["flask gthread", *ASGI])
def test_sighup_serves_new_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without preload every worker is replaced by one with the new code, and finishes what it began."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    flags = () if name == "fastapi uvicorn" else without_preload(tmp_path)
    assert reload(bare(name, "application"), tmp_path, *flags) == "two"


@pytest.mark.parametrize("name", ["flask gthread", "fastapi hybrid"])
def test_sighup_serves_the_old_code_with_preload(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known limit (gunicorn 27.0.1): new workers, but of the old code, which the master has loaded."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert reload(bare(name, "application"), tmp_path) == "one"


def lost_by_recycling(name: str) -> int:
    """How many requests fail under load until ten workers, of a hundred requests each, are replaced."""
    flags = ("--workers", "2", "--max-requests", "100", "--max-requests-jitter", "0")
    with bare(name).running(*flags) as running:
        return lost(running, lambda: running.log.read_text().count("Booting worker") >= 2 + 10)


@pytest.mark.parametrize("name", ["flask gthread", "flask sync"])
def test_recycling_under_load_loses_nothing(name: str) -> None:
    """A worker that has served its hundred requests finishes what its clients have begun."""
    assert lost_by_recycling(name) == 0


def test_silent_connections_hold_neither_a_thread_nor_a_stop() -> None:
    """Opened ahead of need, as proxies and browsers do; Gunicorn's own worker would wait 5 s, and 25."""
    with bare("flask gthread").running("--workers", "1") as running, ExitStack() as silent:
        address = urlsplit(running.url)
        for _ in range(4 * THREADS):
            silent.enter_context(socket.create_connection((address.hostname, address.port)))
        start = time.monotonic()
        get(running.url + "/client")
        assert time.monotonic() - start < 3
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(12) == 0, running.log.read_text()


def test_chunks_that_break_off_at_the_limit_are_the_clients_failure() -> None:
    """400: Flask has all that it may take, and the client is gone."""
    head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
    with MODES["flask gthread"].running() as running:
        address = urlsplit(running.url)
        with socket.create_connection((address.hostname, address.port), timeout=20) as client:
            client.sendall(f'{head}\r\n\r\n{MEBIBYTE:x}\r\n"{"x" * (MEBIBYTE - 2)}"\r\n'.encode())
            client.shutdown(socket.SHUT_WR)
            assert client.recv(4096).split()[1] == b"400", running.log.read_text()


@pytest.mark.parametrize("name", ["fastapi hybrid", "fastapi gunicorn asgi"])
def test_recycling_an_asyncio_worker_loses_requests(name: str) -> None:
    """Known limit (uvicorn 0.54, gunicorn 27.0.1): it drops the connections that it holds."""
    assert lost_by_recycling(name) > 0


@pytest.mark.parametrize("name", ASGI)
def test_our_configuration_recycles_no_asyncio_worker(name: str) -> None:
    """Which is why it is off: Gunicorn's setting comes to 0, and Uvicorn is given none."""
    mode = bare(name)
    if name == "fastapi uvicorn":
        assert "limit_max_requests" not in json.loads((ROOT / "uvicorn.json").read_text())
        return
    command = shlex.split(mode.command.replace("python", sys.executable, 1))
    settings = run(*command, "--print-config", env=os.environ | mode.environ)
    assert re.search("^max_requests += 0$", settings, re.MULTILINE), settings


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("flask sync", "/block"),
        ("flask gthread", "/spin"),
        ("fastapi hybrid", "/block"),
        ("fastapi gunicorn asgi", "/block"),
    ],
)
def test_a_hung_worker_is_replaced(name: str, path: str) -> None:
    """When its only thread, its event loop or, with gthread, the interpreter hangs, a new one answers."""
    with bare(name).running("--workers", "1", "--timeout", "3") as running:
        with pytest.raises((OSError, HTTPException)):
            get(running.url + path)
        assert "WORKER TIMEOUT" in running.log.read_text(), running.log.read_text()
        assert get(running.url) == "one"


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("flask gthread", ("--workers", "1", "--timeout", "3")),
        ("uvicorn --workers 4", ("--workers", "2", "--timeout-worker-healthcheck", "3")),
    ],
)
def test_a_hung_thread_or_event_loop_is_not_noticed(name: str, flags: tuple[str, ...]) -> None:
    """Known limit (gunicorn 27.0.1, uvicorn 0.54): it outlasts the timeout, and its answer still comes."""
    with bare(name).running(*flags) as running:
        assert get(running.url + "/block") == "one", running.log.read_text()


def exit_code(name: str, directory: Path, module: str = "tests.support.apps", **environ: str) -> int:
    """How the start of this mode ends."""
    mode = bare(name, module)
    base = {"PYTHONPATH": str(ROOT), "UVICORN_PORT": str(free_port())} | mode.environ
    directory = ROOT if mode.kind in ("recommended", "alternative") else directory
    with Server(*shlex.split(mode.command)[2:], cwd=directory, **base, **environ) as server:
        code = server.exit_code()
        assert ("told to" if "FAIL" in environ else module) in server.log(), server.log()
        return code


@pytest.mark.parametrize("name", ["flask gthread", "fastapi hybrid", "fastapi gunicorn asgi"])
def test_a_start_without_the_application_fails(name: str, tmp_path: Path) -> None:
    """The exit code is not 0 when there is nothing to import."""
    assert exit_code(name, tmp_path, "nowhere") != 0


@pytest.mark.parametrize("name", ["fastapi hybrid", "fastapi gunicorn asgi"])
def test_a_start_whose_lifespan_fails_fails(name: str, tmp_path: Path) -> None:
    """The exit code is not 0 when the application says that it can not start."""
    assert exit_code(name, tmp_path, FAIL="1") != 0


def test_a_start_of_plain_uvicorn_with_workers_fails_with_0(tmp_path: Path) -> None:
    """Known limit (uvicorn 0.54): to an orchestrator a failed lifespan looks like a finished job."""
    assert exit_code("uvicorn --workers 4", tmp_path, FAIL="1") == 0


@pytest.mark.parametrize("name", ["flask gthread", "django gthread", "fastapi hybrid"])
def test_preloaded_workers_share_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them take less than three quarters of what four take that loaded the application themselves."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    mode, four = MODES[name], ("--workers", "4")
    with mode.running(*four) as shared, mode.running(*four, *without_preload(tmp_path)) as alone:
        # Those that load it themselves still do when the first one of them answers.
        poll(lambda: shared.memory() < 0.75 * alone.memory(), log=alone.log.read_text)


def test_the_hybrid_takes_less_memory_than_uvicorn() -> None:
    """What it is chosen for: four of its workers fork from one process; Uvicorn's share nothing."""
    four = ("--workers", "4")
    with MODES["fastapi hybrid"].running(*four) as hybrid, MODES["fastapi uvicorn"].running(*four) as plain:
        poll(lambda: hybrid.memory() < 0.75 * plain.memory(), log=plain.log.read_text)
