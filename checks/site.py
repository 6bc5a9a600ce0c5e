"""A deployment at an address, asked with the standard library alone, one connection per request."""

import socket
import ssl
from functools import cached_property
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urljoin, urlsplit

from serving import settings

REDIRECTS = 3


class Answer:
    """A response, read to its end."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()
        self.text = self.body.decode(errors="replace")
        self.is_page = "html" in self.headers.get("Content-Type", "")


class Site:
    """A deployment at an address; raises SettingError for a text that is no address."""

    def __init__(self, url: str, largest: int = 16 * 1024) -> None:
        """`largest` is the number of bytes that an error may have."""
        self.url, self.largest = url.rstrip("/"), largest
        allowed = "the address of a deployment, such as https://www.example.com"
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            settings.refuse("URL", url, allowed)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            settings.refuse("URL", url, allowed)
        self.tls, self.host, self.base = parts.scheme == "https", parts.hostname, parts.path
        self.port = port or (443 if self.tls else 80)
        self.local = self.host in ("127.0.0.1", "::1") or self.host.endswith("localhost")
        authority = settings.text("CA")
        try:
            self.context = ssl.create_default_context(cafile=authority or None)
        except OSError as error:
            settings.refuse("CA", authority, f"a file of certificates ({error.strerror or error})")
        if settings.flag("INSECURE"):
            self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE

    def connect(self) -> socket.socket:
        """A TCP connection; *.localhost is this machine, even where no resolver says so."""
        host = "127.0.0.1" if self.host.endswith(".localhost") else self.host
        return socket.create_connection((host, self.port), timeout=10)

    def encrypt(self, *protocols: str) -> ssl.SSLSocket:
        """A connection with TLS, for one of these protocols."""
        self.context.set_alpn_protocols(protocols)
        return self.context.wrap_socket(self.connect(), server_hostname=self.host)

    def open(self) -> HTTPConnection:
        """A connection that is not opened again when the server closes it."""
        connection = HTTPConnection(self.host, self.port)
        connection.default_port, connection.auto_open = (443 if self.tls else 80), 0
        connection.sock = self.encrypt("http/1.1") if self.tls else self.connect()
        return connection

    def ask(
        self,
        path: str,
        method: str = "GET",
        headers: Any = None,
        body: bytes | None = None,
        on: HTTPConnection | None = None,
    ) -> Answer:
        """The answer, on a new connection or on the given one."""
        connection = on or self.open()
        try:
            given = {"Accept-Encoding": "identity"} | (headers or {})
            connection.request(method, self.base + path, body, given)
            return Answer(connection.getresponse())
        finally:
            if not on:
                connection.close()

    @cached_property
    def page(self) -> Answer:
        """The page at the address."""
        return self.follow("/")

    def follow(self, path: str) -> Answer:
        """The answer, after at most three redirects within the site."""
        answer = self.ask(path)
        for _ in range(REDIRECTS):
            target = urljoin(self.url + path, answer.headers.get("Location", "//elsewhere"))
            if answer.status // 100 != 3 or not target.startswith(self.url + "/"):
                break
            path = target.removeprefix(self.url)
            answer = self.ask(path)
        return answer
