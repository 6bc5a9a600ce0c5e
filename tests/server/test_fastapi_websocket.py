"""The WebSocket closes with the right code, frees what a dead peer held, and stays within its memory."""

import re
import resource
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest
from websockets.sync.client import connect

from tests.support.commands import poll, run
from tests.support.containers import Containers
from tests.support.fastapi_websocket import (
    BINARY,
    CLOSE,
    FIN,
    PING,
    PONG,
    RSV1,
    RSV2,
    RSV3,
    TEXT,
    closing,
    frame,
    handshake,
)
from tests.support.servers import Server

MEBIBYTE = 1024 * 1024


VIOLATIONS: dict[str, tuple[bytes, set[int]]] = {
    "no mask": (frame(FIN | TEXT, b"a", masked=False), {1002}),
    "reserved bit 1": (frame(FIN | RSV1 | TEXT, b"a"), {1002}),
    "reserved bit 2": (frame(FIN | RSV2 | TEXT, b"a"), {1002}),
    "reserved bit 3": (frame(FIN | RSV3 | BINARY, b"a"), {1002}),
    "reserved bit on a ping": (frame(FIN | RSV1 | PING, b"a"), {1002}),
    "a fragmented ping": (frame(PING, b"a"), {1002}),
    "a ping of 126 bytes": (frame(FIN | PING, b"a" * 126), {1002}),
    "a pong of 126 bytes": (frame(FIN | PONG, b"a" * 126), {1002}),
    "a fragmented close": (frame(CLOSE, b"\x03\xe8"), {1002}),
    "nothing to continue": (frame(FIN, b"a"), {1002}),
    "nothing to continue, more to come": (frame(0, b"a"), {1002}),
    "a message inside a message": (frame(TEXT, b"a") + frame(FIN | TEXT, b"b"), {1002}),
    "a binary inside a text": (frame(TEXT, b"a") + frame(FIN | BINARY, b"b"), {1002}),
    "text that is not UTF-8": (frame(FIN | TEXT, b"\xff\xfe"), {1007}),
    "text with a surrogate": (frame(FIN | TEXT, b"\xed\xa0\x80"), {1007}),
    "text cut in a character": (frame(FIN | TEXT, b"\xc3"), {1007}),
    "fragments that are not UTF-8": (frame(TEXT, b"a") + frame(FIN, b"\xff"), {1007}),
    "close with one byte": (frame(FIN | CLOSE, b"\x03"), {1002}),
    "close with a reason that is not UTF-8": (frame(FIN | CLOSE, b"\x03\xe8\xff"), {1007, 1002}),
    "a message that is too long": (frame(FIN | BINARY, length=MEBIBYTE + 1), {1009}),
    "a message of 2^62 bytes": (frame(FIN | BINARY, length=1 << 62), {1009}),
    "fragments that are too long": (
        frame(BINARY, b"a" * MEBIBYTE) + frame(FIN, b"a"),
        {1009},
    ),
    **{f"reserved opcode {code}": (frame(FIN | code), {1002}) for code in (0x3, 0x7, 0xB, 0xF)},
    **{
        f"close with code {code}": (frame(FIN | CLOSE, struct.pack("!H", code)), {1002})
        for code in (0, 999, 1004, 1005, 1006, 1016, 2999, 5000, 65535)
    },
}


def codes(url: str) -> dict[str, int | None]:
    """How each of the violations ends."""
    found = {}
    for name, (data, _) in VIOLATIONS.items():
        with handshake(url)[0] as client:
            with suppress(ConnectionError):
                client.sendall(data)
            found[name] = closing(client)
    return found


def sockets(server: Server) -> int:
    """How many sockets the server's process has open."""
    files = Path(f"/proc/{server.process.pid}/fd").iterdir()
    return sum("socket:" in str(file.readlink()) for file in files if file.is_symlink())


@pytest.fixture(params=["containers", "hybrid"])
def stack(request: pytest.FixtureRequest) -> Containers:
    """The service behind the edge: with Uvicorn alone, and under Gunicorn."""
    return request.getfixturevalue(request.param)


def test_violations_close_with_the_right_code(stack: Containers) -> None:
    """Each breach of RFC 6455 gets a close frame that names it, through the edge as well."""
    found = codes(stack.urls["fastapi"])
    assert {name: code for name, code in found.items() if code not in VIOLATIONS[name][1]} == {}


def test_nothing_is_unpacked(stack: Containers) -> None:
    """No compression is agreed on, so that no small message can become a large one."""
    client, head = handshake(stack.urls["fastapi"], "Sec-WebSocket-Extensions: permessage-deflate")
    with client:
        assert "permessage-deflate" not in head
        client.sendall(frame(FIN | RSV1 | BINARY, b"\x4b\x04\x00"))
        assert closing(client) == 1002


@pytest.mark.slow
def test_a_dead_peer_is_let_go() -> None:
    """Who answers no ping is closed with 1011, and its socket freed; who answers stays."""
    environ = {"WEB_CONCURRENCY": "1", "UVICORN_WS_PING_INTERVAL": "1", "UVICORN_WS_PING_TIMEOUT": "1"}
    with Server("serving.uvicorn", **environ) as server:
        server.wait()
        with connect(server.url.replace("http", "ws", 1) + "/ws", proxy=None) as alive:
            before = sockets(server)
            with handshake(server.url)[0] as dead:
                poll(lambda: sockets(server) > before)
                poll(lambda: sockets(server) == before, log=server.log)
                said = dead.recv(4) + dead.recv(100)
                assert re.fullmatch(rb"\x89.*\x88.\x03\xf3.*", said, re.DOTALL), "a ping, then 1011"
            alive.send("still here")
            assert alive.recv(timeout=20) == "still here"


def test_a_thousand_idle_connections_fit_into_memory(containers: Containers) -> None:
    """The service and the edge stay within half of their limits, and every client is answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        url = containers.urls["fastapi"]
        with ExitStack() as idle, ThreadPoolExecutor(50) as pool:
            # Together, or the first ones miss their pings.
            clients = [
                idle.enter_context(client) for client in pool.map(lambda _: handshake(url)[0], range(1000))
            ]
            for name in ("fastapi", "edge"):
                stats = ("docker", "stats", "--no-stream", "--format", "{{.MemPerc}}")
                assert float(run(*stats, containers.container(name)).strip().rstrip("%")) < 50, name
            assert httpx2.get(url).status_code == 200
            for client in clients[::100]:
                client.sendall(frame(FIN | TEXT, b"awake"))
                assert frame(FIN | TEXT, b"awake", masked=False) in client.recv(100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
