"""WebSocket frames, right and wrong, for FastAPI's /ws: no client library sends the wrong ones."""

import socket
import struct
from contextlib import suppress

import pytest

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10


def frame(first: int, payload: bytes = b"", masked: bool = True, length: int | None = None) -> bytes:
    """A frame with this first byte (FIN, reserved bits, opcode); `length` to claim another one."""
    size = len(payload) if length is None else length
    mask, key = (0x80, b"\1\2\3\4") if masked else (0, b"")
    if size < 126:
        head = struct.pack("!BB", first, mask | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, mask | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask | 127, size)
    if masked:
        payload = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
    return head + key + payload


def handshake(url: str, *headers: str) -> tuple[socket.socket, str]:
    """A connection after its handshake, and the head of the answer."""
    name = url.removeprefix("http://")
    host, port = name.split(":")
    client = socket.create_connection((host, int(port)), timeout=20)
    lines = (
        "GET /ws HTTP/1.1",
        f"Host: {name}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
        *headers,
    )
    client.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(4096) or pytest.fail(f"closed after {head!r}")
    assert head.startswith(b"HTTP/1.1 101 "), head
    return client, head.decode().lower()


def closing(client: socket.socket) -> int | None:
    """The code of the close frame that comes; None when the connection ends or stays without one."""
    data = b""
    with suppress(OSError):
        while len(data) < 4 and (chunk := client.recv(65536)):
            data += chunk
    return struct.unpack("!H", data[2:4])[0] if data[:1] == b"\x88" and len(data) > 3 else None
