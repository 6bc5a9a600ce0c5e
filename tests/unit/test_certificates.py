"""The dates of a certificate, as deploy/metrics/certificates.py reads them for Prometheus."""

import datetime
import socket
import ssl
import struct
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.metrics import certificates


def certificate(begin: str, end: str) -> tuple[bytes, bytes]:
    """A certificate (PEM) that is valid between these dates, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web.localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(datetime.datetime.fromisoformat(begin))
    made = builder.not_valid_after(datetime.datetime.fromisoformat(end)).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8
    return made.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, form, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("2026-11-29T01:02:03", "2026-11-29T13:02:03"),
        ("2026-01-01T00:00:00", "2049-12-31T23:59:59"),
        ("2026-01-01T00:00:00", "2050-01-01T00:00:00"),  # years of four digits from 2050 on
        ("2051-01-01T00:00:00", "2099-12-31T23:59:59"),
        ("1999-01-01T00:00:00", "2001-01-01T00:00:00"),
    ],
)
def test_dates(begin: str, end: str) -> None:
    """Both dates, to the second, in either form that a certificate may have."""
    found = certificates.dates(ssl.PEM_cert_to_DER_cert(certificate(begin, end)[0].decode()))
    assert found == [datetime.datetime.fromisoformat(f"{text}+00:00").timestamp() for text in (begin, end)]


def test_what_is_no_certificate_is_refused() -> None:
    """ValueError, which becomes certificate_readable 0."""
    with pytest.raises(ValueError, match="no dates"):
        certificates.dates(b"")


def test_an_expired_certificate_is_read_and_a_missing_one_reported(tmp_path: Path) -> None:
    """From a real TLS server; another port answers nothing."""
    chain, key = certificate("2020-01-01T00:00:00", "2021-01-01T00:00:00")
    (tmp_path / "pem").write_bytes(chain + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = ("127.0.0.1", server.server_port)
        text = certificates.metrics(address, ["web.localhost"])
        server.shutdown()
    assert 'certificate_not_before_seconds{host="web.localhost"} 1577836800\n' in text
    assert 'certificate_not_after_seconds{host="web.localhost"} 1609459200\n' in text
    assert 'certificate_readable{host="web.localhost"} 1\n' in text
    text = certificates.metrics(address, ["web.localhost"])
    assert 'certificate_readable{host="web.localhost"} 0\n' in text
    assert "certificate_not_after_seconds{" not in text


def test_the_names_are_those_of_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable *_HOST, each name once."""
    monkeypatch.setattr("os.environ", {"A_HOST": "a.example b.example", "B_HOST": "b.example", "HOST": "x"})
    assert certificates.edge_hosts() == ["a.example", "b.example"]


def test_a_client_that_goes_leaves_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """Prometheus does after its scrape_timeout."""
    with HTTPServer(("127.0.0.1", 0), certificates.Handler) as server:
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.handle_request()
    assert "Traceback" not in capsys.readouterr().err
