"""`make smoke URL=...` tells ok, broken and not applicable apart, for any server."""

import datetime
import gzip
import os
import random
import re
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.sync.server import ServerConnection, serve

from checks.site import Site
from checks.smoke import CHECKS, PLACES, Broken, NotApplicable, examine, place
from tests.support.commands import ROOT, free_port, run

pytestmark = pytest.mark.slow

STYLE = "/static/site.0123456789ab.css"
PAGE = f'<!doctype html><link rel="stylesheet" href="{STYLE}">'
LINES = {
    "": "URL='': must be the address of a deployment, such as https://www.example.com",
    "ftp://localhost": "URL='ftp://localhost': must be the address of a deployment",
    "localhost:8000": "URL='localhost:8000': must be the address of a deployment",
    "http://localhost:http": "URL='http://localhost:http': must be the address of a deployment",
    "http://unknown.invalid": "URL='http://unknown.invalid': must be where a server answers (",
}

# What is wrong with the server -> the one check that fails, and what it reports.
FAULTS = {
    "unready": ("health", "/readyz: 503"),
    "kept probe": ("health", "/livez: 200, Cache-Control: None"),
    "forgotten": ("static files", f"{STYLE}: Cache-Control: max-age=60"),
    "unpacked": ("static files", f"{STYLE}: not compressed"),
    "soft 404": ("errors", "/no/such/address: 200"),
    "trace": ("errors", "404: shows 'Traceback (most recent'"),
    "long error": ("errors", "404: 20000 bytes, more than 16384"),
    "error with version": ("errors", "404: shows 'nginx/1'"),
    "echo": ("errors", "TRACE: 200"),
    "version": ("server's name", "Server: nginx/1.22.1"),
    "powered": ("server's name", "X-Powered-By: PHP"),
    "unprotected": ("security headers", "no X-Content-Type-Options, Referrer-Policy, X-Frame-Options"),
    "believed host": ("forged headers", "/: trusts forged.example"),
    "believed client": ("forged headers", "/: trusts 203.0.113.7"),
    "believed scheme": ("forged headers", "/: trusts X-Forwarded-Proto: 301 instead of 200"),
    "no id": ("request id", "X-Request-ID: none"),
    "one id": ("request id", "X-Request-ID: the-same-one, then the-same-one"),
    "close": ("keep-alive", "closed after /"),
}
TLS_FAULTS = {
    "cookie": ("security headers", "a cookie that is not Secure: session"),
    "http/1.1": ("HTTP/2", "not offered"),
    "h2": ("HTTP/2", "offered, but not spoken"),
}


