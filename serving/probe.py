"""A container's own health check: `python -IS serving/probe.py`; exits 1 with one line on failure.

It asks /readyz until that has answered 200 once, and /livez from then on: an engine that replaces
unhealthy containers must not replace all of them because a database is away. It imports nothing
but a C module, because most of its cost is the start of the interpreter.
"""

import _socket  # what `socket` wraps, without its imports
import os
import sys

TIMEOUT = 4  # seconds; the engine gives up on a probe after its own, longer timeout
ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def ask(host: str, port: int, path: str) -> str:
    """The response's status line; raises OSError."""
    family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
    client = _socket.socket(family, _socket.SOCK_STREAM)
    client.settimeout(TIMEOUT)
    client.connect((host, port))
    name = f"[{host}]" if ":" in host else host
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n".encode())
    return client.recv(4096).partition(b"\r\n")[0].decode("latin-1")


def was_ready(markers: list[str]) -> bool:
    """Whether an earlier probe has left one of these files."""
    return any(os.access(marker, os.F_OK) for marker in markers)


def remember(markers: list[str]) -> None:
    """Leave a file; without a place for one, /readyz is asked forever."""
    for marker in markers:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        except OSError:
            continue
        return


def main() -> None:
    """Ask once."""
    host = os.environ.get("HOST", "")
    host = ADDRESSES.get(host, host)
    port = int(os.environ.get("PORT") or 8000)
    # Both folders are emptied when a container starts, if they are in memory.
    markers = [f"{folder}/was-ready-{port}" for folder in ("/dev/shm", "/tmp")]  # noqa: S108
    path = "/livez" if was_ready(markers) else "/readyz"
    try:
        status = ask(host, port, path)
    except OSError as error:
        sys.exit(f"{host}:{port}{path}: {error}")
    if " 200" not in status:
        sys.exit(f"{host}:{port}{path}: {status or 'no response'}")
    if path == "/readyz":
        remember(markers)


if __name__ == "__main__":
    main()
