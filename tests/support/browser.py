"""A client of the edge: over TLS by name, or byte by byte."""

import socket
import ssl
from typing import Any

import httpx2

from tests.support.containers import Containers


class Browser(httpx2.Client):
    """Asks the edge over TLS, by the services' names, and trusts its authority alone."""

    def __init__(self, stack: Containers) -> None:
        root = stack.exec("edge", "cat", "/data/caddy/pki/authorities/local/root.crt")
        self.context = ssl.create_default_context(cadata=root)
        self.stack, self.root = stack, root
        self.port = int(stack.ports["EDGE_HTTPS_PORT"])
        super().__init__(verify=self.context, trust_env=False)

    def ask(self, service: str, path: str = "/", method: str = "GET", **options: Any) -> httpx2.Response:
        """A request to https://SERVICE.DOMAIN:PORT/PATH; no Python client resolves *.localhost."""
        name = f"{service}.{self.stack.environ.get('DOMAIN', 'localhost')}"
        headers = {"host": f"{name}:{self.port}"} | options.pop("headers", {})
        url = f"https://127.0.0.1:{self.port}{path}"
        return self.request(method, url, headers=headers, extensions={"sni_hostname": name}, **options)


def raw(url: str, request: bytes, seconds: float = 30) -> bytes:
    """What the server answers until it closes; b"" when it closes without a word."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as client:
        client.sendall(request)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return answer