class Handler(BaseHTTPRequestHandler):
    """Passes every check, unless the server has the fault that the check is about."""

    protocol_version = "HTTP/1.1"

    def version_string(self) -> str:
        """Its name."""
        return "nginx/1.22.1" if "version" in self.server.faults else "nginx"

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def do_TRACE(self) -> None:
        """Refuse it."""
        if "echo" in self.server.faults:
            self.answer(200, str(self.headers))
        else:
            self.answer(405, "refused")

    def process(self) -> int:
        """Which process would answer: the same one for requests in sequence, otherwise any."""
        alone = self.server.alone.acquire(blocking=False)
        time.sleep(0.05)
        if alone:
            self.server.alone.release()
        return random.randrange(2) if "two processes" in self.server.faults and not alone else 0

    def do_POST(self) -> None:
        """A message of a session, which only the process that opened it knows."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200 if self.path.endswith(f"sid={self.process()}") else 400, "ok")

    def do_GET(self) -> None:
        """A probe, a file, a page, or nothing."""
        faults = self.server.faults
        if self.path in ("/livez", "/readyz"):
            headers = {} if "kept probe" in faults else {"Cache-Control": "no-store"}
            unready = {"unready": 503, "hidden": 404}
            status = next((unready[fault] for fault in faults if fault in unready), 200)
            self.answer(status if self.path == "/readyz" else 200, "", **headers)
        elif "socket.io" in faults and self.path.startswith("/socket.io/"):
            self.answer(200, f'0{{"sid": "{self.process()}"}}')
        elif self.path == STYLE:
            age = 60 if "forgotten" in faults else 31536000
            self.answer(200, "a { color: red }\n" * 100, **{"Cache-Control": f"max-age={age}"})
        elif "slashes" in faults and not self.path.endswith("/"):
            self.answer(301, "", Location=f"{self.path}/")
        elif "believed scheme" in faults and self.headers.get("X-Forwarded-Proto") == "https":
            self.answer(301, "", Location=f"https://{self.headers['Host']}/")
        elif self.path == "/":
            believed = {"believed host": "X-Forwarded-Host", "believed client": "X-Real-IP"}
            told = [self.headers.get(name, "") for fault, name in believed.items() if fault in faults]
            self.answer(200, PAGE + "".join(told), **{"Content-Type": "text/html"})
        else:
            wrong = {"trace": "Traceback (most recent call last)", "long error": "x" * 20_000}
            wrong["error with version"] = "<hr>nginx/1.22.1"
            self.answer(
                200 if "soft 404" in faults else 404, "".join(wrong.get(fault, "") for fault in faults)
            )

    def answer(self, status: int, text: str, **headers: str) -> None:
        """Send it."""
        body, faults = text.encode(), self.server.faults
        if "gzip" in self.headers.get("Accept-Encoding", "") and "unpacked" not in faults:
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        if "unprotected" not in faults:
            headers |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
            headers |= {"X-Frame-Options": "DENY"}
        if "no id" not in faults:
            headers["X-Request-ID"] = "the-same-one" if "one id" in faults else uuid.uuid4().hex
        if "powered" in faults:
            headers["X-Powered-By"] = "PHP"
        if "close" in faults:
            headers["Connection"] = "close"
        headers["Set-Cookie"] = "session=1" + ("" if "cookie" in faults else "; Secure")
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Listening(ThreadingHTTPServer):
    """Accepts many clients at the same time."""

    request_queue_size = 64


@contextmanager
def server(*faults: str, certificate: Path | None = None) -> Iterator[str]:
    """The address of a server with these faults."""
    with Listening(("127.0.0.1", 0), Handler) as listening:
        listening.faults, listening.alone = faults, threading.Lock()
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            context.set_alpn_protocols(["h2"] if "h2" in faults else ["http/1.1"])
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http{'s' if certificate else ''}://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that is its own authority."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    public = (
        made.add_extension(hosts, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    path.write_bytes(secret + public)
    return path


def broken(url: str) -> dict[str, str]:
    """The checks that the site fails, and what they report."""
    return {name: found for name, (result, found) in examine(Site(url)).items() if result == "broken"}


def smoke(*urls: str, expect: int, **environ: str) -> str:
    """The output of the command."""
    command = (sys.executable, "-m", "checks.smoke", *urls)
    return run(*command, env=dict(os.environ) | environ, expect=expect)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported(fault: str) -> None:
    """That one and no other."""
    name, sentence = FAULTS[fault]
    with server(fault) as url:
        found = broken(url)
        assert found.keys() == {name}, found
        assert sentence in found[name]


@pytest.mark.parametrize("fault", TLS_FAULTS)
def test_a_fault_over_tls_is_reported(fault: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That one, beside the HTTP/2 that this server never speaks."""
    monkeypatch.setenv("CA", str(certificate))
    name, sentence = TLS_FAULTS[fault]
    with server(fault, certificate=certificate) as url:
        found = broken(url)
        assert found.keys() == {name, "HTTP/2"}, found
        assert sentence in found[name]


def test_a_websocket_without_bounds_is_reported() -> None:
    """A server that takes a message of any length waits for all of it."""
    with serve(lambda client: list(client), "127.0.0.1", 0, max_size=None) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        port = listening.socket.getsockname()[1]
        with pytest.raises(Broken, match="/ws: normal close 1000, message of unbounded length None"):
            CHECKS["WebSocket"](Site(f"http://127.0.0.1:{port}"))
        listening.shutdown()


