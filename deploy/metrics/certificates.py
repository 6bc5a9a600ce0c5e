"""When the certificates of the edge end, for Prometheus: http://certificates:9000/metrics.

Each name in a variable *_HOST is asked for at the edge, as a browser does, and the dates of the certificate
that it shows are passed on. Nothing is verified, because an expired or a local one counts as well.
"""

import datetime
import os
import re
import socket
import ssl
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

EDGE, PORT, TIMEOUT = "edge", 9000, 5
# The period of validity in a certificate (RFC 5280, section 4.1): two dates, each with a year of two
# digits (tag 0x17) or of four (tag 0x18).
DATE = rb"(?:\x17\x0d(\d{12})|\x18\x0f(\d{14}))Z"
VALIDITY = re.compile(DATE * 2)


def dates(certificate: bytes) -> list[float]:
    """Where the validity of a certificate (DER) begins and ends, in seconds since 1970."""
    found = VALIDITY.search(certificate)
    if not found:
        raise ValueError("no dates in the certificate")
    texts = [text.decode() for text in found.groups() if text]
    # RFC 5280: years from 50 on are of the twentieth century.
    texts = [text if len(text) == 14 else ("19" if text >= "5" else "20") + text for text in texts]
    times = [datetime.datetime.strptime(text, "%Y%m%d%H%M%S") for text in texts]
    return [time.replace(tzinfo=datetime.UTC).timestamp() for time in times]


def ask(address: tuple[str, int], host: str) -> bytes:
    """The certificate (DER) that this address shows for this name."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(address, TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname=host) as encrypted,
    ):
        return encrypted.getpeercert(binary_form=True) or b""


def metrics(address: tuple[str, int], hosts: list[str]) -> str:
    """The series of all names, in Prometheus' text format."""
    names = ("certificate_not_before_seconds", "certificate_not_after_seconds")
    lines = {name: [f"# TYPE {name} gauge"] for name in (*names, "certificate_readable")}
    for host in hosts:
        try:
            values = dates(ask(address, host))
        except (OSError, ValueError) as error:
            print(f"{host}: {error}", flush=True)
            values = []
        for name, value in zip(names, values, strict=False):
            lines[name].append(f'{name}{{host="{host}"}} {value:.0f}')
        lines["certificate_readable"].append(f'certificate_readable{{host="{host}"}} {len(values) // 2}')
    return "".join(f"{line}\n" for series in lines.values() for line in series)


class Handler(BaseHTTPRequestHandler):
    """GET /livez and GET /metrics."""

    def handle(self) -> None:
        """Say nothing of a client that goes before its answer, as Prometheus does after scrape_timeout."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answer one request."""
        body = ""
        if self.path == "/metrics":
            body = metrics((EDGE, int(os.environ["EDGE_HTTPS_PORT"])), edge_hosts())
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing about each request."""


def edge_hosts() -> list[str]:
    """The names that the edge has certificates for."""
    words = [word for name, value in os.environ.items() if name.endswith("_HOST") for word in value.split()]
    return sorted(set(words))


if __name__ == "__main__":
    if "--check" in sys.argv:
        # The health check; without a listener, the exit code is 1.
        socket.create_connection(("127.0.0.1", PORT), TIMEOUT).close()
        sys.exit()
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()
