"""More connections than the edge may open: the surplus waits or is refused, the rest stays."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest
from websockets.sync.client import connect

from tests.support.commands import poll
from tests.support.containers import Containers, up_until_teardown

# Each WebSocket takes two: from the client, and to the replica.
OPEN_FILES = 256


@pytest.fixture
def narrow(engine: None, tmp_path: Path) -> Iterator[Containers]:
    """FastAPI behind an edge that may open few files."""
    override = tmp_path / "override.yml"
    override.write_text(f"services: {{edge: {{ulimits: {{nofile: {OPEN_FILES}}}}}}}")
    yield from up_until_teardown(Containers(override), "fastapi")


def test_surplus_connections_do_not_harm_the_open_ones_of_fastapi(narrow: Containers) -> None:
    """Open WebSockets go on, the edge does not restart, and it serves again as soon as some close."""
    started = narrow.inspect("edge", "{{.State.StartedAt}}")
    url = narrow.urls["fastapi"]
    host, port = url.removeprefix("http://").split(":")
    with ExitStack() as sockets:
        clients = []
        with suppress(OSError, TimeoutError):
            for _ in range(OPEN_FILES):
                client = connect(f"ws://{host}:{port}/ws", open_timeout=3, proxy=None)
                clients.append(sockets.enter_context(client))
        assert OPEN_FILES / 4 < len(clients) < OPEN_FILES
        # Surplus connections that send nothing.
        for _ in range(20):
            sockets.enter_context(socket.create_connection((host, int(port)), timeout=3))
        for client in clients:
            client.send("still here")
            assert client.recv(timeout=10) == "still here"
    poll(lambda: httpx2.get(url, trust_env=False, timeout=5).status_code == 200)
    assert narrow.inspect("edge", "{{.State.StartedAt}}") == started