@pytest.mark.parametrize(("processes", "result"), [(1, "ok"), (2, "broken")])
def test_a_session_that_another_process_does_not_know_is_reported(
    processes: int, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of socket.io keeps sessions in the memory of one process."""
    monkeypatch.setenv("WS", "/socket.io/")
    with server(*["socket.io", "two processes"][:processes]) as url:
        report = examine(Site(url))
        assert report["sessions in memory"][0] == result
        assert report["WebSocket"][0] == "not applicable"
    lost = r"\d+ of 16 sessions were lost; state in memory needs WEB_CONCURRENCY=1"
    assert result == "ok" or re.fullmatch(lost, report["sessions in memory"][1])


def test_a_websocket_of_socket_io_is_asked_in_its_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server speaks first, and its own close code for a message of unbounded length is accepted."""
    monkeypatch.setenv("WS", "/socket.io")
    asked = []

    def speak_first(client: ServerConnection) -> None:
        asked.append(client.request.path)
        client.send('0{"sid": "1"}')
        list(client)

    with serve(speak_first, "127.0.0.1", 0) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        CHECKS["WebSocket"](Site(f"http://127.0.0.1:{listening.socket.getsockname()[1]}"))
        listening.shutdown()
    assert asked == ["/socket.io/?EIO=4&transport=websocket"] * 2


def test_a_proxy_may_hide_readiness() -> None:
    """404 for /readyz is no fault, unlike 503."""
    with server("hidden") as url:
        CHECKS["health"](Site(url))


def test_a_site_may_add_slashes() -> None:
    """What an unknown address is redirected to counts, and a redirect is no WebSocket."""
    with server("slashes") as url:
        CHECKS["errors"](Site(url))
        with pytest.raises(NotApplicable, match=r"/ws: .*redirect"):
            CHECKS["WebSocket"](Site(url))


def test_the_report_names_the_line_to_change() -> None:
    """Exit code 0, or 1 with a broken check, whose line of this repository is shown."""
    with server() as url:
        lines = smoke(url, expect=0).splitlines()
        assert len(lines) == len(CHECKS)
        assert not [line for line in lines if not line.startswith(("ok  ", "not applicable  "))]
        run("make", "smoke", f"URL={url}")
    with server("no id") as url:
        lines = smoke(url, expect=1).splitlines()
        at = lines.index("broken          request id: X-Request-ID: none, then none")
        assert lines[at + 1].strip().startswith("change serving/peers.py:")
    assert PLACES.keys() <= CHECKS.keys()
    for name, (file, line) in PLACES.items():
        assert (ROOT / file).exists()
        assert line in place(name)


@pytest.mark.parametrize("url", LINES)
def test_what_is_no_deployment_gets_one_line(url: str) -> None:
    """The variable, its value and what is allowed."""
    lines = smoke(url, expect=1).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(LINES[url])


def test_an_address_without_server_gets_one_line() -> None:
    """The address, and what the machine says; `make` alone says that it needs an address."""
    url = f"http://127.0.0.1:{free_port()}"
    lines = smoke(url, expect=1).splitlines()
    assert lines == [f"URL='{url}': must be where a server answers ([Errno 111] Connection refused)"]
    assert "URL='': must be the address of a deployment" in run("make", "smoke", expect=2)


def test_an_unknown_certificate_is_refused_until_it_is_accepted(certificate: Path) -> None:
    """CA=FILE and INSECURE=1 accept it; a wrong value of either is named."""
    with server(certificate=certificate) as url:
        (line,) = smoke(url, expect=1).splitlines()
        assert line.startswith(f"URL='{url}': must be trusted (self-signed certificate)")
        assert line.endswith("or set CA=FILE or INSECURE=1")
        for variable in ({"CA": str(certificate)}, {"INSECURE": "1"}):
            assert "ok              health" in smoke(url, expect=1, **variable)
        for name, value in (("CA", "/nowhere"), ("INSECURE", "perhaps")):
            (line,) = smoke(url, expect=1, **{name: value}).splitlines()
            assert line.startswith(f"{name}='{value}': must be ")
