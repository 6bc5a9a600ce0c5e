"""Uploads that a server cannot finish, and what they leave behind."""

import resource
from collections.abc import Iterator
from pathlib import Path

import httpx2

from tests.support.servers import Server, workers

MEBIBYTE = 1024 * 1024
# More than a framework keeps in memory, and what a file may have where space is short.
SIZE, LIMIT = 6 * MEBIBYTE, 3 * MEBIBYTE
KIND = "multipart/form-data; boundary=boundary"


def form(encoding: str = "8bit") -> bytes:
    """A form with one file, which ends in the middle of a group of four if it is read as base64."""
    head = 'Content-Disposition: form-data; name="file"; filename="f"'
    part = f"--boundary\r\n{head}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n{'x' * SIZE}y"
    return f"{part}\r\n--boundary--\r\n".encode()


def in_pieces(content: bytes) -> Iterator[bytes]:
    """Without a length, as a client sends it in chunks."""
    for start in range(0, len(content), MEBIBYTE):
        yield content[start : start + MEBIBYTE]


def upload(server: Server, content: bytes | Iterator[bytes], cookie: str = "") -> int:
    """The status of the response."""
    headers = {"content-type": KIND, "cookie": cookie}
    return httpx2.post(server.url, content=content, headers=headers, trust_env=False, timeout=30).status_code


def limit_files(server: Server) -> None:
    """Let the workers write no file of more than LIMIT bytes, as on a full disk."""
    for pid in workers(server):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def left_in(directory: Path, server: Server) -> list[str]:
    """The files in the directory, and those that were there and that a worker has open."""
    links = [link for pid in workers(server) for link in Path(f"/proc/{pid}/fd").iterdir()]
    opened = [str(link.readlink()) for link in links if link.is_symlink()]
    return [*map(str, directory.iterdir()), *(name for name in opened if name.startswith(str(directory)))]
