"""Uvicorn's own options work with `python -m serving.uvicorn`: docs/uvicorn.md."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import uvicorn

from tests.support.commands import ROOT, poll
from tests.support.servers import Server

pytestmark = pytest.mark.slow

APP = """
import os
from serving.asgi import Service

async def answer(scope, receive, send):
    body = f"{os.getpid()} {scope['client'][0] if scope['client'] else ''} {scope['root_path']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

app = Service(answer)

def create():
    return app
"""

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def start(folder: Path, *flags: str, **environ: str) -> Server:
    """A server without a lifespan."""
    return Server("serving.uvicorn", "--lifespan", "off", *flags, PYTHONPATH=str(folder), **environ)


def ask(server: Server) -> list[str]:
    """The process that answered, the client as it sees it, and the root path."""
    with httpx2.Client(trust_env=False, headers={"connection": "close"}) as client:
        return client.get(server.url).text.split(" ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_inherited_descriptor_serves(workers: str, folder: Path) -> None:
    """`--fd N`, as systemd and other supervisors hand over a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor = listener.fileno()
        command = ("serving.uvicorn", "app:app", "--lifespan", "off", "--workers", workers)
        with subprocess.Popen(
            [sys.executable, "-m", *command, "--fd", str(descriptor)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(folder)},
            pass_fds=[descriptor],
            stdout=subprocess.DEVNULL,
        ) as process:
            try:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"

                def client() -> str:
                    try:
                        return httpx2.get(url, trust_env=False).text.split(" ")[1]
                    except httpx2.HTTPError:
                        return ""

                assert poll(client) == "127.0.0.1"
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_unix_socket_serves_and_is_removed(workers: str, folder: Path) -> None:
    """Its peer is trusted by the word `unix`."""
    path = folder / "socket"
    flags = ("--uds", str(path), "--workers", workers, "app:app")
    with start(folder, *flags, FORWARDED_ALLOW_IPS="unix") as server:
        poll(path.exists, log=server.log)

        def answer() -> str:
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(str(path))
                    client.sendall(REQUEST)
                    return client.makefile().read()
                except OSError:
                    return ""

        assert " 203.0.113.7 " in poll(answer, log=server.log)
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert not path.exists()


def test_a_factory_below_a_root_path_serves(folder: Path) -> None:
    """Both are handed on to Uvicorn, also in worker processes."""
    flags = ("--factory", "--root-path", "/shop", "--workers", "2", "app:create")
    with start(folder, *flags).wait() as server:
        assert ask(server)[2] == "/shop"


def test_a_worker_that_served_enough_is_replaced(folder: Path) -> None:
    """`--limit-max-requests`; a connection that is opened at that moment may be reset."""
    pids = set()
    with start(folder, "--workers", "2", "--limit-max-requests", "20", "app:app").wait() as server:
        for _ in range(100):
            with suppress(httpx2.TransportError):
                pids.add(ask(server)[0])
        assert len(pids) > 2, server.log()


def test_too_many_connections_are_refused(folder: Path) -> None:
    """`--limit-concurrency` counts idle connections, and refuses a probe as well."""
    with start(folder, "--workers", "1", "--limit-concurrency", "3", "app:app").wait() as server:
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        poll(lambda: httpx2.get(server.url + "/livez", trust_env=False).status_code == 503, log=server.log)
        for client in clients:
            client.close()
        poll(lambda: httpx2.get(server.url + "/livez", trust_env=False).status_code == 200, log=server.log)


def test_the_page_names_every_option() -> None:
    """An option that a later Uvicorn adds must be looked at, and one that it removes must go."""
    page = (ROOT / "docs/uvicorn.md").read_text().partition("## Signals")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.+?) \|", page, re.MULTILINE)))
    assert sorted(named) == sorted(option.name for option in uvicorn.main.params)
