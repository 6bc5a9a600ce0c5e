"""An image registry on 127.0.0.1 that keeps everything in memory: what `docker push` and builds need."""

import hashlib
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support.commands import run


class Handler(BaseHTTPRequestHandler):
    """The part of https://github.com/opencontainers/distribution-spec that clients use."""

    protocol_version = "HTTP/1.1"
    contents: dict[str, tuple[str, bytes]]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a response; a body only for GET."""
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        """A manifest or a blob."""
        if self.path == "/v2/":
            self.answer(200)
        elif found := self.contents.get(self.path):
            kind, body = found
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.answer(200, body, Content_Type=kind, Docker_Content_Digest=digest)
        else:
            self.answer(404)

    def do_HEAD(self) -> None:
        """The same without the body."""
        self.do_GET()

    def do_POST(self) -> None:
        """Begin an upload."""
        self.answer(202, Location=f"{self.path}{id(self)}", Range="0-0")

    def do_PATCH(self) -> None:
        """A part of an upload."""
        kind, body = self.contents.get(self.path, ("", b""))
        body += self.body()
        self.contents[self.path] = kind, body
        self.answer(202, Location=self.path, Range=f"0-{len(body) - 1}")

    def do_PUT(self) -> None:
        """The end of an upload, or a manifest by its tag or digest."""
        url = urlsplit(self.path)
        if digest := parse_qs(url.query).get("digest"):
            _, before = self.contents.pop(url.path, ("", b""))
            path = url.path.partition("/uploads/")[0] + "/" + digest[0]
            self.contents[path] = "application/octet-stream", before + self.body()
            self.answer(201, Location=path)
            return
        content = self.headers["Content-Type"], self.body()
        digest = f"sha256:{hashlib.sha256(content[1]).hexdigest()}"
        self.contents[self.path] = self.contents[f"{self.path.rpartition('/')[0]}/{digest}"] = content
        self.answer(201, Location=self.path, Docker_Content_Digest=digest)

    def body(self) -> bytes:
        """The request's body, in chunks or of a known length."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    files = directory / "registry.pem", directory / "registry.key"
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    new = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-out", files[0], "-keyout", files[1])
    run("openssl", "req", *new, *names)
    return files


class Server(ThreadingHTTPServer):
    """Speaks TLS with clients that begin with it: builds do, and do not verify a local certificate."""

    context: ssl.SSLContext

    def get_request(self) -> tuple[socket.socket, object]:
        """A connection."""
        connection, address = super().get_request()
        if connection.recv(1, socket.MSG_PEEK) == b"\x16":
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address


class Registry:
    """A running registry; `directory` gets its certificate."""

    def __init__(self, directory: Path) -> None:
        handler = type("Handler", (Handler,), {"contents": {}})
        self.server = Server(("127.0.0.1", 0), handler)
        self.server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.context.load_cert_chain(*certificate(directory))
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self.server.shutdown()
        self.server.server_close()
